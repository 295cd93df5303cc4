// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// kept bounds the history that a watch can resume from.
const kept = 4096

// API is as much of an API server as one agent talks to, over HTTP: the node, the
// pods bound to it, one GPUNode, and events. Safe for parallel use.
type API struct {
	address string
	seat    int // a socket that is bound to the address: nobody else gets it while nothing is served
	server  *http.Server
	serving sync.WaitGroup

	mu      sync.Mutex // guards what follows
	version int        // resource version of the newest change
	node    v1.Node
	pods    map[types.UID]*v1.Pod // never changed, but replaced
	gpuNode *v1alpha1.GPUNode
	events  []v1.Event
	history []change
	stirred chan struct{} // closed with each change
}

// change of a pod.
type change struct {
	version int
	kind    string // ADDED, MODIFIED, DELETED
	pod     *v1.Pod
}

func newAPI(node string) (*API, error) {
	a := &API{
		node: v1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: node, UID: types.UID("uid-of-" + node), ResourceVersion: "1"},
		},
		version: 1, pods: map[types.UID]*v1.Pod{}, stirred: make(chan struct{}),
	}
	if err := a.takeSeat(); err != nil {
		return nil, fmt.Errorf("taking a port for the API: %w", err)
	}
	return a, a.Start()
}

// takeSeat binds a socket to a free port and never listens on it. SO_REUSEADDR, which
// net.Listen sets too, lets both be bound.
func (a *API) takeSeat() (err error) {
	if a.seat, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	err = unix.SetsockoptInt(a.seat, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(a.seat, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	name, nameErr := unix.Getsockname(a.seat)
	if err = errors.Join(err, nameErr); err != nil {
		return errors.Join(err, unix.Close(a.seat))
	}
	a.address = fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
	return nil
}

// Close ends it for good.
func (a *API) Close() {
	a.Stop()
	_ = unix.Close(a.seat)
}

// Start serves, always on the same port.
func (a *API) Start() error {
	listener, err := net.Listen("tcp", a.address)
	if err != nil {
		return fmt.Errorf("serving the API: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes/{name}", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, a.node) })
	mux.HandleFunc("GET /api/v1/pods", a.servePods)
	mux.HandleFunc("POST /api/v1/namespaces/{namespace}/events", a.serveEvent)
	mux.HandleFunc("PATCH /api/v1/namespaces/{namespace}/events/{name}", a.serveEvent)
	mux.HandleFunc("GET /apis/dynamig.io/v1alpha1/gpunodes/{name}", a.readGPUNode)
	mux.HandleFunc("POST /apis/dynamig.io/v1alpha1/gpunodes", a.writeGPUNode)
	mux.HandleFunc("PUT /apis/dynamig.io/v1alpha1/gpunodes/{name}/status", a.writeGPUNode)
	a.server = &http.Server{Handler: mux}
	a.serving.Go(func() { _ = a.server.Serve(listener) })
	return nil
}

// Stop cuts all connections; what is stored stays.
func (a *API) Stop() {
	_ = a.server.Close()
	a.serving.Wait()
}

// Put creates or replaces a pod, by UID.
func (a *API) Put(pod *v1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	kind := "ADDED"
	if a.pods[pod.UID] != nil {
		kind = "MODIFIED"
	}
	pod = pod.DeepCopy()
	a.change(kind, pod)
	a.pods[pod.UID] = pod
}

// Pod returns a pod; nil when there is none.
func (a *API) Pod(uid types.UID) *v1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pods[uid]
}

// Delete removes a pod's object.
func (a *API) Delete(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if pod := a.pods[uid]; pod != nil {
		delete(a.pods, uid)
		a.change("DELETED", pod.DeepCopy())
	}
}

// change tells the watches. mu is held.
func (a *API) change(kind string, pod *v1.Pod) {
	a.version++
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	pod.ResourceVersion = strconv.Itoa(a.version)
	a.history = append(a.history, change{a.version, kind, pod})
	if len(a.history) > 2*kept {
		a.history = append([]change(nil), a.history[len(a.history)-kept:]...)
	}
	a.stir()
}

func (a *API) stir() {
	close(a.stirred)
	a.stirred = make(chan struct{})
}

// GPUNode returns the report; nil when there is none yet.
func (a *API) GPUNode() *v1alpha1.GPUNode {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.gpuNode
}

// Stirred is closed with the next change of anything.
func (a *API) Stirred() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stirred
}

// Events lists the texts of a pod's events of one reason.
func (a *API) Events(uid types.UID, reason string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, e := range a.events {
		if e.InvolvedObject.UID == uid && e.Reason == reason {
			out = append(out, e.Message)
		}
	}
	return out
}

func (a *API) servePods(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("watch") == "" {
		a.mu.Lock()
		defer a.mu.Unlock()
		list := v1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		list.ResourceVersion = strconv.Itoa(a.version)
		for _, pod := range a.pods {
			list.Items = append(list.Items, *pod)
		}
		answer(w, http.StatusOK, list)
		return
	}
	version, _ := strconv.Atoi(q.Get("resourceVersion"))
	a.watch(w, r, version, q.Get("sendInitialEvents") == "true")
}

// watch streams changes after a version, or first everything that is there.
func (a *API) watch(w http.ResponseWriter, r *http.Request, version int, initial bool) {
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	send := func(kind string, object any) error {
		return out.Encode(map[string]any{"type": kind, "object": object})
	}
	if initial {
		a.mu.Lock()
		version = a.version
		for _, pod := range a.pods {
			_ = send("ADDED", pod)
		}
		a.mu.Unlock()
		mark := v1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
		mark.ResourceVersion = strconv.Itoa(version)
		mark.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		_ = send("BOOKMARK", mark)
	}
	for {
		news, stirred := a.since(version)
		for _, c := range news {
			if err := send(c.kind, c.pod); err != nil {
				return
			}
			version = c.version
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-stirred:
		}
	}
}

func (a *API) since(version int) ([]change, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := len(a.history)
	for i > 0 && a.history[i-1].version > version {
		i--
	}
	return a.history[i:], a.stirred
}

func (a *API) serveEvent(w http.ResponseWriter, r *http.Request) {
	var e v1.Event
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
		answer(w, http.StatusBadRequest, failure(http.StatusBadRequest, err.Error()))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Method == http.MethodPost {
		a.events = append(a.events, e)
		a.events = a.events[max(0, len(a.events)-kept):]
		a.stir()
	}
	answer(w, http.StatusOK, e)
}

func (a *API) readGPUNode(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gpuNode == nil {
		answer(w, http.StatusNotFound, failure(http.StatusNotFound, "there is no GPUNode "+r.PathValue("name")))
		return
	}
	answer(w, http.StatusOK, a.gpuNode)
}

func (a *API) writeGPUNode(w http.ResponseWriter, r *http.Request) {
	g := &v1alpha1.GPUNode{}
	if err := json.NewDecoder(r.Body).Decode(g); err != nil {
		answer(w, http.StatusBadRequest, failure(http.StatusBadRequest, err.Error()))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gpuNode != nil && g.ResourceVersion != a.gpuNode.ResourceVersion {
		answer(w, http.StatusConflict, failure(http.StatusConflict, "the object has been modified"))
		return
	}
	a.version++
	g.ResourceVersion = strconv.Itoa(a.version)
	a.gpuNode = g
	a.stir()
	answer(w, http.StatusOK, g)
}

func answer(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}

func failure(code int, message string) metav1.Status {
	reason := metav1.StatusReason(strings.ReplaceAll(http.StatusText(code), " ", ""))
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Reason: reason, Message: message, Code: int32(code),
	}
}
