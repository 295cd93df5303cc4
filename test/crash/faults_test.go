// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/kubelet"
	"github.com/dynamig/dynamig/test/node"
)

// says waits until kubelet shows the pod's user a sentence.
func says(t *testing.T, n *node.Node, p *node.Pod, parts ...string) {
	t.Helper()
	n.Await("the pod's user to be told", func() error {
		_, reason := p.State()
		for _, part := range parts {
			if !strings.Contains(reason, part) {
				return fmt.Errorf("%q lacks %q", reason, part)
			}
		}
		return nil
	})
}

// smallDisk mounts a small file system where the agent keeps its state.
func smallDisk(t *testing.T, n *node.Node) {
	t.Helper()
	if err := os.MkdirAll(n.StateDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("dynamig-test", n.StateDir(), "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("mounting a small disk: %v; run as root", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(n.StateDir(), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill leaves no room on the disk of the agent's state and returns the file that
// takes it. The agent is halted meanwhile, and between two writes: the rename that
// ends one would make room for the next.
func fill(t *testing.T, n *node.Node) (filler string) {
	t.Helper()
	defer n.Agent().Signal(unix.SIGCONT)
	n.Await("a moment without a write", func() error {
		n.Agent().Signal(unix.SIGSTOP)
		if err := halted(n.Agent().PID()); err != nil {
			return err
		}
		half, err := filepath.Glob(filepath.Join(n.StateDir(), "*.tmp"))
		if err != nil || half == nil {
			return err
		}
		n.Agent().Signal(unix.SIGCONT)
		return fmt.Errorf("%v is being written", half)
	})
	filler = filepath.Join(n.StateDir(), "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk = %v", err)
	}
	return filler
}

// halted fails until no thread of a process runs.
func halted(pid int) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if err != nil {
			return err
		}
		// The state follows the name in parentheses (proc_pid_stat(5)).
		if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
			return fmt.Errorf("%s: still in state %.1s", thread, state)
		}
	}
	return nil
}

// TestDiskFull: nothing is created or destroyed that is not in the journal first;
// the user reads why; it goes on when there is room.
func TestDiskFull(t *testing.T) {
	n := newNode(t, 1)
	smallDisk(t, n)
	n.StartAgent(0, false)
	n.Kubelet.AwaitCapacity(7)
	kept := n.Bind("kept", "main=0:1g.5gb@6")
	kept.Await(node.Running)
	filler := fill(t, n)
	p := n.Bind("p", "main=0:2g.10gb@0")
	says(t, n, p, "writing journal", "no space left on device", "make room on the disk of the state directory")
	if got := n.Layout(0); got != "1g.5gb@6" {
		t.Errorf("with a full disk the GPU holds %q", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	p.Await(node.Running)
	n.KillAgent() // the file is whole, whatever was half written
	n.StartAgent(0, false)
	n.Await("the report", func() error {
		if got, want := n.Reported(0), "2g.10gb@0:Live/p 1g.5gb@6:Live/kept"; got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

// TestReadOnlyDisk: an agent that cannot write its state does not start, and says
// what to do. (While it runs the disk cannot become so without an error of a write,
// which is as in TestDiskFull.)
func TestReadOnlyDisk(t *testing.T) {
	n := newNode(t, 1)
	smallDisk(t, n)
	if err := unix.Mount("", n.StateDir(), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	again := n.StartAgent(0, false)
	select {
	case <-again.Done():
	case <-time.After(kubelet.Patience):
		t.Fatal("the agent runs on a read-only disk")
	}
	text, err := os.ReadFile(n.Log())
	if err != nil {
		t.Fatal(err)
	}
	if last := text[max(0, len(text)-500):]; !strings.Contains(string(last), "nodeagent: locking state directory") ||
		!strings.Contains(string(last), "choose a writable --state-dir") {
		t.Errorf("the agent ends with %s", last)
	}
}

// TestFaultsOfTheDriver: what the user reads, and that the pod runs in the end,
// without a leak.
func TestFaultsOfTheDriver(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault sim.Fault
		says  []string // by kubelet; none where it is over too soon
	}{
		{"the compute instance fails",
			sim.Fault{Call: sim.CallCreateComputeInstance, Times: 8, Code: sim.CodeOf(nvml.ErrUnknown)},
			[]string{"creating compute instance", "unknown NVML error"}},
		{"it was created although the call failed",
			sim.Fault{Call: sim.CallCreateGPUInstance, Code: sim.CodeOf(nvml.ErrUnknown), Late: true}, nil},
		{"the compute instance was created although the call failed",
			sim.Fault{Call: sim.CallCreateComputeInstance, Code: sim.CodeOf(nvml.ErrUnknown), Late: true}, nil},
		{"a call takes long",
			sim.Fault{Call: sim.CallCreateGPUInstance, DelayMillis: 10_000}, nil},
		{"somebody else was there for a moment",
			sim.Fault{Call: sim.CallCreateGPUInstance, Times: 3, Code: sim.CodeOf(nvml.ErrInsufficientResources)}, nil},
		{"it still lists what it has destroyed",
			sim.Fault{Call: sim.CallDestroyGPUInstance, Linger: 3}, nil},
		{"in use, but by nobody",
			sim.Fault{Call: sim.CallDestroyComputeInstance, Times: 8, Code: sim.CodeOf(nvml.ErrInUse)},
			[]string{"is in the way and cannot be destroyed", "in use"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 1)
			n.StartAgent(0, false)
			n.Kubelet.AwaitCapacity(7)
			neighbour := n.Bind("neighbour", "main=0:1g.5gb@6")
			before := n.Bind("before", "main=0:1g.5gb@0")
			neighbour.Await(node.Running)
			before.Await(node.Running)
			before.Delete()
			if err := n.Sim.AddFault(c.fault); err != nil {
				t.Fatal(err)
			}
			p := n.Bind("p", "main=0:2g.10gb@0")
			if len(c.says) > 0 {
				says(t, n, p, c.says...)
			}
			p.Await(node.Running)
			if err := errors.Join(p.Check(), neighbour.Check()); err != nil {
				t.Error(err)
			}
			n.Await("the report", func() error {
				if got, want := n.Reported(0), "2g.10gb@0:Live/p 1g.5gb@6:Live/neighbour"; got != want {
					return fmt.Errorf("%q, want %q", got, want)
				}
				return nil
			})
		})
	}
}

// TestPodDeletedWithForce: its container runs on for the grace period, and nobody
// else gets its instance or place meanwhile, though it has closed the GPU.
func TestPodDeletedWithForce(t *testing.T) {
	for _, place := range []string{"0:1g.5gb@0", "0:2g.10gb@0"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 1)
			n.StartAgent(0, false)
			n.Kubelet.AwaitCapacity(7)
			before := n.Bind("before", "main=0:1g.5gb@0")
			before.Await(node.Running)
			mine := n.UUID("0:1g.5gb@0")
			before.DeleteWithForce()
			p := n.Bind("p", "main="+place)
			says(t, n, p, "in use: process", "of the deleted pod that had it still runs")
			if got := n.UUID("0:1g.5gb@0"); got != mine {
				t.Errorf("the instance of the container that runs is %s, want %s", got, mine)
			}
			before.Delete()
			p.Await(node.Running)
			if err := p.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGPUThatFailsStopsNobodyElse: it is said of the GPU, what is free of it is not
// offered any more, and pods of the other one start.
func TestGPUThatFailsStopsNobodyElse(t *testing.T) {
	t.Parallel() // it waits most of the time
	for _, c := range []struct {
		name    string
		fail    func(n *node.Node) error
		says    string
		healthy int // slots: those of the other GPU, and of pods that may come to run
	}{
		{"a call never returns", func(n *node.Node) error {
			return n.Sim.DelayCall(sim.CallCreateGPUInstance, 1, time.Hour)
		}, "a driver call (creating a GPU instance) has not returned since", 7 + 2},
		{"it is lost", func(n *node.Node) error { return n.Sim.LoseGPU(n.GPU(0)) }, "the GPU is lost; reset it or reboot the node", 7 + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 2)
			n.StartAgent(0, false)
			n.Kubelet.AwaitCapacity(14)
			n.Bind("kept", "main=0:1g.5gb@6").Await(node.Running)
			if err := c.fail(n); err != nil {
				t.Fatal(err)
			}
			n.Bind("stuck", "main=0:2g.10gb@0")
			n.Await("that to be reported", func() error {
				if got := n.Condition("HardwareFailing"); !strings.Contains(got, c.says) {
					return fmt.Errorf("%q lacks %q", got, c.says)
				}
				return nil
			})
			n.Kubelet.AwaitCapacity(c.healthy)
			other := n.Bind("other", "main=1:2g.10gb@0")
			other.Await(node.Running)
			if err := other.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCDIDirectoryReadOnly: a container does not start without its file, and the
// user reads why.
func TestCDIDirectoryReadOnly(t *testing.T) {
	n := newNode(t, 1)
	if err := os.MkdirAll(n.CDIDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("dynamig-test", n.CDIDir(), "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("mounting a small disk: %v; run as root", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(n.CDIDir(), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	n.StartAgent(0, false)
	n.Kubelet.AwaitCapacity(7)
	n.Await("a moment without a write", func() error { // EBUSY during one
		return unix.Mount("", n.CDIDir(), "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	})
	p := n.Bind("p", "main=0:2g.10gb@0")
	says(t, n, p, "writing CDI file of slot", "read-only file system")
	if err := unix.Mount("", n.CDIDir(), "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	p.Await(node.Running)
}
