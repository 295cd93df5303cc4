// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Step is one thing that happened to an object, as an event or the object itself tells.
type Step struct {
	Time    time.Time `json:"time"`   // of the first, where it happened more than once
	Object  string    `json:"object"` // such as pod/gpu-pod
	Type    string    `json:"type"`   // Normal or Warning
	Reason  string    `json:"reason"`
	Message string    `json:"message,omitempty"`
	From    string    `json:"from,omitempty"`  // the program whose event it is; empty: the object tells
	Count   int32     `json:"count,omitempty"` // how often, when more than once
}

// Reasons of steps that a pod itself tells. Kubelet's events Created and Started are of
// containers, and have names of their own.
const (
	StepPodCreated     = "PodCreated"
	StepPodScheduled   = "PodScheduled"
	StepInitRunning    = "InitRunning" // of an init container
	StepInitTerminated = "InitTerminated"
	StepRunning        = "Running" // of a container
	StepTerminated     = "Terminated"
	StepPodReady       = "PodReady"
)

// usual is the order in which what is told of a pod comes.
var usual = []string{
	StepPodCreated, "FailedScheduling", "GPUsPlaced", StepPodScheduled, "Scheduled", "PreparationFailed", "Prepared",
	"Pulling", "Pulled", "Created", "Started", StepInitRunning, StepInitTerminated, StepRunning, StepPodReady,
}

// usually ranks reasons by when in a pod's life they come; what it does not know comes
// last.
func usually(reason string) int {
	if i := slices.Index(usual, reason); i >= 0 {
		return i
	}
	return len(usual)
}

// SortSteps sorts by the second, then as things usually come, then by time: most times
// are whole seconds.
func SortSteps(steps []Step) {
	slices.SortStableFunc(steps, func(a, b Step) int {
		return cmp.Or(cmp.Compare(a.Time.Unix(), b.Time.Unix()), cmp.Compare(usually(a.Reason), usually(b.Reason)), a.Time.Compare(b.Time))
	})
}

// StepOf reads an event in either of its forms: client-go's old recorder writes source,
// firstTimestamp and count, the new one reportingController, eventTime and series.
func StepOf(e *v1.Event) Step {
	s := Step{
		Time: e.EventTime.Time, Object: objectOf(e.InvolvedObject.Kind, e.InvolvedObject.Name), Type: e.Type, Reason: e.Reason,
		Message: e.Message, From: cmp.Or(e.ReportingController, e.Source.Component), Count: e.Count,
	}
	if s.Time.IsZero() {
		s.Time = e.FirstTimestamp.Time
	}
	if s.Time.IsZero() {
		s.Time = e.CreationTimestamp.Time
	}
	if e.Series != nil {
		s.Count = e.Series.Count
	}
	if s.Count < 2 {
		s.Count = 0
	}
	return s
}

func objectOf(kind, name string) string {
	if kind == "Pod" || kind == "Node" {
		kind = strings.ToLower(kind)
	}
	return kind + "/" + name
}

// StepsOfPod are those that a pod itself tells, to the second.
func StepsOfPod(p *v1.Pod) []Step {
	var steps []Step
	add := func(at time.Time, kind, reason, message string) {
		steps = append(steps, Step{Time: at, Object: objectOf("Pod", p.Name), Type: kind, Reason: reason, Message: message})
	}
	add(p.CreationTimestamp.Time, v1.EventTypeNormal, StepPodCreated, "the pod was created")
	for _, c := range p.Status.Conditions {
		at := c.LastTransitionTime.Time
		if c.Status != v1.ConditionTrue || at.IsZero() {
			continue
		}
		switch c.Type {
		case v1.PodScheduled:
			add(at, v1.EventTypeNormal, StepPodScheduled, "bound to "+p.Spec.NodeName)
		case v1.PodReady:
			add(at, v1.EventTypeNormal, StepPodReady, "all containers are ready")
		case v1.DisruptionTarget:
			add(at, v1.EventTypeWarning, string(c.Type), c.Reason+": "+c.Message)
		}
	}
	containers := func(list []v1.ContainerStatus, running, terminated string) {
		for i := range list {
			if r := list[i].State.Running; r != nil {
				add(r.StartedAt.Time, v1.EventTypeNormal, running, "container "+list[i].Name+" runs")
			}
			if t := list[i].State.Terminated; t != nil {
				add(t.FinishedAt.Time, v1.EventTypeNormal, terminated, fmt.Sprintf("container %s ended with %d", list[i].Name, t.ExitCode))
			}
		}
	}
	containers(p.Status.InitContainerStatuses, StepInitRunning, StepInitTerminated)
	containers(p.Status.ContainerStatuses, StepRunning, StepTerminated)
	return steps
}
