// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/pool"
)

// loseAnswers makes the API server answer Bindings with an error. Where written, it
// has bound the pod, which whoever asks is told, while watches are behind.
func loseAnswers(c *cycle, written bool, err error) {
	bound := c.get(c.pod).DeepCopy()
	c.client.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		binding := action.(clienttesting.CreateAction).GetObject().(*v1.Binding)
		bound.Spec.NodeName = binding.Target.Name
		for key, value := range binding.Annotations {
			metav1.SetMetaDataAnnotation(&bound.ObjectMeta, key, value)
		}
		return true, nil, err
	})
	c.client.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return written, bound, nil
	})
}

// lostAnswers are errors after which nobody knows whether a Binding was written.
var lostAnswers = map[string]error{
	"the connection is lost":          io.ErrUnexpectedEOF,
	"the API server's own time is up": apierrors.NewTimeoutError("request did not complete within requested timeout", 1),
	"the repetition is a conflict":    apierrors.NewConflict(v1.Resource("pods/binding"), "p", errors.New("pod p is already assigned to node n")),
}

// A pod whose Binding was written keeps what it was bound with, whatever the answer
// was: were its placement given up until the pod is seen bound, another could take it.
func TestBindWhoseAnswerIsLostSucceeds(t *testing.T) {
	for name, lost := range lostAnswers {
		t.Run(name, func(t *testing.T) {
			withBinding(t, pod("p", "gpu=1 gpumem=20000"), func(c *cycle, assumed *v1.Pod) {
				loseAnswers(c, true, lost)
				if status := c.bind(assumed); !status.IsSuccess() {
					t.Errorf("Bind says %v, want success: the pod is bound", status)
				}
				if got, want := c.held(assumed), "n: 3g.20gb@4:GPU-0"; got != want {
					t.Errorf("the ledger has %s, want %s", got, want)
				}
			})
		})
	}
}

func TestBindThatWasNotWrittenFails(t *testing.T) {
	for name, lost := range lostAnswers {
		t.Run(name, func(t *testing.T) {
			withBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
				loseAnswers(c, false, lost)
				if status := c.bind(assumed); status.Code() != fwk.Error || !strings.Contains(status.Message(), lost.Error()) {
					t.Errorf("Bind says %v, want Error with %q", status, lost)
				}
				c.unreserve(assumed)
				if got := c.held(assumed); got != "nothing" {
					t.Errorf("after Unreserve the ledger has %s, want nothing", got)
				}
			})
		})
	}
}

// Another leader's Binding to the same node is not ours: what counts is its
// allocation, which comes with the pod.
func TestBindThatAnotherLeaderWonFails(t *testing.T) {
	withBinding(t, pod("p", "gpu=1 gpumem=20000"), func(c *cycle, assumed *v1.Pod) {
		c.client.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			theirs := report(t, "n", 1).on(pod("p", "gpu=1 gpumem=20000"), "3g.20gb@0").Obj()
			if err := c.client.Tracker().Update(pods, theirs, "default"); err != nil {
				t.Error(err)
			}
			return true, nil, lostAnswers["the repetition is a conflict"]
		})
		if status := c.bind(assumed); status.Code() != fwk.Error {
			t.Errorf("Bind says %v, want Error", status)
		}
		c.unreserve(assumed)
		c.settle()
		if got, want := c.held(assumed), "n: 3g.20gb@0:GPU-0"; got != want {
			t.Errorf("the ledger has %s, want %s, which the pod was bound with", got, want)
		}
	})
}

// While the API server does not say whether the pod is bound, the placement stays
// assumed, and nobody else gets it.
func TestPlacementStaysAssumedUntilTheAPIServerAnswers(t *testing.T) {
	for name, trouble := range map[string]error{
		"it is away":                  io.ErrUnexpectedEOF,
		"it does not know us now":     apierrors.NewUnauthorized("Unauthorized"),
		"its authorizer does not say": apierrors.NewForbidden(v1.Resource("pods"), "p", errors.New("no opinion")),
	} {
		t.Run(name, func(t *testing.T) { staysAssumedDuring(t, trouble) })
	}
}

// staysAssumedDuring is the story of a pod whose Binding's answer is lost, and whose
// reads end in an error for an hour.
func staysAssumedDuring(t *testing.T, trouble error) {
	withBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
		loseAnswers(c, false, io.ErrUnexpectedEOF)
		var away atomic.Bool
		away.Store(true)
		c.client.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			return away.Load(), nil, trouble
		})
		done := make(chan *fwk.Status, 1)
		go func() { done <- c.bind(assumed) }()
		time.Sleep(time.Hour) // the bubble's time
		c.settle()
		if len(done) != 0 {
			t.Fatalf("Bind ended with %v before anybody knew whether the pod is bound", <-done)
		}
		if got, want := c.held(assumed), "n: 7g.40gb@0:GPU-0"; got != want {
			t.Errorf("meanwhile the ledger has %s, want %s", got, want)
		}
		c.refresh()
		if status := c.mustBegin(pod("other", "gpu=1").Obj()).filter("n"); status.Code() != fwk.Unschedulable {
			t.Errorf("meanwhile Filter of another pod says %v, want Unschedulable", status)
		}
		away.Store(false)
		time.Sleep(time.Minute) // the bubble's time
		c.settle()
		if len(done) == 0 {
			t.Fatal("Bind does not end although the API server answers again")
		}
		if status := <-done; status.Code() != fwk.Error {
			t.Errorf("Bind says %v, want Error: the pod is not bound", status)
		}
	})
}

// With allocationWrite: Annotation it is DefaultBinder whose answer is lost; the
// placement is then kept in Unreserve.
func TestUnreserveKeepsWhatABoundPodHas(t *testing.T) {
	for _, written := range []bool{true, false} {
		inBinding(t, pod("p", "gpu=1"), func(c *cycle, assumed *v1.Pod) {
			if status := c.preBind(assumed); !status.IsSuccess() {
				t.Fatal(status)
			}
			loseAnswers(c, written, io.ErrUnexpectedEOF)
			if status := c.bind(assumed); status.Code() != fwk.Error {
				t.Fatalf("DefaultBinder says %v, want Error", status)
			}
			c.unreserve(assumed)
			want := "nothing"
			if written {
				want = "n: 7g.40gb@0:GPU-0"
			}
			if got := c.held(assumed); got != want {
				t.Errorf("Binding written: %v; after Unreserve the ledger has %s, want %s", written, got, want)
			}
		})
	}
}

// Of two leaders the late one must not bind a pod to what it sees, by now, that the
// other has given away.
func TestBindOfALateLeaderSeesWhatWasGivenAwayMeanwhile(t *testing.T) {
	b := report(t, "n", 1)
	for _, way := range []struct {
		name string
		give func(c *cycle)
		want fwk.Code
	}{
		{"a pod was bound there", func(c *cycle) { c.create(b.on(pod("q", "gpu=1 gpumem=20000"), "3g.20gb@4").Obj()) }, fwk.Unschedulable},
		{"a pod of this scheduler has it", func(c *cycle) {
			h, _ := c.plugin.pool.Holder("uid-p")
			h.UID = "uid-q"
			c.plugin.pool.Assume(h)
		}, fwk.Unschedulable},
		{"a pod was bound beside it", func(c *cycle) { c.create(b.on(pod("q", "gpu=1 gpumem=20000"), "3g.20gb@0").Obj()) }, fwk.Success},
		{"a simulation has it", func(c *cycle) {
			h, _ := c.plugin.pool.Holder("uid-p")
			h.UID, h.Simulated = "uid-q", true
			c.plugin.pool.Assume(h)
		}, fwk.Success},
		{"a pod had it that is gone, but not yet for our handler", func(c *cycle) {
			h, _ := pool.Options{}.HolderOf(b.on(pod("gone", "gpu=1 gpumem=20000"), "3g.20gb@4").Obj())
			c.plugin.pool.Bound(h)
		}, fwk.Success},
	} {
		t.Run(way.name, func(t *testing.T) {
			withBinding(t, pod("p", "gpu=1 gpumem=20000"), func(c *cycle, assumed *v1.Pod) {
				way.give(c)
				if status := c.bind(assumed); status.Code() != way.want {
					t.Errorf("Bind says %v, want %v", status, way.want)
				}
			})
		})
	}
}
