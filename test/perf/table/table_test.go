// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// result is a file of scheduler_perf with the throughput of some workloads, such
// as "Stock/100Nodes", and a Filter time for each.
func result(podsPerSecond map[string]float64) []byte {
	var items []string
	for name, rate := range podsPerSecond {
		items = append(items, fmt.Sprintf(`
			{"data": {"Average": %[2]f, "Perc50": %[3]f}, "unit": "pods/s", "labels": {"Metric": "SchedulingThroughput",
				"Name": "BenchmarkPerfScheduling/%[1]s/namespace-1", "extension_point": "not applicable", "plugin": "not applicable"}},
			{"data": {"Average": 1.5}, "unit": "ms", "labels": {"Metric": "scheduler_framework_extension_point_duration_seconds",
				"Name": "BenchmarkPerfScheduling/%[1]s/namespace-1", "extension_point": "Filter", "plugin": "not applicable"}},
			{"data": {"Average": 99}, "unit": "ms", "labels": {"Metric": "scheduler_plugin_execution_duration_seconds",
				"Name": "BenchmarkPerfScheduling/%[1]s/namespace-1", "extension_point": "Filter", "plugin": "DynamicMIG"}}`,
			name, rate, rate+1))
	}
	return fmt.Appendf(nil, `{"version": "v1", "dataItems": [%s]}`, strings.Join(items, ","))
}

// cpu is a file of stopwatch.write.
const cpu = `{"version": "v1", "dataItems": [
	{"data": {"Average": 4}, "unit": "ms", "labels": {"Metric": "CPUPerPod", "Name": "BenchmarkPerfScheduling/Stock/100Nodes"}},
	{"data": {"Average": 6}, "unit": "ms", "labels": {"Metric": "CPUPerPod", "Name": "BenchmarkPerfScheduling/MIGMixed/100Nodes"}}]}`

func TestMediansOverRunsAndRatiosWithinThem(t *testing.T) {
	var runs []run
	for _, rates := range []map[string]float64{
		{"Stock/100Nodes": 100, "MIGMixed/100Nodes": 90},
		{"Stock/100Nodes": 200, "MIGMixed/100Nodes": 100},
		{"Stock/100Nodes": 300, "MIGMixed/100Nodes": 60, "MIGOneSize/1000Nodes": 7},
	} {
		dir := t.TempDir()
		save(t, dir, "result.json", result(rates))
		save(t, dir, "cpu.json", []byte(cpu))
		r, err := readRun(dir)
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, r)
	}
	var out bytes.Buffer
	if err := write(&out, runs); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(out.String(), "\n")
	for i, want := range []string{
		"nodes case pods/s p50 Filter ms Score ms PreBind ms CPU ms/pod pods/s ratio CPU ratio",
		"100 Stock 200 201 1.500 - - 4.00",
		"100 MIGMixed 90 91 1.500 - - 6.00 0.50 of Stock 1.50 of Stock", // 0.90, 0.50, 0.20; the medians' would be 0.45
		"1000 MIGOneSize 7 8 1.500 - - -",
	} {
		if line := strings.Join(strings.Fields(got[i]), " "); line != want {
			t.Errorf("line %d is %q, want %q", i, line, want)
		}
	}
}

func TestADirectoryWithoutResultsIsAnError(t *testing.T) {
	if r, err := readRun(t.TempDir()); err == nil {
		t.Errorf("readRun gave %v for an empty directory; want an error", r)
	}
}

func save(t *testing.T, dir, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNamesOutsideTheFormAreErrors(t *testing.T) {
	for _, name := range []string{"", "BenchmarkPerfScheduling/Stock", "B/Stock/Nodes", "B/Stock/100", "B/Stock/xNodes/n"} {
		if at, err := parseName(name); err == nil {
			t.Errorf("parseName(%q) = %+v; want an error", name, at)
		}
	}
}
