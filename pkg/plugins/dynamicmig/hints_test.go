// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// ended removes a bound pod everywhere, in kube-scheduler's order: cache first,
// then the queue is told; our own handler may come before or after.
func (r *rig) ended(pod *v1.Pod) {
	r.Helper()
	if err := r.cache.RemovePod(r.logger, pod); err != nil {
		r.Fatal(err)
	}
	r.refresh()
	r.queue.MoveAllToActiveOrBackoffQueue(r.logger, framework.EventAssignedPodDelete, pod, nil, nil)
	r.delete(pod)
}

// appeared adds a Node to the cache and tells the queue.
func (r *rig) appeared(node *v1.Node) {
	r.addNode(node, nil)
	r.queue.MoveAllToActiveOrBackoffQueue(r.logger, fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.Add}, nil, node, nil)
}

// unnominated deletes a nominated pod and tells the queue as kube-scheduler does
// (kubernetes pkg/scheduler/eventhandlers.go:385-391).
func (r *rig) unnominated(pod *v1.Pod) {
	r.Helper()
	r.queue.Delete(r.logger, pod)
	r.queue.MoveAllToActiveOrBackoffQueue(r.logger, framework.EventAssignedPodDelete, pod, nil, nil)
	r.delete(pod)
}

// boundElsewhere binds a nominated pod to another node, which kube-scheduler tells the
// queue as the pod's end there and nothing more.
func (r *rig) boundElsewhere(pod *v1.Pod) {
	r.Helper()
	r.queue.Delete(r.logger, pod)
	pod = pod.DeepCopy()
	pod.Spec.NodeName = "elsewhere"
	r.update(pod)
}

// recreated replaces a Node by another of its name.
func (r *rig) recreated(old, node *v1.Node) {
	r.Helper()
	if err := r.cache.RemoveNode(r.logger, old); err != nil {
		r.Fatal(err)
	}
	r.appeared(node)
}

// Each reason for which a pod is rejected has an event that wakes it, and after
// which it passes. The list is complete: the test looks for reasons without a case.
func TestEachReasonHasAnEventThatCuresIt(t *testing.T) {
	type fixture struct {
		*rig
		b   reportBuilder
		pod *v1.Pod
	}
	b := report(t, "n", 1)
	q := b.on(pod("q", "gpu=1"), "7g.40gb@0").Obj()
	small := b.on(pod("small", "gpu=1 gpumem=4000"), "1g.5gb@0").Obj()
	nominee := func(priority int32) *st.PodWrapper { return pod("nominee", "gpu=1").Priority(priority) }
	old := node("n").UID("uid-of-old-n").Obj()
	cases := []struct {
		constant string // its name in pkg/pool, or none
		reason   string
		pod      *st.PodWrapper
		setup    func(f *fixture)
		cure     func(f *fixture)
	}{
		{
			constant: "ReasonNoGPUNode", reason: pool.ReasonNoGPUNode, pod: pod("p", "gpu=1"),
			setup: func(f *fixture) { f.addNode(node("n").Obj(), nil) },
			cure:  func(f *fixture) { f.report(b.GPUNode) },
		}, {
			constant: "ReasonNodeChanged", reason: pool.ReasonNodeChanged, pod: pod("p", "gpu=1"),
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.change(func(s *v1alpha1.GPUNodeStatus) { s.NodeUID = old.UID }).GPUNode)
			},
			cure: func(f *fixture) { f.report(b.GPUNode) },
		}, {
			reason: pool.ReasonNodeChanged, pod: pod("p", "gpu=1"), // the report of the new node came first
			setup: func(f *fixture) { f.addNode(old, b.GPUNode) },
			cure:  func(f *fixture) { f.recreated(old, node("n").Obj()) },
		}, {
			constant: "ReasonNoMode", reason: pool.ReasonNoMode,
			pod:   pod("p", "gpu=1").Annotation(v1alpha1.AnnotationMode, v1alpha1.ModeHAMiCore),
			setup: func(f *fixture) { f.addNode(node("n").Obj(), b.GPUNode) },
			cure:  func(f *fixture) { f.annotate(f.pod, v1alpha1.AnnotationMode, v1alpha1.ModeMIG) },
		}, {
			constant: "ReasonSharesOnly", reason: pool.ReasonSharesOnly,
			pod: pod("p", "gpu=1").Annotation(v1alpha1.AnnotationProfile, "1g.5gb"),
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.change(func(s *v1alpha1.GPUNodeStatus) {
					s.GPUs[0].Mode.Wanted, s.GPUs[0].Mode.Current = v1alpha1.ModeHAMiCore, v1alpha1.ModeHAMiCore
					s.GPUs[0].Shares = &v1alpha1.ShareCapacity{Count: 10, MemoryMiB: 40000, Cores: 100}
				}).GPUNode)
			},
			cure: func(f *fixture) { f.report(b.GPUNode) },
		}, {
			constant: "ReasonNoLibrary", reason: pool.ReasonNoLibrary, pod: pod("p", "gpu=1"),
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.change(func(s *v1alpha1.GPUNodeStatus) {
					s.GPUs[0].Mode.Wanted, s.GPUs[0].Mode.Current = v1alpha1.ModeHAMiCore, v1alpha1.ModeHAMiCore
					s.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionLibraryUnusable, Status: metav1.ConditionTrue}}
				}).GPUNode)
			},
			cure: func(f *fixture) { f.report(b.GPUNode) },
		}, {
			constant: "ReasonNotOffered", reason: pool.ReasonNotOffered, pod: pod("p", "gpu=1"),
			setup: func(f *fixture) { f.addNode(node("n").Obj(), b.unhealthy(0).GPUNode) },
			cure:  func(f *fixture) { f.report(b.GPUNode) },
		}, {
			constant: "ReasonNotSelected", reason: pool.ReasonNotSelected,
			pod:   pod("p", "gpu=1").Annotation(v1alpha1.AnnotationUseUUID, "GPU-7"),
			setup: func(f *fixture) { f.addNode(node("n").Obj(), b.GPUNode) },
			cure:  func(f *fixture) { f.annotate(f.pod, v1alpha1.AnnotationUseUUID, "GPU-0") },
		}, {
			constant: "ReasonNominated", reason: pool.ReasonNominated, pod: pod("p", "gpu=1 gpumem=4000"),
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.GPUNode)
				f.nominate(nominee(10), "n")
				f.running(b.on(pod("half", "gpu=1 gpumem=20000").Priority(10), "3g.20gb@0").Obj())
			},
			cure: func(f *fixture) { f.unnominated(f.named("nominee")) },
		}, {
			reason: "node(s) had no free MIG placement for a whole GPU", pod: pod("p", "gpu=1"), // for a nominated pod
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.GPUNode)
				f.nominate(nominee(0), "n")
			},
			cure: func(f *fixture) { f.unnominated(f.named("nominee")) },
		}, {
			reason: "node(s) had no free MIG placement for a whole GPU", pod: pod("p", "gpu=1"), // for a nominated pod that is bound elsewhere
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.GPUNode)
				f.nominate(nominee(0), "n")
			},
			cure: func(f *fixture) { f.boundElsewhere(f.named("nominee")) },
		}, {
			reason: "node(s) had no free MIG placement for a whole GPU", pod: pod("p", "gpu=1"), // for a nominated pod, while the other GPU is ill
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), report(f.TB, "n", 2).unhealthy(1).GPUNode)
				f.nominate(nominee(0), "n")
			},
			cure: func(f *fixture) { f.report(report(f.TB, "n", 2).GPUNode) },
		}, {
			reason: "node(s) had no free MIG placement for a whole GPU", pod: pod("p", "gpu=1"), // for a running pod
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.GPUNode)
				f.running(q)
			},
			cure: func(f *fixture) { f.ended(q) },
		}, {
			reason: "node(s) had no free MIG placement for a whole GPU", pod: pod("p", "gpu=1"), // for a pod that is then refused
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.GPUNode)
				f.running(small)
			},
			cure: func(f *fixture) { f.report(b.refused(small, "no room").GPUNode) },
		}, {
			reason: "node(s) had no free MIG placement for a whole GPU", pod: pod("p", "gpu=1"), // and at the very same placement, which is avoided for a while
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.GPUNode)
				f.running(q)
			},
			cure: func(f *fixture) {
				f.report(b.refused(q, "no room").GPUNode)
				if got, want := f.attempt(f.pod, "n"), "node(s) had just refused the only free MIG placement for a whole GPU"; got != want {
					f.Errorf("meanwhile the pod is rejected for %q, want %q", got, want)
				}
				time.Sleep(avoidFor) // of the bubble's clock
				f.settle()
			},
		}, {
			reason: "node(s) had foreign or stuck MIG instances in the way of a whole GPU", pod: pod("p", "gpu=1"),
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.instance("1g.5gb@0", v1alpha1.InstanceStuck).GPUNode)
			},
			cure: func(f *fixture) { f.report(b.instance("1g.5gb@0", v1alpha1.InstanceIdle).GPUNode) },
		}, {
			reason: "node(s) cannot be cut into 20000 MiB", pod: pod("p", "gpu=1 gpumem=20000"),
			setup: func(f *fixture) { f.addNode(node("n").Obj(), b.templates("7x1g.5gb").GPUNode) },
			cure:  func(f *fixture) { f.report(b.templates("7x1g.5gb", "2x3g.20gb").GPUNode) },
		}, {
			constant: "ReasonUnreadable", reason: pool.ReasonUnreadable, pod: pod("p", "gpu=1"),
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.change(func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].Model = "Voodoo2" }).GPUNode)
			},
			cure: func(f *fixture) { f.report(b.GPUNode) },
		}, {
			reason: `container "c": nvidia.com/gpucores is 200; use 0 to 100`, pod: pod("p", "gpu=1 gpucores=200"),
			setup: func(f *fixture) { f.addNode(node("n").Obj(), b.GPUNode) },
			cure: func(f *fixture) { // limits cannot be changed by users; what is seen is what counts
				changed := f.pod.DeepCopy()
				changed.Spec.Containers[0] = container("c", "gpu=1 gpucores=20")
				f.changed(changed)
			},
		}, {
			reason: "annotation nvidia.com/mig-profile asks for profile 9g.90gb; no GPU in the cluster can be cut into that, on offer are 1g.5gb, 1g.5gb+me, 1g.10gb, 2g.10gb, 3g.20gb, 4g.20gb, 7g.40gb",
			pod:    pod("p", "gpu=1").Annotation(v1alpha1.AnnotationProfile, "9g.90gb"),
			setup:  func(f *fixture) { f.addNode(node("n").Obj(), b.GPUNode) },
			cure:   func(f *fixture) { f.annotate(f.pod, v1alpha1.AnnotationProfile, "7g.40gb") },
		}, {
			reason: "limit nvidia.com/gpumem asks for 40000 MiB; no GPU in the cluster can be cut into that, the largest profile on offer is 1g.5gb with 4864 MiB",
			pod:    pod("p", "gpu=1 gpumem=40000"),
			setup: func(f *fixture) {
				f.addNode(node("n").Obj(), b.templates("7x1g.5gb").GPUNode)
				f.deleteReport("elsewhere")
			},
			cure: func(f *fixture) { f.report(b.GPUNode) },
		}, {
			reason: "the pod asks for 8 devices of nvidia.com/gpu; the largest node can hold 7", pod: pod("p", "gpu=8 gpumem=1000"),
			setup: func(f *fixture) { f.addNode(node("n").Obj(), b.GPUNode) },
			cure:  func(f *fixture) { f.report(report(t, "n", 2).GPUNode) },
		}, {
			reason: "no node offers GPUs yet: no GPUNode reports a usable GPU; kubectl mig status says why, node by node", pod: pod("p", "gpu=1"),
			setup: func(f *fixture) { f.addNode(node("n").Obj(), nil); f.deleteReport("elsewhere") },
			cure:  func(f *fixture) { f.report(b.GPUNode) },
		},
	}
	covered := map[string]bool{}
	for _, c := range cases {
		covered[c.constant] = true
		t.Run(c.reason, func(t *testing.T) {
			inRig(t, func(r *rig) {
				f := &fixture{rig: r, b: b}
				f.report(report(t, "elsewhere", 1).GPUNode) // a GPUNode without Node keeps PreFilter from saying no
				c.setup(f)
				f.pod = f.unschedulable(f.create(c.pod.Obj()))
				if got := f.attempt(f.pod, "n"); got != c.reason {
					t.Fatalf("the pod is rejected for %q, want %q", got, c.reason)
				}
				c.cure(f)
				if got := f.whereabouts(f.pod); got != "active" && got != "in backoff" {
					t.Errorf("after the cure the pod is %s, want active or in backoff", got)
				}
				if got := f.attempt(f.get(f.pod), "n"); got != "" {
					t.Errorf("after the cure the pod is rejected for %q", got)
				}
			})
		})
	}
	for _, name := range reasonConstants(t) {
		if !covered[name] {
			t.Errorf("no case for pool.%s: which event wakes the pods that are rejected for it?", name)
		}
	}
}

// reasonConstants are the names Reason... that pkg/pool declares.
func reasonConstants(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../pool/verdict.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			for _, name := range spec.Names {
				if strings.HasPrefix(name.Name, "Reason") {
					names = append(names, name.Name)
				}
			}
		}
		return true
	})
	if len(names) == 0 {
		t.Fatal("pkg/pool/verdict.go declares no Reason constants; has it moved?")
	}
	return names
}

// attempt is one try of a pod at a node: why it was rejected, or "".
func (r *rig) attempt(pod *v1.Pod, node string) string {
	r.Helper()
	c, status := r.begin(pod)
	if status.IsSuccess() {
		status = c.filter(node)
	}
	return status.Message()
}

// changed updates a pod in API and queue.
func (r *rig) changed(pod *v1.Pod) {
	r.Helper()
	before := r.get(pod).DeepCopy()
	pod.ResourceVersion = "2"
	r.update(pod)
	r.queue.Update(r.ctx, before, pod)
}

func (r *rig) annotate(pod *v1.Pod, key, value string) {
	r.Helper()
	pod = pod.DeepCopy()
	pod.Annotations[key] = value
	r.changed(pod)
}

func (r *rig) named(name string) *v1.Pod {
	r.Helper()
	return r.get(pod(name, "").Obj())
}

// The stock events are enough; a GPUNode event would make kube-scheduler keep a
// second, untyped informer and not start without the CRD.
func TestEventsNameCoreResourcesOnly(t *testing.T) {
	inRig(t, func(r *rig) {
		events, err := r.plugin.EventsToRegister(r.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if strings.Contains(string(e.Event.Resource), ".") {
				t.Errorf("event of resource %s, which is not of the core", e.Event.Resource)
			}
			if e.QueueingHintFn == nil {
				t.Errorf("event %v has no hint: each such event would wake each pod", e.Event)
			}
		}
	})
}

func TestHintsLeavePodsAloneThatAnEventDoesNotHelp(t *testing.T) {
	b := report(t, "n", 1)
	half := func(name string, at int) *v1.Pod {
		return b.on(pod(name, "gpu=1 gpumem=20000"), fmt.Sprintf("3g.20gb@%d", at)).Obj()
	}
	cases := []struct {
		name string
		pod  *st.PodWrapper
		do   func(r *rig)
		want string
	}{
		{
			name: "a pod without our resources ends", pod: pod("p", "gpu=1"),
			do: func(r *rig) {
				plain := pod("plain", "").Node("n").Obj()
				r.running(plain)
				r.ended(plain)
			},
			want: "unschedulable",
		}, {
			name: "one of two pods in the way ends", pod: pod("p", "gpu=1"),
			do:   func(r *rig) { r.ended(r.named("low")) },
			want: "unschedulable",
		}, {
			name: "and the other could be evicted", pod: pod("p", "gpu=1").Priority(10),
			do:   func(r *rig) { r.ended(r.named("low")) },
			want: "in backoff",
		}, {
			name: "and the other could be evicted, but the pod never preempts", pod: pod("p", "gpu=1").Priority(10).PreemptionPolicy(v1.PreemptNever),
			do:   func(r *rig) { r.ended(r.named("low")) },
			want: "unschedulable",
		}, {
			name: "a pod that holds what would do ends", pod: pod("p", "gpu=1 gpumem=20000"),
			do:   func(r *rig) { r.ended(r.named("low")) },
			want: "in backoff",
		}, {
			name: "a pod of another node ends", pod: pod("p", "gpu=1"),
			do: func(r *rig) {
				away := report(r.TB, "away", 1).on(pod("away", "gpu=1"), "7g.40gb@0").Obj()
				r.running(away)
				r.ended(away)
			},
			want: "unschedulable",
		}, {
			name: "a node without GPUNode appears", pod: pod("p", "gpu=1"),
			do:   func(r *rig) { r.appeared(node("empty").Obj()) },
			want: "unschedulable",
		}, {
			name: "a node with an idle GPU appears after its GPUNode", pod: pod("p", "gpu=1"),
			do: func(r *rig) {
				// the report alone wakes it already; here it was tried in vain meanwhile
				r.report(report(r.TB, "m", 1).GPUNode)
				r.reject(r.named("p"))
				r.appeared(node("m").Obj())
			},
			want: "in backoff",
		}, {
			name: "a label of the pod changes", pod: pod("p", "gpu=1"),
			do: func(r *rig) {
				p := r.named("p").DeepCopy()
				p.Labels = map[string]string{"a": "b"}
				r.changed(p)
			},
			want: "unschedulable",
		}, {
			name: "our own annotation of an earlier attempt changes", pod: pod("p", "gpu=1").Annotation("a", "b"),
			do: func(r *rig) {
				p := r.named("p")
				r.annotate(p, v1alpha1.AnnotationAllocation, b.allocation(p, "7g.40gb@0"))
			},
			want: "unschedulable",
		}, {
			name: "the pod asks for less", pod: pod("p", "gpu=1").Annotation("a", "b"),
			do:   func(r *rig) { r.annotate(r.named("p"), v1alpha1.AnnotationProfile, "1g.5gb") },
			want: "in backoff",
		}, {
			name: "the pod becomes invalid", pod: pod("p", "gpu=1").Annotation("a", "b"),
			do:   func(r *rig) { r.annotate(r.named("p"), v1alpha1.AnnotationMode, "mps") },
			want: "unschedulable",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.addNode(node("n").Obj(), b.GPUNode)
				r.addNode(node("away").Obj(), nil)
				r.running(half("low", 0), half("too", 4))
				p := r.unschedulable(r.create(c.pod.Obj()))
				c.do(r)
				if got := r.whereabouts(p); got != c.want {
					t.Errorf("the pod is %s, want %s", got, c.want)
				}
			})
		})
	}
}

// What is kept from one hint to the next is never older than the ledger or the report.
func TestHintsFollowEachChange(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		small := b.on(pod("small", "gpu=1 gpumem=4000"), "1g.5gb@0").Obj()
		lesser := b.on(pod("lesser", "gpu=1 gpumem=4000").Priority(-1), "1g.5gb@1").Obj()
		equal := b.on(pod("equal", "gpu=1 gpumem=4000"), "1g.5gb@2").Obj()
		p := pod("p", "gpu=1").Obj()
		for _, step := range []struct {
			name string
			do   func()
			gone types.UID
			want fwk.QueueingHint
		}{
			{"the GPU is free", func() {}, "", fwk.Queue},
			{"a pod has come", func() { r.running(small) }, "", fwk.QueueSkip},
			{"it is left out", func() {}, small.UID, fwk.Queue},
			{"it is there", func() {}, "", fwk.QueueSkip},
			{"the GPU is ill", func() { r.report(b.unhealthy(0).GPUNode) }, small.UID, fwk.QueueSkip},
			{"the GPU is well", func() { r.report(b.GPUNode) }, small.UID, fwk.Queue},
			{"a pod has come that could be evicted", func() { r.running(lesser) }, small.UID, fwk.Queue},
			{"and the first has gone", func() { r.delete(small) }, "", fwk.Queue},
			{"one has come that could not", func() { r.running(equal) }, "", fwk.QueueSkip},
		} {
			step.do()
			if got, err := r.plugin.hintFor(p, "n", step.gone); got != step.want || err != nil {
				t.Errorf("%s: the hint is %v (%v), want %v", step.name, got, err, step.want)
			}
		}
	})
}

// A report wakes exactly the pods that it helps.
func TestAReportActivatesThePodsItHelps(t *testing.T) {
	b := report(t, "n", 1)
	waiting := []*st.PodWrapper{
		pod("whole", "gpu=1"), pod("half", "gpu=1 gpumem=20000"), pod("important", "gpu=1 gpumem=20000").Priority(10),
		pod("two-halves", "gpu=2 gpumem=20000"), pod("impossible", "gpu=1 gpumem=90000"), pod("invalid", "gpumem=1"),
		pod("plain", ""), pod("other-scheduler", "gpu=1 gpumem=4000").SchedulerName("default-scheduler"),
	}
	cases := []struct {
		name          string
		before, after reportBuilder
		running       []*st.PodWrapper
		want          []string
	}{
		{
			name: "an idle GPU has become healthy", before: b.unhealthy(0), after: b,
			want: []string{"default/half", "default/important", "default/other-scheduler", "default/two-halves", "default/whole"},
		}, {
			name: "a foreign instance has gone beside a pod", before: b.instance("3g.20gb@4", v1alpha1.InstanceForeign), after: b,
			running: []*st.PodWrapper{b.on(pod("r", "gpu=1 gpumem=20000"), "3g.20gb@0").Priority(10)},
			want:    []string{"default/half", "default/important", "default/other-scheduler"},
		}, {
			name: "a full GPU has become healthy: only a pod that may evict is helped", before: b.unhealthy(0), after: b,
			running: []*st.PodWrapper{b.on(pod("r", "gpu=1"), "7g.40gb@0")},
			want:    []string{"default/important"},
		}, {
			name: "instances come and go while nothing is gained", before: b, after: b.instance("3g.20gb@0", v1alpha1.InstanceLive).refused(pod("nobody", "").Obj(), "gone"),
		}, {
			name: "a GPU was lost", before: b, after: b.unhealthy(0),
		}, {
			name:   "a second GPU beside an idle one helps those that need two, and those that had to leave the first to a nominated pod",
			before: b.templates("1x3g.20gb"), after: report(t, "n", 2).templates("1x3g.20gb"),
			want: []string{"default/half", "default/important", "default/other-scheduler", "default/two-halves"},
		}, {
			name: "the report is now that of another node of this name", after: b,
			before: b.change(func(s *v1alpha1.GPUNodeStatus) { s.NodeUID = "uid-of-old-n" }),
			want:   []string{"default/half", "default/important", "default/other-scheduler", "default/two-halves", "default/whole"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.addNode(node("n").Obj(), c.before.GPUNode)
				for _, q := range c.running {
					r.running(q.Obj())
				}
				for _, w := range waiting {
					r.create(w.Obj().DeepCopy())
				}
				r.activator.taken()
				r.report(c.after.GPUNode)
				if diff := cmp.Diff(c.want, r.activator.taken()); diff != "" {
					t.Errorf("activated (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestAReportDoesNotActivateAPodThatIsBoundOrGone(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.unhealthy(0).GPUNode)
		gone := r.create(pod("gone", "gpu=1 gpumem=4000").Obj())
		r.delete(gone)
		bound := r.create(pod("bound", "gpu=1 gpumem=4000").Obj()).DeepCopy()
		bound.Spec.NodeName = "elsewhere"
		r.update(bound)
		r.create(pod("ending", "gpu=1 gpumem=4000").Terminating().Obj())
		r.create(pod("waiting", "gpu=1 gpumem=4000").Obj())
		r.report(b.GPUNode)
		if diff := cmp.Diff([]string{"default/waiting"}, r.activator.taken()); diff != "" {
			t.Errorf("activated (-want +got):\n%s", diff)
		}
	})
}

// Reports and pods come by different watches, so that a pod may be refused before it
// is seen bound. Its slices are then free for those that wait, but for the refused
// placement.
func TestAPodRefusedBeforeItIsSeenBound(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.GPUNode)
		q := r.create(pod("q", "gpu=1").Obj())
		_, _ = r.mustReserve(q, "n")
		half, whole := r.create(pod("half", "gpu=1 gpumem=20000").Obj()), r.create(pod("whole", "gpu=1").Obj())
		r.refresh()
		r.report(b.refused(q, "no room").GPUNode)
		if got := r.activator.taken(); got != nil {
			t.Errorf("activated %v before the pod is bound: its binding may still fail", got)
		}
		r.update(b.on(pod("q", "gpu=1"), "7g.40gb@0").Obj())
		if diff := cmp.Diff([]string{"default/half"}, r.activator.taken()); diff != "" {
			t.Errorf("activated when the pod is seen bound (-want +got):\n%s", diff)
		}
		if got := r.attempt(half, "n"); got != "" {
			t.Errorf("half a GPU: %s", got)
		}
		if got, want := r.attempt(whole, "n"), "node(s) had just refused the only free MIG placement for a whole GPU"; got != want {
			t.Errorf("a whole GPU: %q, want %q", got, want)
		}
		time.Sleep(avoidFor) // of the bubble's clock
		r.settle()
		if diff := cmp.Diff([]string{"default/half", "default/whole"}, r.activator.taken()); diff != "" {
			t.Errorf("activated when the placement may be tried again (-want +got):\n%s", diff)
		}
	})
}

// A pod that a scheduler knows from its report only, as after a restart, is noted
// when it comes.
func TestAPodRefusedBeforeItIsSeenAtAll(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		q := b.on(pod("q", "gpu=1"), "7g.40gb@0").Obj()
		r.addNode(node("n").Obj(), b.refused(q, "no room").GPUNode)
		r.running(q)
		if got, want := r.attempt(pod("p", "gpu=1").Obj(), "n"), "node(s) had just refused the only free MIG placement for a whole GPU"; got != want {
			t.Errorf("a whole GPU: %q, want %q", got, want)
		}
	})
}

// Names of nodes that come and go, as where nodes are made on demand, are not kept.
func TestRefusalsGoWithTheirNode(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		q := b.on(pod("q", "gpu=1"), "7g.40gb@0").Obj()
		r.running(q)
		r.report(b.refused(q, "no room").GPUNode)
		if got := len(r.plugin.refusals.seen); got != 1 {
			t.Errorf("after a refusal %d nodes are remembered, want 1", got)
		}
		r.deleteReport("n")
		if got := len(r.plugin.refusals.seen); got != 0 {
			t.Errorf("after the GPUNode has gone %d nodes are remembered, want 0", got)
		}
	})
}

// Between a report and the avoidance of what it refuses nobody may choose that: it
// is avoided before the report counts. Many rounds, since the moment is short.
func TestARefusedPlacementIsNeverOnOffer(t *testing.T) {
	inRig(t, func(r *rig) {
		const rounds = 120
		b := report(t, "n", rounds)
		r.addNode(node("n").Obj(), b.GPUNode)
		var pods []*v1.Pod
		for i := range rounds {
			pods = append(pods, b.on(pod(fmt.Sprint("q", i), "gpu=1"), fmt.Sprintf("7g.40gb@0:GPU-%d", i)).Obj())
		}
		r.running(pods...)
		request := must(r.plugin.pool.Parse(pod("p", "gpu=1").Obj()))
		var done, offered atomic.Bool
		var watch sync.WaitGroup
		watch.Go(func() {
			for !done.Load() && !offered.Load() {
				n, _ := r.plugin.pool.Node("n")
				offered.Store(r.plugin.prospect(n, "").helps(pods[0], request))
			}
		})
		for _, q := range pods {
			b = b.refused(q, "no room")
			r.plugin.onGPUNode(b.GPUNode)
		}
		done.Store(true)
		if watch.Wait(); offered.Load() {
			t.Error("a placement that a report refuses was on offer for a moment")
		}
	})
}

// An attempt that began before a report ends after it: the pod goes straight back.
func TestAReportDuringAnAttemptIsNotLost(t *testing.T) {
	inRig(t, func(r *rig) {
		b := report(t, "n", 1)
		r.addNode(node("n").Obj(), b.unhealthy(0).GPUNode)
		p := r.create(pod("p", "gpu=1").Obj())
		r.queue.Add(r.ctx, p)
		entity, err := r.queue.Pop(r.logger)
		if err != nil {
			t.Fatal(err)
		}
		r.report(b.GPUNode)
		info := entity.(*framework.QueuedPodInfo)
		info.UnschedulablePlugins.Insert(Name)
		if err := r.queue.AddUnschedulablePodIfNotPresent(r.logger, info, r.queue.SchedulingCycle()); err != nil {
			t.Fatal(err)
		}
		if got := r.whereabouts(p); !slices.Contains([]string{"active", "in backoff"}, got) {
			t.Errorf("the pod is %s, want active or in backoff", got)
		}
	})
}
