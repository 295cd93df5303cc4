// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	s := &systemd{}
	go s.read(socket) // at once: few messages fit into a socket
	defer socket.Close()
	n.Args = append(n.Args, "--listen=127.0.0.1:0")
	n.Env = append(n.Env, "NOTIFY_SOCKET="+filepath.Join(n.Dir, "notify"), "WATCHDOG_USEC=100000")
	n.StartAgent(0, false)
	n.Await("systemd to be told", func() error {
		if got := s.told(); len(got) < 2 || got[0] != "READY=1" || got[1] != "WATCHDOG=1" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	n.Kubelet.AwaitCapacity(7)
	address := servesAt(n)
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
	var text string
	wants := []string{
		`dynamig_agent_create_instance_duration_seconds_count 1`,
		`dynamig_agent_prepared_devices{device_type="mig"} 1`,
		`dynamig_agent_requests_total{method="PreStartContainer"} 1`,
		`dynamig_agent_slots{state="bound"} 1`,
		`dynamig_agent_pods{phase="Prepared"} 1`,
		`dynamig_agent_reconcile_lag_seconds 0`,
		`dynamig_agent_kubelet_connected 1`,
		`dynamig_agent_instances{gpu="` + string(n.GPU(0)) + `",state="Live"} 1`,
	}
	n.Await("/metrics", func() error { // some follow what the pod's user sees
		_, text = get(t, address, "/metrics")
		missing := slices.DeleteFunc(slices.Clone(wants), func(want string) bool { return strings.Contains(text, want+"\n") })
		if len(missing) > 0 {
			return fmt.Errorf("it has no line %s", strings.Join(missing, ", "))
		}
		return nil
	})
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
	n.Await("systemd to be told of the end", func() error {
		if got := s.told(); got[len(got)-1] != "STOPPING=1" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// systemd remembers what it is told.
type systemd struct {
	mu       sync.Mutex // guards what follows
	messages []string
}

// read takes messages until the socket is closed.
func (s *systemd) read(socket *net.UnixConn) {
	buffer := make([]byte, 100)
	for {
		length, err := socket.Read(buffer)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.messages = append(s.messages, string(buffer[:length]))
		s.mu.Unlock()
	}
}

func (s *systemd) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// servesAt is where the agent serves its metrics, as it has logged.
func servesAt(n *node.Node) (address string) {
	n.T.Helper()
	n.Await("the agent to serve metrics", func() error {
		log, err := os.ReadFile(n.Log())
		if err != nil {
			return err
		}
		_, rest, found := strings.Cut(string(log), `"Serving metrics" address="`)
		if address, _, _ = strings.Cut(rest, `"`); !found || address == "" {
			return errors.New("its log does not say where")
		}
		return nil
	})
	return address
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
