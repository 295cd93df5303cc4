// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// A GPUNode and pods stay as they are when an agent, a kubelet or the scheduler is
// dead. That shows on the Node and on the scheduler's lease.

// outage is a pool.Outage in words.
type outage struct {
	word pool.Outage
	text string // a sentence with the remedy
}

// outageOf is nil where nothing is amiss, and where Nodes may not be read.
func (s *survey) outageOf(n *v1alpha1.GPUNode) *outage {
	if s.nodes == nil {
		return nil
	}
	node, count := s.nodes[n.Name], s.opts.Resources().Count
	var kubelet *pool.Kubelet
	if node != nil {
		k := pool.KubeletOf(node, count)
		kubelet = &k
	}
	text := ""
	word := (&pool.NodePicture{Name: n.Name, Conditions: n.Status.Conditions}).Outage(kubelet)
	switch word {
	case pool.NodeGone:
		text = "Its Node is gone, and this is the agent's last report."
	case pool.NotReady:
		text = fmt.Sprintf("The Node is not ready (%s): nothing starts here until its kubelet is back, and this is the last report.", whyNotReady(node))
	case pool.NoAgent:
		text = fmt.Sprintf("No agent runs: kubelet counts no %s here, so nothing new comes, and this is the last report. Start dynamig-nodeagent on %s.", count, n.Name)
	default:
		return nil
	}
	return &outage{word, text}
}

// whyNotReady is what the condition of a Node says that is not ready.
func whyNotReady(node *v1.Node) string {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == v1.NodeReady {
			return cmp.Or(c.Message, c.Reason)
		}
	}
	return ""
}

// outageAt is what is amiss with a node that a pod is bound to.
func (s *survey) outageAt(node string) string {
	for _, n := range s.gpuNodes {
		if n.Name != node {
			continue
		}
		if out := s.outageOf(n); out != nil {
			return fmt.Sprintf("%s: %s", node, out.text)
		}
	}
	return ""
}

// agentlessNodes lists the nodes with GPUs that no pod can get for want of an agent.
func (s *survey) agentlessNodes() []string {
	var out []string
	for _, n := range s.gpuNodes {
		if found := s.outageOf(n); found != nil && found.word == pool.NoAgent {
			out = append(out, n.Name)
		}
	}
	slices.SortFunc(out, naturally)
	return out
}

// offering is the survey as it would be if kubelet had devices to spare on these nodes.
func (s *survey) offering(nodes []string) *survey {
	out := *s
	out.nodes = maps.Clone(s.nodes)
	for _, name := range nodes {
		if s.nodes[name] == nil {
			continue
		}
		node := s.nodes[name].DeepCopy()
		if node.Status.Allocatable == nil {
			node.Status.Allocatable = v1.ResourceList{}
		}
		node.Status.Allocatable[s.opts.Resources().Count] = *resource.NewQuantity(math.MaxInt32, resource.DecimalSI)
		out.nodes[name] = node
	}
	return &out
}

// leaseSilence is how old a lease must be, by the API server's clock, before the
// scheduler counts as dead: four times as long as it lasts, since the scheduler writes
// the time of its own clock there.
const leaseSilence = time.Minute

// readPulse learns from the scheduler's lease whether anything is scheduling. Without
// a fresh one the Deployment may tell that leader election is off.
func (s *survey) readPulse(ctx context.Context, a *access) error {
	s.silence, s.pulse = "", ""
	lease, err := a.kube.CoordinationV1().Leases(s.home).Get(ctx, schedulerDeployment, metav1.GetOptions{})
	why := ""
	switch {
	case apierrors.IsForbidden(err):
		s.note("you may not get the lease of %s: whether it is running is not looked at (Role dynamig-viewer in %s allows it)", schedulerDeployment, s.home)
		return nil
	case apierrors.IsNotFound(err):
		why = "it has no lease in namespace " + s.home
	case err != nil:
		return fmt.Errorf("reading the scheduler's lease: %w", err)
	case lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" || lease.Spec.RenewTime == nil:
		why = "nobody holds its lease"
	default:
		since := a.clock.since(lease.Spec.RenewTime.Time)
		if since <= leaseSilence {
			s.pulse = fmt.Sprintf("%s renewed its lease %s ago", schedulerDeployment, brief(since))
			return nil
		}
		why = fmt.Sprintf("it renewed its lease for the last time %s ago", brief(since))
	}
	switch available, err := available(ctx, a.kube, s.home); {
	case err != nil:
		s.note("whether %s is running cannot be told: %s, and its Deployment was not read: %v", schedulerDeployment, why, err)
	case available:
		s.pulse = fmt.Sprintf("%s has a pod that is ready", schedulerDeployment)
	default:
		s.silence = fmt.Sprintf("Nothing is scheduling: %s does not run, %s. See kubectl -n %s get deployments,pods.", schedulerDeployment, why, s.home)
	}
	return nil
}

// available reports whether the scheduler's Deployment has a pod that is ready.
func available(ctx context.Context, kube kubernetes.Interface, namespace string) (bool, error) {
	d, err := kube.AppsV1().Deployments(namespace).Get(ctx, schedulerDeployment, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && d.Status.AvailableReplicas > 0, err
}
