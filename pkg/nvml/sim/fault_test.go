// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml"
)

func TestFailCallHitsTheNthCallOnce(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	must(t, d.FailCall(CallCreateGPUInstance, 2, nvml.ErrInvalidState))
	for i, want := range []error{nil, nvml.ErrInvalidState, nil} {
		_, err := d.CreateGPUInstance(id, p1g, i)
		if wantErr(t, err, want); t.Failed() {
			t.Fatalf("at call %d", i+1)
		}
	}
	var starts []int
	for _, in := range listed(t, d, id) {
		starts = append(starts, in.Start)
	}
	if want := []int{0, 2}; !slices.Equal(starts, want) {
		t.Errorf("instances at %v; want %v: a failed call changes nothing", starts, want)
	}
	if left := dump(t, d.Node).Faults; len(left) != 0 {
		t.Errorf("faults left: %+v", left)
	}
}

func TestEveryCodeReachesTheCaller(t *testing.T) {
	d := node(t, a100)
	for _, c := range codes {
		must(t, d.FailCall(CallMIGMode, 1, fmt.Errorf("wrapped: %w", c.err)))
		_, err := d.MIGMode(gpuAt(t, d.Node, 0))
		wantErr(t, err, c.err)
	}
}

func TestFaultsMatchGPUAndTimes(t *testing.T) {
	d := node(t, a100, a100)
	first, second := gpuAt(t, d.Node, 0), gpuAt(t, d.Node, 1)
	must(t, d.AddFault(Fault{GPU: second, Times: 2, Code: "UNKNOWN"}))
	for i, want := range []error{nvml.ErrUnknown, nvml.ErrUnknown, nil} {
		_, err := d.Instances(first)
		must(t, err)
		_, err = d.Instances(second)
		if wantErr(t, err, want); t.Failed() {
			t.Fatalf("at call %d", i+1)
		}
	}
	must(t, d.AddFault(Fault{Call: CallMIGMode, Times: -1, Code: "GPU_IS_LOST"}))
	for range 5 {
		_, err := d.MIGMode(first)
		wantErr(t, err, nvml.ErrGPULost)
	}
	must(t, d.ClearFaults())
	_, err := d.MIGMode(first)
	must(t, err)
}

func TestLateFaultDoesTheWork(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	must(t, d.AddFault(Fault{Call: CallCreateGPUInstance, Code: "UNKNOWN", Late: true}))
	_, err := d.CreateGPUInstance(id, p1g, 0)
	wantErr(t, err, nvml.ErrUnknown)
	if got := listed(t, d, id); len(got) != 1 {
		t.Errorf("instances %v; want the one whose creation was reported as failed", got)
	}
}

func TestLingeringInstanceStaysListedAndInTheWay(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	gi, err := d.CreateGPUInstance(id, p1g, 0)
	must(t, err)
	must(t, d.AddFault(Fault{Call: CallDestroyGPUInstance, Linger: 2}))
	must(t, d.DestroyGPUInstance(id, gi.GI))
	_, err = d.CreateGPUInstance(id, p1g, 0)
	wantErr(t, err, nvml.ErrInsufficientResources)
	_, err = d.CreateComputeInstance(id, gi.GI)
	wantErr(t, err, nvml.ErrInvalidState)
	must(t, d.DestroyGPUInstance(id, gi.GI)) // again; it makes no difference
	for i, want := range []int{1, 1, 0} {
		if got := len(listed(t, d, id)); got != want {
			t.Errorf("listing %d has %d instances; want %d", i+1, got, want)
		}
	}
	_, err = d.CreateGPUInstance(id, p1g, 0)
	must(t, err)

	must(t, d.AddFault(Fault{Call: CallDestroyGPUInstance, Linger: -1}))
	must(t, d.DestroyGPUInstance(id, gi.GI))
	for range 10 {
		if len(listed(t, d, id)) != 1 {
			t.Fatal("an instance that lingers for ever is gone")
		}
	}
	must(t, d.ClearFaults())
	if got := listed(t, d, id); len(got) != 0 {
		t.Errorf("instances after ClearFaults: %v", got)
	}
}

func TestAddFaultRefuses(t *testing.T) {
	d := node(t, a100)
	for name, f := range map[string]Fault{
		"no effect":                   {Call: CallGPUs},
		"an unknown call":             {Call: "Create", Code: "IN_USE"},
		"an unknown code":             {Code: "BUSY"},
		"an unknown moment":           {Crash: "during"},
		"a negative nth":              {Nth: -1, Code: "IN_USE"},
		"a negative delay":            {DelayMillis: -1},
		"late without a code":         {Late: true, DelayMillis: 1},
		"lingering of another call":   {Call: CallGPUs, Linger: 1},
		"a GPU that the node has not": {GPU: "GPU-x", Code: "IN_USE"},
	} {
		if err := d.AddFault(f); err == nil {
			t.Errorf("AddFault accepts %s", name)
		}
	}
	if left := dump(t, d.Node).Faults; len(left) != 0 {
		t.Errorf("faults set: %+v", left)
	}
}

func TestCallsAreNumbered(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	before := dump(t, d.Node)
	listed(t, d, id)
	_, err := d.CreateGPUInstance(id, p1g, 7) // refused, and counted
	wantErr(t, err, nvml.ErrInvalidArgument)
	admin := open(t, d.Root(), Uncounted())
	listed(t, admin, id)
	after := dump(t, d.Node)
	if before.Calls != 1 || after.Calls != 3 {
		t.Errorf("calls %d, then %d; want 1 (Open), then 3", before.Calls, after.Calls)
	}
	want := map[string]int{CallOpen: 1, CallInstances: 1, CallCreateGPUInstance: 1}
	if diff := cmp.Diff(want, after.CallsByName); diff != "" {
		t.Errorf("calls by name (-want +got):\n%s", diff)
	}
}

func TestNoFaultHitsSomebodyElse(t *testing.T) {
	d := node(t, a100)
	must(t, d.AddFault(Fault{Code: "IN_USE"}))
	admin := open(t, d.Root(), Uncounted())
	listed(t, admin, gpuAt(t, d.Node, 0))
	_, err := d.GPUs(nil)
	wantErr(t, err, nvml.ErrInUse)
}

func TestLatenciesAndDelays(t *testing.T) {
	var slept []time.Duration
	sleep := WithSleep(func(d time.Duration) { slept = append(slept, d) })
	d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: a100, MIG: true}}, Latencies: RealisticLatencies()}, sleep)
	id := gpuAt(t, d.Node, 0)
	listed(t, d, id) // no instance to walk
	in := whole(t, d, id, p1g, 0)
	whole(t, d, id, p1g, 1)
	listed(t, d, id)
	must(t, d.DestroyComputeInstance(id, in.GI, in.CI))
	must(t, d.SetLatencies(nil))
	must(t, d.DelayCall(CallDestroyGPUInstance, 1, time.Minute))
	must(t, d.DestroyGPUInstance(id, in.GI))
	must(t, d.FailCall(CallMIGMode, 1, nvml.ErrUnknown))
	must(t, d.DelayCall(CallMIGMode, 1, time.Hour))
	_, err := d.MIGMode(id)
	wantErr(t, err, nvml.ErrUnknown)

	const ms = time.Millisecond
	want := []time.Duration{10 * ms, 700 * ms, 700 * ms, 700 * ms, 700 * ms, 40 * ms, 300 * ms, time.Minute, time.Hour}
	if diff := cmp.Diff(want, slept); diff != "" {
		t.Errorf("slept (-want +got):\n%s", diff)
	}
}

// A slow call of one GPU lets the calls of another through, and sees the state
// as it is when its time has passed.
func TestSlowCallHoldsNobodyUp(t *testing.T) {
	began, proceed := make(chan struct{}), make(chan struct{})
	d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: a100, MIG: true}, {Board: a100, MIG: true}}},
		WithSleep(func(time.Duration) { close(began); <-proceed }))
	slow, fast := gpuAt(t, d.Node, 0), gpuAt(t, d.Node, 1)
	must(t, d.AddFault(Fault{Call: CallCreateGPUInstance, GPU: slow, DelayMillis: 1}))
	result := make(chan error)
	go func() {
		_, err := d.CreateGPUInstance(slow, p7g, 0)
		result <- err
	}()
	<-began
	whole(t, d, fast, p7g, 0)
	if got := listed(t, d, slow); len(got) != 0 {
		t.Errorf("instances before the call is done: %v", got)
	}
	must(t, d.LoseGPU(slow))
	close(proceed)
	wantErr(t, <-result, nvml.ErrGPULost)
}

func TestHaltedCallGoesOnWhenFaultsAreCleared(t *testing.T) {
	looked := make(chan struct{})
	d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: a100, MIG: true}}}, WithSleep(func(d time.Duration) {
		if d > 0 {
			looked <- struct{}{}
		}
	}))
	id := gpuAt(t, d.Node, 0)
	must(t, d.ClearFaults()) // long before
	must(t, d.HaltCall(CallCreateGPUInstance, 1))
	result := make(chan error)
	go func() {
		_, err := d.CreateGPUInstance(id, p7g, 0)
		result <- err
	}()
	<-looked
	<-looked
	if got := listed(t, d, id); len(got) != 0 {
		t.Errorf("instances while the call is halted: %v", got)
	}
	must(t, d.ClearFaults())
	for done := false; !done; {
		select {
		case <-looked:
		case err := <-result:
			must(t, err)
			done = true
		}
	}
	if got := listed(t, d, id); len(got) != 1 {
		t.Errorf("instances after the call: %v", got)
	}
}

func TestParseCrashPoint(t *testing.T) {
	for text, want := range map[string]crashPoint{
		"before:12":                 {moment: CrashBefore, number: 12},
		"after:1":                   {moment: CrashAfter, number: 1},
		"after:CreateGPUInstance:2": {moment: CrashAfter, call: CallCreateGPUInstance, number: 2},
	} {
		if got, err := parseCrashPoint(text); got != want || err != nil {
			t.Errorf("parseCrashPoint(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "12", "before", "before:", "before:0", "before:-1", "during:1", "before:Create:1", "before:GPUs:1:1", "before::x"} {
		if got, err := parseCrashPoint(text); err == nil {
			t.Errorf("parseCrashPoint(%q) = %+v; want an error", text, got)
		}
	}
	if _, err := Open(node(t, a100).Root(), CrashAt("soon")); err == nil {
		t.Error("Open accepts a crash point that it cannot read")
	}
}

// A process dies at each call of the same short program, before and after; what
// it leaves is the work of the calls before.
func TestCrashAtEveryCall(t *testing.T) {
	steps := func(d *Driver, id nvml.GPUID) error {
		in, err := d.CreateGPUInstance(id, p1g, 0)
		if err != nil {
			return err
		}
		if in, err = d.CreateComputeInstance(id, in.GI); err != nil {
			return err
		}
		if err := d.DestroyComputeInstance(id, in.GI, in.CI); err != nil {
			return err
		}
		return d.DestroyGPUInstance(id, in.GI)
	}
	// Instances that are left (GPU, compute) after that many steps are done.
	left := [][2]int{{0, 0}, {1, 0}, {1, 1}, {1, 0}, {0, 0}}
	for _, moment := range []string{CrashBefore, CrashAfter} {
		for call := 2; call <= 5; call++ { // call 1 is Open
			done := call - 2
			if moment == CrashAfter {
				done++
			}
			point := fmt.Sprintf("%s:%d", moment, call)
			exited := 0
			d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: a100, MIG: true}}}, CrashAt(point), WithExit(func(code int) { exited = code }))
			id := gpuAt(t, d.Node, 0)
			wantErr(t, steps(d, id), nvml.ErrUninitialized)
			if exited != ExitCrash {
				t.Errorf("%s: exit status %d; want %d", point, exited, ExitCrash)
			}
			_, err := d.GPUs(nil)
			wantErr(t, err, nvml.ErrUninitialized) // the dead do not call
			s := dump(t, d.Node)
			var got [2]int
			for _, in := range s.GPUs[0].Instances {
				got[0]++
				if in.CI != nvml.NoCI {
					got[1]++
				}
			}
			if got != left[done] || s.Calls != call {
				t.Errorf("%s: left %v instances after %d calls; want %v after %d", point, got, s.Calls, left[done], call)
			}
			checkTree(t, open(t, d.Root(), CrashAt(point)).Node) // started again, it does not die again
		}
	}
}

func TestCrashEndsTheProcess(t *testing.T) {
	for name, order := range map[string]func(d *Driver, cmd *exec.Cmd) error{
		"by environment": func(_ *Driver, cmd *exec.Cmd) error {
			cmd.Env = append(cmd.Env, EnvCrashAt+"=after:CreateGPUInstance:2")
			return nil
		},
		"by fault": func(d *Driver, _ *exec.Cmd) error {
			return d.AddFault(Fault{Call: CallCreateGPUInstance, Nth: 2, Crash: CrashAfter})
		},
	} {
		d := node(t, a100)
		cmd := childCommand(t, "fill", d.Root())
		must(t, order(d, cmd))
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != ExitCrash {
			t.Errorf("%s: process ended with %v; want exit status %d; output:\n%s", name, err, ExitCrash, out)
		}
		got := listed(t, d, gpuAt(t, d.Node, 0))
		if len(got) != 2 || !got[0].Whole() || got[1].CI != nvml.NoCI {
			t.Errorf("%s: instances %v; want a whole one and a GPU instance alone", name, got)
		}
	}
}
