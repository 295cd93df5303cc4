// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/pool"
	"github.com/dynamig/dynamig/test/fleet"
)

func open(h http.Handler) http.Handler { return h }

// served is a monitor on a port of the test's own.
func served(t *testing.T, f *fleet.Fleet) string {
	t.Helper()
	return serve(t, monitorOf(t, f, everything))
}

func serve(t *testing.T, m *monitor.Monitor) string {
	t.Helper()
	s := httptest.NewServer(m.Handler(open))
	t.Cleanup(s.Close)
	return s.URL
}

func get(t *testing.T, url string, into any) *http.Response {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if into != nil && answer.StatusCode == http.StatusOK {
		if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
			t.Fatalf("%s: %v", url, err)
		}
	}
	return answer
}

type message struct {
	Version string
	Nodes   []monitor.Picture
	Gone    []string
	Waiting []monitor.WaitingPod
}

// stream reads server-sent events.
type stream struct {
	t     *testing.T
	lines *bufio.Reader
}

func watch(t *testing.T, url string) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute/2)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	if got := answer.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("Content-Type is %q", got)
	}
	return &stream{t, bufio.NewReader(answer.Body)}
}

func (s *stream) next() (event string, m message) {
	s.t.Helper()
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		switch {
		case strings.HasPrefix(line, "event: "):
			event = strings.TrimSpace(line[7:])
		case strings.HasPrefix(line, "data: "):
			if err := json.Unmarshal([]byte(line[6:]), &m); err != nil {
				s.t.Fatal(err)
			}
			return event, m
		}
	}
}

// TestWatchContinuesWhereTheFleetEnds: what is read once and what is streamed after
// it are all changes, each node once.
func TestWatchContinuesWhereTheFleetEnds(t *testing.T) {
	f := newFleet(t, 3, 0.5)
	url := served(t, f)
	var all message
	eventually(t, "three nodes with pods", func() bool {
		all = message{}
		get(t, url+"/monitor/v1/fleet", &all)
		return len(all.Nodes) == 3
	})
	s := watch(t, url+"/monitor/v1/watch?since="+all.Version)
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1, MemoryMiB: 4000})
	for {
		event, m := s.next()
		if event != "fleet" {
			t.Fatalf("event %s, want fleet", event)
		}
		if len(m.Waiting) == 1 && m.Waiting[0].Name == "p" {
			break
		}
	}
	if ok, err := f.Bind(pod, "gpu-node-01"); !ok {
		t.Fatal(err)
	}
	for {
		_, m := s.next()
		if len(m.Nodes) == 1 && m.Nodes[0].Name == "gpu-node-01" && len(m.Waiting) == 0 {
			break
		}
	}
	f.RemoveNode("gpu-node-02")
	for {
		_, m := s.next()
		if len(m.Gone) == 1 && m.Gone[0] == "gpu-node-02" {
			break
		}
	}
}

// TestWatchOfAnotherProcessStartsAnew: a version that this process has not given out
// is answered with everything.
func TestWatchOfAnotherProcessStartsAnew(t *testing.T) {
	url := served(t, newFleet(t, 3, 0.5))
	for _, since := range []string{"", "other.7", "nonsense", "other.-1"} {
		event, m := watch(t, url+"/monitor/v1/watch?since="+since).next()
		if event != "reset" || len(m.Nodes) != 3 {
			t.Errorf("since %q: event %s with %d nodes, want reset with 3", since, event, len(m.Nodes))
		}
	}
}

func TestStoryOfAPod(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A100-40GB", 1)
	url := served(t, f)
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1, MemoryMiB: 8000})
	var story monitor.Story
	names := func() string {
		var out []string
		for _, s := range story.Steps {
			out = append(out, s.Name+":"+s.From)
		}
		return strings.Join(out, " ")
	}
	tell := func(want string) func() bool {
		return func() bool {
			story = monitor.Story{}
			get(t, url+"/monitor/v1/pods/ns/p", &story)
			return names() == want
		}
	}
	eventually(t, "the waiting pod", tell("created:api"))
	f.Refuse(pod, "0/1 nodes are available")
	eventually(t, "the reason", func() bool {
		return tell("created:api")() && story.Waiting != nil && story.Waiting.Message == "0/1 nodes are available"
	})
	if story.Request != "main: gpu 1, gpumem 8000" {
		t.Errorf("request = %q", story.Request)
	}
	if ok, err := f.Bind(pod, "n"); !ok {
		t.Fatal(err)
	}
	eventually(t, "the binding", tell("created:api decided:monitor published:monitor bound:monitor"))
	f.Prepare(pod)
	started := tell("created:api decided:monitor published:monitor bound:monitor prepared:monitor started:api")
	eventually(t, "the start", func() bool { // the picture may be a little older than the steps
		return started() && len(story.Places) == 1 && story.Places[0].Span.State == pool.SpanUsed
	})
	if story.Places[0].Span.MemoryMiB < 8000 || story.Node != "n" {
		t.Errorf("places = %+v", story.Places)
	}
	f.Delete(pod)
	eventually(t, "that the pod is gone", func() bool { return get(t, url+"/monitor/v1/pods/ns/p", nil).StatusCode == http.StatusNotFound })
}

// TestAnswers: what each path says, and that nothing can be changed.
func TestAnswers(t *testing.T) {
	url := served(t, newFleet(t, 3, 0.5))
	for path, want := range map[string]int{
		"/": 200, "/app.js": 200, "/style.css": 200, "/healthz": 200, "/metrics": 200, "/monitor/v1/fleet": 200, "/monitor/v1/nodes/gpu-node-01": 200,
		"/monitor/v1/nodes/other": 404, "/monitor/v1/pods/a/b": 404, "/monitor/v1/other": 404, "/other": 404,
	} {
		answer := get(t, url+path, nil)
		if answer.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, answer.StatusCode, want)
		}
		if csp := answer.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: Content-Security-Policy is %q", path, csp)
		}
		changed, err := http.Post(url+path, "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		changed.Body.Close()
		if changed.StatusCode < 400 {
			t.Errorf("POST %s: %d", path, changed.StatusCode)
		}
	}
	r, _ := http.NewRequest(http.MethodGet, url+"/metrics", nil)
	r.Header.Set("Accept-Encoding", "gzip")
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	head := make([]byte, 2)
	if _, err := io.ReadFull(answer.Body, head); err != nil || head[0] != 0x1f || head[1] != 0x8b {
		t.Errorf("a reader that takes gzip got %x, %v", head, err)
	}
}

// TestNothingButTheProgramsOwnFiles: the page loads nothing from elsewhere.
func TestNothingButTheProgramsOwnFiles(t *testing.T) {
	url := served(t, newFleet(t, 0, 0))
	for _, file := range []string{"/", "/app.js", "/draw.js", "/story.js", "/style.css"} {
		answer, err := http.Get(url + file)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"http://", "https://", "@import", "innerHTML", "eval("} {
			if strings.Contains(string(text), word) {
				t.Errorf("%s has %q", file, word)
			}
		}
	}
}

func TestFlagsThatDoNotFit(t *testing.T) {
	for want, cfg := range map[string]monitor.Config{
		"--monitor-port is 70000":          {BindAddress: "::", Port: 70000},
		`--monitor-bind-address is "here"`: {BindAddress: "here", Port: 9395},
		"belong together":                  {BindAddress: "::", Port: 9395, CertFile: "a"},
		"needs --monitor-tls-cert-file":    {BindAddress: "::", Port: 9395, Authenticate: true},
	} {
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
}

// TestKubeletIsPartOfThePicture: what kubelet says of a node is shown beside what the
// agent says, and a change of it is news. During an outage the node has nothing free.
func TestKubeletIsPartOfThePicture(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A100-40GB", 1)
	m := monitorOf(t, f, everything)
	url := serve(t, m)
	s := watch(t, url+"/monitor/v1/watch")
	ready := func(status metav1.ConditionStatus) func() error {
		return func() error {
			f.Change("n", func(s *v1alpha1.GPUNodeStatus) {
				meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady).Status = status
			})
			return nil
		}
	}
	says := func(k pool.Kubelet) func() error { return func() error { return f.Kubelet("n", k) } }
	for _, step := range []struct {
		change func() error
		outage pool.Outage
		free   int
	}{
		{says(pool.Kubelet{Devices: 7, Ready: true}), "", 8},
		{says(pool.Kubelet{Devices: 0, Ready: true}), pool.NoAgent, 0},
		{ready(metav1.ConditionFalse), "", 8}, // an agent that offers nothing is there, and says why
		{ready(metav1.ConditionTrue), pool.NoAgent, 0},
		{says(pool.Kubelet{Devices: 7}), pool.NotReady, 0},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		_, got := s.next()
		n := got.Nodes[0]
		if n.Outage != step.outage || n.GPUs[0].FreeSlices != step.free {
			t.Errorf("the stream says outage %q and %d free slices, want %q and %d", n.Outage, n.GPUs[0].FreeSlices, step.outage, step.free)
		}
		for _, want := range []string{
			fmt.Sprintf("dynamig_node_allocatable_devices{node=\"n\"} %d\n", n.Kubelet.Devices),
			fmt.Sprintf("state=\"free\"} %d\n", step.free), fmt.Sprintf("state=\"withheld\"} %d\n", 8-step.free),
			// What can be had is true at once; what the agent said last stays.
			fmt.Sprintf("dynamig_node_placeable_instances{node=\"n\",profile=\"1g.5gb\"} %d\n", min(step.free, 7)),
			fmt.Sprintf("dynamig_pool_nodes{state=\"down\"} %d\n", min(len(step.outage), 1)),
			fmt.Sprintf("dynamig_pool_gpus{mode=\"mig\",state=\"offered\"} %d\n", min(step.free, 1)),
			fmt.Sprintf("dynamig_gpu_healthy{node=\"n\",device_uuid=%q,device_index=\"0\"} 1\n", n.GPUs[0].UUID),
		} {
			if !strings.Contains(string(scrapeText(t, m)), want) {
				t.Errorf("the metrics lack %q", want)
			}
		}
	}
}

// blocked reports whether the pool knows of somebody else's instance.
func blocked(f *fleet.Fleet) bool {
	n, _ := f.Pool.Node("n")
	return f.Pool.FreshView(n, func(func(*v1.Pod) bool) {}, pool.Scope{}).Occupied(0).Mask != 0
}

// TestReasonsHaveTheirClass: no reason of pkg/pool is "other".
func TestReasonsHaveTheirClass(t *testing.T) {
	for _, reason := range []string{
		pool.ReasonNoGPUNode, pool.ReasonNodeChanged, pool.ReasonNoMode, pool.ReasonNotOffered, pool.ReasonNominated, pool.ReasonNotSelected,
		pool.ReasonUnreadable, pool.ReasonSharesOnly, pool.ReasonNoLibrary,
	} {
		if got := monitor.Classify("0/1 nodes are available: 1 "+reason+".", v1alpha1.ResourceGPU); len(got) != 1 || got[0] == "other" {
			t.Errorf("%q is of %v", reason, got)
		}
	}
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A100-40GB", 1)
	verdict := func(p fleet.Pod, want string) {
		t.Helper()
		r, err := f.Pool.Parse(f.Create(p))
		if err != nil {
			t.Fatal(err)
		}
		n, _ := f.Pool.Node("n")
		_, v := f.Pool.FreshView(n, func(func(*v1.Pod) bool) {}, pool.Scope{Ledger: pool.LedgerAll}).Fit(r)
		if v == nil {
			t.Fatalf("%v fits", p)
		}
		if got := monitor.Classify(v.Reason, v1alpha1.ResourceGPU); len(got) != 1 || got[0] != want {
			t.Errorf("%q is of %v, want %s", v.Reason, got, want)
		}
	}
	verdict(fleet.Pod{Name: "a", GPUs: 1, MemoryMiB: 50000}, "cannot_hold")
	f.Seize("n", 0, "1g.5gb", v1alpha1.InstanceForeign)
	eventually(t, "the foreign instance", func() bool { return blocked(f) })
	verdict(fleet.Pod{Name: "b", GPUs: 1}, "blocked")
	f.Change("n", func(s *v1alpha1.GPUNodeStatus) { s.GPUs[0].Instances = nil })
	eventually(t, "its end", func() bool { return !blocked(f) })
	small := f.Create(fleet.Pod{Name: "c", GPUs: 1, MemoryMiB: 4000})
	if ok, err := f.Bind(small, "n"); !ok {
		t.Fatal(err)
	}
	verdict(fleet.Pod{Name: "d", GPUs: 1}, "no_placement")
}
