// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

type explainOptions struct {
	pod    string
	output string
}

func newExplainCommand(s *screen, a *access) *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain pod NAME",
		Short: "Say why a pod is where it is, or why it waits and what would help",
		Long: `For a pod that has its GPUs: what it has, how good that place is as things stand
now, what it costs others, and how long each step took. For one that waits: why each
class of nodes does not suit, and what would help: which pods' end, which layout, how
many GPUs, a smaller request. Ends with code 3 where the pod waits.`,
		Example: `  kubectl mig explain pod gpu-pod
  kubectl mig explain pod/gpu-pod -n team-a -o yaml`,
		Args: checked(func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 0 {
				return errNoName
			}
			_, o.pod, err = subject(cmd, args, "pod")
			return err
		}),
		RunE: func(cmd *cobra.Command, _ []string) error { return explain(cmd.Context(), s, a, o) },
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return []string{"pod"}, cobra.ShellCompDirectiveNoFileComp
		case 1:
			return a.podNames(cmd), cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	addOutput(cmd, &o.output, "", "json", "yaml")
	return cmd
}

// state of a pod, in one word.
type podState string

const (
	stateWrong     podState = "WrongRequest" // it must be changed
	stateWaiting   podState = "Waiting"      // for a place
	statePreparing podState = "Preparing"    // it has a place, and does not run yet
	stateRunning   podState = "Running"
	stateEnded     podState = "Ended"
	stateRefused   podState = "Refused" // it can never start
)

// story is the answer to explain, and its JSON form.
type story struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	State     podState     `json:"state"`
	Sentence  string       `json:"sentence"`            // the answer in short
	Outage    string       `json:"outage,omitempty"`    // of the scheduler, or of the pod's node or GPU
	Problem   string       `json:"problem,omitempty"`   // what is wrong with the request
	Scheduler string       `json:"scheduler,omitempty"` // its word on a pod that waits
	Why       *pool.Why    `json:"why,omitempty"`
	Advice    *pool.Advice `json:"advice,omitempty"`
	Agentless []string     `json:"agentless,omitempty"` // nodes with GPUs that no pod gets for want of an agent
	Remedies  []string     `json:"remedies,omitempty"`  // repairs, and what would open nodes that bar it
	Agent     *agentWord   `json:"agent,omitempty"`
	Steps     []pool.Step  `json:"steps,omitempty"`
	pod       *v1.Pod
}

// agentWord is what the node's agent says of the pod.
type agentWord struct {
	Phase  v1alpha1.PodPhase `json:"phase"`
	Reason string            `json:"reason,omitempty"`
}

func explain(ctx context.Context, s *screen, a *access, o explainOptions) error {
	if err := checkOutput(o.output, "json", "yaml"); err != nil {
		return err
	}
	namespace, err := a.connect()
	if err != nil {
		return err
	}
	pod, err := a.kube.CoreV1().Pods(namespace).Get(ctx, o.pod, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no pod %s in namespace %s; kubectl mig history pod %s -n %s shows the events that are kept", o.pod, namespace, o.pod, namespace)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("you may not get pods in namespace %s: %w", namespace, err)
	case err != nil:
		return err
	}
	survey, err := a.survey(ctx, namespace)
	if err != nil {
		return err
	}
	if !survey.opts.Wants(pod) && (survey.mistake(pod) == "" || pod.Spec.NodeName != "") {
		ours := survey.opts.Resources()
		problem := cmp.Or(pool.Uncounted(pod, ours), fmt.Sprintf("%s; a container does with the limit %s: 1", asksNothing, ours.Count))
		return fmt.Errorf("pod %s/%s: %s", namespace, o.pod, problem)
	}
	events, note, err := eventsOf(ctx, a.kube, namespace, v1.ObjectReference{Kind: "Pod", Name: pod.Name, UID: pod.UID})
	if err != nil {
		return err
	}
	if note != "" {
		survey.note("%s", note)
	}
	steps := stepsTold(append(pool.StepsOfPod(pod), events...))
	pool.SortSteps(steps)
	st, err := survey.explain(pod, steps)
	if err != nil {
		return err
	}
	survey.warn(s)
	if o.output != "" {
		err = s.encode(o.output, st)
	} else {
		err = s.print(st.draw(s, survey)...)
	}
	if err == nil && st.State != stateRunning && st.State != stateEnded {
		err = errWaiting
	}
	return err
}

// explain finds the answer.
func (v *survey) explain(pod *v1.Pod, steps []pool.Step) (*story, error) {
	st := &story{Namespace: pod.Namespace, Name: pod.Name, Scheduler: waitsFor(pod), Steps: steps, pod: pod}
	v.remarkOn(pod)
	fleet := v.fleet()
	if pod.Spec.NodeName == "" {
		return st, st.explainWaiting(fleet, v)
	}
	st.State = statePreparing
	switch {
	case ended(pod):
		st.State = stateEnded
	case isReady(pod):
		st.State = stateRunning
	}
	if st.Agent = v.agentOn(pod); st.Agent != nil && st.Agent.Phase == v1alpha1.PodRefused {
		st.State = stateRefused
	}
	why, err := fleet.Why(pod, v.gate(pod))
	if err != nil {
		st.Problem = err.Error()
		if pool.PlacedByOthers(pod) {
			st.State, st.Problem = stateRefused, pool.Remedy(pod)
		}
	}
	if st.State != stateRunning && st.State != stateEnded {
		st.Outage = v.outageAt(pod.Spec.NodeName)
	}
	if st.Why = why; why != nil && st.Outage == "" && st.State != stateEnded {
		st.Outage = v.ailing(why)
	}
	st.Sentence = st.sentence()
	return st, nil
}

func isReady(pod *v1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// agentOn is the agent's word, where it has one.
func (v *survey) agentOn(pod *v1.Pod) *agentWord {
	for _, n := range v.gpuNodes {
		if n.Name != pod.Spec.NodeName {
			continue
		}
		for _, p := range n.Status.Pods {
			if p.UID == pod.UID {
				return &agentWord{p.Phase, p.Reason}
			}
		}
	}
	return nil
}

// explainWaiting says why a pod without a node waits.
func (st *story) explainWaiting(fleet *pool.Fleet, v *survey) error {
	st.State = stateWaiting
	if st.Problem = v.mistake(st.pod); st.Problem != "" {
		st.State = stateWrong
		st.Sentence = st.sentence()
		return nil
	}
	advice, err := fleet.Advise(st.pod, v.gate)
	var wrong *pool.InvalidError
	switch {
	case errors.As(err, &wrong):
		st.Problem, st.Remedies = wrong.Error(), texts(v.cures(st.pod))
		if remedy := pool.Remedy(st.pod); remedy != "" {
			st.Problem += ". Besides, " + remedy + v.leftToAdmission(st.pod)
		}
		if len(st.Remedies) == 0 {
			st.State = stateWrong
		}
	case err != nil:
		return err
	}
	if st.Problem == "" {
		st.Problem = pool.Remedy(st.pod)
	}
	if st.Outage = v.silence; st.Outage == "" && st.unseen() {
		while := "While " + schedulerDeployment + " runs,"
		if v.pulse != "" {
			while = v.pulse + ": while it runs,"
		}
		st.Outage = fmt.Sprintf("No scheduler has looked at this pod yet. %s that takes seconds at most; else its log says why: kubectl -n %s logs deployment/%s.",
			while, v.home, schedulerDeployment)
	}
	st.Advice = advice
	if advice != nil && advice.Fits == nil {
		st.Agentless = v.agentlessNodes()
		st.Remedies = v.remedies(st.pod, advice.Reasons)
	}
	st.Sentence = st.sentence()
	return nil
}

// unseen reports whether no scheduler has said anything about a pod that ours should
// place.
func (st *story) unseen() bool {
	return st.Scheduler == "" && st.pod.DeletionTimestamp == nil && len(st.pod.Spec.SchedulingGates) == 0 &&
		st.pod.Spec.SchedulerName == v1alpha1.SchedulerName &&
		!slices.ContainsFunc(st.Steps, func(s pool.Step) bool { return s.Reason == "FailedScheduling" })
}

// sentence is the answer in short.
func (st *story) sentence() string {
	request := ""
	switch {
	case st.Why != nil:
		request = st.Why.Request
	case st.Advice != nil:
		request = st.Advice.Request
	}
	on := st.pod.Spec.NodeName
	switch st.State {
	case stateWrong:
		return "waits, and cannot be placed as it is."
	case stateRunning:
		return fmt.Sprintf("runs on %s. It asked for %s.", on, request)
	case stateEnded:
		return fmt.Sprintf("has ended on %s, and holds nothing any more.", on)
	case stateRefused:
		return fmt.Sprintf("can never start on %s.", on)
	case statePreparing:
		return fmt.Sprintf("has its place on %s and does not run yet. It asked for %s.", on, request)
	}
	switch {
	case st.pod.DeletionTimestamp != nil:
		return "is being deleted; it was not placed."
	case st.Advice == nil:
		return "waits for a repair: no GPU that works could hold it."
	case len(st.pod.Spec.SchedulingGates) > 0:
		return fmt.Sprintf("waits for its scheduling gate %s, not for a GPU. It asks for %s.", st.pod.Spec.SchedulingGates[0].Name, request)
	case st.pod.Spec.SchedulerName != v1alpha1.SchedulerName:
		return fmt.Sprintf("waits for the scheduler %s, which is not dynamig's. It asks for %s.", st.pod.Spec.SchedulerName, request)
	case st.Advice.Fits != nil:
		return fmt.Sprintf("waits, and would fit now. It asks for %s.", request)
	}
	if barred(st.Advice.Reasons) && len(st.Agentless) == 0 {
		return fmt.Sprintf("waits, and not for room on a GPU: no node with GPUs takes it. It asks for %s.", request)
	}
	return fmt.Sprintf("waits for room. It asks for %s.", request)
}
