// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/dynamig/dynamig/pkg/agent"
	gpunodefake "github.com/dynamig/dynamig/pkg/generated/clientset/versioned/fake"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// newAgent is an agent that was never run, with what it needs of a node in a directory.
func newAgent(t *testing.T, dir string) *agent.Agent {
	t.Helper()
	a, err := agent.New(agent.Config{
		Node: "n", StateDir: dir, Open: func() (nvml.Driver, error) { return sim.Open(dir) },
		Nodes: nvml.Capabilities{Root: dir}, Openers: agent.Openers(dir),
		Client: fake.NewSimpleClientset(), GPUNodes: gpunodefake.NewSimpleClientset().DynamigV1alpha1(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A taken address is waited for: it does not end the agent.
func TestListenWaitsForTheAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if l := listen(ended, address); l != nil {
		t.Errorf("listening at a taken address gives %v", l.Addr())
	}
	got := make(chan net.Listener, 1)
	go func() { got <- listen(t.Context(), address) }()
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case l := <-got:
		if l == nil || l.Addr().String() != address {
			t.Errorf("listening gives %v; want %s", l, address)
		}
		l.Close()
	case <-time.After(time.Minute):
		t.Error("the address was not taken once it was free")
	}
}

// Systemd hears that the agent has started also where no GPU can be listed.
func TestSystemdHearsOfAnAgentWithoutADriver(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t, dir)
	socket := filepath.Join(dir, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- status{agent: a}.notifySystemd(ctx, time.Millisecond) }()
	if err := systemd.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 100)
	if n, err := systemd.Read(text); err != nil || string(text[:n]) != "READY=1" {
		t.Errorf("systemd hears %q, %v; want READY=1", text[:n], err)
	}
	cancel()
	if err := <-result; err != nil {
		t.Error(err)
	}
}
