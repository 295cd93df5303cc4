// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podresource "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/pool"
)

// gate says why a pod may not go to a node whatever its GPUs hold: what
// kube-scheduler's own plugins look at first, as far as Nodes and pods tell it.
// Affinity between pods, volumes and topology spread are not looked at.
func (s *survey) gate(pod *v1.Pod) pool.Barred {
	if s.nodes == nil {
		return nil
	}
	affinity := nodeaffinity.GetRequiredNodeAffinity(pod)
	wants := requestsOf(pod)
	wants[v1.ResourcePods] = *resource.NewQuantity(1, resource.DecimalSI)
	used := s.used(pod)
	return func(name string, more int) string {
		node, ok := s.nodes[name]
		if !ok {
			return "is gone, and its GPUNode is still there"
		}
		if node.Spec.Unschedulable {
			return "is cordoned"
		}
		if ok, err := affinity.Match(node); err != nil || !ok {
			return "does not match the pod's nodeSelector or node affinity"
		}
		taint, bad := corev1.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, pod.Spec.Tolerations,
			func(t *v1.Taint) bool { return t.Effect != v1.TaintEffectPreferNoSchedule }, false)
		if bad {
			return fmt.Sprintf("has the taint %s, which the pod does not tolerate", taint.ToString())
		}
		return s.short(node, wants, used[name], more)
	}
}

// used adds up what pods other than this one have requested, by node.
func (s *survey) used(but *v1.Pod) map[string]v1.ResourceList {
	out := map[string]v1.ResourceList{}
	for _, p := range s.pods {
		if p.Spec.NodeName == "" || ended(p) || p.UID == but.UID && p.UID != "" {
			continue
		}
		if out[p.Spec.NodeName] == nil {
			out[p.Spec.NodeName] = v1.ResourceList{}
		}
		requests := requestsOf(p)
		requests[v1.ResourcePods] = *resource.NewQuantity(1, resource.DecimalSI)
		for name, q := range requests {
			sum := out[p.Spec.NodeName][name]
			sum.Add(q)
			out[p.Spec.NodeName][name] = sum
		}
	}
	return out
}

// requestsOf adds up a pod's requests. A limit without a request is one, as the API
// server fills in: what comes from a file has not been there yet.
func requestsOf(pod *v1.Pod) v1.ResourceList {
	filled := &v1.Pod{Spec: *pod.Spec.DeepCopy()}
	for _, list := range [][]v1.Container{filled.Spec.Containers, filled.Spec.InitContainers} {
		for i := range list {
			r := &list[i].Resources
			if r.Requests == nil {
				r.Requests = v1.ResourceList{}
			}
			for name, q := range r.Limits {
				if _, given := r.Requests[name]; !given {
					r.Requests[name] = q
				}
			}
		}
	}
	return podresource.PodRequests(filled, podresource.PodResourcesOptions{})
}

// short says which resource a node lacks for one more of these pods.
func (s *survey) short(node *v1.Node, wants, used v1.ResourceList, more int) string {
	devices := s.opts.Resources().Count
	if s.agentless(node) {
		return "offers no " + string(devices) + " to kubelet: its node agent is not running, or has nothing to offer"
	}
	requestOnly := s.opts.Resources().RequestOnly()
	for _, name := range append([]v1.ResourceName{devices}, slices.Sorted(maps.Keys(wants))...) { // devices first: they are what this is about
		want, allocatable := wants[name], node.Status.Allocatable[name]
		if want.IsZero() || slices.Contains(requestOnly, name) {
			continue
		}
		if _, known := node.Status.Allocatable[name]; !known {
			return fmt.Sprintf("offers no %s", name)
		}
		need := used[name].DeepCopy()
		all := want.DeepCopy()
		all.Mul(int64(more + 1))
		need.Add(all)
		if need.Cmp(allocatable) > 0 {
			return fmt.Sprintf("has too little %s left for the pod's request of %s", name, want.String())
		}
	}
	return ""
}
