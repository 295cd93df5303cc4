// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// onBench runs a test with an agent on a node with two A100.
func onBench(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		b.start()
		defer func() { b.stop() }()
		test(t, b)
	})
}

func TestPodGetsItsInstancesInAnnotationOrder(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: append(b.on(1, "2g.10gb@2", "2g.10gb@0"), b.on(0, "1g.5gb@6")...)})
		got, err := b.prepare("a")
		if err != nil {
			t.Fatal(err)
		}
		want := []string{b.gpus[1] + "/14/2", b.gpus[1] + "/14/0", b.gpus[0] + "/19/6"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Prepare (-want +got):\n%s", diff)
		}
		b.expect(0, "1g.5gb@6")
		b.expect(1, "2g.10gb@0 2g.10gb@2")
	})
}

func TestPreparedEventSaysWhatThePodGotAndWhatItReallyHas(t *testing.T) {
	if overNative {
		t.Skip("native asks for instances profile by profile, which takes another simulated time")
	}
	onBench(t, func(t *testing.T, b *bench) {
		if err := b.node.SetLatencies(sim.RealisticLatencies()); err != nil {
			t.Fatal(err)
		}
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0", "2g.10gb@2")})
		b.mustPrepare("a")
		want := []string{"Prepared 2 MIG instances in 2.9 s: 2g.10gb on GPU 0 at 0 (new), 2g.10gb on GPU 0 at 2 (new)" +
			"; 2g.10gb has 9984 MiB, the configuration says 10240"}
		if diff := cmp.Diff(want, b.events("a", reasonPrepared)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestHowLongItTookHasAUsefulUnit(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "less than 1 ms", 14200 * time.Microsecond: "14 ms", 999600 * time.Microsecond: "1.0 s",
		2100 * time.Millisecond: "2.1 s", 200 * time.Second: "3 min 20 s",
	} {
		if got := lasted(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestGPUsWorkInParallel(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		if err := b.node.SetLatencies(map[string]time.Duration{sim.CallCreateGPUInstance: 5 * time.Second}); err != nil {
			t.Fatal(err)
		}
		b.bind(pod{name: "a", devices: b.on(0, "1g.5gb@0")})
		b.bind(pod{name: "b", devices: b.on(1, "1g.5gb@0")})
		begin := time.Now()
		b.mustPrepare("a")
		b.mustPrepare("b")
		if took := time.Since(begin); took > 6*time.Second {
			t.Errorf("two pods on two GPUs took %s, want the time of one", took)
		}
	})
}

func TestRestartAdoptsWithoutDriverCallsThatChange(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.bind(pod{name: "b", devices: b.on(0, "1g.5gb@4")})
		b.mustPrepare("a")
		b.mustPrepare("b")
		b.remove("b")
		before := b.dump()
		b.restart()
		b.mustPrepare("a")
		if diff := cmp.Diff(before.GPUs, b.dump().GPUs); diff != "" {
			t.Errorf("GPUs after a restart (-before +after):\n%s", diff)
		}
		if n := b.calls(sim.CallCreateGPUInstance); n != 2 {
			t.Errorf("%d GPU instances were created, want 2", n)
		}
		b.expectEvents("a", reasonPrepared, "2g.10gb on GPU 0 at 0 (new)")
		b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Live/uid-a 1g.5gb@4:Idle")
	})
}

func TestPodsThatEndedWhileTheAgentWasAwayLeaveIdleInstances(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.stop()
		b.remove("a")
		b.start()
		b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Idle")
		if b.slots.live(uidOf("a")) {
			t.Error("Sweep was told that pod a lives")
		}
		if diff := cmp.Diff([]string{"uid-a"}, b.released()); diff != "" {
			t.Errorf("released (-want +got):\n%s", diff)
		}
	})
}

func TestIdleInstanceIsReusedWithoutACreate(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.remove("a")
		before := b.dump()
		b.bind(pod{name: "b", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("b")
		after := b.dump()
		for _, call := range []string{sim.CallCreateGPUInstance, sim.CallCreateComputeInstance, sim.CallDestroyComputeInstance, sim.CallDestroyGPUInstance} {
			if n := after.CallsByName[call] - before.CallsByName[call]; n != 0 {
				t.Errorf("%d calls of %s, want none", n, call)
			}
		}
		b.expectEvents("b", reasonPrepared, "2g.10gb on GPU 0 at 0 (reused)")
	})
}

func TestIdleInstanceIsNotReusedWhileSomebodyUsesIt(t *testing.T) {
	cases := []struct {
		name string
		hold func(*bench, sim.Instance)
		free func(*bench, sim.Instance)
		want string
	}{
		{
			name: "a process that NVML lists",
			hold: func(b *bench, in sim.Instance) { b.hold(0, in.GI, 4711) },
			free: func(b *bench, in sim.Instance) { b.letGo(0, in.GI, 4711) },
			want: "in use by process 4711",
		},
		{
			name: "a process with an open capability device",
			hold: func(b *bench, _ sim.Instance) { b.opener.Store(4712) },
			free: func(b *bench, _ sim.Instance) { b.opener.Store(0) },
			want: "in use: process 4712 has its capability device open",
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
				b.mustPrepare("a")
				b.remove("a")
				in := b.instance(0, "2g.10gb@0")
				c.hold(b, in)
				b.bind(pod{name: "b", devices: b.on(0, "2g.10gb@0")})
				_, err := b.prepare("b")
				if err == nil {
					t.Fatal("Prepare = nil, want an error")
				}
				b.expectText("error", err.Error(), c.want)
				b.expectText("phase", b.phaseOf("b"), "Failing: reusing 2g.10gb on GPU 0 at 0")
				b.expectEvents("b", reasonFailing, c.want)
				c.free(b, in)
				b.mustPrepare("b")
				if got := b.instance(0, "2g.10gb@0").UUID; got != in.UUID {
					t.Errorf("instance is %s, want the same as before, %s", got, in.UUID)
				}
			})
		})
	}
}

func TestIdleInstancesInTheWayAreDestroyedAndOthersKept(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@0", "1g.5gb@1", "1g.5gb@6")})
		b.bind(pod{name: "live", devices: b.on(0, "1g.5gb@2")})
		b.mustPrepare("old")
		b.mustPrepare("live")
		kept := b.instance(0, "1g.5gb@2").UUID
		b.remove("old")
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0 1g.5gb@2 1g.5gb@6")
		if got := b.instance(0, "1g.5gb@2").UUID; got != kept {
			t.Errorf("the live pod's instance is %s, want %s", got, kept)
		}
	})
}

func TestIdleInstanceThatHasTheMediaEnginesIsInTheWayWhereverItLies(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "old", devices: b.on(0, "1g.5gb+me@0", "1g.5gb@1")})
		b.mustPrepare("old")
		b.remove("old")
		b.bind(pod{name: "a", devices: b.on(0, "1g.5gb+me@5")})
		b.mustPrepare("a")
		b.expect(0, "1g.5gb@1 1g.5gb+me@5")
	})
}

func TestTerminatingPodOwnsAndEndedPodDoesNot(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.change("a", func(p *v1.Pod) { p.DeletionTimestamp = &metav1Now; p.Finalizers = []string{"test/keep"} })
		b.bind(pod{name: "b", devices: b.on(0, "1g.5gb@0")})
		b.sleep(grace)
		b.expectText("phase of b", b.phaseOf("b"), "Refused: 1g.5gb on GPU 0 at 0 is held by pod default/a")
		b.change("a", func(p *v1.Pod) { p.Status.Phase = v1.PodSucceeded })
		b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Idle")
		b.bind(pod{name: "c", devices: b.on(0, "1g.5gb@0")})
		b.mustPrepare("c")
		b.expect(0, "1g.5gb@0")
		if diff := cmp.Diff([]string{"uid-a"}, b.released()); diff != "" {
			t.Errorf("released (-want +got):\n%s", diff)
		}
	})
}

func TestNothingIsCreatedForAPodThatEndsBeforeItBegan(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0"), mutate: func(p *v1.Pod) {
			p.DeletionTimestamp = &metav1Now
			p.Finalizers = []string{"test/keep"}
		}})
		b.sleep(time.Minute)
		b.expect(0, "")
	})
}

func TestOfTwoPodsOnOneSpanThePreparedOneWinsAlsoLater(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "b", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("b")
		b.bind(pod{name: "a", devices: b.on(0, "1g.5gb@1", "1g.5gb@6")}) // first by name and UID
		_, err := b.prepare("a")
		if err == nil {
			t.Fatal("Prepare(a) = nil, want an error")
		}
		b.expectText("error", err.Error(), "refuses the pod for good: 1g.5gb on GPU 0 at 1 is held by pod default/b, which came first")
		b.expectEvents("a", reasonRefused, "held by pod default/b")
		b.expect(0, "2g.10gb@0")
		b.restart()
		b.remove("b")
		b.sleep(time.Minute)
		if _, err := b.prepare("a"); err == nil {
			t.Error("Prepare(a) after b is gone = nil, want the refusal to last")
		}
		b.expectEvents("a", reasonRefused, "held by pod default/b")
		b.expectText("phase", b.phaseOf("a"), "Refused: ")
	})
}

func TestPodThatIsSeenBeforeItsPredecessorIsGoneWaitsALittle(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.bind(pod{name: "b", devices: b.on(0, "1g.5gb@0")})
		b.expectText("phase", b.phaseOf("b"), "Preparing: 1g.5gb on GPU 0 at 0 is held by pod default/a")
		b.remove("a")
		b.mustPrepare("b")
		b.sleep(time.Minute)
		b.expect(0, "1g.5gb@0")
		b.expectEvents("b", reasonRefused)
	})
}

// A foreign instance is part of no layout: what is to be cut beside it must be a whole
// one.
func TestForeignInstanceMayDisableTheRestOfItsGPU(t *testing.T) {
	const disabled = "No layout of the configuration can be cut whole beside it, so the rest of the GPU is not used."
	onBench(t, func(t *testing.T, b *bench) {
		b.foreign(0, "3g.20gb@4")
		b.sleep(11 * time.Second)
		b.expectText("condition", b.condition(v1alpha1.ConditionForeignInstances), disabled)
		b.write("device-config.yaml", deviceConfig+"      - - {name: 3g.20gb, memory: 20480, count: 1}\n")
		b.reload()
		b.rest()
		if got := b.condition(v1alpha1.ConditionForeignInstances); strings.Contains(got, disabled) {
			t.Errorf("beside a layout of one 3g.20gb the condition is %q", got)
		}
	})
}

func TestForeignInstanceIsNeverTouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		mine := b.foreign(0, "1g.5gb@0")
		b.start()
		defer func() { b.stop() }()
		b.bind(pod{name: "over", devices: b.on(0, "2g.10gb@0")})
		b.bind(pod{name: "same", devices: b.on(0, "1g.5gb@0")})
		b.bind(pod{name: "beside", devices: b.on(0, "2g.10gb@2")})
		b.mustPrepare("beside")
		for _, name := range []string{"over", "same"} {
			b.expectText("phase of "+name, b.phaseOf(name), "at 0 is blocked by an instance that the agent did not create (1g.5gb at 0, GPU instance 7)")
			b.expectEvents(name, reasonRefused, "did not create")
		}
		b.expectText("GPU 0", b.reported(0), "1g.5gb@0:Foreign 2g.10gb@2:Live/uid-beside")
		b.expectText("condition", b.condition(v1alpha1.ConditionForeignInstances), "True Found: GPU 0 has 1g.5gb at 0 (GPU instance 7), which the agent did not create and does not touch; "+
			"destroy it with nvidia-smi mig -i 0 -gi 7 -dci and -dgi, or exclude the GPU with filterdevices.")
		if got := b.instance(0, "1g.5gb@0").UUID; got != mine.UUID {
			t.Errorf("the foreign instance is %s, want %s", got, mine.UUID)
		}
		b.expectText("free", b.status().Summary.FreeMemorySlices, "5/8")
	})
}

// Somebody else destroys what was idle and makes the same in its place, with the same
// id, before the agent looks again.
func TestInstanceInThePlaceOfAnIdleOneIsNeverTouched(t *testing.T) {
	for name, place := range map[string]string{"to be reused": "1g.5gb@0", "to be destroyed": "2g.10gb@0"} {
		t.Run(name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.bind(pod{name: "before", devices: b.on(0, "1g.5gb@0")})
				b.mustPrepare("before")
				b.remove("before")
				b.sleep(11 * time.Second) // and the next look is far
				b.destroyed(0, "1g.5gb@0")
				theirs := b.foreign(0, "1g.5gb@0")
				b.bind(pod{name: "next", devices: b.on(0, place)})
				b.expectText("phase", b.phaseOf("next"), "Refused: ")
				if got := b.instance(0, "1g.5gb@0").UUID; got != theirs.UUID {
					t.Errorf("the foreign instance is %s, want %s", got, theirs.UUID)
				}
				b.expectText("GPU 0", b.reported(0), "1g.5gb@0:Foreign")
				b.expectEvents("next", reasonPrepared)
			})
		})
	}
}

func TestForeignInstanceThatComesAndGoesIsNoticed(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.foreign(0, "3g.20gb@4")
		b.sleep(11 * time.Second)
		b.expectText("GPU 0", b.reported(0), "3g.20gb@4:Foreign")
		b.destroyed(0, "3g.20gb@4")
		b.sleep(11 * time.Second)
		if got := b.reported(0); got != "" {
			t.Errorf("GPU 0 is reported with %q, want nothing", got)
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionForeignInstances), "False None: ")
	})
}

func TestInstanceThatSomebodyReplacedIsForeign(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "1g.5gb@0")})
		b.mustPrepare("a")
		b.remove("a")
		b.destroyed(0, "1g.5gb@0")
		theirs := b.foreign(0, "1g.5gb@0")
		b.sleep(11 * time.Second)
		b.expectText("GPU 0", b.reported(0), "1g.5gb@0:Foreign")
		b.bind(pod{name: "b", devices: b.on(0, "2g.10gb@0")})
		b.expectText("phase", b.phaseOf("b"), "Refused")
		if got := b.instance(0, "1g.5gb@0").UUID; got != theirs.UUID {
			t.Errorf("instance is %s, want %s", got, theirs.UUID)
		}
	})
}

func TestInstanceOfALivePodThatSomebodyDestroyedIsMadeAnew(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.destroyed(0, "2g.10gb@0")
		b.mustPrepare("a") // notices at once that the device nodes are gone
		b.expect(0, "2g.10gb@0")
	})
}

func TestInUseInstanceIsStuckUntilItClears(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@0")})
		b.mustPrepare("old")
		b.remove("old")
		in := b.instance(0, "1g.5gb@0")
		b.hold(0, in.GI, 0) // a handle that nobody can see
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.bind(pod{name: "beside", devices: b.on(0, "2g.10gb@2")})
		b.mustPrepare("beside")
		b.sleep(10 * time.Second)
		b.expectText("GPU 0", b.reported(0), "1g.5gb@0:Idle")
		b.expectText("phase", b.phaseOf("a"), "Failing: 1g.5gb on GPU 0 at 0 is in the way and cannot be destroyed: ")
		b.sleep(40 * time.Second)
		b.expectText("GPU 0", b.reported(0), "1g.5gb@0:Stuck")
		b.expectText("health", b.status().Summary.Health, "1 with stuck instances")
		b.letGo(0, in.GI, 0)
		b.sleep(11 * time.Second)
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0 2g.10gb@2")
		b.expectText("health", b.status().Summary.Health, "OK")
		b.expectEvents("a", reasonFailing, "in the way")
	})
}

// TestContainerThatOutlivesItsPodKeepsItsInstance: kubelet lets a container run on
// for its grace period when its pod is deleted with force, and it may open its
// devices again at any time.
func TestContainerThatOutlivesItsPodKeepsItsInstance(t *testing.T) {
	for next, why := range map[string]string{
		"1g.5gb@0":  "reusing 1g.5gb on GPU 0 at 0: in use: process 4711 of the deleted pod that had it still runs",
		"2g.10gb@0": "1g.5gb on GPU 0 at 0 is in the way and cannot be destroyed: in use: process 4711 of the deleted pod",
	} {
		t.Run(next, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@0")})
				b.mustPrepare("old")
				b.running.Store(uidOf("old"), 4711)
				b.remove("old")
				b.bind(pod{name: "a", devices: b.on(0, next)})
				for range 2 {
					b.sleep(20 * time.Second)
					b.expectText("phase", b.phaseOf("a"), "Failing: "+why)
					b.expectText("GPU 0", b.reported(0), "1g.5gb@0:Idle")
					b.restart()
				}
				b.running.Delete(uidOf("old"))
				b.sleep(11 * time.Second)
				b.mustPrepare("a")
				b.expect(0, next)
			})
		})
	}
}

// TestWhoWasLastIsKnownUntilTheInstanceIsGone: a destruction that failed half way is
// as safe as before when it is tried again.
func TestWhoWasLastIsKnownUntilTheInstanceIsGone(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@0")})
		b.mustPrepare("old")
		b.remove("old")
		if err := b.node.FailCall(sim.CallDestroyComputeInstance, 1, nvml.ErrInUse); err != nil {
			t.Fatal(err)
		}
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.running.Store(uidOf("old"), 4711)
		b.sleep(20 * time.Second)
		b.expectText("phase", b.phaseOf("a"), "process 4711 of the deleted pod that had it still runs")
		b.running.Delete(uidOf("old"))
		b.sleep(11 * time.Second)
		b.mustPrepare("a")
	})
}

// TestRefusedPodKeepsNoInstance: a refused pod may have containers without a GPU,
// which run on.
func TestRefusedPodKeepsNoInstance(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.foreign(1, "3g.20gb@4")
		b.sleep(11 * time.Second)
		b.bind(pod{name: "refused", devices: append(b.on(0, "1g.5gb@0"), b.on(1, "2g.10gb@4")...)})
		b.running.Store(uidOf("refused"), 4711)
		b.expectText("phase", b.phaseOf("refused"), "Refused")
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0")
	})
}

func TestStuckInstanceIsDestroyedInTheEndThoughNobodyNeedsItsPlace(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@0")})
		b.mustPrepare("old")
		b.remove("old")
		in := b.instance(0, "1g.5gb@0")
		b.hold(0, in.GI, 0)
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.sleep(6 * time.Minute)
		b.expectText("phase", b.phaseOf("a"), "Refused: 2g.10gb on GPU 0 at 0 could not be created in")
		b.remove("a")
		b.expectText("GPU 0", b.reported(0), "1g.5gb@0:Stuck")
		b.letGo(0, in.GI, 0)
		b.sleep(11 * time.Second)
		b.expect(0, "")
	})
}

func TestGPUInstanceThatLingersAfterSuccessIsWaitedFor(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@0")})
		b.mustPrepare("old")
		b.remove("old")
		if err := b.node.AddFault(sim.Fault{Call: sim.CallDestroyGPUInstance, Linger: 4}); err != nil {
			t.Fatal(err)
		}
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0")
	})
}

// TestReportIsNotFilledByAnnotations: whoever may create pods writes annotations,
// and their text must not make the report too large to be written.
func TestReportIsNotFilledByAnnotations(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		long := strings.Repeat("x", 60_000)
		for name, text := range map[string]string{
			"field":     `{"version":1,"` + long + `":1}`,
			"container": `{"version":1,"node":"node1","podUID":"uid-container","containers":{"` + long + `":[{"gpu":"g","share":{"id":0,"memoryMiB":1,"cores":0}}]}}`,
			"gpu":       `{"version":1,"node":"node1","podUID":"uid-gpu","containers":{"main":[{"gpu":"` + long + `","share":{"id":0,"memoryMiB":1,"cores":0}}]}}`,
			"node":      `{"version":1,"node":"` + long + `","podUID":"uid-node","containers":{"main":[{"gpu":"g","share":{"id":0,"memoryMiB":1,"cores":0}}]}}`,
		} {
			b.bind(pod{name: name, mutate: func(p *v1.Pod) { p.Annotations = map[string]string{v1alpha1.AnnotationAllocation: text} }})
			got := b.phaseOf(name)
			b.expectText("phase", got, "Refused: annotation dynamig.io/allocation: ")
			if len(got) > 512 {
				t.Errorf("%s: the report has %d bytes of the annotation", name, len(got))
			}
		}
	})
}

func TestChangedAnnotationIsIgnoredAndToldOnce(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.bind(pod{name: "other", devices: b.on(0, "3g.20gb@4")})
		b.mustPrepare("other")
		steal := func(p *v1.Pod) {
			p.Annotations[v1alpha1.AnnotationAllocation] = b.allocation(p, map[string][]v1alpha1.Device{"main": b.on(0, "3g.20gb@4")})
		}
		b.rest()
		b.change("a", steal)
		b.restart()
		b.change("a", func(p *v1.Pod) { delete(p.Annotations, v1alpha1.AnnotationAllocation) })
		got, err := b.prepare("a")
		if diff := cmp.Diff([]string{b.gpus[0] + "/14/0"}, got); err != nil || diff != "" {
			t.Errorf("Prepare = %v (-want +got):\n%s", err, diff)
		}
		b.expect(0, "2g.10gb@0 3g.20gb@4")
		b.expectEvents("a", reasonAllocationChanged, "acts on the first one")
	})
}

// With another name for the resource that counts devices, pods ask by that name and are
// told of that name; pods that ask by HAMi's are not ours.
func TestRenamedResource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.write("device-config.yaml", deviceConfig+"  resourceCountName: example.com/vgpu\n")
		b.start()
		defer b.stop()
		asks := func(n string) func(*v1.Pod) {
			return func(p *v1.Pod) {
				p.Spec.Containers[0].Resources.Limits = v1.ResourceList{"example.com/vgpu": resource.MustParse(n)}
			}
		}
		b.bind(pod{name: "a", devices: b.on(0, "1g.5gb@0"), mutate: asks("1")})
		if _, err := b.prepare("a"); err != nil {
			t.Error(err)
		}
		b.bind(pod{name: "b", mutate: asks("1")})
		b.bind(pod{name: "c", devices: b.on(0, "1g.5gb@1"), mutate: asks("2")})
		b.bind(pod{name: "d", devices: b.on(0, "1g.5gb@2")})
		for name, want := range map[string]string{
			"b": "pod default/b asks for example.com/vgpu but was bound without the annotation",
			"c": "has 1 devices, the pod's container asks for 2 example.com/vgpu",
			"d": "has not been seen in the API server yet",
		} {
			if _, err := b.prepare(name); err == nil {
				t.Errorf("pod %s was prepared", name)
			} else {
				b.expectText("error", err.Error(), want)
			}
		}
	})
}

func TestPodsThatTheSchedulerDidNotPlaceAreToldWhatToDo(t *testing.T) {
	cases := []struct {
		name string
		pod  pod
		want string
	}{
		{"of another scheduler", pod{scheduler: "default-scheduler"},
			"pod default/a asks for nvidia.com/gpu but was not placed by dynamig-scheduler; delete it and create it with spec.schedulerName: dynamig-scheduler"},
		{"of another scheduler, with somebody's annotation", pod{scheduler: "default-scheduler", mutate: func(p *v1.Pod) {
			p.Annotations = map[string]string{v1alpha1.AnnotationAllocation: `{"version":1}`}
		}}, "was not placed by dynamig-scheduler"},
		{"bound by hand", pod{}, "pod default/a asks for nvidia.com/gpu but was bound without the annotation dynamig.io/allocation"},
		{"static", pod{mutate: func(p *v1.Pod) { p.Annotations = map[string]string{annotationConfigSource: "file"} }}, "is a static pod"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				before := b.slots.has()
				c.pod.name = "a"
				b.bind(c.pod)
				b.change("a", func(p *v1.Pod) { p.Labels = map[string]string{"news": "yes"} })
				_, err := b.prepare("a")
				if err == nil {
					t.Fatal("Prepare = nil, want an error")
				}
				b.expectText("error", err.Error(), c.want)
				b.restart()
				b.expectEvents("a", reasonNotPlaced, c.want)
				if got := b.slots.has(); got != before+1 {
					t.Errorf("capacity is %d, want %d: the pod's slot takes no place from others", got, before+1)
				}
				b.remove("a")
				b.rest()
				if got := b.slots.has(); got != before {
					t.Errorf("capacity after the pod is gone is %d, want %d", got, before)
				}
			})
		})
	}
}

// Where the node has no entry its pods are another plugin's, until it gets one.
func TestPodsOfAnotherPluginAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.write("config.json", `{"nodeconfig": []}`)
		b.bind(pod{name: "theirs", scheduler: "hami-scheduler"})
		b.bind(pod{name: "forged", devices: b.on(0, "1g.5gb@0")})
		b.start()
		defer b.stop()
		b.bind(pod{name: "later", scheduler: "hami-scheduler"})
		b.rest()
		b.expectEvents("theirs", reasonNotPlaced)
		b.expectEvents("later", reasonNotPlaced)
		if got := b.slots.has(); got != 0 {
			t.Errorf("capacity is %d, want 0: the resource is another plugin's", got)
		}
		b.reconfigure(nodeConfig)
		b.expectEvents("theirs", reasonNotPlaced, "was not placed by dynamig-scheduler")
		b.expectEvents("later", reasonNotPlaced, "was not placed by dynamig-scheduler")
	})
}

func TestAllocationsThatCannotBeAreRefused(t *testing.T) {
	cases := []struct {
		name    string
		devices func(*bench) []v1alpha1.Device
		mutate  func(*v1.Pod)
		want    string
	}{
		{name: "unknown GPU", want: "GPU GPU-x is not on this node", devices: func(b *bench) []v1alpha1.Device {
			d := b.on(0, "1g.5gb@0")
			d[0].GPU = "GPU-x"
			return d
		}},
		{name: "off the grid", want: "profile 2g.10gb has no placement at 1", devices: func(b *bench) []v1alpha1.Device { return b.on(0, "2g.10gb@1") }},
		{name: "overlap in itself", want: "overlaps another", devices: func(b *bench) []v1alpha1.Device { return b.on(0, "2g.10gb@0", "1g.5gb@1") }},
		{name: "software share", want: "takes no software shares", devices: func(b *bench) []v1alpha1.Device {
			return []v1alpha1.Device{{GPU: b.gpus[0], Share: &v1alpha1.Share{MemoryMiB: 1}}}
		}},
		{name: "of another node", want: "node is other, want node1; delete the pod", mutate: func(p *v1.Pod) {
			p.Annotations[v1alpha1.AnnotationAllocation] = `{"version":1,"node":"other","podUID":"uid-a","containers":{"main":[{"gpu":"g","mig":{"profileID":1,"profile":"x","start":0,"size":1,"memoryMiB":1}}]}}`
		}},
		{name: "no JSON", want: "invalid character", mutate: func(p *v1.Pod) { p.Annotations[v1alpha1.AnnotationAllocation] = "x" }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				devices := b.on(0, "1g.5gb@0")
				if c.devices != nil {
					devices = c.devices(b)
				}
				b.bind(pod{name: "a", devices: devices, mutate: c.mutate})
				b.expectText("phase", b.phaseOf("a"), "Refused: ")
				b.expectText("phase", b.phaseOf("a"), c.want)
				b.expectEvents("a", reasonRefused, c.want)
				b.expect(0, "")
			})
		})
	}
}

func TestRefusedForWantOfRoomOnlyAfterSomeTries(t *testing.T) {
	cases := []struct {
		name  string
		times int
		want  string // phase
	}{
		{"twice", 2, ""},
		{"always", -1, "Refused: 2g.10gb on GPU 0 at 0 could not be created in 6 tries: "},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				if err := b.node.AddFault(sim.Fault{Call: sim.CallCreateGPUInstance, Code: "INSUFFICIENT_RESOURCES", Times: c.times}); err != nil {
					t.Fatal(err)
				}
				b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
				b.sleep(time.Minute)
				b.expectText("phase", b.phaseOf("a"), c.want)
			})
		})
	}
}

func TestSomebodyElseWasFaster(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.wrapCreate(func() { b.foreign(0, "1g.5gb@1") })
		b.restart()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.expectText("phase", b.phaseOf("a"), "Refused: 2g.10gb at 0 is blocked by an instance that the agent did not create (1g.5gb at 1")
		b.expect(0, "1g.5gb@1")
	})
}

func TestSomebodyElseWasFasterAtTheSamePlace(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.wrapCreate(func() { b.foreign(0, "2g.10gb@0") })
		b.restart()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.expectText("phase", b.phaseOf("a"), "Refused: 2g.10gb at 0 is blocked by an instance that the agent did not create (2g.10gb at 0")
		b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Foreign")
	})
}

func TestFailedCreationIsUndoneAndTriedAgain(t *testing.T) {
	for _, fault := range []sim.Fault{
		{Call: sim.CallCreateGPUInstance, Code: "UNKNOWN"},
		{Call: sim.CallCreateGPUInstance, Code: "UNKNOWN", Late: true},
		{Call: sim.CallCreateComputeInstance, Code: "UNKNOWN"},
		{Call: sim.CallCreateComputeInstance, Code: "UNKNOWN", Late: true},
		{Call: sim.CallInstances, Code: "UNKNOWN"},
		{Call: sim.CallInstances, Code: "UNINITIALIZED"},
	} {
		name := fault.Call + " " + fault.Code
		if fault.Late {
			name += " after its work"
		}
		t.Run(name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				if err := b.node.AddFault(fault); err != nil {
					t.Fatal(err)
				}
				b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
				b.mustPrepare("a")
				b.expect(0, "2g.10gb@0")
				b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Live/uid-a")
			})
		})
	}
}

func TestComputeInstanceThatCannotBeCreatedLeavesNothingBehind(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		if err := b.node.AddFault(sim.Fault{Call: sim.CallCreateComputeInstance, Code: "UNKNOWN", Times: -1}); err != nil {
			t.Fatal(err)
		}
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.sleep(20 * time.Second)
		b.expect(0, "")
		b.expectText("phase", b.phaseOf("a"), "Failing: ")
		if err := b.node.ClearFaults(); err != nil {
			t.Fatal(err)
		}
		b.mustPrepare("a")
	})
}

func TestPartialInstanceThatCannotBeUndoneIsFinishedLater(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for _, call := range []string{sim.CallCreateComputeInstance, sim.CallDestroyGPUInstance} {
			if err := b.node.AddFault(sim.Fault{Call: call, Code: "UNKNOWN", Times: 3}); err != nil {
				t.Fatal(err)
			}
		}
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.expect(0, "2g.10gb@0(GI only)")
		b.restart()
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0")
	})
}

func TestLostGPUTakesAwayFreeSlotsOnly(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0", "2g.10gb@2")})
		b.mustPrepare("a")
		b.rest()
		if got := b.slots.has(); got != 14 {
			t.Errorf("capacity is %d, want 14", got)
		}
		if err := b.node.LoseGPU(nvml.GPUID(b.gpus[0])); err != nil {
			t.Fatal(err)
		}
		b.sleep(11 * time.Second)
		if got := b.slots.has(); got != 9 {
			t.Errorf("capacity with a lost GPU is %d, want 7 of the other and 2 that a pod holds", got)
		}
		if diff := cmp.Diff([]string{"uid-a"}, b.unhealthy()); diff != "" {
			t.Errorf("unhealthy (-want +got):\n%s", diff)
		}
		gpu := b.status().GPUs[0]
		if gpu.Health != v1alpha1.Unhealthy || gpu.Reason != "the GPU is lost; reset it or reboot the node" {
			t.Errorf("GPU 0 is %s: %s", gpu.Health, gpu.Reason)
		}
		if want := (v1alpha1.GPUMode{Wanted: v1alpha1.ModeMIG, Current: v1alpha1.ModeMIG}); gpu.Mode != want {
			t.Errorf("the mode of the lost GPU is %+v, want the last that was read, %+v", gpu.Mode, want)
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionModePending), "False None: ")
		b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Live/uid-a 2g.10gb@2:Live/uid-a")
		b.bind(pod{name: "b", devices: b.on(0, "1g.5gb@4")})
		b.expectText("phase", b.phaseOf("b"), "Failing: GPU 0: the GPU is lost")
		b.bind(pod{name: "c", devices: b.on(1, "1g.5gb@4")})
		b.mustPrepare("c")
	})
}

func TestCallThatHangsBlocksItsGPUOnly(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		release := make(chan struct{})
		b.wrapCreate(func() { <-release })
		b.restart()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.bind(pod{name: "b", devices: b.on(1, "2g.10gb@0")})
		b.mustPrepare("b")
		if _, err := b.prepare("a"); !errors.Is(err, errDeadline) {
			t.Errorf("Prepare(a) = %v, want it to wait", err)
		}
		gpu := b.status().GPUs[0]
		b.expectText("reason", gpu.Reason, "a driver call (creating a GPU instance) has not returned since")
		if got := b.slots.has(); got != 8 {
			t.Errorf("capacity is %d, want 7 of the other GPU and 1 that a pod holds", got)
		}
		close(release)
		b.mustPrepare("a")
		if health := b.status().GPUs[0].Health; health != v1alpha1.Healthy {
			t.Errorf("GPU 0 is %s, want it healthy again", health)
		}
	})
}

func TestStopDoesNotWaitForEverForACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		release := make(chan struct{})
		b.wrapCreate(func() { <-release })
		b.start()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		begin := time.Now()
		b.stop()
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("stopping took %s", took)
		}
		close(release)
	})
}

func TestStopDoesNotWaitForASessionThatDoesNotOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		release := make(chan struct{})
		b.wrap = func(d nvml.Driver) nvml.Driver {
			<-release
			return d
		}
		b.start()
		b.sleep(time.Minute)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "the driver has been listing them since")
		begin := time.Now()
		b.stop()
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("stopping took %s", took)
		}
		close(release)
	})
}

func TestGPUThatIsExcludedAndBackHasOneWorkerStill(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		release := make(chan struct{})
		var running atomic.Int32
		b.wrapCreate(func() {
			if running.Add(1) > 1 {
				t.Error("two calls for one GPU at the same time")
			}
			<-release
			running.Add(-1)
		})
		b.restart()
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		for range 3 { // so that one is stopped while it waits for the one before
			b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "mig", "filterdevices": {"index": [0]}}]}`)
			b.reconfigure(nodeConfig)
			b.sleep(time.Minute)
		}
		close(release)
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0")
	})
}

func TestPodsOfAGPUThatIsExcludedLaterAreServedFromMemory(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "mig", "filterdevices": {"index": [0]}}]}`)
		b.mustPrepare("a")
		b.restart()
		_, err := b.prepare("a")
		if err == nil {
			t.Fatal("Prepare = nil, want an error: the GPU must not be touched")
		}
		b.expectText("error", err.Error(), "filterdevices excludes the GPU")
		b.reconfigure(nodeConfig)
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0")
	})
}

func TestSlotsOfAPod(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	container := func(gpus int64, policy *v1.ContainerRestartPolicy) v1.Container {
		c := v1.Container{RestartPolicy: policy}
		if gpus > 0 {
			c.Resources.Limits = v1.ResourceList{v1alpha1.ResourceGPU: *resource.NewQuantity(gpus, resource.DecimalSI)}
		}
		return c
	}
	cases := []struct {
		name       string
		init, apps []v1.Container
		want       int
	}{
		{"none", nil, []v1.Container{container(0, nil)}, 0},
		{"apps add up", nil, []v1.Container{container(1, nil), container(2, nil)}, 3},
		{"init containers lend their slots", []v1.Container{container(2, nil)}, []v1.Container{container(1, nil)}, 2},
		{"sidecars add up", []v1.Container{container(1, &always)}, []v1.Container{container(1, nil)}, 2},
		{"init container beside a sidecar", []v1.Container{container(1, &always), container(3, nil)}, []v1.Container{container(1, nil)}, 4},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := slotsOf(&v1.Pod{Spec: v1.PodSpec{InitContainers: c.init, Containers: c.apps}}); got != c.want {
				t.Errorf("slotsOf = %d, want %d", got, c.want)
			}
		})
	}
}

func TestLostSessionIsOpenedAgain(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		if err := b.node.LoseSessions(); err != nil {
			t.Fatal(err)
		}
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0")
	})
}
