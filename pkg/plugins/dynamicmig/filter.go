// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/pool"
)

// PreFilter parses the pod, once, and skips pods without our resources. It rejects
// what no node of the cluster can ever hold with a sentence that names the field.
func (pl *Plugin) PreFilter(_ context.Context, cs fwk.CycleState, pod *v1.Pod, nodes []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	began := time.Now()
	request, err := pl.pool.Parse(pod)
	if err != nil {
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	if request == nil {
		return nil, fwk.NewStatus(fwk.Skip)
	}
	if err := pl.ready(); err != nil {
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	if err := pl.pool.Possible(request); err != nil {
		return nil, fwk.NewStatus(fwk.UnschedulableAndUnresolvable, err.Error())
	}
	cs.Write(stateKey, &state{request: request, measured: newMeasured(len(nodes)), began: began})
	return nil, nil
}

// PreFilterExtensions is nil: Filter looks at the NodeInfo it is given, which has
// the pods that a dry run added and lacks those that it removed.
func (pl *Plugin) PreFilterExtensions() fwk.PreFilterExtensions { return nil }

// Filter asks the pool whether the pod fits the node. It writes nothing but what
// Score will ask for; runs in parallel.
func (pl *Plugin) Filter(_ context.Context, cs fwk.CycleState, _ *v1.Pod, ni fwk.NodeInfo) *fwk.Status {
	s, err := readState(cs)
	if err != nil {
		return fwk.AsStatus(err)
	}
	view, status := pl.view(ni)
	if view == nil {
		return status
	}
	score, verdict := view.Measure(s.request)
	if verdict != nil {
		return statusOf(verdict)
	}
	s.measured.put(ni, score)
	return nil
}

// view is the node's view, or the status of a node that has none.
func (pl *Plugin) view(ni fwk.NodeInfo) (*pool.View, *fwk.Status) {
	node := ni.Node()
	key := pool.Key{Generation: ni.GetGeneration(), Pods: len(ni.GetPods())}
	view := pl.pool.CachedView(node, key, podsOf(ni))
	if view == nil {
		return nil, pl.withoutView(node.Name)
	}
	return view, nil
}

func (pl *Plugin) withoutView(node string) *fwk.Status {
	if _, err := pl.pool.Node(node); err != nil { // which core.onGPUNode has logged
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, pool.ReasonUnreadable)
	}
	return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, pool.ReasonNoGPUNode)
}

// statusOf tells the framework whether preemption should look at the node.
func statusOf(v *pool.Verdict) *fwk.Status {
	if v.Curable {
		return fwk.NewStatus(fwk.Unschedulable, v.Reason)
	}
	return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, v.Reason)
}

// PreScore skips pods without our resources: Skip in PreFilter does not skip
// Score.
func (pl *Plugin) PreScore(_ context.Context, cs fwk.CycleState, _ *v1.Pod, _ []fwk.NodeInfo) *fwk.Status {
	if _, err := readState(cs); err != nil {
		return fwk.NewStatus(fwk.Skip)
	}
	return nil
}

// Score is the negated Plan.Score of the node, so that higher is better. It
// depends on node, request and tables only: opportunistic batching reuses it.
func (pl *Plugin) Score(_ context.Context, cs fwk.CycleState, _ *v1.Pod, ni fwk.NodeInfo) (int64, *fwk.Status) {
	s, err := readState(cs)
	if err != nil {
		return 0, fwk.AsStatus(err)
	}
	if score, ok := s.measured.get(ni); ok {
		return -score, nil
	}
	view, status := pl.view(ni)
	if view == nil {
		return 0, status
	}
	score, verdict := view.Measure(s.request)
	if verdict != nil {
		return 0, statusOf(verdict)
	}
	return -score, nil
}

// ScoreExtensions returns the plugin, for NormalizeScore.
func (pl *Plugin) ScoreExtensions() fwk.ScoreExtensions { return pl }

// NormalizeScore ranks the raw scores: the best node gets 100, the next score 99, and
// what is behind the hundredth 0. A step is 1 whatever the number of scores, so that a
// weight can put the least difference of ours above all other plugins together.
func (pl *Plugin) NormalizeScore(_ context.Context, _ fwk.CycleState, _ *v1.Pod, scores fwk.NodeScoreList) *fwk.Status {
	var ranks []int64 // few: nodes have few different best placements
	for i := range scores {
		if at, known := slices.BinarySearch(ranks, scores[i].Score); !known {
			ranks = slices.Insert(ranks, at, scores[i].Score)
		}
	}
	for i := range scores {
		rank, _ := slices.BinarySearch(ranks, scores[i].Score)
		behind := int64(len(ranks) - 1 - rank)
		scores[i].Score = max(0, fwk.MaxScore-behind)
	}
	return nil
}
