// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOrderWithinASecond: what the pod tells, and events, as they come.
func TestOrderWithinASecond(t *testing.T) {
	now := time.Unix(1, 0)
	want := []string{
		"PodCreated", "GPUsPlaced", "PodScheduled", "Scheduled", "Prepared", "Pulled", "Created", "Started",
		"InitRunning", "InitTerminated", "Running", "PodReady", "Terminated", "Evicted",
	}
	var steps []Step
	for _, reason := range []string{
		"Terminated", "Evicted", "Running", "Started", "InitTerminated", "Created", "Prepared", "Pulled", "PodReady", "InitRunning", "PodScheduled",
		"GPUsPlaced", "PodCreated",
	} {
		steps = append(steps, Step{Time: now, Reason: reason})
	}
	// kube-scheduler's events have microseconds.
	steps = append(steps, Step{Time: now.Add(900 * time.Millisecond), Reason: "Scheduled"})
	SortSteps(steps)
	var got []string
	for _, s := range steps {
		got = append(got, s.Reason)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// TestStepOfEachFormOfAnEvent: time, source and count stand in other fields of either.
func TestStepOfEachFormOfAnEvent(t *testing.T) {
	first, last := time.Unix(1000, 0), time.Unix(2000, 0)
	for name, tc := range map[string]struct {
		event v1.Event
		want  Step
	}{
		"the new recorder's, once": {
			v1.Event{EventTime: metav1.NewMicroTime(first), ReportingController: "dynamig-scheduler"},
			Step{Time: first, From: "dynamig-scheduler"},
		},
		"the new recorder's, again and again": {
			v1.Event{
				EventTime: metav1.NewMicroTime(first), ReportingController: "dynamig-scheduler",
				Series: &v1.EventSeries{Count: 7, LastObservedTime: metav1.NewMicroTime(last)},
			},
			Step{Time: first, From: "dynamig-scheduler", Count: 7},
		},
		"the old recorder's, once": {
			v1.Event{FirstTimestamp: metav1.NewTime(first), LastTimestamp: metav1.NewTime(first), Source: v1.EventSource{Component: "kubelet"}, Count: 1},
			Step{Time: first, From: "kubelet"},
		},
		"the old recorder's, again and again": {
			v1.Event{FirstTimestamp: metav1.NewTime(first), LastTimestamp: metav1.NewTime(last), Source: v1.EventSource{Component: "kubelet"}, Count: 3},
			Step{Time: first, From: "kubelet", Count: 3},
		},
		"one that has no time of its own": {
			v1.Event{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(last)}},
			Step{Time: last},
		},
	} {
		tc.event.InvolvedObject, tc.want.Object = v1.ObjectReference{Kind: "Pod", Name: "p"}, "pod/p"
		if diff := cmp.Diff(tc.want, StepOf(&tc.event)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestStepsOfPod: init containers' are told apart from the others', and what has no time is
// left out.
func TestStepsOfPod(t *testing.T) {
	at := func(s int64) metav1.Time { return metav1.Unix(s, 0) }
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", CreationTimestamp: at(1)}, Spec: v1.PodSpec{NodeName: "n"},
		Status: v1.PodStatus{
			Conditions: []v1.PodCondition{
				{Type: v1.PodScheduled, Status: v1.ConditionTrue, LastTransitionTime: at(2)},
				{Type: v1.PodReady, Status: v1.ConditionTrue},
				{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, LastTransitionTime: at(6), Reason: "GPUsRefused", Message: "why"},
			},
			InitContainerStatuses: []v1.ContainerStatus{
				{Name: "setup", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{FinishedAt: at(3)}}},
				{Name: "sidecar", State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: at(4)}}},
			},
			ContainerStatuses: []v1.ContainerStatus{
				{Name: "main", State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: at(5)}}},
				{Name: "side", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{FinishedAt: at(7), ExitCode: 137}}},
			},
		},
	}
	steps := StepsOfPod(pod)
	SortSteps(steps)
	var got []string
	for _, s := range steps {
		got = append(got, s.Time.UTC().Format("05 ")+s.Object+" "+s.Type+" "+s.Reason+": "+s.Message)
	}
	want := []string{
		"01 pod/p Normal PodCreated: the pod was created",
		"02 pod/p Normal PodScheduled: bound to n",
		"03 pod/p Normal InitTerminated: container setup ended with 0",
		"04 pod/p Normal InitRunning: container sidecar runs",
		"05 pod/p Normal Running: container main runs",
		"06 pod/p Warning DisruptionTarget: GPUsRefused: why",
		"07 pod/p Normal Terminated: container side ended with 137",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}
