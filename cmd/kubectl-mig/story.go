// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
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

// keeping says how far events reach back.
const keeping = "Events reach back only as long as the cluster keeps them, one hour by default."

// eventsOf lists the events about objects of a kind, and of a name and UID where they
// are given. The note says what may not be read.
func eventsOf(ctx context.Context, kube kubernetes.Interface, namespace string, of v1.ObjectReference) (steps []pool.Step, note string, err error) {
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
		steps = append(steps, pool.StepOf(&list.Items[i]))
	}
	return steps, "", nil
}

// stepsTold leaves out events of kubelet and of others that the pod's own record
// tells better.
func stepsTold(steps []pool.Step) []pool.Step {
	return slices.DeleteFunc(steps, func(s pool.Step) bool {
		return slices.Contains([]string{"Scheduled", "Pulled", "Pulling", "Created", "Started"}, s.Reason)
	})
}

// textOf is a step's reason and message; the reason is left out where the message begins
// with it.
func textOf(st *pool.Step) string {
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
func drawSteps(s *screen, steps []pool.Step) []line {
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
		out = append(out, s.wrap(mark, style, "%s", textOf(&st))...)
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
