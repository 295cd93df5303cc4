// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"errors"
	"fmt"
	"maps"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

const cdiDir = "/var/run/cdi"

// part is an instance as NVML and GPUNode both name it.
type part struct {
	gpu    string
	gi, ci int
	uuid   string
}

// Tidy returns an error unless nothing is lost on a node: GPUNode names exactly the
// instances that NVML holds, each as a pod's that is there or as idle, and every CDI
// file of a slot is for a pod that is there.
func (s *Stack) Tidy(ctx context.Context, n *Node) error {
	pods, err := s.Kube.CoreV1().Pods(v1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", n.Name).String(),
	})
	if err != nil {
		return err
	}
	there := map[types.UID]bool{}
	for i := range pods.Items {
		there[pods.Items[i].UID] = true
	}
	report, err := s.GPUs.DynamigV1alpha1().GPUNodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	known, err := known(&report.Status, there)
	if err != nil {
		return err
	}
	held, err := held(n)
	if err != nil {
		return err
	}
	if !maps.Equal(held, known) {
		return fmt.Errorf("NVML of node %s holds %v, GPUNode says %v", n.Name, held, known)
	}
	return n.cdiFiles(there)
}

// known are the instances of a report, all of pods that are there, or idle.
func known(status *v1alpha1.GPUNodeStatus, there map[types.UID]bool) (map[part]bool, error) {
	all := map[part]bool{}
	for _, gpu := range status.GPUs {
		for _, in := range gpu.Instances {
			switch {
			case in.State == v1alpha1.InstanceIdle:
			case in.State == v1alpha1.InstanceLive && there[in.PodUID]:
			default:
				return nil, fmt.Errorf("GPUNode shows an instance that is neither idle nor of a pod that is there: %+v", in)
			}
			all[part{gpu.UUID, int(in.GI), int(in.CI), in.UUID}] = true
		}
	}
	return all, nil
}

// held are the instances that NVML holds.
func held(n *Node) (map[part]bool, error) {
	driver, err := sim.Open(n.SimRoot, sim.Uncounted())
	if err != nil {
		return nil, err
	}
	defer driver.Close()
	gpus, err := driver.GPUs(nil)
	if err != nil {
		return nil, err
	}
	all := map[part]bool{}
	for _, gpu := range gpus {
		instances, err := driver.Instances(gpu.ID)
		if err != nil && !errors.Is(err, nvml.ErrNotSupported) {
			return nil, err
		}
		for _, in := range instances {
			all[part{string(gpu.ID), in.GI, in.CI, in.UUID}] = true
		}
	}
	return all, nil
}

// cdiFiles returns an error if a slot's file is for a pod that is gone.
func (n *Node) cdiFiles(there map[types.UID]bool) error {
	path, err := n.Path(cdiDir)
	if err != nil {
		return err
	}
	dir := cdi.Dir{Path: path}
	slots, err := dir.Slots()
	if err != nil {
		return err
	}
	for _, slot := range slots {
		owner, found, err := dir.ReadOwner(slot)
		if err != nil {
			return err
		}
		if found && !there[types.UID(owner)] {
			return fmt.Errorf("the CDI file of slot %s is for pod %s, which is gone", slot, owner)
		}
	}
	return nil
}
