// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	fwk "k8s.io/kube-scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// inBinding reserves a pod on the one node of a rig.
func inBinding(t *testing.T, p *st.PodWrapper, test func(c *cycle, assumed *v1.Pod)) {
	t.Helper()
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		c, assumed := r.mustReserve(r.create(p.Obj()), "n")
		test(c, assumed)
	})
}

func TestPreBindWritesOnePatchForThisUID(t *testing.T) {
	inBinding(t, pod("p", "gpu=1 gpumem=20000"), func(c *cycle, assumed *v1.Pod) {
		before := assumed.DeepCopy()
		if status := c.preBind(assumed); !status.IsSuccess() {
			t.Fatal(status)
		}
		patches := c.patches()
		if len(patches) != 1 {
			t.Fatalf("PreBind sent the patches %q, want one", patches)
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(patches[0]), &got); err != nil {
			t.Fatal(err)
		}
		allocation := report(t, "n", 1).allocation(assumed, "3g.20gb@4")
		want := map[string]any{"metadata": map[string]any{
			"uid":         "uid-p",
			"annotations": map[string]any{v1alpha1.AnnotationAllocation: allocation},
		}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("patch (-want +got):\n%s", diff)
		}
		for _, action := range c.client.Actions() {
			if patch, ok := action.(clienttesting.PatchAction); ok &&
				(patch.GetPatchType() != types.MergePatchType || patch.GetSubresource() != "" || patch.GetName() != "p") {
				t.Errorf("patch of %s/%s by %s, want a merge patch of the pod", patch.GetName(), patch.GetSubresource(), patch.GetPatchType())
			}
		}
		if diff := cmp.Diff(before, assumed); diff != "" {
			t.Errorf("PreBind changed the pod it was given, which is the one in the scheduler's cache (-before +after):\n%s", diff)
		}
		if got := c.get(assumed).Annotations[v1alpha1.AnnotationAllocation]; got != allocation {
			t.Errorf("the API has %s, want %s", got, allocation)
		}
		if h, _ := c.plugin.pool.Holder(assumed.UID); h.State != pool.Published {
			t.Errorf("the ledger's entry is in state %v, want Published", h.State)
		}
		if events := c.recorded(); len(events) != 0 {
			t.Errorf("events %q before the pod was bound, want none", events)
		}
	})
}

func TestPreBindOfTwoContainersNamesTheirDevicesInOrder(t *testing.T) {
	p := pod("p", "gpu=2 gpumem=4000").Containers([]v1.Container{container("c", "gpu=2 gpumem=4000"), container("d", "gpu=1 gpumem=20000")})
	inBinding(t, p, func(c *cycle, assumed *v1.Pod) {
		if status := c.preBind(assumed); !status.IsSuccess() {
			t.Fatal(status)
		}
		a, err := v1alpha1.DecodeAllocation(c.get(assumed).Annotations[v1alpha1.AnnotationAllocation])
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]string{}
		for name, devices := range a.Containers {
			for _, d := range devices {
				got[name] = append(got[name], d.MIG.Profile)
			}
		}
		want := map[string][]string{"c": {"1g.5gb", "1g.5gb"}, "d": {"3g.20gb"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("devices (-want +got):\n%s", diff)
		}
		if err := a.Owns(assumed, "n"); err != nil {
			t.Error(err)
		}
		if err := a.Validate(&report(t, "n", 1).Status); err != nil {
			t.Error(err)
		}
	})
}

func TestPreBindRefusesWhenTheGPUNodeHasChanged(t *testing.T) {
	b := report(t, "n", 1)
	cases := []struct {
		name   string
		change func(r *rig)
	}{
		{"a foreign instance is in the way", func(r *rig) { r.report(b.instance("1g.5gb@6", v1alpha1.InstanceForeign).GPUNode) }},
		{"the GPU is unhealthy", func(r *rig) { r.report(b.unhealthy(0).GPUNode) }},
		{"the GPU is gone", func(r *rig) {
			r.report(b.change(func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].UUID = "GPU-9" }).GPUNode)
		}},
		{"it is that of another node of the same name", func(r *rig) {
			r.report(b.change(func(s *v1alpha1.GPUNodeStatus) { s.NodeUID = "uid-of-new-n" }).GPUNode)
		}},
		{"the GPUNode is gone", func(r *rig) { r.deleteReport("n") }},
		{"the GPUNode cannot be read", func(r *rig) {
			r.report(b.change(func(s *v1alpha1.GPUNodeStatus) { s.Models = nil }).GPUNode)
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inBinding(t, pod("p", "gpu=1 gpumem=20000"), func(cy *cycle, assumed *v1.Pod) {
				c.change(cy.rig)
				status := cy.preBind(assumed)
				if want := "node n no longer offers the chosen MIG placements"; status.Code() != fwk.Unschedulable || status.Message() != want {
					t.Errorf("PreBind says %v: %q, want Unschedulable: %q", status.Code(), status.Message(), want)
				}
				if patches := cy.patches(); len(patches) != 0 {
					t.Errorf("PreBind sent %q, want nothing", patches)
				}
			})
		})
	}
}

func TestPreBindAcceptsAGPUNodeThatChangedElsewhere(t *testing.T) {
	inBinding(t, pod("p", "gpu=1 gpumem=20000"), func(c *cycle, assumed *v1.Pod) { // at 4
		c.report(report(t, "n", 1).instance("1g.5gb@0", v1alpha1.InstanceForeign).GPUNode)
		if status := c.preBind(assumed); !status.IsSuccess() {
			t.Errorf("PreBind says %v, want success", status)
		}
	})
}

func TestPreBindOverwritesAnAnnotationItFinds(t *testing.T) {
	b := report(t, "n", 1)
	const warning = "Warning AllocationOverwritten Annotation dynamig.io/allocation on the unbound pod binds nobody and was overwritten; remove it from the pod or its template"
	cases := []struct {
		name   string
		old    string
		events []string
	}{
		{"forged text is reported", "give me everything", []string{warning}},
		{"another pod's allocation, as in a template, is reported", b.allocation(pod("other", "gpu=1").Obj(), "7g.40gb@0"), []string{warning}},
		{"an earlier attempt's needs no warning", b.allocation(pod("p", "gpu=1").Obj(), "3g.20gb@0"), nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := pod("p", "gpu=1 gpumem=20000").Annotation(v1alpha1.AnnotationAllocation, c.old)
			inBinding(t, p, func(cy *cycle, assumed *v1.Pod) {
				if status := cy.preBind(assumed); !status.IsSuccess() {
					t.Fatal(status)
				}
				if diff := cmp.Diff(c.events, cy.recorded()); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
				got := cy.get(assumed).Annotations[v1alpha1.AnnotationAllocation]
				if want := b.allocation(assumed, "3g.20gb@4"); got != want {
					t.Errorf("the API has %s, want %s", got, want)
				}
			})
		})
	}
}

func TestPreBindReportsWhatTheAPISays(t *testing.T) {
	inBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
		conflict := apierrors.NewConflict(v1.Resource("pods"), "p", errors.New("the UID in the precondition is uid-p, the object's is another"))
		c.client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, conflict })
		status := c.preBind(assumed)
		if want := "writing annotation dynamig.io/allocation of pod default/p"; status.Code() != fwk.Error || !strings.Contains(status.Message(), want) {
			t.Errorf("PreBind says %v, want Error with %q", status, want)
		}
		if h, _ := c.plugin.pool.Holder(assumed.UID); h.State != pool.Assumed {
			t.Errorf("the ledger's entry is in state %v, want Assumed", h.State)
		}
		c.unreserve(assumed)
		if got := c.held(assumed); got != "nothing" {
			t.Errorf("after Unreserve the ledger has %s, want nothing", got)
		}
	})
}

func TestPreBindWithoutReserveIsAnError(t *testing.T) {
	inRig(t, func(r *rig) {
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		c := r.mustBegin(pod("p", "gpu=1").Obj())
		if status := c.preBind(c.assumed("n")); status.Code() != fwk.Error {
			t.Errorf("PreBind says %v, want Error", status)
		}
	})
}

// hanging is an API server that never answers and says when it was asked.
type hanging struct{ asked chan string }

func (h hanging) RoundTrip(req *http.Request) (*http.Response, error) {
	h.asked <- req.Method + " " + req.URL.Path
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
}

// Deleting an unbound pod does not end its binding cycle in kube-scheduler; our
// handler does, so that its slices are free at once.
func TestDeletingAPodCancelsItsPreBind(t *testing.T) {
	ways := []struct {
		name   string
		delete func(r *rig, pod *v1.Pod)
	}{
		{"when the pod vanishes", func(r *rig, pod *v1.Pod) { r.delete(pod) }},
		{"when it only begins to end, because it has a finalizer", func(r *rig, pod *v1.Pod) {
			pod = r.get(pod).DeepCopy()
			now := metav1.Now()
			pod.DeletionTimestamp, pod.Finalizers = &now, []string{"example.com/wait"}
			r.update(pod)
		}},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			inBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
				api := hanging{asked: make(chan string, 1)}
				var err error
				if c.handle, err = kubernetes.NewForConfig(&rest.Config{Host: "http://api.invalid", Transport: api}); err != nil {
					t.Fatal(err)
				}
				done := make(chan *fwk.Status, 1)
				go func() { done <- c.preBind(assumed) }()
				if got, want := <-api.asked, "PATCH /api/v1/namespaces/default/pods/p"; got != want {
					t.Errorf("PreBind asked for %s, want %s", got, want)
				}
				c.settle()
				if len(done) != 0 {
					t.Fatalf("PreBind ended before the pod was deleted: %v", <-done)
				}
				way.delete(c.rig, c.pod)
				if len(done) == 0 {
					t.Fatal("PreBind goes on after the pod was deleted")
				}
				if status := <-done; status.Code() != fwk.Error || !strings.Contains(status.Message(), errPodGone.Error()) {
					t.Errorf("PreBind says %v, want Error with %q", status, errPodGone)
				}
				if got := c.held(assumed); got != "nothing" {
					t.Errorf("the ledger has %s, want nothing", got)
				}
			})
		})
	}
}

func TestPreBindEndsWithItsContext(t *testing.T) {
	inBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
		api := hanging{asked: make(chan string, 1)}
		var err error
		if c.handle, err = kubernetes.NewForConfig(&rest.Config{Host: "http://api.invalid", Transport: api}); err != nil {
			t.Fatal(err)
		}
		preempted := errors.New("preempted by DefaultPreemption")
		ctx, cancel := context.WithCancelCause(c.ctx)
		c.ctx = ctx
		done := make(chan *fwk.Status, 1)
		go func() { done <- c.preBind(assumed) }()
		<-api.asked
		cancel(preempted)
		c.settle()
		if len(done) == 0 {
			t.Fatal("PreBind goes on after its context has ended: the preemptor would wait for it")
		}
		if status := <-done; status.Code() != fwk.Error || !strings.Contains(status.Message(), preempted.Error()) {
			t.Errorf("PreBind says %v, want Error with %q", status, preempted)
		}
	})
}

func TestPreBindAfterThePodWasDeletedWritesNothing(t *testing.T) {
	inBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
		c.delete(c.pod)
		status := c.preBind(assumed)
		if status.Code() != fwk.Unschedulable || status.Message() != errPodGone.Error() {
			t.Errorf("PreBind says %v, want Unschedulable: %q", status, errPodGone)
		}
		if patches := c.patches(); len(patches) != 0 {
			t.Errorf("PreBind sent %q, want nothing", patches)
		}
	})
}

// From being seen bound until it is gone a pod holds what its annotation says.
func TestLedgerFollowsThePod(t *testing.T) {
	inBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
		if status := c.preBind(assumed); !status.IsSuccess() {
			t.Fatal(status)
		}
		bound := c.get(assumed).DeepCopy()
		bound.Spec.NodeName = "n"
		c.update(bound)
		h, _ := c.plugin.pool.Holder(assumed.UID)
		if h.State != pool.Bound || c.held(assumed) != "n: 7g.40gb@0:GPU-0" {
			t.Errorf("the ledger has %s in state %v, want n: 7g.40gb@0:GPU-0, Bound", c.held(assumed), h.State)
		}
		c.delete(bound)
		if got := c.held(assumed); got != "nothing" {
			t.Errorf("after the pod has gone the ledger has %s, want nothing", got)
		}
	})
}

func TestLedgerDropsAPodThatSomebodyElseBound(t *testing.T) {
	inBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
		bound := c.get(assumed).DeepCopy()
		bound.Spec.NodeName = "elsewhere"
		c.update(bound)
		if got := c.held(assumed); got != "nothing" {
			t.Errorf("the ledger has %s, want nothing: the pod is bound without an allocation", got)
		}
	})
}

func TestPostBindTellsWhatMaySurprise(t *testing.T) {
	cases := []struct {
		name    string
		pod     *st.PodWrapper
		running []*st.PodWrapper
		want    string
	}{
		{
			name: "one device as asked for: the agent will say so", pod: pod("p", "gpu=1 gpumem=20000"),
		}, {
			name: "two devices of one container", pod: pod("p", "gpu=2 gpumem=20000"),
			want: "Normal GPUsPlaced 3g.20gb at slice 0, 4 of GPU 0 on node n; one CUDA process sees one MIG device, so run one process per device",
		}, {
			name: "a mode that is none", pod: pod("p", "gpu=1 gpumem=20000").Annotation(v1alpha1.AnnotationMode, "migx"),
			want: `Normal GPUsPlaced 3g.20gb at slice 0 of GPU 0 on node n; annotation nvidia.com/vgpu-mode is "migx", and "migx" is no mode of dynamig: ` +
				`what counts is which of "mig" and "hami-core" the text contains, as in HAMi`,
		}, {
			name: "a larger profile than needed", pod: pod("p", "gpu=1 gpumem=4000"),
			running: []*st.PodWrapper{report(t, "n", 1).on(pod("q", "gpu=1 gpumem=20000"), "3g.20gb@0")},
			want:    "Normal GPUsPlaced 3g.20gb at slice 4 of GPU 0 on node n (larger than asked for: no smaller adequate profile was free)",
		}, {
			name: "a profile and no number of GPUs", pod: pod("p", "cpu=1").Annotation(v1alpha1.AnnotationProfile, "3g.20gb"),
			want: "Warning NoGPURequested Placed without a GPU: it asks for no GPU: annotation nvidia.com/mig-profile says which profile, and not how many; add the limit nvidia.com/gpu: 1 to a container",
		}, {
			name: "no GPU at all", pod: pod("p", "cpu=1"),
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.addNode(node("n").Obj(), report(t, "n", 1).templates("7x1g.5gb", "2x3g.20gb").GPUNode)
				for _, q := range c.running {
					r.running(q.Obj())
				}
				cy, assumed := r.mustReserve(r.create(c.pod.Obj()), "n")
				cy.framework.RunPostBindPlugins(r.ctx, cy.state, assumed, "n")
				var want []string
				if c.want != "" {
					want = []string{c.want}
				}
				if diff := cmp.Diff(want, r.recorded()); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			})
		})
	}
}
