// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/agent"
	gpunodefake "github.com/dynamig/dynamig/pkg/generated/clientset/versioned/fake"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/native"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// newAgent is an agent that was never run, with what it needs of a node in a directory.
func newAgent(t *testing.T, dir string) *agent.Agent {
	t.Helper()
	a, err := agent.New(agent.Config{
		Node: "n", StateDir: dir, Open: func() (nvml.Driver, error) { return sim.Open(dir) },
		Nodes: nvml.Capabilities{Root: dir}, Openers: agent.Openers(dir), ProcessesOf: agent.ProcessesOf(dir),
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

// The shipped DaemonSet asks the program what it answers, and is rolled out over nodes
// that can say that they are ready: all, since one whose driver is away does, too.
func TestDaemonSetFitsTheProgram(t *testing.T) {
	text, err := os.ReadFile("../../manifests/base/nodeagent/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(text, &d); err != nil {
		t.Fatal(err)
	}
	if r := d.Spec.UpdateStrategy.RollingUpdate; r == nil || r.MaxUnavailable == nil || r.MaxUnavailable.IntValue() != 1 || r.MaxSurge != nil {
		t.Errorf("updateStrategy is %+v; want one node after the other, the old agent first: both want the lock of the state directory", d.Spec.UpdateStrategy)
	}
	c := d.Spec.Template.Spec.Containers[0]
	args := slices.Clone(c.Args)
	if !native.Built {
		args = append(args, "--driver=sim", "--sim-root=/x")
	}
	o, err := parse(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(":%d", c.Ports[0].ContainerPort); o.listen != want {
		t.Errorf("--listen=%s, but the probes ask at %s", o.listen, want)
	}
	mux := status{agent: newAgent(t, t.TempDir())}.mux(prometheus.NewRegistry())
	for _, probe := range []*v1.Probe{c.LivenessProbe, c.ReadinessProbe} {
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, probe.HTTPGet.Path, nil))
		if probe.HTTPGet.Port.StrVal != c.Ports[0].Name || answer.Code == http.StatusNotFound {
			t.Errorf("the program answers %d at %s of port %s", answer.Code, probe.HTTPGet.Path, probe.HTTPGet.Port.String())
		}
	}
}
