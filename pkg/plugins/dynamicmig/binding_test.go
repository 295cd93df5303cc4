// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	fwk "k8s.io/kube-scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// withBinding reserves a pod on the one node of a rig whose plugin writes the
// allocation with the Binding, and runs PreBind.
func withBinding(t *testing.T, p *st.PodWrapper, test func(c *cycle, assumed *v1.Pod)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) { r.args = must(argsOf(t, "allocationWrite: Binding")) })
		r.start()
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		c, assumed := r.mustReserve(r.create(p.Obj()), "n")
		r.client.ClearActions()
		if status := r.framework.RunPreBindPreFlights(r.ctx, c.state, assumed, "n"); !status.IsSkip() {
			t.Errorf("PreBindPreFlight says %v, want Skip: there is nothing to do in PreBind", status)
		}
		if status := r.framework.RunPreBindPlugins(r.ctx, c.state, assumed, "n"); !status.IsSuccess() {
			t.Fatalf("PreBind: %v", status)
		}
		if actions := r.client.Actions(); len(actions) != 0 {
			t.Errorf("PreBind has sent %v, want nothing", actions)
		}
		test(c, assumed)
	})
}

// One write makes the pod bound and its allocation known, in one event.
func TestBindWritesTheAllocationWithTheBinding(t *testing.T) {
	withBinding(t, pod("p", "gpu=1 gpumem=20000"), func(c *cycle, assumed *v1.Pod) {
		before := assumed.DeepCopy()
		if status := c.bind(assumed); !status.IsSuccess() {
			t.Fatal(status)
		}
		allocation := report(t, "n", 1).allocation(assumed, "3g.20gb@4")
		want := &v1.Binding{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: "p", UID: "uid-p",
				Annotations: map[string]string{v1alpha1.AnnotationAllocation: allocation},
			},
			Target: v1.ObjectReference{Kind: "Node", Name: "n"},
		}
		actions := c.client.Actions()
		if len(actions) != 1 {
			t.Fatalf("the API was asked for %v, want one Binding", actions)
		}
		if diff := cmp.Diff(want, actions[0].(clienttesting.CreateAction).GetObject()); diff != "" {
			t.Errorf("Binding (-want +got):\n%s", diff)
		}
		bound := c.get(assumed)
		if h, ok := (pool.Options{}).HolderOf(bound); !ok || h.Node != "n" {
			t.Errorf("the pod holds %+v, %v", h, ok)
		}
		if diff := cmp.Diff(before, assumed); diff != "" {
			t.Errorf("Bind changed the pod it was given, which is the one in the scheduler's cache (-before +after):\n%s", diff)
		}
		c.settle()
		if h, _ := c.plugin.pool.Holder(assumed.UID); h.State != pool.Bound {
			t.Errorf("the ledger's entry is in state %v, want Bound", h.State)
		}
	})
}

func TestBindOverwritesAnAnnotationItFinds(t *testing.T) {
	b := report(t, "n", 1)
	withBinding(t, pod("p", "gpu=1 gpumem=20000").Annotation(v1alpha1.AnnotationAllocation, "give me everything"), func(c *cycle, assumed *v1.Pod) {
		if status := c.bind(assumed); !status.IsSuccess() {
			t.Fatal(status)
		}
		if got, want := c.get(assumed).Annotations[v1alpha1.AnnotationAllocation], b.allocation(assumed, "3g.20gb@4"); got != want {
			t.Errorf("the API has %s, want %s", got, want)
		}
		if got := c.recorded(); len(got) != 1 || !strings.Contains(got[0], reasonOverwritten) {
			t.Errorf("events %q, want one %s", got, reasonOverwritten)
		}
	})
}

func TestBindChecksOnceMore(t *testing.T) {
	b := report(t, "n", 1)
	for _, c := range []struct {
		name   string
		change func(c *cycle)
		want   string
	}{
		{
			name:   "the GPU is unhealthy",
			change: func(c *cycle) { c.report(b.unhealthy(0).GPUNode) },
			want:   "node n no longer offers the chosen MIG placements",
		}, {
			name: "the report is of another node of the name",
			change: func(c *cycle) {
				c.report(b.change(func(s *v1alpha1.GPUNodeStatus) { s.NodeUID = "uid-of-new-n" }).GPUNode)
			},
			want: "node n no longer offers the chosen MIG placements",
		}, {
			name:   "the pod was deleted",
			change: func(c *cycle) { c.delete(c.pod) },
			want:   errPodGone.Error(),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			withBinding(t, pod("p", "gpu=1 gpumem=20000"), func(cy *cycle, assumed *v1.Pod) {
				c.change(cy)
				cy.client.ClearActions()
				if status := cy.bind(assumed); status.Code() != fwk.Unschedulable || status.Message() != c.want {
					t.Errorf("Bind says %v: %q, want Unschedulable: %q", status.Code(), status.Message(), c.want)
				}
				if actions := cy.client.Actions(); len(actions) != 0 {
					t.Errorf("the API was asked for %v, want nothing", actions)
				}
			})
		})
	}
}

func TestBindThatFailsLeavesNothing(t *testing.T) {
	withBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
		conflict := apierrors.NewConflict(v1.Resource("pods/binding"), "p", errors.New("pod p is already assigned to node m"))
		c.client.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, conflict })
		status := c.bind(assumed)
		if want := "binding pod default/p to node n"; status.Code() != fwk.Error || !strings.Contains(status.Message(), want) {
			t.Errorf("Bind says %v, want Error with %q", status, want)
		}
		c.unreserve(assumed)
		if got := c.held(assumed); got != "nothing" {
			t.Errorf("after Unreserve the ledger has %s, want nothing", got)
		}
		if _, ok := c.get(assumed).Annotations[v1alpha1.AnnotationAllocation]; ok {
			t.Error("the pod has an annotation")
		}
	})
}

func TestDeletingAPodCancelsItsBind(t *testing.T) {
	withBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
		api := hanging{asked: make(chan string, 1)}
		c.handle = must(kubernetes.NewForConfig(&rest.Config{Host: "http://api.invalid", Transport: api}))
		done := make(chan *fwk.Status, 1)
		go func() { done <- c.bind(assumed) }()
		if got, want := <-api.asked, "POST /api/v1/namespaces/default/pods/p/binding"; got != want {
			t.Errorf("Bind asked for %s, want %s", got, want)
		}
		c.delete(c.pod)
		c.settle()
		if len(done) == 0 {
			t.Fatal("Bind goes on after the pod was deleted")
		}
		if status := <-done; status.Code() != fwk.Error || !strings.Contains(status.Message(), errPodGone.Error()) {
			t.Errorf("Bind says %v, want Error with %q", status, errPodGone)
		}
	})
}

// With allocationWrite: Annotation, and for pods without our resources, the next
// plugin binds.
func TestBindIsLeftToTheDefaultBinder(t *testing.T) {
	inBinding(t, pod("p", "gpu=1 gpumem=20000"), func(c *cycle, assumed *v1.Pod) {
		if status := c.preBind(assumed); !status.IsSuccess() {
			t.Fatal(status)
		}
		if status := c.plugin.Bind(c.ctx, c.state, assumed, "n"); !status.IsSkip() {
			t.Errorf("Bind says %v, want Skip", status)
		}
		if status := c.bind(assumed); !status.IsSuccess() {
			t.Fatal(status)
		}
		if h, ok := (pool.Options{}).HolderOf(c.get(assumed)); !ok {
			t.Errorf("the bound pod holds %+v, want its allocation", h)
		}
	})
	withBinding(t, pod("p", "gpu=1"), func(c *cycle, _ *v1.Pod) {
		if status := c.plugin.Bind(c.ctx, newState(), pod("plain", "").Obj(), "n"); !status.IsSkip() {
			t.Errorf("Bind of a pod without GPUs says %v, want Skip", status)
		}
	})
}

// A profile that would have another plugin bind first would lose the allocation.
func TestBindingNeedsThePluginToBindFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(r *rig) {
			r.args = must(argsOf(t, "allocationWrite: Binding"))
			r.bindLast = true
		})
		r.start()
		r.addNode(node("n").Obj(), report(t, "n", 1).GPUNode)
		c, assumed := r.mustReserve(r.create(pod("p", "gpu=1").Obj()), "n")
		const want = "enable it there, as manifests/base/scheduler/config.yaml does"
		// Feature gate NominatedNodeNameForExpectation off: only PreBind comes.
		status := c.framework.RunPreBindPlugins(r.ctx, c.state, assumed, "n")
		if status.Code() != fwk.Error || !strings.Contains(status.Message(), want) {
			t.Errorf("PreBind says %v, want Error with %q", status, want)
		}
		// On: PreBind comes only where PreBindPreFlight has not skipped it.
		status = c.framework.RunPreBindPreFlights(r.ctx, c.state, assumed, "n")
		if status.Code() != fwk.Error || !strings.Contains(status.Message(), want) {
			t.Errorf("PreBindPreFlight says %v, want Error with %q", status, want)
		}
		plain := newState()
		if status := c.framework.RunPreBindPreFlights(r.ctx, plain, pod("plain", "").Obj(), "n"); !status.IsSkip() {
			t.Errorf("PreBindPreFlight of a pod without GPUs says %v, want Skip", status)
		}
	})
}
