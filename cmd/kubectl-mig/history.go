// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/pool"
)

type historyOptions struct {
	kind, name string // pod or node; empty: all GPU pods
	all        bool   // namespaces
	output     string
}

func newHistoryCommand(s *screen, a *access) *cobra.Command {
	var o historyOptions
	cmd := &cobra.Command{
		Use:   "history [pod NAME | node NAME]",
		Short: "List what happened to GPU pods and nodes, in order",
		Long: `Lists what happened, the oldest first, from events and from what pods and GPUNodes
record themselves. ` + keeping,
		Example: `  kubectl mig history
  kubectl mig history pod gpu-pod
  kubectl mig history node node1`,
		Args: checked(func(cmd *cobra.Command, args []string) (err error) {
			o.kind, o.name, err = subject(cmd, args, "pod", "node")
			return err
		}),
		RunE: func(cmd *cobra.Command, _ []string) error { return history(cmd.Context(), s, a, o) },
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var names []string
		switch {
		case len(args) == 0:
			names = []string{"pod", "node"}
		case len(args) == 1 && args[0] == "pod":
			names = a.podNames(cmd)
		case len(args) == 1 && args[0] == "node":
			names = a.nodeNames(cmd)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	cmd.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "Of all namespaces")
	addOutput(cmd, &o.output, "", "table", "json", "yaml")
	return cmd
}

// subject reads "pod NAME" or "pod/NAME"; nothing where nothing is given.
func subject(cmd *cobra.Command, args []string, kinds ...string) (kind, name string, err error) {
	if len(args) == 1 {
		args = strings.SplitN(args[0], "/", 2)
	}
	switch {
	case len(args) == 0:
		return "", "", nil
	case len(args) != 2 || args[1] == "":
		name := "NAME"
		if len(args) == 1 && !slices.Contains(kinds, args[0]) {
			name = args[0]
		}
		return "", "", fmt.Errorf("want %s and a name, such as: %s %s %s", strings.Join(kinds, " or "), cmd.CommandPath(), kinds[0], name)
	}
	for _, k := range kinds {
		if args[0] == k || args[0] == k+"s" || args[0] == k[:2] && k == "pod" || args[0] == "no" && k == "node" {
			return k, args[1], nil
		}
	}
	return "", "", fmt.Errorf("%q is not known here; use %s", args[0], strings.Join(kinds, " or "))
}

func history(ctx context.Context, s *screen, a *access, o historyOptions) error {
	if err := checkOutput(o.output, "table", "json", "yaml"); err != nil {
		return err
	}
	namespace, err := a.connect()
	if err != nil {
		return err
	}
	if o.all {
		namespace = metav1.NamespaceAll
	}
	var steps []pool.Step
	switch o.kind {
	case "node":
		steps, err = a.historyOfNode(ctx, s, o.name)
	case "pod":
		steps, err = a.historyOfPod(ctx, s, namespace, o.name)
	default:
		steps, err = a.historyOfAll(ctx, s, namespace)
	}
	if err != nil {
		return err
	}
	steps = append([]pool.Step{}, steps...)
	pool.SortSteps(steps)
	if o.output == "json" || o.output == "yaml" {
		return s.encode(o.output, map[string]any{"history": steps})
	}
	return s.print(append(drawHistory(s, steps), s.wrap("", dim, "%s", keeping)...)...)
}

// historyOfPod is what is known of one pod; of one that is gone its events are.
func (a *access) historyOfPod(ctx context.Context, s *screen, namespace, name string) ([]pool.Step, error) {
	steps, note, err := eventsOf(ctx, a.kube, namespace, v1.ObjectReference{Kind: "Pod", Name: name})
	if err != nil {
		return nil, err
	}
	s.noteIf(note)
	pod, err := a.kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && len(steps) == 0:
		return nil, fmt.Errorf("there is no pod %s in namespace %s, and no event about one is kept", name, namespace)
	case apierrors.IsNotFound(err):
		s.noteIf("the pod is gone; this is what its events tell")
		return steps, nil
	case err != nil:
		return nil, err
	}
	return append(steps, pool.StepsOfPod(pod)...), nil
}

// historyOfNode is what is known of a node and its GPUNode.
func (a *access) historyOfNode(ctx context.Context, s *screen, name string) ([]pool.Step, error) {
	steps, note, err := eventsOf(ctx, a.kube, metav1.NamespaceAll, v1.ObjectReference{Kind: "Node", Name: name})
	if err != nil {
		return nil, err
	}
	s.noteIf(note)
	n, err := a.gpus.DynamigV1alpha1().GPUNodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if len(steps) == 0 {
			return nil, fmt.Errorf("node %s has no GPUNode, and no event about it is kept", name)
		}
		return steps, nil
	}
	if err != nil {
		return nil, err
	}
	for _, c := range n.Status.Conditions {
		if c.Reason == "None" {
			continue
		}
		kind := v1.EventTypeNormal
		if pool.Wrong(c) {
			kind = v1.EventTypeWarning
		}
		steps = append(steps, pool.Step{Time: c.LastTransitionTime.Time, Object: "gpunode/" + name, Type: kind,
			Reason: c.Type + "=" + string(c.Status), Message: c.Reason + ": " + firstLine(c.Message, name)})
	}
	return steps, nil
}

// historyOfAll is what events tell of pods that ask for GPUs, and of pods that are
// gone and had some.
func (a *access) historyOfAll(ctx context.Context, s *screen, namespace string) ([]pool.Step, error) {
	steps, note, err := eventsOf(ctx, a.kube, namespace, v1.ObjectReference{Kind: "Pod"})
	if err != nil {
		return nil, err
	}
	s.noteIf(note)
	list, err := a.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, err
	}
	opts, _, wrong := a.options(ctx)
	if wrong != nil {
		return nil, wrong
	}
	ours := map[string]bool{}
	if err == nil {
		for i := range list.Items {
			if p := &list.Items[i]; opts.Wants(p) {
				told := pool.StepsOfPod(p)
				ours[told[0].Object] = true
				steps = append(steps, told...)
			}
		}
	}
	for _, st := range steps {
		if slices.Contains(ownReasons, st.Reason) {
			ours[st.Object] = true
		}
	}
	return slices.DeleteFunc(steps, func(st pool.Step) bool { return !ours[st.Object] }), nil
}

// ownReasons are reasons of events that only dynamig's programs give.
var ownReasons = []string{
	"GPUsPlaced", "AllocationOverwritten", "GPUsRefused", "Prepared", "PreparationFailed", "Refused", "NotPlaced", "AllocationChanged",
}

// noteIf tells what is missing from an answer.
func (s *screen) noteIf(note string) {
	if note != "" {
		fmt.Fprintf(s.err, "note: %s\n", printable(note))
	}
}

// drawHistory lists steps with their objects.
func drawHistory(s *screen, steps []pool.Step) []line {
	if len(steps) == 0 {
		return []line{text(plain, "Nothing is recorded.")}
	}
	width := 0
	for _, st := range steps {
		width = max(width, columns(st.Object))
	}
	width = min(width, s.width/3)
	var out []line
	for _, st := range steps {
		mark := fmt.Sprintf("%s  %s  ", st.Time.Local().Format(time.DateTime), pad(st.Object, width))
		if s.width < 80 {
			mark = fmt.Sprintf("%s  %s  ", st.Time.Local().Format(time.TimeOnly), pad(st.Object, width))
		}
		style := plain
		if st.Type == v1.EventTypeWarning {
			style = amber
		}
		out = append(out, s.wrap(mark, style, "%s", textOf(&st))...)
	}
	return out
}

var errNoName = errors.New("name a pod, such as: kubectl mig explain pod NAME")
