// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/dynamig/dynamig/test/node"
)

// TestDryRunSaysWhatItWouldDoAndTouchesNothing, beside an agent that is not there.
func TestDryRunSaysWhatItWouldDoAndTouchesNothing(t *testing.T) {
	s := newScene(t)
	s.begin()
	s.Await("pods to be admitted", s.admitted)
	s.a.Await(node.Running)
	s.StopAgent()
	c := s.BindUnseen("c", "main=1:1g.5gb@3")
	before := s.everything()

	cmd := exec.Command(program, s.Flags("--dry-run", "--v=0")...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		"would create 1g.5gb at 3 on " + string(s.GPU(1)),
		"1g.5gb at 6: Live default/kept",
		"would destroy GPU instance", // it cannot know that somebody uses it
		"3g.20gb at 4: Foreign",
		"1g.5gb at 3: Live default/c",
		"pod default/conflict: Refused: ",
		"ForeignInstances is True",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if t.Failed() {
		t.Logf("it says:\n%s", out)
	}
	if after := s.everything(); after != before {
		t.Errorf("it changed something:\n%s\nwas\n%s", after, before)
	}
	s.StartAgent(0, false)
	c.Run()
	s.again(c, "c", "main=1:1g.5gb@3")
}

// everything draws the agent's files, the GPUs and the report.
func (s *scene) everything() string {
	s.t.Helper()
	var b strings.Builder
	for _, dir := range []string{s.StateDir(), s.CDIDir()} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			fmt.Fprintf(&b, "%s: %s\n", path, text)
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	for i := range s.Dump().GPUs {
		fmt.Fprintf(&b, "%+v\n", s.Dump().GPUs[i].Instances)
	}
	fmt.Fprintf(&b, "%+v\n", s.API.GPUNode().ResourceVersion)
	return b.String()
}

// TestMetricsHealthAndSystemd: what an operator sees of an agent that works.
func TestMetricsHealthAndSystemd(t *testing.T) {
	n := newNode(t, 1)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(n.Dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	address := freeAddress(t)
	n.Args = append(n.Args, "--listen="+address)
	n.Env = append(n.Env, "NOTIFY_SOCKET="+filepath.Join(n.Dir, "notify"), "WATCHDOG_USEC=100000")
	n.StartAgent(0, false)
	for _, want := range []string{"READY=1", "WATCHDOG=1"} {
		if got := datagram(t, socket); got != want {
			t.Errorf("systemd is told %q, want %q", got, want)
		}
	}
	n.Kubelet.AwaitCapacity(7)
	for _, path := range []string{"/healthz", "/readyz"} {
		n.Await(path, func() error {
			if code, text := get(t, address, path); code != http.StatusOK {
				return fmt.Errorf("%d %s", code, text)
			}
			return nil
		})
	}
	p := n.Bind("p", "main=0:2g.10gb@0")
	p.Await(node.Running)
	_, text := get(t, address, "/metrics")
	for _, want := range []string{
		`dynamig_agent_create_instance_duration_seconds_count 1`,
		`dynamig_agent_prepared_devices{device_type="mig"} 1`,
		`dynamig_agent_requests_total{method="PreStartContainer"} 1`,
		`dynamig_agent_slots{state="bound"} 1`,
		`dynamig_agent_pods{phase="Prepared"} 1`,
		`dynamig_agent_reconcile_lag_seconds 0`,
		`dynamig_agent_kubelet_connected 1`,
		`dynamig_agent_instances{gpu="` + string(n.GPU(0)) + `",state="Live"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("/metrics has no line %s", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
	n.Kubelet.Stop()
	n.Await("/readyz to fail without kubelet", func() error {
		if code, text := get(t, address, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "kubelet does not watch") {
			return fmt.Errorf("%d %s", code, text)
		}
		return nil
	})
	n.Kubelet.Run()
	n.StopAgent()
	for datagram(t, socket) != "STOPPING=1" { // the test fails when it does not come
	}
}

func datagram(t *testing.T, socket *net.UnixConn) string {
	t.Helper()
	buffer := make([]byte, 100)
	length, err := socket.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:length])
}

// freeAddress is one that nobody listened at a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, address, path string) (code int, text string) {
	t.Helper()
	response, err := http.Get("http://" + address + path)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}
