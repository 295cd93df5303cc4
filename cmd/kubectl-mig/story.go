// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"github.com/dynamig/dynamig/pkg/pool"
)

// step is one thing that happened.
type step struct {
	Time    time.Time `json:"time"`
	Object  string    `json:"object"` // such as pod/gpu-pod
	Type    string    `json:"type"`   // Normal or Warning
	Reason  string    `json:"reason"`
	Message string    `json:"message,omitempty"`
	Count   int32     `json:"count,omitempty"` // how often, when more than once
}

// keeping says how far events reach back.
const keeping = "Events reach back only as long as the cluster keeps them, one hour by default."

// eventsOf lists the events about objects of a kind, and of a name and UID where they
// are given. The note says what may not be read.
func eventsOf(ctx context.Context, kube kubernetes.Interface, namespace string, of v1.ObjectReference) (steps []step, note string, err error) {
	about := fields.Set{"involvedObject.kind": of.Kind}
	if of.Name != "" {
		about["involvedObject.name"] = of.Name
	}
	if of.UID != "" { // others of the name came before it
		about["involvedObject.uid"] = string(of.UID)
	}
	list, err := kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: about.AsSelector().String()})
	if apierrors.IsForbidden(err) {
		return nil, fmt.Sprintf("you may not list events in namespace %q, so steps are known from the object alone (ClusterRole dynamig-viewer allows it)", namespace), nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("listing events: %w", err)
	}
	for i := range list.Items {
		steps = append(steps, stepOf(&list.Items[i]))
	}
	return steps, "", nil
}

// stepOf reads either form of an event.
func stepOf(e *v1.Event) step {
	s := step{
		Time: e.EventTime.Time, Object: object(e.InvolvedObject.Kind, e.InvolvedObject.Name), Type: e.Type, Reason: e.Reason,
		Message: e.Message, Count: e.Count,
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

func object(kind, name string) string {
	switch kind {
	case "Pod":
		return "pod/" + name
	case "Node":
		return "node/" + name
	default:
		return kind + "/" + name
	}
}

// podCreated is the reason of the pod's creation; kubelet's Created is a container's.
const podCreated = "PodCreated"

// stepsOfPod are those that the pod itself tells, to the second.
func stepsOfPod(p *v1.Pod) []step {
	name := object("Pod", p.Name)
	steps := []step{{Time: p.CreationTimestamp.Time, Object: name, Type: v1.EventTypeNormal, Reason: podCreated, Message: "the pod was created"}}
	for _, c := range p.Status.Conditions {
		if c.Status != v1.ConditionTrue || c.LastTransitionTime.IsZero() {
			continue
		}
		switch c.Type {
		case v1.PodScheduled:
			steps = append(steps, step{Time: c.LastTransitionTime.Time, Object: name, Type: v1.EventTypeNormal, Reason: "PodScheduled", Message: "bound to " + p.Spec.NodeName})
		case v1.PodReady:
			steps = append(steps, step{Time: c.LastTransitionTime.Time, Object: name, Type: v1.EventTypeNormal, Reason: "PodReady", Message: "all containers are ready"})
		case v1.DisruptionTarget:
			steps = append(steps, step{Time: c.LastTransitionTime.Time, Object: name, Type: v1.EventTypeWarning, Reason: "DisruptionTarget", Message: c.Reason + ": " + c.Message})
		}
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		steps = append(steps, stepsOfContainer(name, &c)...)
	}
	return steps
}

func stepsOfContainer(pod string, c *v1.ContainerStatus) []step {
	var steps []step
	if r := c.State.Running; r != nil {
		steps = append(steps, step{Time: r.StartedAt.Time, Object: pod, Type: v1.EventTypeNormal, Reason: "Running", Message: "container " + c.Name + " runs"})
	}
	if t := c.State.Terminated; t != nil {
		steps = append(steps, step{Time: t.FinishedAt.Time, Object: pod, Type: v1.EventTypeNormal, Reason: "Terminated",
			Message: fmt.Sprintf("container %s ended with %d", c.Name, t.ExitCode)})
	}
	return steps
}

// ordered sorts by the second, then as things usually come, then by time.
func ordered(steps []step) []step {
	slices.SortStableFunc(steps, func(a, b step) int {
		if n := cmp.Compare(a.Time.Unix(), b.Time.Unix()); n != 0 {
			return n
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Time.Compare(b.Time))
	})
	return steps
}

// rank is that of pool.Usually, after the pod's own creation.
func rank(s step) int {
	if s.Reason == podCreated {
		return -1
	}
	return pool.Usually(s.Reason)
}

// stepsTold leaves out events of kubelet and of others that the pod's own record
// tells better.
func stepsTold(steps []step) []step {
	return slices.DeleteFunc(steps, func(s step) bool {
		return slices.Contains([]string{"Scheduled", "Pulled", "Pulling", "Created", "Started"}, s.Reason)
	})
}

// text is reason and message; the reason is left out where the message begins with
// it.
func (st *step) text() string {
	t := st.Message
	if first, _, _ := strings.Cut(t, " "); first != st.Reason {
		t = strings.TrimSuffix(st.Reason+": "+t, ": ")
	}
	if st.Count > 1 {
		t += fmt.Sprintf(" (%d times)", st.Count)
	}
	return t
}

// drawSteps lists steps with what passed since the one before.
func drawSteps(s *screen, steps []step) []line {
	var out []line
	var last time.Time
	for _, st := range steps {
		since := ""
		if !last.IsZero() {
			since = "+" + brief(max(0, st.Time.Sub(last)))
		}
		if st.Time.After(last) {
			last = st.Time
		}
		mark := fmt.Sprintf("  %s %s  ", st.Time.Local().Format(time.TimeOnly), padLeft(since, 7))
		style := plain
		if st.Type == v1.EventTypeWarning {
			style = amber
		}
		out = append(out, s.wrap(mark, style, "%s", st.text())...)
	}
	return out
}

func padLeft(t string, width int) string { return fmt.Sprintf("%*s", width, t) }

// brief is a duration as people say it.
func brief(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
