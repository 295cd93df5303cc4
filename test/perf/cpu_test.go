// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	benchmark "k8s.io/kubernetes/test/integration/scheduler_perf"
)

// cpuMetric is what this process (API server, scheduler and load, without etcd)
// computes for one pod, from its creation to the end of the workload. Other
// programs on the machine hardly change it, unlike pods per second.
const cpuMetric = "CPUPerPod"

// stopwatch measures the CPU time of workloads, one after the other.
type stopwatch struct {
	began time.Duration // CPU time of the process when the pods were about to be created
	items []benchmark.DataItem
}

func (s *stopwatch) start() { s.began = cpuTime() }

// stop records what was used for pods since start.
func (s *stopwatch) stop(workload string, pods int) {
	used := cpuTime() - s.began
	s.items = append(s.items, benchmark.DataItem{
		Labels: map[string]string{"Metric": cpuMetric, "Name": workload},
		Data:   map[string]float64{"Average": used.Seconds() * 1000 / float64(pods)},
		Unit:   "ms",
	})
}

// write adds a file in upstream's format to the directory of the others.
func (s *stopwatch) write() error {
	dir := flag.Lookup("data-items-dir").Value.String()
	text, err := json.MarshalIndent(benchmark.DataItems{Version: "v1", DataItems: s.items}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding CPU times: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cpu.json"), text, 0o644); err != nil {
		return fmt.Errorf("writing CPU times: %w", err)
	}
	return nil
}

// cpuTime is what this process has used so far, in user and kernel mode.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // not reached: both arguments are valid
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
