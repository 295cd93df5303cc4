// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package e2e tests dynamig on a real cluster whose NVML alone is simulated. Run it
// with make integration. All tests share the cluster; each removes its pods.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dynamig/dynamig/test/cluster"
	"github.com/dynamig/dynamig/test/stack"
)

// buildVariable names the directory that hack/build-tools.sh and hack/build.sh fill.
const buildVariable = "DYNAMIG_BUILD"

// portBase leaves the demo's ports alone.
const portBase = 16460

// st is the cluster of all tests: node1 has two A100-SXM4-40GB.
var st *stack.Stack

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	build := os.Getenv(buildVariable)
	if build == "" {
		fmt.Fprintf(os.Stderr, "%s is not set: run these tests with make integration\n", buildVariable)
		return 1
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	cfg := stack.Config{
		Repo:     "../..",
		Programs: filepath.Join(build, "bin"),
		Cluster: cluster.Config{
			Name: "e2e", Dir: filepath.Join(build, "e2e"), Bin: filepath.Join(build, "tools/bin"),
			PortBase: portBase, Out: os.Stdout,
		},
	}
	var err error
	if st, err = stack.Up(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := st.Cluster.Stop(context.WithoutCancel(ctx)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	if _, err := st.AddNode(ctx, "node1", "A100-SXM4-40GB", "A100-SXM4-40GB"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := st.WaitSlots(ctx, "node1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
