// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/yaml"
)

// fakeAPI serves the objects of a fixture as an API server does: get, list with
// namespace and field selector, watch. It refuses resources that are forbidden.
type fakeAPI struct {
	*httptest.Server
	forbidden []string // "pods" for lists of all namespaces, "team-b/pods" for one

	ahead time.Duration // of this machine's clock; set before the first request

	mu      sync.Mutex // guards what follows
	objects []*unstructured.Unstructured
	watches []chan watchEvent
}

type watchEvent struct {
	kind   string
	object *unstructured.Unstructured
}

// serve starts a server with a fixture, and writes the kubeconfig for it.
func serve(t *testing.T, fixture string, forbidden ...string) (api *fakeAPI, kubeconfig string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", fixture))
	if err != nil {
		t.Fatal(err)
	}
	return serveText(t, string(text), forbidden...)
}

func serveText(t *testing.T, text string, forbidden ...string) (api *fakeAPI, kubeconfig string) {
	t.Helper()
	var list struct {
		Items []map[string]any `json:"items"`
	}
	if err := yaml.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	api = &fakeAPI{forbidden: forbidden}
	for _, item := range list.Items {
		o := &unstructured.Unstructured{Object: item}
		if o.GetKind() == "Lease" {
			item["spec"].(map[string]any)["renewTime"] = metav1.NowMicro().Format(metav1.RFC3339Micro)
		}
		api.objects = append(api.objects, o)
	}
	api.Server = httptest.NewServer(http.HandlerFunc(api.handle))
	t.Cleanup(api.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`, api.URL)
	if err := os.WriteFile(kubeconfig, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return api, kubeconfig
}

// request is a path, taken apart.
type request struct{ namespace, resource, name string }

// parse reads /api/v1/... and /apis/GROUP/VERSION/...
func parse(path string) request {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if parts[0] == "apis" {
		parts = parts[1:]
	}
	parts = parts[2:]
	var r request
	if len(parts) > 2 && parts[0] == "namespaces" {
		r.namespace, parts = parts[1], parts[2:]
	}
	r.resource = parts[0]
	if len(parts) > 1 {
		r.name = parts[1]
	}
	return r
}

func (f *fakeAPI) handle(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Date", time.Now().Add(f.ahead).UTC().Format(http.TimeFormat))
	if req.Method != http.MethodGet {
		http.Error(w, "kubectl mig changes nothing", http.StatusMethodNotAllowed)
		return
	}
	r := parse(req.URL.Path)
	key := strings.TrimPrefix(r.namespace+"/"+r.resource, "/")
	if slices.Contains(f.forbidden, key) {
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, fmt.Sprintf("%s is forbidden: User \"u\" cannot list resource %q", r.resource, r.resource))
		return
	}
	if req.URL.Query().Get("watch") != "" {
		f.watch(w, req, r)
		return
	}
	selector, err := fields.ParseSelector(req.URL.Query().Get("fieldSelector"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	items := []any{}
	for _, o := range f.objects {
		if !r.matches(o) || !selector.Matches(fieldsOf(o)) {
			continue
		}
		if r.name != "" {
			reply(w, o.Object)
			return
		}
		items = append(items, o.Object)
	}
	if r.name != "" {
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", r.resource, r.name))
		return
	}
	list := listKinds[r.resource]
	reply(w, map[string]any{"kind": list.kind, "apiVersion": list.version, "metadata": map[string]any{"resourceVersion": "1"}, "items": items})
}

// listKinds are the kinds of the lists that are served.
var listKinds = map[string]struct{ version, kind string }{
	"gpunodes": {"dynamig.io/v1alpha1", "GPUNodeList"}, "pods": {"v1", "PodList"}, "nodes": {"v1", "NodeList"}, "events": {"v1", "EventList"},
}

func (r request) matches(o *unstructured.Unstructured) bool {
	return strings.ToLower(o.GetKind())+"s" == r.resource && (r.namespace == "" || o.GetNamespace() == r.namespace) &&
		(r.name == "" || o.GetName() == r.name)
}

func fieldsOf(o *unstructured.Unstructured) fields.Set {
	set := fields.Set{"metadata.name": o.GetName()}
	for _, key := range []string{"kind", "name", "uid"} {
		if v, ok, _ := unstructured.NestedString(o.Object, "involvedObject", key); ok {
			set["involvedObject."+key] = v
		}
	}
	return set
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}

// watch streams what there is, where that is asked for, and what is removed from now
// on.
func (f *fakeAPI) watch(w http.ResponseWriter, req *http.Request, r request) {
	send := func(kind string, object any) {
		json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
		w.(http.Flusher).Flush()
	}
	events := make(chan watchEvent, 16)
	w.Header().Set("Content-Type", "application/json")
	f.mu.Lock()
	if req.URL.Query().Get("sendInitialEvents") == "true" {
		for _, o := range f.objects {
			if r.matches(o) {
				send("ADDED", o.Object)
			}
		}
		list := listKinds[r.resource]
		send("BOOKMARK", map[string]any{
			"kind": strings.TrimSuffix(list.kind, "List"), "apiVersion": list.version,
			"metadata": map[string]any{"resourceVersion": "1", "annotations": map[string]any{metav1.InitialEventsAnnotationKey: "true"}},
		})
	}
	f.watches = append(f.watches, events)
	f.mu.Unlock()
	for {
		select {
		case <-req.Context().Done():
			return
		case e := <-events:
			if r.matches(e.object) {
				send(e.kind, e.object.Object)
			}
		}
	}
}

// awaitWatches waits until so many watches are open.
func (f *fakeAPI) awaitWatches(t *testing.T, n int) {
	t.Helper()
	for {
		f.mu.Lock()
		open := len(f.watches)
		f.mu.Unlock()
		if open >= n {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("the watches do not come")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// add puts one more object there, before anybody watches.
func (f *fakeAPI) add(t *testing.T, text string) {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects = append(f.objects, o)
}

// remove deletes an object and tells the watches.
func (f *fakeAPI) remove(kind, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, o := range f.objects {
		if o.GetKind() == kind && o.GetName() == name {
			f.objects = slices.Delete(f.objects, i, i+1)
			o.SetResourceVersion("2")
			for _, w := range f.watches {
				w <- watchEvent{"DELETED", o}
			}
			return
		}
	}
}
