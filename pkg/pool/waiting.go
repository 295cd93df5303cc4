// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"regexp"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// Waits reports whether a pod asks for GPUs and cannot start yet: it has neither a node
// nor ended, or somebody else has bound it.
func (o Options) Waits(pod *v1.Pod) bool {
	return o.Wants(pod) && !terminal(pod) && pod.DeletionTimestamp == nil && (pod.Spec.NodeName == "" || PlacedByOthers(pod))
}

// PlacedByOthers reports whether a pod was bound without an allocation.
func PlacedByOthers(pod *v1.Pod) bool {
	_, placed := pod.Annotations[v1alpha1.AnnotationAllocation]
	return pod.Spec.NodeName != "" && !placed
}

// Remedy is what to do about a pod that dynamig does not place; empty for others.
func Remedy(pod *v1.Pod) string {
	const anew = "delete it and create it with spec.schedulerName: " + v1alpha1.SchedulerName
	switch {
	case PlacedByOthers(pod):
		return fmt.Sprintf("it was bound to %s without an allocation: not by %s. It can never start; %s, without spec.nodeName", pod.Spec.NodeName, v1alpha1.SchedulerName, anew)
	case pod.Spec.NodeName == "" && pod.Spec.SchedulerName != v1alpha1.SchedulerName:
		return fmt.Sprintf("its scheduler is %s, which does not cut GPUs; %s", pod.Spec.SchedulerName, anew)
	}
	return ""
}

// Uncounted says what a pod lacks that names a profile and asks for no device, so that it
// is placed as one without GPUs; empty for others.
func Uncounted(pod *v1.Pod, names v1alpha1.Resources) string {
	if pod.Annotations[v1alpha1.AnnotationProfile] == "" || (Options{Names: names}).Wants(pod) {
		return ""
	}
	return fmt.Sprintf("it asks for no GPU: annotation %s says which profile, and not how many; add the limit %s: 1 to a container", v1alpha1.AnnotationProfile, names.Count)
}

// counted is how kube-scheduler begins what it says of a pod that fits nowhere.
var counted = regexp.MustCompile(`^0/\d+ nodes are available: `)

// BareReason is a message of kube-scheduler without how many nodes there are and what
// preemption found: what remains is why the pod fits nowhere.
func BareReason(message string) string {
	bare, _, _ := strings.Cut(counted.ReplaceAllString(message, ""), " preemption: ")
	return bare
}
