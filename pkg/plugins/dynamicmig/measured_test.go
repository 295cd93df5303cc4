// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"sync"
	"testing"

	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// What is kept is right, most is kept, and a full table does no harm. How many are kept
// depends on addresses: 969 was seen of 1000.
func TestMeasuredKeepsScores(t *testing.T) {
	for _, c := range []struct{ room, nodes, atLeast int }{{1000, 1000, 900}, {1, 10000, minMeasured / 2}, {1 << 20, 10000, maxMeasured / 2}} {
		m := newMeasured(c.room)
		infos := make([]fwk.NodeInfo, c.nodes)
		for i := range infos {
			infos[i] = framework.NewNodeInfo()
		}
		var workers sync.WaitGroup
		for w := range 4 {
			workers.Go(func() {
				for i := w; i < len(infos); i += 4 {
					m.put(infos[i], -1)
					m.put(infos[i], int64(i))
				}
			})
		}
		workers.Wait()
		kept := 0
		for i, ni := range infos {
			score, ok := m.get(ni)
			if ok {
				kept++
			}
			if ok && score != int64(i) {
				t.Errorf("node %d has the score %d", i, score)
			}
		}
		if kept < c.atLeast {
			t.Errorf("room for %d: %d of %d nodes are kept, want %d or more", c.room, kept, c.nodes, c.atLeast)
		}
		if score, ok := m.get(framework.NewNodeInfo()); ok {
			t.Errorf("a node that was never put has the score %d", score)
		}
	}
}

// Score says the same with and without what Filter has kept.
func TestScoreIsWhatFilterMeasured(t *testing.T) {
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 2).GPUNode)
		filtered, fresh := r.mustBegin(pod("p", "gpu=1 gpumem=8000").Obj()), r.mustBegin(pod("p", "gpu=1 gpumem=8000").Obj())
		if status := filtered.filter("n"); !status.IsSuccess() {
			t.Fatal(status)
		}
		got, status := r.plugin.Score(r.ctx, filtered.state, filtered.pod, r.nodeInfo("n"))
		if !status.IsSuccess() {
			t.Fatal(status)
		}
		want, status := r.plugin.Score(r.ctx, fresh.state, fresh.pod, r.nodeInfo("n"))
		if !status.IsSuccess() || got != want {
			t.Errorf("Score after Filter is %d, without %d, %v", got, want, status)
		}
		if s, err := readState(filtered.state); err != nil {
			t.Error(err)
		} else if kept, ok := s.measured.get(r.nodeInfo("n")); !ok || -kept != got {
			t.Errorf("Filter has kept %d, %v; Score is %d", kept, ok, got)
		}
	})
}
