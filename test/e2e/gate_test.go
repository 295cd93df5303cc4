// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	hookv1 "k8s.io/api/admissionregistration/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/test/stack"
)

// gate stands before those writes to the API server by which a pod gets on: it stops
// the ones that it is told to until somebody decides, and lets all others pass. To
// the API server it is a validating webhook.
//
//	sender --write--> API server --review--> gate --came--> test
//	                     |  <----verdict------+  <--decide---+
//	                     v
//	                    etcd
type gate struct {
	mu    sync.Mutex // guards stops
	stops []*stop
}

// write is a request to the API server that the gate sees.
type write = admissionv1.AdmissionRequest

// stop is one write that is held.
type stop struct {
	meant   func(*write) bool
	came    chan struct{} // closed when it is there
	verdict chan bool     // whether it may pass; has room for it
}

// gateSays is the reason of a write that was refused.
const gateSays = "the test's gate is closed"

// newGate returns when the API server asks the gate. At the end of the test it does
// not any more.
func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{}
	server := httptest.NewTLSServer(g)
	fail, none, seconds := hookv1.Fail, hookv1.SideEffectClassNone, int32(30)
	hook := &hookv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "gate.e2e.dynamig.io"},
		Webhooks: []hookv1.ValidatingWebhook{{
			Name: "gate.e2e.dynamig.io", FailurePolicy: &fail, SideEffects: &none, TimeoutSeconds: &seconds,
			AdmissionReviewVersions: []string{"v1"},
			ClientConfig: hookv1.WebhookClientConfig{
				URL:      &server.URL,
				CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
			Rules: []hookv1.RuleWithOperations{
				rule(hookv1.Create, "", "v1", "pods/binding"),
				rule(hookv1.Update, "", "v1", "pods"),
				rule(hookv1.Delete, "", "v1", "pods"),
				rule(hookv1.Update, "dynamig.io", "v1alpha1", "gpunodes/status"),
			},
		}},
	}
	hooks := st.Kube.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	if _, err := hooks.Create(t.Context(), hook, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer server.Close()
		ctx := context.WithoutCancel(t.Context())
		err := hooks.Delete(ctx, hook.Name, metav1.DeleteOptions{})
		if err = errors.Join(err, stack.Until(ctx, "the gate to be gone", func() (bool, error) {
			err := probe(ctx)
			return !isClosed(err), err
		})); err != nil {
			t.Error(err)
		}
	})
	err := stack.Until(t.Context(), "the API server to ask the gate", func() (bool, error) {
		err := probe(t.Context())
		return isClosed(err), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func rule(op hookv1.OperationType, group, version, resource string) hookv1.RuleWithOperations {
	return hookv1.RuleWithOperations{
		Operations: []hookv1.OperationType{op},
		Rule:       hookv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource}},
	}
}

// probe asks for a Binding that nobody needs. The gate refuses it, as every write that
// is not meant; without a gate there is no such pod.
func probe(ctx context.Context) error {
	binding := &v1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}, Target: v1.ObjectReference{Kind: "Node", Name: "node1"}}
	return st.Kube.CoreV1().Pods(namespace).Bind(ctx, binding, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

func isClosed(err error) bool { return err != nil && strings.Contains(err.Error(), gateSays) }

// stop holds the next write that is meant.
func (g *gate) stop(meant func(*write) bool) *stop {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &stop{meant: meant, came: make(chan struct{}), verdict: make(chan bool, 1)}
	g.stops = append(g.stops, s)
	return s
}

// take finds the stop of a write, which then has no other; nil when it has none.
func (g *gate) take(w *write) *stop {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.stops, func(s *stop) bool { return s.meant(w) })
	if i < 0 {
		return nil
	}
	s := g.stops[i]
	g.stops = slices.Delete(g.stops, i, i+1)
	return s
}

// wait returns when the write is held.
func (s *stop) wait(t *testing.T) {
	t.Helper()
	err := stack.Until(t.Context(), "the write that is to be held", func() (bool, error) {
		select {
		case <-s.came:
			return true, nil
		default:
			return false, nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *stop) pass()   { s.verdict <- true }
func (s *stop) refuse() { s.verdict <- false }

// ServeHTTP answers a review. A write whose sender is dead needs no verdict.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, "no review", http.StatusBadRequest)
		return
	}
	allowed := review.Request.DryRun == nil || !*review.Request.DryRun
	if s := g.take(review.Request); s != nil {
		close(s.came)
		select {
		case allowed = <-s.verdict:
		case <-r.Context().Done():
			return
		}
	}
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: allowed, Result: &metav1.Status{Message: gateSays}}
	_ = json.NewEncoder(w).Encode(review) // a sender that is dead does not read it
}
