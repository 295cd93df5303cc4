// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dynamig/dynamig/test/kubelet"
)

func TestKubeletRestart(t *testing.T) {
	n := newNode(t)
	n.setCapacity(3)
	a := pod("a", "main=1 2")
	n.runPod(a)
	best := time.Hour
	for range 3 {
		n.Stop()
		n.checkContainer(a, "main") // files stay: kubelet may start it without asking
		n.Run()
		n.AwaitSlots("s0000 s0001 s0002")
		n.Mu.Lock()
		best = min(best, n.Registered.Sub(n.Started))
		n.Mu.Unlock()
		n.startContainer(a, "main")
	}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if len(n.Sockets) < 4 { // one more where a kubelet that was stopping took it
		t.Errorf("registrations: %v, want 4", n.Sockets)
	}
	t.Logf("registered %v after kubelet accepted", best)
	if best > lastRetry { // pods that kubelet admits before fail for good
		t.Errorf("registration took %v at best: kubelet's socket was not noticed, but looked for", best)
	}
}

// A killed kubelet leaves its socket, on which nobody listens.
func TestKubeletReturnsOverADeadSocket(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	n.Stop()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(n.PluginDir(), "kubelet.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	n.Run()
	n.AwaitSlots("s0000")
}

// Another kubelet's socket appears while the old stream lives: the old stream must
// end before the new registration, which the model of kubelet checks.
func TestNewKubeletSocketEndsTheOldStream(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	path := filepath.Join(n.PluginDir(), "kubelet.sock")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	n.Serve()
	n.Await("a second registration", func() bool {
		n.Mu.Lock()
		defer n.Mu.Unlock()
		return len(n.Sockets) >= 2
	})
	n.AwaitSlots("s0000")
	if err := n.plugin.SetCapacity(2); err != nil {
		t.Fatal(err)
	}
	n.AwaitCapacity(2)
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if len(n.Sockets) > 3 { // one more where kubelet was too busy to ask in time
		t.Errorf("registrations: %v, want 2", n.Sockets)
	}
}

// Events that do not change kubelet's socket do not disturb the stream.
func TestTouchedSocketKeepsTheStream(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	if err := os.Chmod(filepath.Join(n.PluginDir(), "kubelet.sock"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.plugin.SetCapacity(2); err != nil {
		t.Fatal(err)
	}
	n.AwaitCapacity(2)
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if len(n.Sockets) != 1 {
		t.Errorf("registrations: %v, want 1", n.Sockets)
	}
}

func TestAgentBeforeKubelet(t *testing.T) {
	n := newNode(t)
	n.stopAgent()
	n.Stop()
	n.startAgent()
	if err := n.plugin.SetCapacity(2); err != nil {
		t.Fatal(err)
	}
	n.Run()
	n.AwaitCapacity(2)
}

func TestRunEndsWhenTheDirectoryIsGone(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	n.Stop()
	if err := os.RemoveAll(n.PluginDir()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-n.ended:
		if err == nil || !strings.Contains(err.Error(), n.PluginDir()+" was removed") {
			t.Errorf("Run = %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("Run goes on without a directory")
	}
	n.cancel() // newNode's clean-up has nothing to stop
	n.cancel = nil
}

func TestAgentRestart(t *testing.T) {
	n := newNode(t)
	n.setCapacity(4)
	a, b := pod("a", "main=1 2"), pod("b", "main=3")
	n.runPod(a)
	n.owner.add(b)
	if err := n.Admit(b); err != nil { // handed, not bound
		t.Fatal(err)
	}
	slots := n.SlotsOf(a, "main")
	before := []string{n.device(slots[0]), n.device(slots[1])}
	n.stopAgent()
	n.checkContainer(a, "main")
	n.startAgent()
	n.AwaitSlots("s0000 s0001 s0002 s0003") // before anybody sets a capacity
	n.startContainer(a, "main")
	n.startContainer(b, "main")
	if after := []string{n.device(slots[0]), n.device(slots[1])}; !slices.Equal(before, after) {
		t.Errorf("devices were %v, are %v", before, after)
	}
	n.stopAgent()
	n.finishWhileDown(a)
	n.startAgent()
	n.AwaitCapacity(4)
	n.checkContainer(b, "main")
	if err := n.plugin.Sweep(n.owner.live); err != nil {
		t.Fatal(err)
	}
	if got := n.device(slots[0]); got != "" {
		t.Errorf("the file of an ended pod is still there: %s", got)
	}
	n.Await("new slots instead of those of the ended pod", func() bool {
		healthy, _ := n.Slots()
		return len(healthy) == 4 && slices.Contains(healthy, "s0005") && !slices.Contains(healthy, slots[0])
	})
	n.startContainer(b, "main")
}

// finishWhileDown ends a pod while no agent runs.
func (n *node) finishWhileDown(p *kubelet.Pod) {
	n.End(p)
	n.owner.remove(p)
}

// The state file is lost: pods keep their slots, and no number comes again.
func TestAgentRestartWithoutState(t *testing.T) {
	n := newNode(t)
	n.setCapacity(3)
	a, b := pod("a", "main=1 2"), pod("b", "main=3")
	n.runPod(a)
	n.runPod(b)
	n.finish(b)
	n.AwaitSlots(strings.Join(append(n.SlotsOf(a, "main"), "s0003"), " "))
	n.stopAgent()
	if err := os.Remove(n.config.State); err != nil {
		t.Fatal(err)
	}
	n.startAgent()
	n.AwaitSlots("s0000 s0001 s0002") // of the ended pod, kubelet's checkpoint does not know that
	if err := n.plugin.Sweep(n.owner.live); err != nil {
		t.Fatal(err)
	}
	n.checkContainer(a, "main") // unbound, but its pod lives
	n.startContainer(a, "main")
	n.setCapacity(4)
	n.AwaitSlots("s0000 s0001 s0002 s0004")
}

func TestCorruptStateIsRefused(t *testing.T) {
	n := newNode(t)
	n.stopAgent()
	if err := os.WriteFile(n.config.State, []byte(`{"version":1,"next":1,"slots":{"s0001":{}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(n.config)
	want := "reading slots from " + n.config.State + `: slots["s0001"] is not a slot before number 1; ` +
		"drain the node's pods that use GPUs and remove the file"
	if err == nil || err.Error() != want {
		t.Errorf("New = %v\nwant  %s", err, want)
	}
}

func TestRunCallsOffPreparations(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	n.owner.add(a)
	begun := make(chan struct{})
	n.owner.prepare = func(ctx context.Context, _ Container) error { close(begun); <-ctx.Done(); return ctx.Err() }
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() { result <- n.PreStart(context.Background(), a, "main") }()
	<-begun
	n.stopAgent() // goleak finds the flight if nobody waits for it
	if <-result == nil {
		t.Error("a start succeeded without devices")
	}
}

// A killed agent's socket is removed, one that answers is not.
func TestDeadSocketsAreRemoved(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	n.stopAgent()
	dead, alive := filepath.Join(n.PluginDir(), "dynamig-dead.sock"), filepath.Join(n.PluginDir(), "dynamig-live.sock")
	for _, path := range []string{dead, alive} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if path == alive {
			defer func() { _ = l.Close() }()
			continue
		}
		l.SetUnlinkOnClose(false)
		_ = l.Close()
	}
	removeDeadSockets(n.PluginDir())
	if _, err := os.Lstat(dead); err == nil {
		t.Error("the dead socket is still there")
	}
	if _, err := os.Lstat(alive); err != nil {
		t.Errorf("the live socket: %v", err)
	}
}
