// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// asksNothing is the problem of a workload that needs no GPU.
const asksNothing = "it asks for no GPU"

// problem is why dynamig would not place a workload whatever the GPUs hold; empty
// where it would try. Admission has seen the pod.
func (v *survey) problem(w *workload) string {
	name := w.pod.Spec.SchedulerName
	mistake := v.mistake(w.pod)
	switch invalid := refused(w.pod); {
	case invalid != "":
		return invalid
	case mistake != "":
		return mistake
	case !v.opts.Wants(w.pod):
		return asksNothing
	case w.Kind == "DaemonSet":
		return "a DaemonSet puts one pod on each node whatever is free there; try its pod, as kind: Pod with --replicas"
	case name == v1alpha1.SchedulerName:
		return ""
	case name == "":
		return "spec.schedulerName is missing, and dynamig places no pod without it; set " + v1alpha1.SchedulerName + v.besides(w.pod)
	}
	return fmt.Sprintf("spec.schedulerName is %s, which is not dynamig's; set %s%s", name, v1alpha1.SchedulerName, v.besides(w.pod))
}

// besides is what else is wrong with a pod of another scheduler, as sentences that follow
// one; empty where nothing is.
func (v *survey) besides(pod *v1.Pod) string {
	_, err := pool.Parse(pod, v.opts)
	if err == nil {
		return ""
	}
	return fmt.Sprintf(". Besides, %v%s", err, v.leftToAdmission(pod))
}

// leftToAdmission says that a pod lacks both its scheduler and its number of GPUs, as those
// written for HAMi do, as a sentence that follows one; empty for others.
func (v *survey) leftToAdmission(pod *v1.Pod) string {
	_, before := pool.Parse(pod, v.opts)
	_, after := pool.Parse(v.completed(pod), v.opts)
	if before == nil || after != nil || pod.Spec.SchedulerName == v1alpha1.SchedulerName {
		return ""
	}
	return ". The component hami-defaults gives new pods both, the scheduler and the number"
}

// mistake is what a pod asks for that nobody gives; empty where there is none.
func (v *survey) mistake(pod *v1.Pod) string {
	ours := v.opts.Resources()
	if foreign := v.foreignResource(pod); foreign != "" {
		names := append([]v1.ResourceName{ours.Count}, ours.RequestOnly()...)
		if near := nearName(foreign, names); near != "" {
			return fmt.Sprintf("it asks for %s, which no node offers; did you mean %s?", foreign, near)
		}
		var list []string
		for _, name := range names {
			list = append(list, string(name))
		}
		return fmt.Sprintf("it asks for %s, which no node offers; dynamig's resources are %s, and the annotation %s names a profile",
			foreign, strings.Join(list, ", "), v1alpha1.AnnotationProfile)
	}
	return pool.Uncounted(pod, ours)
}

// foreignResource is a resource in the domain of ours that is none of ours and that no
// node offers; empty where there is none or Nodes may not be read.
func (v *survey) foreignResource(pod *v1.Pod) v1.ResourceName {
	ours := v.opts.Resources()
	domain, _, _ := strings.Cut(string(v1alpha1.ResourceGPU), "/")
	for _, name := range slices.Sorted(maps.Keys(requestsOf(pod))) {
		if !strings.HasPrefix(string(name), domain+"/") || name == ours.Count || slices.Contains(ours.RequestOnly(), name) || v.nodes == nil {
			continue
		}
		offered := false
		for _, n := range v.nodes {
			q := n.Status.Allocatable[name] // 0 is left of a device plugin that has gone
			offered = offered || !q.IsZero()
		}
		if !offered {
			return name
		}
	}
	return ""
}
