// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/node"
)

// TestClockJumps: the time of day jumps, by more than anything lasts, while the agent
// waits: for a call that takes long, to try a creation again, to drop slots. It waits
// as long as it would have, and holds nothing for late or early.
func TestClockJumps(t *testing.T) {
	t.Parallel() // it waits most of the time
	for _, c := range []struct {
		name string
		by   time.Duration
	}{
		{"forward", 6 * time.Hour},
		{"back", -6 * time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 1)
			p := n.StartAgent(0, false)
			n.Kubelet.AwaitCapacity(7)
			kept := n.Bind("kept", "main=0:1g.5gb@6")
			kept.Await(node.Running)
			ended := n.Bind("ended", "main=0:1g.5gb@5")
			ended.Await(node.Running)
			ended.Delete() // its slot is withdrawn
			err := errors.Join(
				n.Sim.AddFault(sim.Fault{Call: sim.CallCreateGPUInstance, Times: 4, Code: sim.CodeOf(nvml.ErrUnknown)}),
				n.Sim.AddFault(sim.Fault{Call: sim.CallCreateGPUInstance, Nth: 5, DelayMillis: 2000}),
			)
			if err != nil {
				t.Fatal(err)
			}
			late := n.Bind("late", "main=0:2g.10gb@0")
			awaitCreations(n, 2+2) // two of pods before, two that failed
			if err := p.SetClock(c.by); err != nil {
				t.Fatal(err)
			}
			awaitCreations(n, 2+4+1)              // the last one takes long
			if err := p.SetClock(0); err != nil { // another jump
				t.Fatal(err)
			}
			late.Await(node.Running)
			n.Await("the withdrawn slot to be dropped", func() error {
				if _, other := n.Kubelet.Slots(); len(other) > 0 {
					return fmt.Errorf("%v are there", other)
				}
				return nil
			})
			if err := errors.Join(kept.Check(), late.Check(), kept.Restart("main")); err != nil {
				t.Error(err)
			}
			n.Await("the report", func() error {
				if got, want := n.Reported(0), "2g.10gb@0:Live/late 1g.5gb@5:Idle 1g.5gb@6:Live/kept"; got != want {
					return fmt.Errorf("%q, want %q", got, want)
				}
				return nil
			})
			for _, reason := range []string{"Refused", "DeviceUnhealthy"} {
				if events := n.API.Events(late.UID, reason); len(events) > 0 {
					t.Errorf("the pod has events %s %q", reason, events)
				}
			}
		})
	}
	t.Run("back while the driver does not list the GPUs", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, 1)
		if err := n.Sim.DelayCall(sim.CallGPUs, 1, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := n.StartAgent(0, false).SetClock(-6 * time.Hour); err != nil {
			t.Fatal(err)
		}
		n.Await("that to be reported", func() error {
			if got := n.Condition("Ready"); !strings.HasPrefix(got, "False DriverUnavailable") {
				return errors.New(got)
			}
			return nil
		})
	})
}

// awaitCreations waits until the driver was asked for so many GPU instances.
func awaitCreations(n *node.Node, count int) {
	n.T.Helper()
	n.Await("creations", func() error {
		if got := n.Dump().CallsByName[sim.CallCreateGPUInstance]; got < count {
			return fmt.Errorf("%d, want %d", got, count)
		}
		return nil
	})
}
