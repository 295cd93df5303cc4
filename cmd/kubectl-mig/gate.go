// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	podresource "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/pool"
)

// bar is what keeps a pod off a node whatever its GPUs hold.
type bar struct {
	text   string // the node is the subject
	remedy string // a sentence's beginning; empty where GPUs or an agent are the remedy

	counted bool // kubelet's count of devices alone bars it
}

// gate says what bars a pod from a node.
func (s *survey) gate(pod *v1.Pod) pool.Barred {
	if s.nodes == nil {
		return nil
	}
	bars := s.bars(pod)
	return func(name string, more int) (string, bool) {
		b := bars(name, more)
		return b.text, b.counted
	}
}

// remedies are what besides GPUs would help a pod that fits nowhere: repairs of what
// is there, agents that it is not enough to start, and where no pod's end would do,
// what would open a node that bars it.
func (s *survey) remedies(pod *v1.Pod, reasons []pool.Reason) (out []string) {
	cures := s.cures(pod)
	if idle := s.agentlessNodes(); len(idle) > 0 && !slices.ContainsFunc(cures, func(c cure) bool { return c.agent }) {
		out = append(out, fmt.Sprintf("Starting the agent, dynamig-nodeagent, on %s: no pod gets GPUs there now. This one has no room there yet", named(idle)))
	}
	out = append(out, texts(cures)...)
	if !barred(reasons) || s.nodes == nil {
		return out
	}
	bars := s.bars(pod)
	for _, r := range reasons {
		if r.Room == 0 {
			continue
		}
		if t := bars(r.Nodes[0], 0).remedy; t != "" && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// barred reports whether something else than GPUs keeps a pod off all nodes whose GPUs
// have room for it, and no pod's end would make room elsewhere.
func barred(reasons []pool.Reason) bool {
	return slices.ContainsFunc(reasons, func(r pool.Reason) bool { return r.Barred && r.Room > 0 }) &&
		!slices.ContainsFunc(reasons, func(r pool.Reason) bool { return r.Curable })
}

// bars says what keeps a pod off nodes: what kube-scheduler's own plugins look at
// first, as far as Nodes and pods tell it. Affinity between pods, volumes and topology
// spread are not looked at.
func (s *survey) bars(pod *v1.Pod) func(name string, more int) bar {
	affinity := nodeaffinity.GetRequiredNodeAffinity(pod)
	asks, used := s.asks(pod), s.used(pod)
	return func(name string, more int) bar {
		node, ok := s.nodes[name]
		if !ok {
			return bar{text: "is gone, and its GPUNode is still there"}
		}
		if node.Spec.Unschedulable {
			return bar{text: "is cordoned", remedy: "Uncordoning a node: kubectl uncordon " + name}
		}
		if ok, err := affinity.Match(node); err != nil || !ok {
			return bar{text: "does not match the pod's nodeSelector or node affinity",
				remedy: "A label: give a node those that nodeSelector or node affinity ask for" + describeSelector(pod) + ", or change these"}
		}
		taint, bad := corev1.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, pod.Spec.Tolerations,
			func(t *v1.Taint) bool { return t.Effect != v1.TaintEffectPreferNoSchedule }, false)
		if bad {
			return bar{text: fmt.Sprintf("has the taint %s, which the pod does not tolerate", taint.ToString()),
				remedy: fmt.Sprintf("A toleration of the taint %s in the pod, if it may go there", taint.ToString())}
		}
		return s.short(node, asks, used[name], more)
	}
}

// describeSelector is " (gpu=none)"; empty without a nodeSelector.
func describeSelector(pod *v1.Pod) string {
	if len(pod.Spec.NodeSelector) == 0 {
		return ""
	}
	return " (" + labels.Set(pod.Spec.NodeSelector).String() + ")"
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

// ask is how much of one resource a pod requests of a node.
type ask struct {
	name v1.ResourceName
	want resource.Quantity
}

// asks are a pod's for what kubelet counts, by name, the devices last.
func (s *survey) asks(pod *v1.Pod) []ask {
	wants, devices := requestsOf(pod), s.opts.Resources().Count
	wants[v1.ResourcePods] = *resource.NewQuantity(1, resource.DecimalSI)
	var out []ask
	for _, name := range slices.Sorted(maps.Keys(wants)) {
		if want := wants[name]; !want.IsZero() && name != devices && !slices.Contains(s.opts.Resources().RequestOnly(), name) {
			out = append(out, ask{name, want})
		}
	}
	return append(out, ask{devices, wants[devices]})
}

// short says which resource a node lacks for one more of the pods that ask for these.
func (s *survey) short(node *v1.Node, asks []ask, used v1.ResourceList, more int) bar {
	devices := s.opts.Resources().Count
	if pool.KubeletOf(node, devices).Devices == 0 {
		return bar{text: "offers no " + string(devices) + " to kubelet: its node agent is not running, or has nothing to offer"}
	}
	for _, a := range asks {
		name, want := a.name, a.want
		allocatable, known := node.Status.Allocatable[name]
		need := want.DeepCopy()
		need.Mul(int64(more + 1))
		need.Add(used[name])
		switch {
		case !known:
			return bar{text: fmt.Sprintf("offers no %s", name), remedy: fmt.Sprintf("A node with GPUs that offers %s, or a pod that does not ask for it", name)}
		case name == devices && need.Cmp(allocatable) > 0:
			return bar{text: fmt.Sprintf("has too little %s left for the pod's request of %s", name, amount(name, want)), counted: true}
		case want.Cmp(allocatable) > 0:
			return bar{text: fmt.Sprintf("has no more than %s %s, and the pod requests %s", amount(name, allocatable), name, amount(name, want)),
				remedy: fmt.Sprintf("A smaller request of %s than %s", name, amount(name, want))}
		case need.Cmp(allocatable) > 0:
			return bar{text: fmt.Sprintf("has too little %s left for the pod's request of %s", name, amount(name, want)),
				remedy: fmt.Sprintf("A smaller request of %s, or the end of pods that have it", name)}
		}
	}
	return bar{}
}

// amount is a quantity as people write it: 1000 CPUs are not 1k, nor is half a GPU
// 500m.
func amount(name v1.ResourceName, q resource.Quantity) string {
	if name == v1.ResourceMemory || q.Format != resource.DecimalSI {
		return q.String()
	}
	return strconv.FormatFloat(q.AsApproximateFloat64(), 'f', -1, 64)
}
