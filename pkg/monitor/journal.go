// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Journal remembers when this process saw each step of the pods that exist, and
// counts. A restarted process knows no step from before: the story of a pod then
// falls back on what the API server has. Safe for parallel use.
//
//	seen -> decided -> published -> bound -> prepared -> forgotten with the pod
type Journal struct {
	now      func() time.Time
	registry *prometheus.Registry

	decisions     prometheus.Counter
	decision      prometheus.Histogram
	refusals      *prometheus.CounterVec
	agentRefusals prometheus.Counter
	prepare       prometheus.Histogram

	mu      sync.Mutex // guards what follows
	pods    map[types.UID]*steps
	refused map[string]map[types.UID]struct{} // by node, as last reported
}

// steps of one pod; zero times are unknown.
type steps struct {
	decided   time.Time
	published time.Time
	bound     time.Time
	watched   bool // bound was seen to happen, and is not read from the pod
	prepared  time.Time
	instances int // that the pod's allocation names; software shares are none
}

// NewJournal returns an empty journal. now is the clock.
func NewJournal(now func() time.Time) *Journal {
	j := &Journal{
		now: now, registry: prometheus.NewRegistry(),
		pods: map[types.UID]*steps{}, refused: map[string]map[types.UID]struct{}{},
		decisions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dynamig_decisions_total", Help: "Placements chosen by this process; only the leader chooses.",
		}),
		decision: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "dynamig_decision_duration_seconds", Help: "From a pod's PreFilter to its placement in Reserve.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dynamig_refusals_total",
			Help: "New reasons that waiting pods were given, by kind. Every replica counts what it sees: take the maximum, not the sum.",
		}, []string{"reason"}),
		agentRefusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dynamig_pods_refused_total",
			Help: "Bound pods that their node's agent refused for good. Every replica counts what it sees.",
		}),
		prepare: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "dynamig_prepare_duration_seconds",
			Help:    "From a pod being seen bound to all its instances being reported live; pods with software shares alone are left out. Every replica observes what it sees.",
			Buckets: prometheus.ExponentialBuckets(0.025, 2, 13),
		}),
	}
	j.registry.MustRegister(j.decisions, j.decision, j.refusals, j.agentRefusals, j.prepare)
	for _, c := range Classes() {
		j.refusals.WithLabelValues(c)
	}
	return j
}

// Decided notes a choice of Reserve. The time is kept only while the pod's own events
// tell of it: a choice may come when the pod is gone already.
func (j *Journal) Decided(pod types.UID, took time.Duration) {
	j.decisions.Inc()
	j.decision.Observe(took.Seconds())
	j.mu.Lock()
	defer j.mu.Unlock()
	if s := j.pods[pod]; s != nil {
		s.decided = j.now()
	}
}

func (j *Journal) of(pod types.UID) *steps {
	s := j.pods[pod]
	if s == nil {
		s = &steps{}
		j.pods[pod] = s
	}
	return s
}

// Steps of a pod, as far as this process saw them.
func (j *Journal) stepsOf(pod types.UID) steps {
	j.mu.Lock()
	defer j.mu.Unlock()
	if s := j.pods[pod]; s != nil {
		return *s
	}
	return steps{}
}

// Bound tells since when a pod is bound.
func (j *Journal) Bound(pod types.UID) (time.Time, bool) {
	at := j.stepsOf(pod).bound
	return at, !at.IsZero()
}

// Follow follows the sources from now on.
func (j *Journal) Follow(src Sources) error {
	_, err := src.Pods.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc:    func(obj any, initial bool) { j.onPod(src, nil, obj, initial) },
		UpdateFunc: func(old, obj any) { j.onPod(src, old, obj, false) },
		DeleteFunc: func(obj any) { j.onPodGone(src, obj) },
	})
	if err == nil {
		_, err = src.GPUNodes.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
			AddFunc:    func(obj any, initial bool) { j.onReport(obj, initial) },
			UpdateFunc: func(_, obj any) { j.onReport(obj, false) },
			DeleteFunc: j.onReportGone,
		})
	}
	if err != nil {
		return fmt.Errorf("following pods and GPUNodes for the monitor: %w", err)
	}
	return nil
}

func (j *Journal) onPod(src Sources, old, obj any, initial bool) {
	pod := src.podOf(obj)
	if pod == nil {
		return
	}
	was, _ := old.(*v1.Pod)
	j.countRefusal(was, pod, src.Pool.Names().Count, initial)
	j.mu.Lock()
	s := j.of(pod.UID)
	if _, ok := pod.Annotations[v1alpha1.AnnotationAllocation]; ok && s.published.IsZero() && !initial {
		s.published = j.now()
	}
	bound := pod.Spec.NodeName != "" && s.bound.IsZero()
	if bound {
		s.bound, s.watched = j.now(), !initial
		if c := condition(pod, v1.PodScheduled); initial && c != nil {
			s.bound = c.LastTransitionTime.Time
		}
		if h, ok := src.Pool.HolderOf(pod); ok {
			s.instances = instancesOf(h)
		}
	}
	j.mu.Unlock()
	if !bound {
		return
	}
	// The report may have come before.
	if obj, ok, err := src.GPUNodes.GetStore().GetByKey(pod.Spec.NodeName); err == nil && ok {
		j.onReport(obj, initial)
	}
}

func instancesOf(h pool.Holder) int {
	count := 0
	for _, held := range h.Spans {
		if !held.IsShare() {
			count++
		}
	}
	return count
}

// countRefusal counts the kinds of a reason that is new to the pod.
func (j *Journal) countRefusal(was, is *v1.Pod, count v1.ResourceName, initial bool) {
	c := condition(is, v1.PodScheduled)
	if initial || c == nil || c.Status != v1.ConditionFalse || c.Message == "" || len(is.Spec.SchedulingGates) > 0 {
		return
	}
	if was != nil {
		if before := condition(was, v1.PodScheduled); before != nil && before.Message == c.Message {
			return
		}
	}
	for _, name := range Classify(c.Message, count) {
		j.refusals.WithLabelValues(name).Inc()
	}
}

func (j *Journal) onPodGone(src Sources, obj any) {
	if pod := src.podOf(obj); pod != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.pods, pod.UID)
	}
}

// onReport notes the pods whose instances are all live now. No report shows when a
// software share is ready: the agent's event does.
func (j *Journal) onReport(obj any, initial bool) {
	n, ok := obj.(*v1alpha1.GPUNode)
	if !ok {
		return
	}
	live := map[types.UID]int{}
	for i := range n.Status.GPUs {
		for _, inst := range n.Status.GPUs[i].Instances {
			if inst.State == v1alpha1.InstanceLive {
				live[inst.PodUID]++
			}
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for uid, count := range live {
		s := j.pods[uid]
		if s == nil || s.bound.IsZero() || s.instances == 0 || count < s.instances || !s.prepared.IsZero() {
			continue
		}
		s.prepared = j.now()
		if s.watched && !initial {
			j.prepare.Observe(s.prepared.Sub(s.bound).Seconds())
		}
	}
	j.countAgentRefusals(n, initial)
}

// countAgentRefusals runs under mu.
func (j *Journal) countAgentRefusals(n *v1alpha1.GPUNode, initial bool) {
	before, now := j.refused[n.Name], map[types.UID]struct{}{}
	for _, p := range n.Status.Pods {
		if p.Phase != v1alpha1.PodRefused {
			continue
		}
		now[p.UID] = struct{}{}
		if _, known := before[p.UID]; !known && !initial {
			j.agentRefusals.Inc()
		}
	}
	if j.refused[n.Name] = now; len(now) == 0 {
		delete(j.refused, n.Name)
	}
}

func (j *Journal) onReportGone(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	if n, ok := obj.(*v1alpha1.GPUNode); ok {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.refused, n.Name)
	}
}
