// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Monitors are told of choices, and never of simulated ones.
func TestReserveTellsWhatWasDecided(t *testing.T) {
	inRig(t, func(r *rig) {
		told := map[types.UID]time.Duration{}
		r.plugin.decided = func(pod types.UID, took time.Duration) { told[pod] = took }
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		cycle := r.mustBegin(pod("a", "gpu=1 gpumem=20000").Obj())
		time.Sleep(time.Millisecond) // of synctest's clock
		_, status := cycle.reserve("n")
		if !status.IsSuccess() {
			t.Fatal(status)
		}
		if took := told[cycle.pod.UID]; took != time.Millisecond || len(told) != 1 {
			t.Errorf("told %v, want the pod and 1ms", told)
		}
	})
}

func TestReserveTakesTheChoice(t *testing.T) {
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		_, assumed := r.mustReserve(pod("a", "gpu=1 gpumem=20000").Obj(), "n")
		if got, want := r.held(assumed), "n: 3g.20gb@4:GPU-0"; got != want {
			t.Errorf("the ledger has %s, want %s", got, want)
		}
		r.refresh()
		if status := r.mustBegin(pod("b", "gpu=1").Obj()).filter("n"); status.Code() != fwk.Unschedulable {
			t.Errorf("Filter of a pod that needs the same slices says %v, want Unschedulable", status)
		}
	})
}

// A conflict is an Error, so that the pod is tried again after a backoff:
// Unschedulable would park it until an event that may never come.
func TestReserveConflictIsAnError(t *testing.T) {
	cases := []struct {
		name     string
		conflict func(r *rig)
		want     string
	}{
		{
			name:     "another pod was reserved since the snapshot",
			conflict: func(r *rig) { r.mustReserve(pod("other", "gpu=1").Obj(), "n") },
			want:     "reserving GPUs on node n: the choice of Filter is gone: node(s) had no free MIG placement for a whole GPU",
		}, {
			name:     "the GPUNode was deleted",
			conflict: func(r *rig) { r.deleteReport("n") },
			want:     "node n has no GPUNode any more",
		}, {
			name: "the GPUNode cannot be read any more",
			conflict: func(r *rig) {
				r.report(report(r.TB, "n", 1).change(func(s *v1alpha1.GPUNodeStatus) { s.Models = nil }).GPUNode)
			},
			want: `reading GPUNode n: status.gpus[0]: model "NVIDIA A100-SXM4-40GB" is not in status.models`,
		}, {
			name: "the GPUNode is that of another node of the same name",
			conflict: func(r *rig) {
				r.report(report(r.TB, "n", 1).change(func(s *v1alpha1.GPUNodeStatus) { s.NodeUID = "uid-of-new-n" }).GPUNode)
			},
			want: "node n has a GPUNode of another node of the same name",
		}, {
			name:     "the GPU failed",
			conflict: func(r *rig) { r.report(report(r.TB, "n", 1).unhealthy(0).GPUNode) },
			want:     "reserving GPUs on node n: the choice of Filter is gone: " + pool.ReasonNotOffered,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
				cycle := r.mustBegin(pod("p", "gpu=1").Obj())
				if status := cycle.filter("n"); !status.IsSuccess() {
					t.Fatal(status)
				}
				c.conflict(r)
				assumed, status := cycle.reserve("n")
				if status.Code() != fwk.Error || !strings.Contains(status.Message(), c.want) {
					t.Errorf("Reserve says %v: %q, want Error with %q", status.Code(), status.Message(), c.want)
				}
				cycle.unreserve(assumed) // as the framework does after a failed Reserve
				if _, ok := r.plugin.pool.Holder(assumed.UID); ok {
					t.Error("the ledger holds the pod")
				}
			})
		})
	}
}

func TestReserveYieldsToNominatedPods(t *testing.T) {
	cases := []struct {
		name    string
		nominee *st.PodWrapper
		pod     *st.PodWrapper
		want    fwk.Code
	}{
		{"of higher priority", pod("nominee", "gpu=1").Priority(10), pod("p", "gpu=1 gpumem=4000"), fwk.Error},
		{"of equal priority", pod("nominee", "gpu=1"), pod("p", "gpu=1 gpumem=4000"), fwk.Error},
		{"but not of lower priority", pod("nominee", "gpu=1"), pod("p", "gpu=1 gpumem=4000").Priority(1), fwk.Success},
		{"and leaves them the place they need", pod("nominee", "gpu=1 gpumem=20000"), pod("p", "gpu=1 gpumem=20000"), fwk.Success},
		{"but not to itself", nil, pod("p", "gpu=1").NominatedNodeName("n"), fwk.Success},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
				cycle := r.mustBegin(c.pod.Obj())
				if c.nominee != nil { // after Filter of p
					r.nominate(c.nominee, "n")
				} else {
					r.nominate(c.pod, "n")
				}
				_, status := cycle.reserve("n")
				if status.Code() != c.want {
					t.Errorf("Reserve says %v, want %v", status, c.want)
				}
			})
		})
	}
}

// What a nominated pod counts on is kept free although it would be the best choice.
func TestReserveDoesNotTakeWhatANominatedPodWaitsFor(t *testing.T) {
	for name, c := range map[string]struct {
		nominee *st.PodWrapper
		want    string
	}{
		"without a nominated pod the GPU in use is filled": {nil, "n: 3g.20gb@4:GPU-0"},
		"with one the other GPU is used":                   {pod("nominee", "gpu=1 gpumem=20000").Priority(10), "n: 3g.20gb@4:GPU-1"},
		"one of lower priority does not count":             {pod("nominee", "gpu=1 gpumem=20000").Priority(-1), "n: 3g.20gb@4:GPU-0"},
	} {
		t.Run(name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				b := report(t, "n", 2)
				r.addNode(node("n").Obj(), b.GPUNode)
				r.running(b.on(pod("q", "gpu=1 gpumem=4000"), "1g.5gb@0:GPU-0").Obj())
				if c.nominee != nil {
					r.nominate(c.nominee, "n")
				}
				if _, assumed := r.mustReserve(pod("p", "gpu=1 gpumem=20000").Obj(), "n"); r.held(assumed) != c.want {
					t.Errorf("the ledger has %s, want %s", r.held(assumed), c.want)
				}
			})
		})
	}
}

func TestUnreserveMayComeTwiceAndWithoutReserve(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		c, assumed := r.mustReserve(pod("p", "gpu=1").Obj(), "n")
		for range 2 {
			c.framework.RunReservePluginsUnreserve(r.ctx, c.state, assumed, "n")
			if got := r.held(assumed); got != "nothing" {
				t.Errorf("after Unreserve the ledger has %s, want nothing", got)
			}
		}
		bound := b.on(pod("bound", "gpu=1"), "7g.40gb@0").Obj()
		r.running(bound)
		r.framework.RunReservePluginsUnreserve(r.ctx, newState(), bound, "n")
		if got, want := r.held(bound), "n: 7g.40gb@0:GPU-0"; got != want {
			t.Errorf("Unreserve of a pod seen bound: the ledger has %s, want %s", got, want)
		}
	})
}

// group is a PodGroup cycle, played as kube-scheduler does (pkg/scheduler/
// schedule_one_podgroup.go:650-709, 847-860): each member is filtered, assumed in
// the snapshot and reserved; all is undone in reverse order; then each is assumed
// in the cache and reserved again, with the same CycleState.
type group struct {
	*rig
	cycles  []*cycle
	members []*v1.Pod // assumed
}

// simulate places one more member on the node.
func (g *group) simulate(pod *v1.Pod, node string) *fwk.Status {
	g.Helper()
	c := &cycle{rig: g.rig, pod: pod, state: newState()}
	c.state.SetPodGroupSchedulingCycle(newState())
	if _, status, _ := g.framework.RunPreFilterPlugins(g.ctx, c.state, pod); !status.IsSuccess() {
		return status
	}
	if status := c.filter(node); !status.IsSuccess() {
		return status
	}
	assumed := c.assumed(node)
	if err := g.snapshot.AssumePod(podInfo(g.TB, assumed)); err != nil {
		g.Fatal(err)
	}
	g.cycles, g.members = append(g.cycles, c), append(g.members, assumed)
	return g.framework.RunReservePluginsReserve(g.ctx, c.state, assumed, node)
}

// revert undoes the simulation.
func (g *group) revert() {
	g.Helper()
	for i := len(g.members) - 1; i >= 0; i-- {
		g.framework.RunReservePluginsUnreserve(g.ctx, g.cycles[i].state, g.members[i], g.members[i].Spec.NodeName)
		if err := g.snapshot.ForgetPod(g.logger, g.members[i]); err != nil {
			g.Fatal(err)
		}
	}
}

// submit reserves a member for real. The snapshot is not refreshed in between.
func (g *group) submit(i int) *fwk.Status {
	g.Helper()
	g.cycles[i].state.SetPodGroupSchedulingCycle(nil)
	_, status := g.cycles[i].reserve(g.members[i].Spec.NodeName)
	return status
}

func podInfo(t testing.TB, pod *v1.Pod) *framework.PodInfo {
	t.Helper()
	info, err := framework.NewPodInfo(pod)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestPodGroupMembersSeeEachOtherInSimulation(t *testing.T) {
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		waiting := r.create(pod("waiting", "gpu=1").Obj())
		g := &group{rig: r}
		for _, name := range []string{"a", "b"} {
			if status := g.simulate(pod(name, "gpu=1 gpumem=20000").Obj(), "n"); !status.IsSuccess() {
				t.Fatalf("member %s: %v", name, status)
			}
		}
		if status := g.simulate(pod("c", "gpu=1 gpumem=20000").Obj(), "n"); status.Code() != fwk.Unschedulable {
			t.Errorf("a third member on a full GPU: %v, want Unschedulable", status)
		}
		n, err := r.plugin.pool.Node("n")
		if err != nil {
			t.Fatal(err)
		}
		request, err := r.plugin.pool.Parse(waiting)
		if err != nil {
			t.Fatal(err)
		}
		if !r.plugin.prospect(n, "").helps(waiting, request) {
			t.Error("hints see simulated members; a pod could miss its wake-up")
		}
		g.revert()
		for _, member := range g.members {
			if got := r.held(member); got != "nothing" {
				t.Errorf("after the simulation the ledger has %s for %s, want nothing", got, member.Name)
			}
		}
		if status := r.mustBegin(pod("d", "gpu=1").Obj()).filter("n"); !status.IsSuccess() {
			t.Errorf("after the simulation Filter says %v, want success: the snapshot's generation is as before", status)
		}
	})
}

// The order in which members are submitted is that of a map; each keeps what it had.
func TestPodGroupMembersKeepTheirChoiceInAnyOrder(t *testing.T) {
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		g := &group{rig: r}
		var want []string
		for _, name := range []string{"a", "b"} {
			if status := g.simulate(pod(name, "gpu=1 gpumem=20000").Obj(), "n"); !status.IsSuccess() {
				t.Fatalf("member %s: %v", name, status)
			}
			want = append(want, r.held(g.members[len(g.members)-1]))
		}
		g.revert()
		for i := len(g.members) - 1; i >= 0; i-- {
			if status := g.submit(i); !status.IsSuccess() {
				t.Fatalf("submitting member %s: %v", g.members[i].Name, status)
			}
			if got := r.held(g.members[i]); got != want[i] {
				t.Errorf("member %s has %s, want %s as in the simulation", g.members[i].Name, got, want[i])
			}
			if h, _ := r.plugin.pool.Holder(g.members[i].UID); h.Simulated {
				t.Errorf("member %s is still marked as simulated", g.members[i].Name)
			}
		}
	})
}

func TestPodGroupMemberChoosesAnewWhenItsChoiceIsGone(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		g := &group{rig: r}
		if status := g.simulate(pod("a", "gpu=1 gpumem=20000").Obj(), "n"); !status.IsSuccess() {
			t.Fatal(status)
		}
		simulated := r.held(g.members[0])
		g.revert()
		r.report(b.instance("1g.5gb@6", v1alpha1.InstanceForeign).GPUNode)
		if status := g.submit(0); !status.IsSuccess() {
			t.Fatal(status)
		}
		if got, want := r.held(g.members[0]), "n: 3g.20gb@0:GPU-0"; got != want {
			t.Errorf("the ledger has %s, want %s; in the simulation it was %s", got, want, simulated)
		}
	})
}

// A plan counts GPUs by position. When a GPU is lost between simulation and
// submission, the allocation must still name the GPU that was chosen.
func TestPodGroupMemberKeepsItsGPUWhenAnotherIsLost(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 2)
		r.addNode(node("n").Obj(), b.GPUNode)
		r.running(b.on(pod("q", "gpu=1"), "7g.40gb@0:GPU-0").Obj())
		g := &group{rig: r}
		if status := g.simulate(r.create(pod("a", "gpu=1").Obj()), "n"); !status.IsSuccess() {
			t.Fatal(status)
		}
		g.revert()
		r.report(b.change(func(s *v1alpha1.GPUNodeStatus) { s.GPUs = s.GPUs[1:] }).GPUNode)
		if status := g.submit(0); !status.IsSuccess() {
			t.Fatal(status)
		}
		if status := g.cycles[0].preBind(g.members[0]); !status.IsSuccess() {
			t.Fatal(status)
		}
		a, err := v1alpha1.DecodeAllocation(r.get(g.members[0]).Annotations[v1alpha1.AnnotationAllocation])
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Spans()[0].GPU; got != "GPU-1" {
			t.Errorf("the annotation names %s, the ledger has %s", got, r.held(g.members[0]))
		}
	})
}

// Members are submitted over one snapshot. The first may be bound, and seen bound,
// before the second is reserved; the snapshot shows neither.
func TestPodGroupMemberSeesOneThatIsBoundAlready(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		g := &group{rig: r}
		first := r.create(pod("first", "gpu=1 gpumem=20000").Obj())
		for _, p := range []*v1.Pod{first, pod("second", "gpu=1 gpumem=20000").Obj()} {
			if status := g.simulate(p, "n"); !status.IsSuccess() {
				t.Fatalf("member %s: %v", p.Name, status)
			}
		}
		g.revert()
		if status := g.submit(0); !status.IsSuccess() {
			t.Fatal(status)
		}
		r.update(b.on(pod("first", "gpu=1 gpumem=20000"), strings.TrimPrefix(r.held(first), "n: ")).Obj())
		g.cycles[1].state.Delete(stateKey) // so that it must choose
		g.cycles[1].state.Write(stateKey, &state{request: must(r.plugin.pool.Parse(g.members[1])), measured: newMeasured(1)})
		if status := g.submit(1); !status.IsSuccess() {
			t.Fatal(status)
		}
		if one, two := r.held(first), r.held(g.members[1]); one == two {
			t.Errorf("both members have %s", one)
		}
	})
}

// A pod that is gone, but not yet for our handler, is no obstacle: the snapshot and
// the informer's store lack it.
func TestReserveDoesNotCountAPodThatIsGone(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		gone := b.on(pod("gone", "gpu=1"), "7g.40gb@0").Obj()
		h, ok := pool.Options{}.HolderOf(gone)
		if !ok {
			t.Fatal("the pod holds nothing")
		}
		r.plugin.pool.Bound(h) // and neither cache nor store has it
		if _, assumed := r.mustReserve(pod("p", "gpu=1").Obj(), "n"); r.held(assumed) != "n: 7g.40gb@0:GPU-0" {
			t.Errorf("the ledger has %s, want the whole GPU", r.held(assumed))
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Gang preemption removes victims from the snapshot only: the ledger keeps them.
func TestPodGroupCycleIgnoresVictimsInTheLedger(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		victim := b.on(pod("victim", "gpu=1"), "7g.40gb@0").Obj()
		r.running(victim)
		if err := r.snapshot.StartMutations(); err != nil {
			t.Fatal(err)
		}
		if err := r.snapshot.RemovePod(r.logger, victim, "n"); err != nil {
			t.Fatal(err)
		}
		g := &group{rig: r}
		if status := g.simulate(pod("a", "gpu=1").Priority(10).Obj(), "n"); !status.IsSuccess() {
			t.Errorf("Filter and Reserve without the victim say %v, want success", status)
		}
		g.revert()
		if err := r.snapshot.EndMutations(); err != nil {
			t.Fatal(err)
		}
		if status := r.mustBegin(pod("a", "gpu=1").Priority(10).Obj()).filter("n"); status.Code() != fwk.Unschedulable {
			t.Errorf("Filter with the victim back says %v, want Unschedulable", status)
		}
	})
}
