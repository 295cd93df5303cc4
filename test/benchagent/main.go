// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command benchagent measures the real node agent on a node of package test/node:
// what it adds to the time that NVML takes, whether GPUs wait for one another, and
// whether anything grows. It prints a table with targets and fails when one is
// missed. NVML alone is simulated, once with the latencies below and once with none.
//
// Targets are for a machine with nothing else to do: the table also says how late the
// machine was meanwhile, and the agent's processor time, which others change little.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/node"
	"github.com/dynamig/dynamig/test/steps"
)

// What the simulated driver takes for an instance.
const (
	createTime  = 250 * time.Millisecond
	destroyTime = 100 * time.Millisecond
)

// latencies spread these times over the two calls of each.
var latencies = map[string]time.Duration{
	sim.CallCreateGPUInstance: createTime / 2, sim.CallCreateComputeInstance: createTime / 2,
	sim.CallDestroyComputeInstance: destroyTime / 2, sim.CallDestroyGPUInstance: destroyTime / 2,
}

func main() {
	steps.Wrap()
	starts := flag.Int("starts", 10_000, "pod starts over which nothing may grow, with each latency")
	flag.Parse()
	if err := run(*starts); err != nil {
		fmt.Fprintln(os.Stderr, "benchagent:", err)
		os.Exit(1)
	}
}

func run(starts int) error {
	dir, err := os.MkdirTemp("", "ba")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "nodeagent")
	build := exec.Command("go", "build", "-o", program, "./cmd/nodeagent")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the agent: %w; run it in the repository's root", err)
	}
	b := &bench{reporter: &reporter{}, dir: dir, program: program}
	for _, slow := range []bool{true, false} {
		b.latency(slow)
		b.together(slow)
		b.warm(slow)
		b.growth(slow, starts)
	}
	fmt.Printf("\n%s/%s, %d cores, %s\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), processor())
	return b.print()
}

// processor names the machine's.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// bench collects rows.
type bench struct {
	*reporter
	dir, program string
	nodes        int
	rows         []row
}

// row is one figure.
type row struct {
	what, got, target string
	ok                bool
}

func (b *bench) row(what, got, target string, ok bool) {
	b.rows = append(b.rows, row{what, got, target, ok})
	fmt.Fprintf(os.Stderr, "%s: %s\n", what, got)
}

// print writes the table.
func (b *bench) print() error {
	var missed []string
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "measured\tfigure\ttarget\t")
	for _, r := range b.rows {
		verdict := "ok"
		if !r.ok {
			verdict = "MISSED"
			missed = append(missed, r.what)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.what, r.got, r.target, verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Print(text.String())
	if b.failed {
		return errors.New("something went wrong, see above")
	}
	if len(missed) > 0 {
		return fmt.Errorf("missed: %s", strings.Join(missed, "; "))
	}
	return nil
}

// node makes a node with so many A100 and its agent.
func (b *bench) node(gpus int, slow bool, args ...string) *node.Node {
	b.nodes++
	spec := sim.Spec{Seed: fmt.Sprint("bench", b.nodes)}
	if slow {
		spec.Latencies = latencies
	}
	for range gpus {
		spec.GPUs = append(spec.GPUs, sim.GPUSpec{Board: "A100-40GB", Product: "NVIDIA A100-SXM4-40GB", MIG: true})
	}
	dir := filepath.Join(b.dir, fmt.Sprint("n", b.nodes))
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	n := node.New(b, dir, b.program, spec)
	n.Args = append(args, "--v=1")
	n.StartAgent(0, false)
	n.Kubelet.AwaitCapacity(7 * gpus)
	return n
}

// reporter is what package node needs of a test.
type reporter struct{ failed bool }

func (r *reporter) Helper() {}

func (r *reporter) Error(args ...any) { r.Errorf("%s", fmt.Sprintln(args...)) }

func (r *reporter) Errorf(format string, args ...any) {
	r.failed = true
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func (r *reporter) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprintln(args...)) }

func (r *reporter) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	os.Exit(1)
}
