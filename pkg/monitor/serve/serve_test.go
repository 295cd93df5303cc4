// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"

	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/monitor/serve"
	"github.com/dynamig/dynamig/pkg/pool"
	"github.com/dynamig/dynamig/test/fleet"
)

// cluster is an API server that knows token "reader", who may get every path, and token
// "stranger", who may get what Kubernetes' own roles let everybody whom the API server
// knows. It has nothing else.
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
			review.Status.Allowed = asked != nil && asked.Verb == "get" && asked.Path != "" && (review.Spec.User == "reader" || everybodys(asked.Path))
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

// everybodys are the paths of ClusterRole system:discovery.
func everybodys(path string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return slices.Contains([]string{"api", "apis", "healthz", "livez", "openapi", "readyz", "version"}, first)
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
func serveGuarded(t *testing.T, f *fleet.Fleet) (url string, reader *http.Client) {
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
	client := cluster(t)
	if err := serve.Secure(t.Context(), cfg, monitor.New(cfg, view, f.Journal, client), client, l); err != nil {
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
	f, err := fleet.New(t.Context(), 1, pool.Options{})
	if err == nil {
		err = f.AddNode("n", "A100-40GB", 1)
	}
	if err == nil {
		err = f.WaitNode(t.Context(), "n")
	}
	if err != nil {
		t.Fatal(err)
	}
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
	deadline := time.Now().Add(time.Minute)
	for ask("/monitor/v1/pods/ns/p", "reader") != http.StatusOK {
		if time.Now().After(deadline) {
			t.Fatal("waiting for the pod in vain")
		}
		time.Sleep(5 * time.Millisecond)
	}
	for _, path := range []string{"/metrics", "/monitor/v1/fleet", "/monitor/v1/nodes/n", "/monitor/v1/pods/ns/p", "/monitor/v1/watch"} {
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

func TestWhatCannotBeServed(t *testing.T) {
	f, err := fleet.New(t.Context(), 1, pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]monitor.Config{
		"reading the monitor's certificate":            {BindAddress: "127.0.0.1", Port: 0x7fff, CertFile: "none", KeyFile: "none"},
		"choose another with --monitor-port, or 0 for": {BindAddress: "192.0.2.1", Port: 9395},
	} {
		m, err := f.Monitor(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := serve.Serve(t.Context(), cfg, m, f.Client); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
}
