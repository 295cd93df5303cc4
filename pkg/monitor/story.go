// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Story is how one pod came to where it is, or why it waits.
type Story struct {
	Namespace   string                   `json:"namespace"`
	Name        string                   `json:"name"`
	UID         types.UID                `json:"uid"`
	Node        string                   `json:"node,omitempty"`
	Phase       v1.PodPhase              `json:"phase"`
	Ending      bool                     `json:"ending,omitempty"`
	Request     string                   `json:"request"`
	Why         string                   `json:"why,omitempty"` // the scheduler's event, as long as the cluster keeps it
	Places      []Place                  `json:"places,omitempty"`
	Waiting     *WaitingPod              `json:"waiting,omitempty"`
	Preparation *pool.PreparationPicture `json:"preparation,omitempty"`
	Steps       []Step                   `json:"steps"`
	Containers  []ContainerStory         `json:"containers"`
	Events      []pool.Step              `json:"events"`

	// EventsMissing says why Events may lack some.
	EventsMissing string `json:"eventsMissing,omitempty"`
}

// Place is one span that the pod has, or one software share.
type Place struct {
	GPU   string             `json:"gpu"`
	Index int32              `json:"index"`
	Model string             `json:"model"`
	Span  *pool.SpanPicture  `json:"span,omitempty"`
	Share *pool.SharePicture `json:"share,omitempty"`
}

// Step of a pod's way.
type Step struct {
	Name string    `json:"name"` // created, decided, published, bound, prepared, started
	At   time.Time `json:"at"`
	// From is whose clock it is: "monitor" saw it happen, to the millisecond; "api"
	// is a time of an object, often of whole seconds.
	From string `json:"from"`
	// Seconds since the step before, where both are from the monitor.
	Seconds *float64 `json:"seconds,omitempty"`
}

// ContainerStory is the state of one container that has devices, or not.
type ContainerStory struct {
	Name    string `json:"name"`
	State   string `json:"state"` // waiting, running, terminated, or empty
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	Restart int32  `json:"restarts,omitempty"`
}

// eventsTimeout bounds the request for a pod's events; the story is told without
// them when it is over.
const eventsTimeout = 3 * time.Second

// story is told from the view, the informer's pod, the journal and the events.
func (m *Monitor) story(ctx context.Context, view *View, pod *v1.Pod) *Story {
	names := m.fleet.src.Pool.Names()
	s := &Story{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName, Phase: pod.Status.Phase,
		Ending: pod.DeletionTimestamp != nil, Request: describeRequest(pod, &names),
		Containers: containersOf(pod), Events: []pool.Step{},
	}
	for _, w := range view.Waiting {
		if w.UID == pod.UID {
			s.Waiting = w
		}
	}
	for _, n := range view.Nodes {
		s.find(n, pod.UID)
	}
	var err error
	if s.Events, err = events(ctx, m.client, pod); err != nil {
		klog.FromContext(ctx).V(2).Info("Events cannot be listed for the monitor", "pod", klog.KObj(pod), "err", err)
		s.EventsMissing = "the events of the pod cannot be listed"
	}
	for _, e := range s.Events {
		if e.Reason == "GPUsPlaced" && e.From == v1alpha1.SchedulerName {
			s.Why = e.Message
		}
	}
	s.Steps = stepsOf(pod, m.journal.stepsOf(pod.UID), s.Events)
	if !m.cfg.Authenticate {
		s.hide()
	}
	return s
}

// hidden is there instead of a message that only authenticated readers get.
const hidden = "message hidden: this monitor does not ask its readers who they are"

// hide takes out what dynamig's programs do not say themselves: a container's last words
// are its own output, and others say of it what they like. Reasons stay.
func (s *Story) hide() {
	for i := range s.Containers {
		if c := &s.Containers[i]; c.Message != "" {
			c.Message = hidden
		}
	}
	for i := range s.Events {
		if e := &s.Events[i]; e.Message != "" && e.From != v1alpha1.SchedulerName && e.From != v1alpha1.AgentName {
			e.Message = hidden
		}
	}
}

// find takes what one node's picture has of the pod.
func (s *Story) find(n *Drawn, uid types.UID) {
	for i := range n.GPUs {
		g := &n.GPUs[i]
		for j := range g.Spans {
			if o := g.Spans[j].Owner; o != nil && o.UID == uid {
				s.Places = append(s.Places, Place{GPU: g.UUID, Index: g.Index, Model: g.Model, Span: &g.Spans[j]})
			}
		}
		if g.Shares == nil {
			continue
		}
		for j := range g.Shares.Held {
			if held := &g.Shares.Held[j]; held.Owner.UID == uid {
				s.Places = append(s.Places, Place{GPU: g.UUID, Index: g.Index, Model: g.Model, Share: held})
			}
		}
	}
	for i := range n.Preparations {
		if n.Preparations[i].UID == uid {
			s.Preparation = &n.Preparations[i]
		}
	}
}

func containersOf(pod *v1.Pod) []ContainerStory {
	out := []ContainerStory{}
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		story := ContainerStory{Name: c.Name, Restart: c.RestartCount}
		switch {
		case c.State.Running != nil:
			story.State = "running"
		case c.State.Waiting != nil:
			story.State, story.Reason, story.Message = "waiting", c.State.Waiting.Reason, c.State.Waiting.Message
		case c.State.Terminated != nil:
			story.State, story.Reason, story.Message = "terminated", c.State.Terminated.Reason, c.State.Terminated.Message
		}
		out = append(out, story)
	}
	return out
}

// stepsOf joins what the journal saw with what the objects say.
func stepsOf(pod *v1.Pod, seen steps, events []pool.Step) []Step {
	var scheduled, prepared, started time.Time
	for _, s := range slices.Concat(pool.StepsOfPod(pod), events) {
		switch s.Reason {
		case pool.StepPodScheduled:
			scheduled = s.Time
		case "Prepared":
			prepared = s.Time
		case pool.StepRunning:
			if started.IsZero() || s.Time.Before(started) {
				started = s.Time
			}
		}
	}
	if !seen.watched { // seen late: the objects know better
		seen.bound, seen.prepared = time.Time{}, time.Time{}
	}
	out := []Step{{Name: "created", At: pod.CreationTimestamp.Time, From: "api"}}
	add := func(name string, monitor, api time.Time) {
		switch {
		case !monitor.IsZero():
			out = append(out, Step{Name: name, At: monitor, From: "monitor"})
		case !api.IsZero():
			out = append(out, Step{Name: name, At: api, From: "api"})
		}
	}
	add("decided", seen.decided, time.Time{})
	add("published", seen.published, time.Time{})
	add("bound", seen.bound, scheduled)
	add("prepared", seen.prepared, prepared)
	add("started", time.Time{}, started)
	for i := 1; i < len(out); i++ {
		if out[i].From == "monitor" && out[i-1].From == "monitor" {
			took := out[i].At.Sub(out[i-1].At).Seconds()
			out[i].Seconds = &took
		}
	}
	return out
}

// events lists a pod's events in the order in which they came.
func events(ctx context.Context, client kubernetes.Interface, pod *v1.Pod) ([]pool.Step, error) {
	ctx, cancel := context.WithTimeout(ctx, eventsTimeout)
	defer cancel()
	list, err := client.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", string(pod.UID)).String(), Limit: 200,
	})
	if err != nil {
		return []pool.Step{}, err
	}
	out := make([]pool.Step, 0, len(list.Items))
	for i := range list.Items {
		out = append(out, pool.StepOf(&list.Items[i]))
	}
	pool.SortSteps(out)
	return out, nil
}
