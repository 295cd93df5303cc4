// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// WaitingPod is a GPU pod that cannot start yet: see pool.Options.Waits.
type WaitingPod struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	Scheduler string    `json:"scheduler"`
	Created   time.Time `json:"created"`
	Request   string    `json:"request"`           // in words
	Message   string    `json:"message,omitempty"` // the scheduler's last word
	Reason    string    `json:"reason,omitempty"`  // in short: what of the message is about the pod, or what to do
	Classes   []string  `json:"classes"`           // of the message, see Classes
	Nominated string    `json:"nominated,omitempty"`
	Gated     bool      `json:"gated,omitempty"` // by spec.schedulingGates: nobody tries to place it
}

func waitingPod(pod *v1.Pod, names *v1alpha1.Resources) *WaitingPod {
	w := &WaitingPod{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Scheduler: pod.Spec.SchedulerName,
		Created: pod.CreationTimestamp.Time, Request: describeRequest(pod, names), Nominated: pod.Status.NominatedNodeName,
		Gated: len(pod.Spec.SchedulingGates) > 0,
	}
	if c := condition(pod, v1.PodScheduled); c != nil && c.Status == v1.ConditionFalse {
		w.Message = c.Message
	}
	w.Reason = cmp.Or(pool.Remedy(pod), pool.BareReason(w.Message))
	w.Classes = classesOf(pod, w, names)
	return w
}

func condition(pod *v1.Pod, of v1.PodConditionType) *v1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == of {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// What a pod's own text may take of an answer, in bytes: an annotation has up to 256 KiB, a
// pod any number of containers, and each message of a stream has all waiting pods.
const (
	maxValue   = 64
	maxRequest = 512
)

// describeRequest says what a pod asks for: "main: gpu 2, gpumem 8000".
func describeRequest(pod *v1.Pod, names *v1alpha1.Resources) string {
	var parts []string
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			var asks []string
			for _, name := range append([]v1.ResourceName{names.Count}, names.RequestOnly()...) {
				if q, ok := list[i].Resources.Limits[name]; ok && !q.IsZero() {
					asks = append(asks, fmt.Sprintf("%s %d", withoutDomain(name), q.Value()))
				}
			}
			if len(asks) > 0 {
				parts = append(parts, list[i].Name+": "+strings.Join(asks, ", "))
			}
		}
	}
	for _, key := range []string{v1alpha1.AnnotationProfile, v1alpha1.AnnotationMode} {
		if value := pod.Annotations[key]; value != "" {
			parts = append(parts, strings.TrimPrefix(key, "nvidia.com/")+" "+v1alpha1.Shorten(value, maxValue))
		}
	}
	return v1alpha1.Shorten(strings.Join(parts, "; "), maxRequest)
}

func withoutDomain(name v1.ResourceName) string {
	_, short, _ := strings.Cut(string(name), "/")
	return short
}

// class is a kind of reason for which a pod waits. There are few, so that they may
// be label values.
type class struct {
	name string
	says string // part of the message of kube-scheduler that tells it
}

// The classes of reasons, as texts of pkg/pool and kube-scheduler tell them; a test
// holds them to the former.
var classes = []class{
	{"no_placement", "no free MIG placement"},
	{"no_placement", "neither a free MIG placement"},
	{"no_share", "enough left to share"},
	{"no_share", "enough of a GPU left to share"},
	{"just_refused", "had just refused the only"},
	{"cannot_hold", "cannot be cut into"},
	{"cannot_hold", "cannot share GPUs as"},
	{"cannot_hold", "can neither be cut into nor"},
	{"blocked", "foreign or stuck MIG instances"},
	{"not_offered", "no GPU that takes new instances"},
	{"not_offered", "no usable library of HAMi-core"},
	{"not_selected", "no GPU that the pod's annotations accept"},
	{"mode", "no GPU in a mode that annotation"},
	{"mode", "GPUs for software shares only"},
	{"nominated", "room only for a nominated pod"},
	{"no_gpunode", "had no GPUNode"},
	{"no_gpunode", "a GPUNode that cannot be read"},
	{"node_changed", "a GPUNode of an earlier node"},
	{"too_large", "no GPU in the cluster can"},
	{"too_large", "the largest node can hold"},
	{"not_ready", "GPUNode API is not installed"},
	{"not_ready", "GPUNodes are still being read"},
	{"not_ready", "no node offers GPUs yet"},
}

// Further classes.
const (
	classNoSlot  = "no_slot" // NodeResourcesFit's, of the resource that kubelet counts
	classUntried = "untried" // the scheduler has not said anything yet
	classGated   = "gated"
	classOther   = "other" // reasons of other plugins, and mistakes in the pod
)

// Classes lists the values that label reason can have.
func Classes() []string {
	names := []string{classNoSlot, classUntried, classGated, classOther}
	for _, c := range classes {
		names = append(names, c.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func classesOf(pod *v1.Pod, w *WaitingPod, names *v1alpha1.Resources) []string {
	switch {
	case pod.Spec.NodeName != "": // another scheduler's choice
		return []string{classOther}
	case w.Gated:
		return []string{classGated}
	case w.Message == "":
		return []string{classUntried}
	}
	return Classify(w.Message, names.Count)
}

// Classify names the kinds of reason that a message of kube-scheduler tells. count is
// the resource that devices are counted by.
func Classify(message string, count v1.ResourceName) []string {
	var found []string
	for _, c := range classes {
		if strings.Contains(message, c.says) && !slices.Contains(found, c.name) {
			found = append(found, c.name)
		}
	}
	if strings.Contains(message, "Insufficient "+string(count)) {
		found = append(found, classNoSlot)
	}
	if len(found) == 0 {
		return []string{classOther}
	}
	return found
}
