// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	fwk "k8s.io/kube-scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

func TestPreFilterSaysWhatIsWrongWithThePod(t *testing.T) {
	cases := []struct {
		name string
		pod  *st.PodWrapper
		want string
	}{
		{"memory without a device", pod("p", "gpumem=8000"),
			`container "c" asks for nvidia.com/gpumem without nvidia.com/gpu; add the limit nvidia.com/gpu: 1`},
		{"percentage without a device", pod("p", "gpumem-percentage=50"),
			`container "c" asks for nvidia.com/gpumem-percentage without nvidia.com/gpu; add the limit nvidia.com/gpu: 1`},
		{"a percentage above 100", pod("p", "gpu=1 gpumem-percentage=101"),
			`container "c": nvidia.com/gpumem-percentage is 101; use 1 to 100`},
		{"cores above 100", pod("p", "gpu=1 gpucores=200"),
			`container "c": nvidia.com/gpucores is 200; use 0 to 100`},
		{"memory with a suffix", pod("p", "gpu=1 gpumem=8Gi"),
			`the unit is MiB, without a suffix`},
		{"an unknown mode", pod("p", "gpu=1").Annotation(v1alpha1.AnnotationMode, "mps"),
			`annotation nvidia.com/vgpu-mode is "mps"`},
		{"an unknown profile", pod("p", "gpu=1").Annotation(v1alpha1.AnnotationProfile, "9g.90gb"),
			`annotation nvidia.com/mig-profile asks for profile 9g.90gb; no GPU in the cluster can be cut into that`},
		{"more memory than any GPU has", pod("p", "gpu=1 gpumem=50000"),
			`limit nvidia.com/gpumem asks for 50000 MiB; no GPU in the cluster can be cut into that, the largest profile on offer is 7g.40gb`},
		{"more devices than any node holds", pod("p", "gpu=15 gpumem=1000"),
			`the pod asks for 15 devices of nvidia.com/gpu; the largest node can hold 14`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.addNode(node("n").Obj(), report(t, "n", 2).GPUNode)
				_, status := r.begin(c.pod.Obj())
				if status.Code() != fwk.UnschedulableAndUnresolvable || !strings.Contains(status.Message(), c.want) {
					t.Errorf("PreFilter says %v, want UnschedulableAndUnresolvable with %q", status, c.want)
				}
				if status.Plugin() != Name {
					t.Errorf("the status is that of plugin %q, want %q: its hints decide when to try again", status.Plugin(), Name)
				}
			})
		})
	}
}

func TestPreFilterWithoutAnyGPUNode(t *testing.T) {
	inRig(t, func(r *rig) {
		_, status := r.begin(pod("p", "gpu=1").Obj())
		if want := "no node offers GPUs yet"; status.Code() != fwk.UnschedulableAndUnresolvable || !strings.Contains(status.Message(), want) {
			t.Errorf("PreFilter says %v, want UnschedulableAndUnresolvable with %q", status, want)
		}
	})
}

// While GPUNodes cannot be read, GPU pods are told why, other pods are scheduled,
// and the pods turned away are tried again as soon as they can be.
func TestMissingGPUNodeAPIStopsGPUPodsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		missing := true
		r := newRig(t, func(r *rig) {
			r.gpus.PrependReactor("list", "gpunodes", func(clienttesting.Action) (bool, runtime.Object, error) {
				return missing, nil, apierrors.NewNotFound(v1alpha1.Resource("gpunodes"), "")
			})
		})
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		r.start()
		p := r.unschedulable(r.create(pod("p", "gpu=1").Obj()))

		_, status := r.begin(p)
		want := "the GPUNode API is not installed; apply the CustomResourceDefinition gpunodes.dynamig.io (manifests/base/crd)"
		if status.Code() != fwk.UnschedulableAndUnresolvable || status.Message() != want {
			t.Errorf("PreFilter says %v, want UnschedulableAndUnresolvable with %q", status, want)
		}
		plain, status := r.begin(pod("plain", "").Obj())
		if !status.IsSuccess() {
			t.Errorf("PreFilter of a pod without GPUs says %v, want success", status)
		}
		if status := plain.filter("n"); !status.IsSuccess() {
			t.Errorf("Filter of a pod without GPUs says %v, want success", status)
		}

		missing = false
		r.waitUntil("the GPU pod is activated", func() bool { return len(r.activator.names) > 0 })
		if diff := cmp.Diff([]string{"default/p"}, r.activator.taken()); diff != "" {
			t.Errorf("activated (-want +got):\n%s", diff)
		}
		if _, status := r.begin(p); !status.IsSuccess() {
			t.Errorf("PreFilter says %v after the API was installed, want success", status)
		}
	})
}

// A pod that is woken by the first GPUNode of the first list and turned away,
// because the list is not complete, is woken again when it is.
func TestPreFilterWaitsForTheFirstList(t *testing.T) {
	const want = "the GPUNodes are still being read"
	synctest.Test(t, func(t *testing.T) {
		block := make(chan struct{})
		r := newRig(t, func(r *rig) {
			r.gpus.PrependReactor("list", "gpunodes", func(clienttesting.Action) (bool, runtime.Object, error) {
				<-block
				return false, nil, nil
			})
			if err := r.gpus.Tracker().Add(report(t, "n", 1).GPUNode); err != nil {
				t.Fatal(err)
			}
			if err := r.gpus.Tracker().Add(report(t, "useless", 1).unhealthy(0).GPUNode); err != nil {
				t.Fatal(err)
			}
		})
		r.start()
		p := r.unschedulable(r.create(pod("p", "gpu=1").Obj()))
		turnedAway := func() {
			if _, status := r.begin(p); status.Code() != fwk.UnschedulableAndUnresolvable || status.Message() != want {
				t.Errorf("PreFilter says %v, want UnschedulableAndUnresolvable with %q", status, want)
			}
		}
		turnedAway()
		r.activator.then = func() { turnedAway(); r.reject(p) }
		close(block)
		r.settle()
		if got := r.whereabouts(p); got != "active" {
			t.Errorf("after the list the pod is %s, want active", got)
		}
		if _, status := r.begin(p); !status.IsSuccess() {
			t.Errorf("PreFilter says %v, want success", status)
		}
	})
}

// Each reason of Filter with the status code that decides where preemption looks.
func TestFilterTellsPreemptionWhereToLook(t *testing.T) {
	const unresolvable, resolvable = fwk.UnschedulableAndUnresolvable, fwk.Unschedulable
	whole := func(name string) *st.PodWrapper { return pod(name, "gpu=1") }
	cases := []struct {
		name    string
		pod     *st.PodWrapper
		report  func(b reportBuilder) *v1alpha1.GPUNode // of node n; nil is no GPUNode
		running func(b reportBuilder) []*st.PodWrapper
		want    fwk.Code
		reason  string
	}{
		{
			name: "an idle node fits", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode { return b.GPUNode },
			want:   fwk.Success,
		}, {
			name: "a node without GPUNode", pod: whole("p"),
			want: unresolvable, reason: pool.ReasonNoGPUNode,
		}, {
			name: "a node created anew under the old name", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode {
				return b.change(func(s *v1alpha1.GPUNodeStatus) { s.NodeUID = "uid-of-old-n" }).GPUNode
			},
			want: unresolvable, reason: pool.ReasonNodeChanged,
		}, {
			name: "a GPUNode that cannot be read", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode {
				return b.change(func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].Model = "Voodoo2" }).GPUNode
			},
			want: unresolvable, reason: pool.ReasonUnreadable,
		}, {
			name: "an unhealthy GPU", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode { return b.unhealthy(0).GPUNode },
			want:   unresolvable, reason: pool.ReasonNotOffered,
		}, {
			name: "a GPU that waits for a reset", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode {
				return b.change(func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].Mode.Pending = true }).GPUNode
			},
			want: unresolvable, reason: pool.ReasonNotOffered,
		}, {
			name: "a pod that wants a software share", pod: whole("p").Annotation(v1alpha1.AnnotationMode, v1alpha1.ModeHAMiCore),
			report: func(b reportBuilder) *v1alpha1.GPUNode { return b.GPUNode },
			want:   unresolvable, reason: pool.ReasonNoMode,
		}, {
			name: "a profile that this node's catalogue lacks", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode {
				small, _, _ := b.parse("1g.5gb@0")
				return b.change(func(s *v1alpha1.GPUNodeStatus) {
					s.Models[0].Rule, s.Models[0].Allowed = v1alpha1.RuleAllowlist, []int32{small.ID}
				}).GPUNode
			},
			want: unresolvable, reason: "node(s) cannot be cut into a whole GPU",
		}, {
			name: "a foreign instance in the way", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode {
				return b.instance("1g.5gb@6", v1alpha1.InstanceForeign).GPUNode
			},
			want: unresolvable, reason: "node(s) had foreign or stuck MIG instances in the way of a whole GPU",
		}, {
			name: "a stuck instance in the way", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode { return b.instance("1g.5gb@6", v1alpha1.InstanceStuck).GPUNode },
			want:   unresolvable, reason: "node(s) had foreign or stuck MIG instances in the way of a whole GPU",
		}, {
			name: "a foreign instance beside enough room", pod: pod("p", "gpu=1 gpumem=20000"),
			report: func(b reportBuilder) *v1alpha1.GPUNode {
				return b.instance("1g.5gb@0", v1alpha1.InstanceForeign).GPUNode
			},
			want: fwk.Success,
		}, {
			name: "live and idle instances without a pod are no obstacle", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode {
				return b.instance("3g.20gb@0", v1alpha1.InstanceLive).instance("3g.20gb@4", v1alpha1.InstanceIdle).GPUNode
			},
			want: fwk.Success,
		}, {
			name: "a pod in the way", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode { return b.GPUNode },
			running: func(b reportBuilder) []*st.PodWrapper {
				return []*st.PodWrapper{b.on(pod("q", "gpu=1 gpumem=4000"), "1g.5gb@6")}
			},
			want: resolvable, reason: "node(s) had no free MIG placement for a whole GPU",
		}, {
			name: "a pod in the way that its agent has refused holds nothing", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode { return b.refused(pod("q", "").Obj(), "GPU lost").GPUNode },
			running: func(b reportBuilder) []*st.PodWrapper {
				return []*st.PodWrapper{b.on(pod("q", "gpu=1 gpumem=4000"), "1g.5gb@6")}
			},
			want: fwk.Success,
		}, {
			name: "but its very placement is not tried again for a while", pod: whole("p"),
			report:  func(b reportBuilder) *v1alpha1.GPUNode { return b.refused(pod("q", "").Obj(), "GPU lost").GPUNode },
			running: func(b reportBuilder) []*st.PodWrapper { return []*st.PodWrapper{b.on(pod("q", "gpu=1"), "7g.40gb@0")} },
			want:    resolvable, reason: "node(s) had just refused the only free MIG placement for a whole GPU",
		}, {
			name: "a pod that is ending still holds its placement", pod: whole("p").Priority(10),
			report: func(b reportBuilder) *v1alpha1.GPUNode { return b.GPUNode },
			running: func(b reportBuilder) []*st.PodWrapper {
				return []*st.PodWrapper{b.on(pod("q", "gpu=1"), "7g.40gb@0").Terminating()}
			},
			want: resolvable, reason: "node(s) had no free MIG placement for a whole GPU",
		}, {
			name: "a pod bound without annotation holds slots and no placement", pod: whole("p"),
			report:  func(b reportBuilder) *v1alpha1.GPUNode { return b.GPUNode },
			running: func(b reportBuilder) []*st.PodWrapper { return []*st.PodWrapper{pod("q", "gpu=1").Node("n")} },
			want:    fwk.Success,
		}, {
			name: "a pod whose annotation is another pod's holds no placement", pod: whole("p"),
			report: func(b reportBuilder) *v1alpha1.GPUNode { return b.GPUNode },
			running: func(b reportBuilder) []*st.PodWrapper {
				forged := b.allocation(pod("other", "gpu=1").Obj(), "7g.40gb@0")
				return []*st.PodWrapper{pod("q", "gpu=1").Node("n").Annotation(v1alpha1.AnnotationAllocation, forged)}
			},
			want: fwk.Success,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				b := report(t, "n", 1)
				r.addNode(node("elsewhere").Obj(), report(t, "elsewhere", 1).GPUNode) // so that PreFilter finds p possible
				r.addNode(node("n").Obj(), nil)
				if c.report != nil {
					r.report(c.report(b))
				}
				if c.running != nil {
					for _, q := range c.running(b) {
						r.running(q.Obj())
					}
				}
				status := r.mustBegin(c.pod.Obj()).filter("n")
				if status.Code() != c.want || status.Message() != c.reason {
					t.Errorf("Filter says %v: %q, want %v: %q", status.Code(), status.Message(), c.want, c.reason)
				}
			})
		})
	}
}

func TestFilterYieldsToNominatedPods(t *testing.T) {
	cases := []struct {
		name    string
		nominee *st.PodWrapper
		running []*st.PodWrapper
		pod     *st.PodWrapper
		want    fwk.Code
		reason  string
	}{
		{
			name:    "a nominated pod of equal priority keeps its room",
			nominee: pod("nominee", "gpu=1"), pod: pod("p", "gpu=1 gpumem=4000"),
			want: fwk.Unschedulable, reason: "node(s) had no free MIG placement for 4000 MiB",
		}, {
			name:    "a nominated pod of higher priority that has no room yet keeps others out",
			nominee: pod("nominee", "gpu=1").Priority(10), pod: pod("p", "gpu=1 gpumem=4000"),
			running: []*st.PodWrapper{report(t, "n", 1).on(pod("q", "gpu=1 gpumem=4000").Priority(10), "1g.5gb@0")},
			want:    fwk.Unschedulable, reason: pool.ReasonNominated,
		}, {
			name:    "a nominated pod may count on what its ending victim holds, and so others may have the rest",
			nominee: pod("nominee", "gpu=1 gpumem=20000").Priority(10), pod: pod("p", "gpu=1 gpumem=4000"),
			running: []*st.PodWrapper{
				report(t, "n", 1).on(pod("victim", "gpu=1 gpumem=20000"), "3g.20gb@0").Terminating(),
				report(t, "n", 1).on(pod("q", "gpu=1 gpumem=9000").Priority(10), "2g.10gb@4"),
			},
			want: fwk.Success,
		}, {
			name:    "a nominated pod of lower priority does not count",
			nominee: pod("nominee", "gpu=1"), pod: pod("p", "gpu=1 gpumem=4000").Priority(1),
			want: fwk.Success,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
				for _, q := range c.running {
					r.running(q.Obj())
				}
				r.nominate(c.nominee, "n")
				status := r.mustBegin(c.pod.Obj()).filter("n")
				if status.Code() != c.want || status.Message() != c.reason {
					t.Errorf("Filter says %v: %q, want %v: %q", status.Code(), status.Message(), c.want, c.reason)
				}
			})
		})
	}
}

// Each Filter sees the node as its NodeInfo shows it, although views are kept.
func TestFilterFollowsTheSnapshotAndTheLedger(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		c := r.mustBegin(pod("p", "gpu=1").Obj())
		expect := func(when string, want fwk.Code) {
			t.Helper()
			for range 2 { // built, then kept
				if status := c.filter("n"); status.Code() != want {
					t.Errorf("%s Filter says %v, want %v", when, status, want)
				}
			}
		}
		expect("on the idle node", fwk.Success)
		q := b.on(pod("q", "gpu=1"), "7g.40gb@0").Obj()
		r.running(q)
		expect("with a pod on it", fwk.Unschedulable)
		if err := r.cache.RemovePod(r.logger, q); err != nil {
			t.Fatal(err)
		}
		r.refresh()
		expect("after the pod has gone", fwk.Success)
		r.report(b.instance("1g.5gb@0", v1alpha1.InstanceForeign).GPUNode)
		expect("with somebody else's instance", fwk.UnschedulableAndUnresolvable)
		r.report(b.GPUNode)
		expect("after that has gone", fwk.Success)
	})
}

// In a PodGroup cycle pods come and go without a new generation.
func TestFilterSeesPodsThatKeepTheGeneration(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		c := r.mustBegin(pod("p", "gpu=1").Obj())
		if status := c.filter("n"); !status.IsSuccess() {
			t.Fatal(status)
		}
		if err := r.snapshot.AssumePod(podInfo(t, b.on(pod("q", "gpu=1"), "7g.40gb@0").Obj())); err != nil {
			t.Fatal(err)
		}
		if status := c.filter("n"); status.Code() != fwk.Unschedulable {
			t.Errorf("Filter says %v, want Unschedulable", status)
		}
	})
}

func TestPodsWithoutOurResourcesAreSkippedEverywhere(t *testing.T) {
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		c := r.mustBegin(r.create(pod("plain", "").Obj()))
		if !c.state.GetSkipFilterPlugins().Has(Name) {
			t.Error("PreFilter did not skip Filter")
		}
		if status := c.framework.RunPreScorePlugins(c.ctx, c.state, c.pod, []fwk.NodeInfo{r.nodeInfo("n")}); !status.IsSuccess() {
			t.Errorf("PreScore says %v, want success", status)
		}
		if !c.state.GetSkipScorePlugins().Has(Name) {
			t.Error("PreScore did not skip Score")
		}
		assumed, status := c.reserve("n")
		if !status.IsSuccess() || r.held(assumed) != "nothing" {
			t.Errorf("Reserve says %v and the ledger has %s, want success and nothing", status, r.held(assumed))
		}
		if status := c.framework.RunPreBindPreFlights(c.ctx, c.state, assumed, "n"); !status.IsSkip() {
			t.Errorf("PreBindPreFlight says %v, want Skip: Success costs one more API write per pod", status)
		}
		if status := c.framework.RunPreBindPlugins(c.ctx, c.state, assumed, "n"); !status.IsSuccess() {
			t.Errorf("PreBind says %v, want success", status)
		}
		c.framework.RunPostBindPlugins(c.ctx, c.state, assumed, "n")
		if got := append(r.patches(), r.recorded()...); len(got) != 0 {
			t.Errorf("patches and events %q, want none", got)
		}
	})
}

func TestFilterWithoutPreFilterIsAnError(t *testing.T) {
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		c := &cycle{rig: r, pod: pod("p", "gpu=1").Obj(), state: newState()}
		if status := c.filter("n"); status.Code() != fwk.Error {
			t.Errorf("Filter says %v, want Error", status)
		}
	})
}

func TestScoreRanksNodes(t *testing.T) {
	half := []string{"3g.20gb@0"}
	cases := []struct {
		name  string
		wants string
		nodes map[string][]string // what pods hold there
		want  map[string]int64
	}{
		{
			name: "the node that keeps most open comes first, equal ones rank equally", wants: "gpu=1 gpumem=20000",
			nodes: map[string][]string{"half": half, "idle": nil, "idle-too": nil},
			want:  map[string]int64{"half": 100, "idle": 99, "idle-too": 99},
		}, {
			name: "exactly what was asked for comes before a larger profile on a fuller node", wants: "gpu=1 gpumem=4000",
			nodes: map[string][]string{"oversize": half, "exact": nil},
			want:  map[string]int64{"oversize": 99, "exact": 100},
		}, {
			name: "several devices on one node", wants: "gpu=2 gpumem=20000",
			nodes: map[string][]string{"idle": nil, "idle-too": nil},
			want:  map[string]int64{"idle": 100, "idle-too": 100},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				var nodes []fwk.NodeInfo
				for name, held := range c.nodes {
					b := report(t, name, 1).templates("7x1g.5gb", "2x3g.20gb")
					r.addNode(node(name).Obj(), b.GPUNode)
					if held != nil {
						r.running(b.on(pod("on-"+name, "gpu=1 gpumem=20000"), held...).Obj())
					}
				}
				for name := range c.nodes {
					nodes = append(nodes, r.nodeInfo(name))
				}
				cy := r.mustBegin(pod("p", c.wants).Obj())
				if status := cy.framework.RunPreScorePlugins(cy.ctx, cy.state, cy.pod, nodes); !status.IsSuccess() {
					t.Fatal(status)
				}
				scores, status := cy.framework.RunScorePlugins(cy.ctx, cy.state, cy.pod, nodes)
				if !status.IsSuccess() {
					t.Fatal(status)
				}
				got := map[string]int64{}
				for _, s := range scores {
					got[s.Name] = s.TotalScore
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("scores (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// What NormalizeScore is for: raw scores are far outside of 0..100.
func TestScoreRawIsTheNegatedPlanScore(t *testing.T) {
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		c := r.mustBegin(pod("p", "gpu=1 gpumem=20000").Obj())
		raw, status := c.framework.RunRawScorePlugins(c.ctx, c.state, c.pod, r.nodeInfo("n"))
		if !status.IsSuccess() {
			t.Fatal(status)
		}
		view, status := r.plugin.view(r.nodeInfo("n"))
		if view == nil {
			t.Fatal(status)
		}
		request, err := r.plugin.pool.Parse(c.pod)
		if err != nil {
			t.Fatal(err)
		}
		plan, verdict := view.Fit(request)
		if verdict != nil {
			t.Fatal(verdict)
		}
		if len(raw) != 1 || raw[0].Score != -plan.Score {
			t.Errorf("raw scores are %v, want %d", raw, -plan.Score)
		}
	})
}

func TestNormalizeScoreRanks(t *testing.T) {
	many := make([]int64, 301)
	ranks := make([]int64, 301)
	for i := range many {
		many[i] = int64(i) * 1_000_000_007
		ranks[i] = max(0, int64(i)-200)
	}
	cases := []struct {
		name      string
		raw, want []int64
	}{
		{"nothing to rank", []int64{}, []int64{}},
		{"one node is the best", []int64{-7_000_000_000}, []int64{100}},
		{"equal nodes are all the best", []int64{3, 3, 3}, []int64{100, 100, 100}},
		{"two nodes are one step apart", []int64{-1 << 50, -5}, []int64{99, 100}},
		{"distances do not count, order does", []int64{-1 << 60, 0, 1}, []int64{98, 99, 100}},
		{"equal scores get equal ranks", []int64{5, 1, 5, 3}, []int64{100, 98, 100, 99}},
		{"more scores than steps: the best keep their order", many, ranks},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			list := make(fwk.NodeScoreList, len(c.raw))
			for i, s := range c.raw {
				list[i].Score = s
			}
			if status := (&Plugin{}).NormalizeScore(t.Context(), nil, nil, list); !status.IsSuccess() {
				t.Fatal(status)
			}
			got := make([]int64, len(list))
			for i := range list {
				got[i] = list[i].Score
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("scores (-want +got):\n%s", diff)
			}
		})
	}
}
