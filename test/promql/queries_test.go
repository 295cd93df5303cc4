// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package promql

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/pkg/pool"
	"github.com/dynamig/dynamig/test/fleet"
	"github.com/dynamig/dynamig/test/node"
	"github.com/dynamig/dynamig/test/steps"
)

const component = "../../manifests/components/prometheus"

// program is the nodeagent.
var program string

func TestMain(m *testing.M) {
	steps.Wrap()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "pq")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "nodeagent")
	build := exec.Command("go", "build", "-o", program, "./cmd/nodeagent")
	build.Dir = "../.."
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the agent:", err)
		return 1
	}
	return m.Run()
}

func load(t *testing.T) *Content {
	t.Helper()
	c, err := Load(component)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Queries) < 20 || len(c.Alerts) < 6 {
		t.Fatalf("only %d queries and %d alerts were read", len(c.Queries), len(c.Alerts))
	}
	return c
}

// scrapes is how many there are, Interval apart.
const scrapes = 5

// last is when the last one was.
var last = Epoch.Add((scrapes - 1) * Interval)

// scraped are scrapes of two replicas' monitor, where pods come, wait and run, and of an
// agent, which creates, fails and tries again.
func scraped(t *testing.T) *Samples {
	t.Helper()
	s := &Samples{}
	f, err := fleet.New(t.Context(), 1, pool.Options{})
	if err == nil {
		err = f.Fill(t.Context(), 3, 0.6)
	}
	if err == nil {
		err = f.Trouble(f.Names())
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Monitor(monitor.Config{InstanceMetrics: true, HAMiMetrics: true, LegacyMetrics: true})
	if err != nil {
		t.Fatal(err)
	}
	agent := newAgent(t)
	for i := range scrapes {
		at := Epoch.Add(time.Duration(i) * Interval)
		var text strings.Builder
		if err := m.WriteMetrics(&text); err != nil {
			t.Fatal(err)
		}
		for _, replica := range []string{"a", "b"} {
			if err := s.Scrape(at, []byte(text.String()), target("dynamig-scheduler", replica)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Scrape(at, agent.metrics(t), target("dynamig-nodeagent", "n")); err != nil {
			t.Fatal(err)
		}
		agent.step(i)
		pod := f.Create(fleet.Pod{Namespace: "ns", Name: fmt.Sprint("p", i), GPUs: 1, MemoryMiB: 5000})
		if ok, err := f.Bind(pod, f.Names()[0]); err != nil || !ok {
			t.Fatal(ok, err)
		}
		f.Prepare(pod)
	}
	return s
}

// target are the labels that the operator's monitors give each series.
func target(job, pod string) map[string]string {
	return map[string]string{"job": job, "namespace": "dynamig-system", "pod": job + "-" + pod, "instance": pod}
}

// agent is a nodeagent on a simulated node.
type agent struct {
	*node.Node
	address string
	pods    []*node.Pod
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "pq") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{address: l.Addr().String()}
	l.Close()
	a.Node = node.New(t, dir, program, sim.Spec{GPUs: []sim.GPUSpec{{Board: "A100-40GB", Product: "NVIDIA A100-SXM4-40GB", MIG: true}}})
	t.Cleanup(func() { a.Close(); os.RemoveAll(dir) })
	a.Args = append(a.Args, "--listen="+a.address)
	a.StartAgent(0, false)
	a.Kubelet.AwaitCapacity(7)
	return a
}

// metrics is a scrape; the agent may be about to open its port.
func (a *agent) metrics(t *testing.T) (text []byte) {
	t.Helper()
	a.Await("the agent's metrics", func() error {
		answer, err := http.Get("http://" + a.address + "/metrics")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		text, err = io.ReadAll(answer.Body)
		return err
	})
	return text
}

// step has the agent create an instance at the second attempt, then destroy it at the
// second attempt to make room for another.
func (a *agent) step(i int) {
	fails := func(call string) {
		if err := a.Sim.FailCall(call, 1, nvml.ErrUnknown); err != nil {
			a.T.Fatal(err)
		}
	}
	bind := func(place string) {
		p := a.Bind(fmt.Sprint("p", len(a.pods)), "main=0:"+place)
		p.Await(node.Running)
		a.pods = append(a.pods, p)
	}
	switch i {
	case 0:
		fails(sim.CallCreateGPUInstance)
		bind("1g.5gb@0")
	case 1:
		a.pods[0].Delete()
		fails(sim.CallDestroyGPUInstance)
		bind("2g.10gb@0")
	}
}

// TestQueriesFindSeries: each query of dashboard and rules parses, each selector in it
// finds series, which have the labels it goes by; those of the dashboard have an answer.
func TestQueriesFindSeries(t *testing.T) {
	s, c := scraped(t), load(t)
	all := map[string]string{}
	for _, q := range c.Queries {
		all[q.Where] = q.Expr
		found, err := s.Query(t.Context(), q.Expr, last)
		if err != nil || len(found) == 0 {
			t.Errorf("%s: %q finds nothing: %v", q.Where, q.Expr, err)
		}
	}
	for _, a := range c.Alerts {
		all["alert "+a.Alert] = a.Expr
	}
	for where, text := range all {
		expr, err := Parser.ParseExpr(text)
		if err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		for _, problem := range unknown(t, s, expr) {
			t.Errorf("%s: %s", where, problem)
		}
	}
}

// unknown says which selectors of an expression find nothing, and which labels that it
// goes by no series has.
func unknown(t *testing.T, s *Samples, expr parser.Expr) (problems []string) {
	have := map[string]bool{}
	var goesBy []string
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			found, err := s.Query(t.Context(), n.String(), last)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) == 0 {
				problems = append(problems, fmt.Sprintf("nothing is exported that %s selects", n))
			}
			for _, sample := range found {
				sample.Metric.Range(func(l labels.Label) { have[l.Name] = true })
			}
			for _, m := range n.LabelMatchers {
				goesBy = append(goesBy, m.Name)
			}
		case *parser.AggregateExpr:
			goesBy = append(goesBy, n.Grouping...)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				goesBy = append(slices.Concat(goesBy, n.VectorMatching.MatchingLabels), n.VectorMatching.Include...)
			}
		}
		return nil
	})
	for _, label := range goesBy {
		if !have[label] {
			problems = append(problems, fmt.Sprintf("no series of %s has label %s", expr, label))
		}
	}
	return problems
}

// TestJoinOfTheDocumentation: the query of docs/metrics.md gives the figures of
// dcgm-exporter their pod.
func TestJoinOfTheDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	join := regexp.MustCompile(`(?m)^DCGM_.*dynamig_mig_device_info\)$`).FindString(string(text))
	s := scraped(t)
	info, err := s.Query(t.Context(), `max by (UUID, GPU_I_ID, namespace, pod, container) (dynamig_mig_device_info{instance="a"})`, last)
	if err != nil || len(info) == 0 {
		t.Fatalf("%v, %v", info, err)
	}
	one := info[0].Metric
	s.Add(last, 0.5, map[string]string{
		model.MetricNameLabel: "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "UUID": one.Get("UUID"), "GPU_I_ID": one.Get("GPU_I_ID"), "instance": "dcgm",
	})
	found, err := s.Query(t.Context(), join, last)
	if err != nil || len(found) != 1 || found[0].F != 0.5 || found[0].Metric.Get("pod") != one.Get("pod") || one.Get("pod") == "" {
		t.Errorf("%q finds %v, %v, want the pod of %s", join, found, err, one)
	}
}
