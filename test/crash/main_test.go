// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package crash kills the real node agent before and after each of its steps, and
// looks at what the next one makes of it. A step is a write of journal, slots or
// CDI files (package steps), or an NVML call (the simulator numbers them).
package crash

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/node"
	"github.com/dynamig/dynamig/test/steps"
)

// program is the nodeagent under test.
var program string

func TestMain(m *testing.M) {
	steps.Wrap()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "crash")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "nodeagent")
	build := exec.Command("go", "build", "-o", program, "../../cmd/nodeagent")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the agent:", err)
		return 1
	}
	return m.Run()
}

// newNode makes a node with so many A100 in MIG mode.
func newNode(t *testing.T, gpus int) *node.Node {
	t.Helper()
	var spec sim.Spec
	for range gpus {
		spec.GPUs = append(spec.GPUs, sim.GPUSpec{Board: "A100-40GB", Product: "NVIDIA A100-SXM4-40GB", MIG: true})
	}
	return newNodeOf(t, spec)
}

func newNodeOf(t *testing.T, spec sim.Spec) *node.Node {
	t.Helper()
	dir, err := os.MkdirTemp("", "dn") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	n := node.New(t, dir, program, spec)
	t.Cleanup(func() {
		n.Close()
		if t.Failed() {
			t.Logf("kept %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	return n
}
