// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"testing"
	"testing/synctest"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// A dry run takes the victim out of a copy of the NodeInfo. That the ledger still
// has it, and the agent still reports its instance as live, must not matter: no
// candidate would be found, or a second set of victims would die.
func TestDryRunWithoutTheVictimFits(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.instance("7g.40gb@0", v1alpha1.InstanceLive).GPUNode)
		victim := b.on(pod("victim", "gpu=1"), "7g.40gb@0").Obj()
		r.running(victim)
		c := r.mustBegin(r.create(pod("p", "gpu=1 gpumem=20000").Priority(10).Obj()))
		if status := c.filter("n"); status.Code() != fwk.Unschedulable {
			t.Fatalf("Filter beside the victim says %v, want Unschedulable, or preemption does not look here", status)
		}
		dryRun, state := r.nodeInfo("n").Snapshot(), c.state.Clone()
		run := func() *fwk.Status { return c.framework.RunFilterPluginsWithNominatedPods(c.ctx, state, c.pod, dryRun) }
		if err := dryRun.RemovePod(r.logger, victim); err != nil {
			t.Fatal(err)
		}
		if status := run(); !status.IsSuccess() {
			t.Errorf("Filter without the victim says %v, want success", status)
		}
		other := dryRun.Snapshot() // as many pods as on the node itself, and another one
		other.AddPodInfo(podInfo(t, pod("plain", "").Node("n").Obj()))
		if status := c.framework.RunFilterPluginsWithNominatedPods(c.ctx, state, c.pod, other); !status.IsSuccess() {
			t.Errorf("Filter with another pod in the victim's place says %v, want success", status)
		}
		dryRun.AddPodInfo(podInfo(t, victim)) // to see if it can be spared
		if status := run(); status.Code() != fwk.Unschedulable {
			t.Errorf("Filter with the victim back says %v, want Unschedulable", status)
		}
		if status := c.filter("n"); status.Code() != fwk.Unschedulable {
			t.Errorf("after the dry run Filter on the node itself says %v, want Unschedulable", status)
		}
	})
}

// Default preemption takes the least important pod that makes room, where pods are
// all that is in the way.
func TestPreemptionLooksWhereEvictionHelps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWhole(t)
		sick, healthy := report(t, "sick", 1), report(t, "healthy", 1)
		for _, b := range []reportBuilder{sick.unhealthy(0), healthy} {
			w.createNode(node(b.Name).Obj())
			w.report(b)
		}
		w.run()
		w.create(sick.on(pod("on-sick", "gpu=1").Priority(-5), "7g.40gb@0"))
		w.create(healthy.on(pod("low", "gpu=1 gpumem=20000"), "3g.20gb@0"))
		w.create(healthy.on(pod("high", "gpu=1 gpumem=20000").Priority(50), "3g.20gb@4"))
		w.create(pod("p", "gpu=1 gpumem=20000").Priority(100))
		w.within(soon, "p")
		for name, want := range map[string]string{
			"on-sick": "sick: 7g.40gb@0:GPU-0", "low": "gone",
			"high": "healthy: 3g.20gb@4:GPU-0", "p": "healthy: 3g.20gb@0:GPU-0",
		} {
			if got := w.placed(name); got != want {
				t.Errorf("pod %s is at %s, want %s", name, got, want)
			}
		}
	})
}

// A pod that never preempts waits, and takes the place when it is free.
func TestPodThatNeverPreemptsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWhole(t)
		b := report(t, "n", 1)
		w.createNode(node("n").Obj())
		w.report(b)
		w.run()
		w.create(b.on(pod("low", "gpu=1"), "7g.40gb@0"))
		w.create(pod("p", "gpu=1").Priority(100).PreemptionPolicy(v1.PreemptNever))
		if got := w.placed("p"); got != "unbound" {
			t.Fatalf("the pod is at %s, want unbound", got)
		}
		if got := w.placed("low"); got != "n: 7g.40gb@0:GPU-0" {
			t.Errorf("the other pod is at %s", got)
		}
		w.delete("low")
		w.within(soon, "p")
	})
}
