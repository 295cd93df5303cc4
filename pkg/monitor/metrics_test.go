// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/pool"
	"github.com/dynamig/dynamig/test/fleet"
)

// everything is a monitor with all families.
var everything = monitor.Config{InstanceMetrics: true, HAMiMetrics: true, LegacyMetrics: true}

func fleetOf(t testing.TB, opts pool.Options) *fleet.Fleet {
	t.Helper()
	f, err := fleet.New(t.Context(), 1, opts)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func newFleet(t testing.TB, nodes int, part float64) *fleet.Fleet {
	t.Helper()
	f := fleetOf(t, pool.Options{})
	if err := f.Fill(t.Context(), nodes, part); err != nil {
		t.Fatal(err)
	}
	return f
}

func monitorOf(t testing.TB, f *fleet.Fleet, cfg monitor.Config) *monitor.Monitor {
	t.Helper()
	m, err := f.Monitor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func scrapeText(t testing.TB, m *monitor.Monitor) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := m.WriteMetrics(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func parse(t testing.TB, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("the metrics do not parse: %v", err)
	}
	return families
}

// series are the lines of a family, sorted.
func series(text []byte, name string) []string {
	var out []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, name+"{") || strings.HasPrefix(line, name+" ") {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	slices.Sort(out)
	return out
}

// eventually waits for what informers bring.
func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s in vain", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// addNode adds a node and waits until the pool has it.
func addNode(t testing.TB, f *fleet.Fleet, name, board string, gpus int) {
	t.Helper()
	if err := f.AddNode(name, board, gpus); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitNode(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// TestNodeGPUMigInstance: as documented, 1 for what a pod has, live or not yet, and 0
// for an idle one; the suffix counts instances of the profile by start.
func TestNodeGPUMigInstance(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "aio-node15", "A100-40GB", 1)
	m := monitorOf(t, f, everything)
	first, second := f.Create(fleet.Pod{Namespace: "default", Name: "a", GPUs: 1, MemoryMiB: 18000}), f.Create(fleet.Pod{Namespace: "default", Name: "b", GPUs: 1, MemoryMiB: 18000})
	if ok, err := f.Bind(first, "aio-node15"); !ok {
		t.Fatal(err)
	}
	var got []string
	want := func(values ...int) func() bool {
		return func() bool {
			got = nil
			for _, line := range series(scrapeText(t, m), "nodeGPUMigInstance") {
				got = append(got, regexp.MustCompile(`GPU-[0-9a-z-]+`).ReplaceAllString(line, "GPU-X"))
			}
			var lines []string
			for i, v := range values {
				lines = append(lines, fmt.Sprintf(`nodeGPUMigInstance{deviceidx="0",deviceuuid="GPU-X",migname="3g.20gb-%d",nodeid="aio-node15",zone="vGPU"} %d`, i, v))
			}
			return slices.Equal(got, lines)
		}
	}
	check := func(what string, values ...int) {
		t.Helper()
		defer func() {
			if t.Failed() {
				t.Logf("have %v", got)
			}
		}()
		eventually(t, what, want(values...))
	}
	check("an instance that is not live yet", 1)
	f.Prepare(first)
	check("a live instance", 1)
	if ok, err := f.Bind(second, "aio-node15"); !ok {
		t.Fatal(err)
	}
	f.Prepare(second)
	check("two instances", 1, 1)
	f.Delete(second)
	eventually(t, "one idle instance", func() bool { return want(0, 1)() || want(1, 0)() })
	f.Delete(first)
	check("two idle instances", 0, 0)
}

// TestMetricsAreClean: promlint has nothing to say but about HAMi's names, and no
// series is written twice.
func TestMetricsAreClean(t *testing.T) {
	f := newFleet(t, 3, 0.6)
	if err := f.Trouble(f.Names()); err != nil {
		t.Fatal(err)
	}
	text := scrapeText(t, monitorOf(t, f, everything))
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	theirs := regexp.MustCompile(`^(hami_gpu_shared_count|nodeGPU[A-Z]|vGPU[A-Z]|GPUDevice[A-Z])`)
	for _, p := range problems {
		if !theirs.MatchString(p.Metric) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	parse(t, text)
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		if strings.HasPrefix(line, "#") {
			continue
		}
		if at := strings.LastIndex(line, "} "); at > 0 {
			name = line[:at]
		}
		if seen[name] {
			t.Errorf("twice: %s", name)
		}
		seen[name] = true
	}
}

// TestSlicesAddUp: the states of a GPU's memory slices are all that its picture has.
func TestSlicesAddUp(t *testing.T) {
	f := newFleet(t, 4, 0.7)
	if err := f.Trouble(f.Names()); err != nil {
		t.Fatal(err)
	}
	m := monitorOf(t, f, everything)
	sums, want := map[string]float64{}, map[string]float64{}
	var all message
	get(t, serve(t, m)+"/monitor/v1/fleet", &all)
	for _, n := range all.Nodes {
		for _, g := range n.GPUs {
			want[g.UUID] = float64(g.MemorySlices)
		}
	}
	for _, s := range parse(t, scrapeText(t, m))["dynamig_gpu_memory_slices"].Metric {
		for _, l := range s.Label {
			if l.GetName() == "device_uuid" {
				sums[l.GetValue()] += s.GetGauge().GetValue()
			}
		}
	}
	if diff := cmp.Diff(want, sums); diff != "" || len(want) != 26 {
		t.Errorf("memory slices of %d GPUs, want 26 (-picture +metric):\n%s", len(want), diff)
	}
}

// TestGroupsCanBeSwitchedOff: and what is left does not grow with pods.
func TestGroupsCanBeSwitchedOff(t *testing.T) {
	f := newFleet(t, 3, 0.6)
	few := parse(t, scrapeText(t, monitorOf(t, f, monitor.Config{})))
	for name := range few {
		if !strings.HasPrefix(name, "dynamig_") || name == "dynamig_mig_device_info" {
			t.Errorf("%s is there although its group is off", name)
		}
	}
	if len(few) < 15 {
		t.Errorf("only %d families are left", len(few))
	}
}

// TestHAMiValues: what HAMi's dashboards compute with, for one pod with one
// instance.
func TestHAMiValues(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A100-40GB", 1)
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1, MemoryMiB: 18000})
	if ok, err := f.Bind(pod, "n"); !ok {
		t.Fatal(err)
	}
	f.Prepare(pod)
	m := monitorOf(t, f, everything)
	eventually(t, "the live instance", func() bool { return len(series(scrapeText(t, m), "hami_node_gpu_mig_instance_info")) == 1 })
	text := scrapeText(t, m)
	const instance, whole = 20096 << 20, 40960 << 20
	for name, want := range map[string]string{
		"hami_gpu_memory_limit_bytes":          fmt.Sprint(whole),
		"hami_gpu_core_limit_ratio":            "100",
		"hami_gpu_memory_allocated_bytes":      fmt.Sprint(instance),
		"hami_gpu_core_allocated_ratio":        "42",
		"hami_gpu_shared_count":                "1",
		"hami_node_gpu_overview":               fmt.Sprint(instance),
		"hami_node_gpu_memory_allocated_ratio": fmt.Sprint(20096.0 / 40960),
		"hami_vgpu_memory_allocated_bytes":     fmt.Sprint(instance),
		"hami_vgpu_core_allocated_ratio":       "42",
		"GPUDeviceMemoryAllocated":             fmt.Sprint(instance),
		"nodeGPUMemoryPercentage":              fmt.Sprint(20096.0 / 40960),
		"vGPUCoreAllocated":                    "42",
	} {
		lines := series(text, name)
		if len(lines) != 1 || !strings.HasSuffix(lines[0], " "+want) {
			t.Errorf("%s: %v, want one of value %s", name, lines, want)
		}
	}
	if got := series(text, "hami_vgpu_memory_allocated_bytes")[0]; !strings.Contains(got, `namespace="ns",node="n",pod="p",container_index="0"`) {
		t.Errorf("labels: %s", got)
	}
	if got := series(text, "dynamig_mig_device_info")[0]; !strings.Contains(got, `GPU_I_PROFILE="3g.20gb",node="n",namespace="ns",pod="p",container="main"`) {
		t.Errorf("labels: %s", got)
	}
}

// TestHAMiValuesOfShares: a container's software shares of one GPU are one series with
// what it asked for; a plain init container, which has them in turn, has none.
func TestHAMiValuesOfShares(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A30-24GB", 1)
	f.Share("n")
	m := monitorOf(t, f, everything)
	eventually(t, "the shares", func() bool { n, _ := f.Pool.Node("n"); return n.GPUs[0].Shares != nil })
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1, MemoryMiB: 3000, Init: true})
	if ok, err := f.Bind(pod, "n"); !ok {
		t.Fatal(err)
	}
	f.Prepare(pod)
	want := fmt.Sprintf(`container_index="0",device_uuid="%s",zone="vGPU"} %d`, uuidOf(f, "n"), 3000<<20)
	var got []string
	eventually(t, "the container's share", func() bool {
		got = series(scrapeText(t, m), "hami_vgpu_memory_allocated_bytes")
		return len(got) > 0
	})
	if len(got) != 1 || !strings.HasSuffix(got[0], want) {
		t.Errorf("%v, want one that ends with %s", got, want)
	}
	if cores := series(scrapeText(t, m), "vGPUCoreAllocated"); len(cores) != 1 || !strings.HasSuffix(cores[0], " 0") {
		t.Errorf("cores: %v, want one without limit", cores)
	}
}

func uuidOf(f *fleet.Fleet, node string) string {
	n, _ := f.Pool.Node(node)
	return n.GPUs[0].ID
}

// TestCounters: what is counted where a step is seen.
func TestCounters(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A100-40GB", 1)
	m := monitorOf(t, f, everything)
	waiting := f.Create(fleet.Pod{Namespace: "ns", Name: "w", GPUs: 1, MemoryMiB: 18000})
	const reason = "0/1 nodes are available: 1 node(s) had no free MIG placement for 18000 MiB."
	f.Refuse(waiting, reason)
	value := func(line string) func() bool {
		return func() bool { return bytes.Contains(scrapeText(t, m), []byte(line+"\n")) }
	}
	eventually(t, "the refusal", value(`dynamig_refusals_total{reason="no_placement"} 1`))
	f.Refuse(waiting, reason) // the same again is not another
	eventually(t, "the waiting pod", value(`dynamig_waiting_pods{reason="no_placement"} 1`))
	if ok, err := f.Bind(waiting, "n"); !ok {
		t.Fatal(err)
	}
	eventually(t, "the decision", value("dynamig_decisions_total 1"))
	eventually(t, "that it waits no more", value(`dynamig_waiting_pods{reason="no_placement"} 0`))
	f.Prepare(waiting)
	eventually(t, "the preparation", value("dynamig_prepare_duration_seconds_count 1"))
	if !value(`dynamig_refusals_total{reason="no_placement"} 1`)() {
		t.Error("the same reason was counted twice")
	}
	f.Change("n", func(s *v1alpha1.GPUNodeStatus) {
		s.Pods = append(s.Pods, v1alpha1.PodPreparation{UID: "other", Phase: v1alpha1.PodRefused})
	})
	eventually(t, "the agent's refusal", value("dynamig_pods_refused_total 1"))
	if !value(`dynamig_node_unprepared_pods{node="n",phase="Refused"} 1`)() {
		t.Error("the refused pod is not shown")
	}
}

// TestTableOfMetrics holds docs/metrics.md to the code: name, type, labels, unit and
// source of every family, in both directions.
func TestTableOfMetrics(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "<!-- table: scheduler -->\n")
	table, _, end := strings.Cut(rest, "<!-- end -->")
	if !ok || !end {
		t.Fatal("docs/metrics.md has no table between its marks")
	}
	documented := map[string]string{}
	for line := range strings.Lines(table) {
		if strings.HasPrefix(line, "| `") {
			name := strings.Split(line, "`")[1]
			documented[name] = strings.TrimSpace(line)
		}
	}
	coded := map[string]string{}
	for _, d := range monitor.Documentation() {
		coded[d.Name] = d.Row()
	}
	if diff := cmp.Diff(coded, documented); diff != "" {
		rows := slices.Sorted(maps.Values(coded))
		t.Errorf("docs/metrics.md differs from the code (-code +page):\n%s\nthe rows should be:\n%s", diff, strings.Join(rows, "\n"))
	}
	exported := parse(t, scrapeText(t, monitorOf(t, newFleet(t, 3, 0.5), everything)))
	for name := range exported {
		if _, ok := coded[name]; !ok {
			t.Errorf("%s is exported and not documented", name)
		}
	}
}

func BenchmarkScrape(b *testing.B) {
	f := newFleet(b, 1000, 0.5)
	m := monitorOf(b, f, monitor.Config{InstanceMetrics: true, HAMiMetrics: true})
	began := time.Now()
	text := scrapeText(b, m)
	b.Logf("first scrape, all pictures drawn: %v, %d series, %d MB", time.Since(began).Round(time.Millisecond), bytes.Count(text, []byte("\n")), len(text)>>20)
	for b.Loop() {
		if err := m.WriteMetrics(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
