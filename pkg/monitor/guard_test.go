// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"

	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/test/fleet"
)

// cluster is an API server that knows token "reader", who may get every path, and token
// "stranger", who may get none. It has nothing else.
func cluster(t *testing.T) kubernetes.Interface {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, r *http.Request) {
		var review authenticationv1.TokenReview
		answer(t, w, r, &review, func() {
			token := review.Spec.Token
			review.Status.Authenticated = token == "reader" || token == "stranger"
			review.Status.User.Username = token
		})
	})
	mux.HandleFunc("POST /apis/authorization.k8s.io/v1/subjectaccessreviews", func(w http.ResponseWriter, r *http.Request) {
		var review authorizationv1.SubjectAccessReview
		answer(t, w, r, &review, func() {
			asked := review.Spec.NonResourceAttributes
			review.Status.Allowed = review.Spec.User == "reader" && asked != nil && asked.Verb == "get" && asked.Path != ""
		})
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// answer fills in a review and sends it back.
func answer(t *testing.T, w http.ResponseWriter, r *http.Request, review any, fill func()) {
	if err := json.NewDecoder(r.Body).Decode(review); err != nil {
		t.Errorf("%s: %v", r.URL, err)
	}
	fill()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(review)
}

// serveGuarded serves with TLS and authentication; the client trusts the certificate.
func serveGuarded(t *testing.T, f *fleet.Fleet) (url string, client *http.Client) {
	t.Helper()
	certificate, key, err := cert.GenerateSelfSignedCertKey("localhost", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := monitor.Config{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), Authenticate: true}
	for file, text := range map[string][]byte{cfg.CertFile: certificate, cfg.KeyFile: key} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	view, err := monitor.NewFleet(f.Sources)
	if err != nil {
		t.Fatal(err)
	}
	if err := monitor.New(cfg, view, f.Journal, cluster(t)).ServeOn(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(certificate)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}
	t.Cleanup(transport.CloseIdleConnections)
	return "https://" + l.Addr().String(), &http.Client{Transport: transport}
}

// TestGuard: data is for those whom the cluster knows and lets read; the page's own
// files are for everybody.
func TestGuard(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A100-40GB", 1)
	f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1})
	url, client := serveGuarded(t, f)
	ask := func(path, token string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close() // a stream has no end
		return answer.StatusCode
	}
	eventually(t, "the pod", func() bool { return ask("/api/v1/pods/ns/p", "reader") == http.StatusOK })
	for _, path := range []string{"/metrics", "/api/v1/fleet", "/api/v1/nodes/n", "/api/v1/pods/ns/p", "/api/v1/watch"} {
		for token, want := range map[string]int{
			"": http.StatusUnauthorized, "nobody": http.StatusUnauthorized, "stranger": http.StatusForbidden, "reader": http.StatusOK,
		} {
			if got := ask(path, token); got != want {
				t.Errorf("%s with token %q: %d, want %d", path, token, got, want)
			}
		}
	}
	for _, path := range []string{"/", "/app.js", "/healthz"} {
		if got := ask(path, ""); got != http.StatusOK {
			t.Errorf("%s: %d, want %d", path, got, http.StatusOK)
		}
	}
}
