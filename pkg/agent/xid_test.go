// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// xid has GPU 0 report an error, of the instance at a place or, without one, of the
// whole GPU, and waits until the agent has heard it.
func (b *bench) xid(place string, xid int) {
	b.t.Helper()
	gi := sim.WholeGPU
	if place != "" {
		gi = b.instance(0, place).GI
	}
	if err := b.node.XID(nvml.GPUID(b.gpus[0]), gi, xid); err != nil {
		b.t.Fatal(err)
	}
	b.sleep(2 * time.Second)
}

func TestXIDsOfApplicationsAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.start()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		for _, xid := range []int{13, 31, 43, 45, 68, 109} {
			b.xid("2g.10gb@0", xid)
			b.xid("", xid)
		}
		b.expectText("condition", b.condition("HardwareFailing"), "False None")
		if got := b.unhealthy(); len(got) > 0 {
			t.Errorf("pods %v have unhealthy slots", got)
		}
		if got := b.slots.has(); got != 7 {
			t.Errorf("kubelet may give %d slots, want 7", got)
		}
		b.stop()
	})
}

// TestXIDOfAnInstanceIsItsPodsOnly: the neighbour and the free capacity are not
// touched, and the instance is never given to another pod.
func TestXIDOfAnInstanceIsItsPodsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.start()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.bind(pod{name: "b", devices: b.on(0, "1g.5gb@2")})
		b.mustPrepare("a")
		b.mustPrepare("b")
		sick := b.instance(0, "2g.10gb@0").UUID
		b.xid("2g.10gb@0", 94)
		if got := strings.Join(b.unhealthy(), " "); got != "uid-a" {
			t.Errorf("pods %q have unhealthy slots, want uid-a", got)
		}
		if got := b.slots.has(); got != 7 {
			t.Errorf("kubelet may give %d slots, want 7", got)
		}
		b.expectText("condition", b.condition("HardwareFailing"), "True Failing: 2g.10gb on GPU 0 at 0 reports XID 94; it is destroyed once its pod has ended.")
		b.expectEvents("a", reasonUnhealthy, "2g.10gb on GPU 0 at 0 reports XID 94; delete the pod")
		b.expectEvents("b", reasonUnhealthy)
		b.mustPrepare("a") // a restart of the container is the user's decision

		b.remove("a")
		b.bind(pod{name: "c", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("c")
		if got := b.instance(0, "2g.10gb@0").UUID; got == sick {
			t.Errorf("c has the instance %s that reported an error", got)
		}
		b.expectText("condition", b.condition("HardwareFailing"), "False None")
		if got := b.unhealthy(); len(got) > 0 {
			t.Errorf("pods %v have unhealthy slots", got)
		}
		b.stop()
	})
}

// TestXIDThatMayBeOfTheInstanceBefore: the driver gives ids again, and an event comes
// after its instance is gone. The pod with the new instance is not blamed; still nobody
// gets that instance after it. Later errors are the new one's.
func TestXIDThatMayBeOfTheInstanceBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.start()
		next := func(name, place string) sim.Instance {
			t.Helper()
			b.bind(pod{name: name, devices: b.on(0, place)})
			b.mustPrepare(name)
			return b.instance(0, place)
		}
		first := next("a", "2g.10gb@0")
		b.remove("a")
		next("between", "1g.5gb@0")
		b.remove("between")
		second := next("b", "2g.10gb@0")
		if first.GI != second.GI {
			t.Fatalf("the instances have ids %d and %d, want the same", first.GI, second.GI)
		}
		b.xid("2g.10gb@0", 94)
		if got := b.unhealthy(); len(got) > 0 {
			t.Errorf("pods %v have unhealthy slots", got)
		}
		b.expectEvents("b", reasonUnhealthy)
		b.expectText("condition", b.condition("HardwareFailing"), "False None")
		b.remove("b")
		third := next("c", "2g.10gb@0")
		if third.UUID == second.UUID {
			t.Errorf("c has the instance %s that may have failed", third.UUID)
		}
		b.sleep(xidDoubt)
		b.xid("2g.10gb@0", 94)
		if got := strings.Join(b.unhealthy(), " "); got != "uid-c" {
			t.Errorf("pods %q have unhealthy slots, want uid-c", got)
		}
		b.stop()
	})
}

// TestXIDOfTheGPUIsEverybodys: all pods of the GPU and what is free of it, until it
// was reset; the other GPU works on.
func TestXIDOfTheGPUIsEverybodys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		b.start()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.bind(pod{name: "b", devices: b.on(1, "2g.10gb@0")})
		b.mustPrepare("a")
		b.mustPrepare("b")
		b.xid("", 48)
		if got := strings.Join(b.unhealthy(), " "); got != "uid-a" {
			t.Errorf("pods %q have unhealthy slots, want uid-a", got)
		}
		if got := b.slots.has(); got != 8 { // those of GPU 1, and the one that a holds
			t.Errorf("kubelet may give %d slots, want 8", got)
		}
		b.expectText("condition", b.condition("HardwareFailing"), "True Failing: GPU 0: it reports XID 48; reset it or reboot the node.")
		b.expectText("health", string(b.status().GPUs[0].Health), "Unhealthy")
		b.expectEvents("a", reasonUnhealthy, "GPU 0 is unhealthy: it reports XID 48")
		b.expect(0, "2g.10gb@0")

		b.bind(pod{name: "late", devices: b.on(0, "1g.5gb@4")})
		b.rest()
		b.expectText("phase of late", b.phaseOf("late"), "Refused: GPU 0 is unhealthy: it reports XID 48")
		b.remove("late")

		b.remove("a")
		if err := b.node.ResetGPU(nvml.GPUID(b.gpus[0])); err != nil {
			t.Fatal(err)
		}
		b.sleep(11 * time.Second)
		b.expectText("condition", b.condition("HardwareFailing"), "False None")
		if got := b.slots.has(); got != 14 {
			t.Errorf("kubelet may give %d slots, want 14", got)
		}
		b.bind(pod{name: "d", devices: b.on(0, "1g.5gb@4")})
		b.mustPrepare("d")
		b.stop()
	})
}

// TestErrorsAreHeardAfterTheDriverWasLoadedAgain: a new session listens anew.
func TestErrorsAreHeardAfterTheDriverWasLoadedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.start()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.xid("", 48)
		if err := b.node.LoseSessions(); err != nil {
			t.Fatal(err)
		}
		b.sleep(25 * time.Second)
		b.expectText("condition", b.condition("HardwareFailing"), "False None")
		b.xid("2g.10gb@0", 94)
		b.expectText("condition", b.condition("HardwareFailing"), "True Failing: 2g.10gb on GPU 0 at 0 reports XID 94")
		b.stop()
	})
}

// TestXIDDuringAPass: what is heard between two steps counts for the second.
func TestXIDDuringAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		var during func()
		b.wrapCreate(func() {
			if during != nil {
				during()
			}
		})
		b.start()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@4")})
		b.mustPrepare("a")
		b.remove("a")
		sick := b.instance(0, "2g.10gb@4")
		during = func() {
			during = nil
			if err := b.node.XID(nvml.GPUID(b.gpus[0]), sick.GI, 94); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Second)
		}
		b.bind(pod{name: "b", devices: b.on(0, "1g.5gb@0", "2g.10gb@4")})
		b.mustPrepare("b")
		b.rest()
		if got := b.instance(0, "2g.10gb@4").UUID; got == sick.UUID {
			t.Errorf("b has the instance %s that reported an error", got)
		}
		b.expectText("condition", b.condition("HardwareFailing"), "False None")
		if got := b.unhealthy(); len(got) > 0 {
			t.Errorf("pods %v have unhealthy slots", got)
		}
		b.stop()
	})
}
