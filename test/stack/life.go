// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Life is what the first container of a pod keeps while nothing disturbs it.
type Life struct {
	Instances []string // UUIDs that NVML gives its instances
	Container string   // the runtime's id
	Restarts  int32
	Since     string // when its first process began, in clock ticks since the machine did
}

// Life reads a running pod's.
func (s *Stack) Life(ctx context.Context, pod *v1.Pod) (Life, error) {
	now, err := s.Kube.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return Life{}, err
	}
	if len(now.Status.ContainerStatuses) == 0 {
		return Life{}, fmt.Errorf("pod %s has no container", pod.Name)
	}
	l := Life{Container: now.Status.ContainerStatuses[0].ContainerID, Restarts: now.Status.ContainerStatuses[0].RestartCount}
	if l.Instances, err = s.UUIDs(now, now.Spec.Containers[0].Name); err != nil {
		return Life{}, err
	}
	out, err := s.Cluster.Kubectl(ctx, "exec", "-n", pod.Namespace, pod.Name, "--", "cut", "-d", " ", "-f22", "/proc/1/stat")
	l.Since = strings.TrimSpace(string(out))
	return l, err
}

// UUIDs are those that NVML gives the instances at the placements of a container's
// allocation.
func (s *Stack) UUIDs(pod *v1.Pod, container string) ([]string, error) {
	a, err := v1alpha1.DecodeAllocation(pod.Annotations[v1alpha1.AnnotationAllocation])
	if err != nil {
		return nil, err
	}
	node, err := s.Node(pod.Spec.NodeName)
	if err != nil {
		return nil, err
	}
	driver, err := sim.Open(node.SimRoot)
	if err != nil {
		return nil, err
	}
	defer driver.Close()
	var uuids []string
	for _, d := range a.Containers[container] {
		instances, err := driver.Instances(nvml.GPUID(d.GPU))
		if err != nil {
			return nil, err
		}
		for _, i := range instances {
			if int32(i.Profile) == d.MIG.ProfileID && int32(i.Start) == d.MIG.Start {
				uuids = append(uuids, i.UUID)
			}
		}
	}
	return uuids, nil
}

// WaitTemplate waits until a template of a node's GPU, by its place in the file from
// 0, is the first that has everything in use.
func (s *Stack) WaitTemplate(ctx context.Context, node, gpu string, want int) error {
	return Until(ctx, fmt.Sprintf("template %d on GPU %s", want, gpu), func() (bool, error) {
		report, err := s.GPUs.DynamigV1alpha1().GPUNodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		list, err := s.Kube.CoreV1().Pods(v1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			return false, err
		}
		pods := make([]*v1.Pod, len(list.Items))
		for i := range list.Items {
			pods[i] = &list.Items[i]
		}
		picture := pool.Options{}.Draw(report, pods, &pool.Catalogues{})
		i := slices.IndexFunc(picture.GPUs, func(g pool.GPUPicture) bool { return g.UUID == gpu })
		return i >= 0 && picture.GPUs[i].Template != nil && *picture.GPUs[i].Template == want, nil
	})
}
