// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/nvml"
)

func modelNamed(t *testing.T, key string) Model {
	t.Helper()
	board, ok := boards.Named(key)
	if !ok {
		t.Fatalf("no board %s", key)
	}
	m, err := modelOf(board)
	must(t, err)
	return m
}

// I3, against ids seen in listings of real GPUs (two-wide at 6 is inferred).
func TestInstanceIDIsAFunctionOfSpan(t *testing.T) {
	type span struct{ size, start int }
	cases := []struct {
		board string
		want  map[span]int
	}{
		{a100, map[span]int{{8, 0}: 0, {4, 4}: 1, {4, 0}: 2, {2, 0}: 3, {2, 2}: 4, {2, 4}: 5, {2, 6}: 6, {1, 0}: 7, {1, 3}: 10, {1, 6}: 13}},
		{a30, map[span]int{{4, 0}: 0, {2, 0}: 1, {2, 2}: 2, {1, 0}: 3, {1, 1}: 4, {1, 2}: 5, {1, 3}: 6}},
		{rtx, map[span]int{{12, 0}: 0, {6, 0}: 1, {6, 6}: 2, {3, 0}: 3, {3, 3}: 4, {3, 6}: 5, {3, 9}: 6}},
	}
	for _, c := range cases {
		m := modelNamed(t, c.board)
		for at, want := range c.want {
			if got, err := m.instanceID(at.size, at.start); got != want || err != nil {
				t.Errorf("%s: id of %d memory slices at %d = %d, %v; want %d", c.board, at.size, at.start, got, err, want)
			}
		}
	}
}

func TestInstanceIDsOfALayoutDiffer(t *testing.T) {
	for _, board := range []string{a100, a30, rtx} {
		m := modelNamed(t, board)
		forEachLayout(m, func(g *GPU) {
			seen := map[int]bool{}
			for _, in := range g.Instances {
				if seen[in.GI] || in.GI >= maxGIs {
					t.Fatalf("%s: ids of layout %+v collide or leave 0..%d", board, g.Instances, maxGIs-1)
				}
				seen[in.GI] = true
			}
		})
	}
}

// The numbers of legal layouts come from enumerations over the grids that use no
// code of this package. A30 without the exclusion of a second +me would be 84.
func TestRoomGivesTheKnownNumberOfLayouts(t *testing.T) {
	cases := []struct {
		board string
		only  []int // enums; nil: all
		want  int
	}{
		{a100, []int{0, 1, 2, 3, 4}, 298},
		{a100, []int{0, 1, 2, 3, 4, 9}, 723},
		{a100, nil, 2319},
		{a30, []int{0, 1, 3}, 26},
		{a30, nil, 76},
		{rtx, []int{0, 1, 3}, 26},
	}
	for _, c := range cases {
		m := modelNamed(t, c.board)
		if c.only != nil {
			m.Profiles = slices.DeleteFunc(m.Profiles, func(p Profile) bool { return !slices.Contains(c.only, p.Enum) })
		}
		got := 0
		forEachLayout(m, func(*GPU) { got++ })
		if got != c.want {
			t.Errorf("%s with enums %v has %d layouts; want %d", c.board, c.only, got, c.want)
		}
	}
}

// forEachLayout visits every set of instances that creations can reach, once.
func forEachLayout(m Model, visit func(*GPU)) {
	g := &GPU{Name: "test", Model: "test", Current: true}
	var grow func(fromProfile, fromStart int)
	grow = func(fromProfile, fromStart int) {
		visit(g)
		for i := fromProfile; i < len(m.Profiles); i++ {
			p := m.Profiles[i]
			for _, start := range p.Starts {
				if i == fromProfile && start < fromStart {
					continue
				}
				before := slices.Clone(g.Instances)
				if _, err := g.createGPUInstance(m, p.ID, start); err != nil {
					continue
				}
				grow(i, start+1)
				g.Instances = before
			}
		}
	}
	grow(0, 0)
}

func TestMediaEngines(t *testing.T) {
	const (
		plain, me, meAll, noMe = 14, 21, 65, 67 // 1g on RTX PRO 6000
		gfx2g                  = 35
	)
	cases := []struct {
		name          string
		first, second nvml.ProfileID
		want          error
	}{
		{"plain beside +me", me, plain, nil},
		{"plain beside +me.all", meAll, plain, nvml.ErrInsufficientResources},
		{"+me.all beside plain", plain, meAll, nvml.ErrInsufficientResources},
		{"-me beside +me.all", meAll, noMe, nil},
		{"+me.all beside -me", noMe, meAll, nil},
		{"+me beside +me.all", meAll, me, nvml.ErrInsufficientResources},
		{"+gfx beside +me.all", meAll, gfx2g, nvml.ErrInsufficientResources},
		{"a second +me", me, me, nvml.ErrInsufficientResources},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := node(t, rtx)
			id := gpuAt(t, d.Node, 0)
			_, err := d.CreateGPUInstance(id, c.first, 0)
			must(t, err)
			_, err = d.CreateGPUInstance(id, c.second, 6)
			wantErr(t, err, c.want)
		})
	}
}

func TestOneInstanceHasTheMediaExtensionsWhateverItsSize(t *testing.T) {
	const p1gMeA30, p2gMeA30 = 21, 6
	d := node(t, a30)
	id := gpuAt(t, d.Node, 0)
	_, err := d.CreateGPUInstance(id, p2gMeA30, 0)
	must(t, err)
	_, err = d.CreateGPUInstance(id, p1gMeA30, 2)
	wantErr(t, err, nvml.ErrInsufficientResources)
}

// On the known boards placements and media engines imply every Max, so a model
// with a smaller one shows that it counts.
func TestProfileCountIsALimit(t *testing.T) {
	m := modelNamed(t, a100)
	for i := range m.Profiles {
		if m.Profiles[i].ID == p1g {
			m.Profiles[i].Max = 2
		}
	}
	g := &GPU{Model: "test", Current: true}
	for start, want := range []error{nil, nil, nvml.ErrInsufficientResources} {
		if _, err := g.createGPUInstance(m, p1g, start); !errors.Is(err, want) {
			t.Errorf("creating 1g at %d with Max 2: error %v; want %v", start, err, want)
		}
	}
	if _, err := g.createGPUInstance(m, p2g, 4); err != nil {
		t.Errorf("creating 2g beside two 1g: %v", err)
	}
}

func TestModeOnAmpereWaitsForAReset(t *testing.T) {
	for name, restart := range map[string]func(*Driver, nvml.GPUID) error{
		"reset":  func(d *Driver, id nvml.GPUID) error { return d.ResetGPU(id) },
		"reboot": func(d *Driver, _ nvml.GPUID) error { return d.Reboot() },
	} {
		t.Run(name, func(t *testing.T) {
			d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: a100}}})
			id := gpuAt(t, d.Node, 0)
			wantErr(t, d.SetMIGMode(id, true), nvml.ErrResetRequired)
			wantMode(t, d, id, nvml.MIGMode{Current: false, Pending: true})
			_, err := d.CreateGPUInstance(id, p1g, 0)
			wantErr(t, err, nvml.ErrNotSupported)
			must(t, restart(d, id))
			d = open(t, d.Root())
			wantMode(t, d, id, nvml.MIGMode{Current: true, Pending: true})
			must(t, restart(d, id)) // persists
			d = open(t, d.Root())
			wantMode(t, d, id, nvml.MIGMode{Current: true, Pending: true})
		})
	}
}

func TestModeOnAmpereCanBeTakenBack(t *testing.T) {
	d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: a100}}})
	id := gpuAt(t, d.Node, 0)
	wantErr(t, d.SetMIGMode(id, true), nvml.ErrResetRequired)
	must(t, d.SetMIGMode(id, false))
	wantMode(t, d, id, nvml.MIGMode{})
}

func TestModeOnHopperChangesAtOnceAndIsLostByAReset(t *testing.T) {
	d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: h100}}})
	id := gpuAt(t, d.Node, 0)
	must(t, d.SetMIGMode(id, true))
	wantMode(t, d, id, nvml.MIGMode{Current: true, Pending: true})
	whole(t, d, id, p1g, 0)
	must(t, d.ResetGPU(id))
	wantMode(t, d, id, nvml.MIGMode{})
	if got := listed(t, d, id); len(got) != 0 {
		t.Errorf("instances after a reset: %v", got)
	}
}

func TestModeChangesOnAnIdleGPUOnly(t *testing.T) {
	for _, board := range []string{a100, h100} {
		d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: board}}})
		id := gpuAt(t, d.Node, 0)
		must(t, d.Hold(id, Holder{GI: WholeGPU, PID: 7}))
		wantErr(t, d.SetMIGMode(id, true), nvml.ErrInUse)
		wantMode(t, d, id, nvml.MIGMode{})
		wantErr(t, d.ResetGPU(id), nvml.ErrInUse)
		must(t, d.Release(id, WholeGPU, 7))
	}
	d := node(t, h100)
	id := gpuAt(t, d.Node, 0)
	_, err := d.CreateGPUInstance(id, p1g, 0)
	must(t, err)
	wantErr(t, d.SetMIGMode(id, false), nvml.ErrInUse)
	wantMode(t, d, id, nvml.MIGMode{Current: true, Pending: true})
}

func wantMode(t *testing.T, d *Driver, id nvml.GPUID, want nvml.MIGMode) {
	t.Helper()
	got, err := d.MIGMode(id)
	must(t, err)
	if got != want {
		t.Errorf("mode %+v; want %+v", got, want)
	}
}

func TestHoldersKeepAnInstance(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	in := whole(t, d, id, p3g, 4)
	free := whole(t, d, id, p1g, 0)
	must(t, d.Hold(id, Holder{GI: in.GI, PID: 4711, MemoryMiB: 300}))
	must(t, d.Hold(id, Holder{GI: in.GI})) // DCGM
	must(t, d.Hold(id, Holder{GI: WholeGPU}))

	got, err := d.Processes(id, in.GI)
	must(t, err)
	if diff := cmp.Diff([]nvml.Process{{PID: 4711, MemoryMiB: 300}}, got); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
	wantErr(t, d.DestroyComputeInstance(id, in.GI, in.CI), nvml.ErrInUse)
	must(t, d.Release(id, in.GI, 4711))
	wantErr(t, d.DestroyComputeInstance(id, in.GI, in.CI), nvml.ErrInUse) // by a handle that NVML does not show
	wantErr(t, d.Release(id, in.GI, 4711), nvml.ErrNotFound)
	must(t, d.Release(id, in.GI, 0))
	must(t, d.DestroyComputeInstance(id, in.GI, in.CI))

	must(t, d.Hold(id, Holder{GI: in.GI}))
	wantErr(t, d.DestroyGPUInstance(id, in.GI), nvml.ErrInUse)
	must(t, d.Release(id, in.GI, 0))
	must(t, d.DestroyGPUInstance(id, in.GI))

	must(t, d.DestroyComputeInstance(id, free.GI, free.CI)) // the whole GPU's handle does not matter
	wantErr(t, d.ResetGPU(id), nvml.ErrInUse)
}

func TestHoldRefusesWhatCouldNotRun(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	gi, err := d.CreateGPUInstance(id, p1g, 0)
	must(t, err)
	wantErr(t, d.Hold(id, Holder{GI: gi.GI, PID: 1}), nvml.ErrNotSupported)
	wantErr(t, d.Hold(id, Holder{GI: WholeGPU, PID: 1}), nvml.ErrNotSupported)
	wantErr(t, d.Hold(id, Holder{GI: 3}), nvml.ErrNotFound)
	wantErr(t, d.Hold(id, Holder{GI: gi.GI, PID: -1}), nvml.ErrInvalidArgument)
	_, err = d.CreateComputeInstance(id, gi.GI)
	must(t, err)
	must(t, d.Hold(id, Holder{GI: gi.GI, PID: 1}))
	wantErr(t, d.Hold(id, Holder{GI: gi.GI, PID: 1}), nvml.ErrInvalidArgument)
	must(t, d.LoseGPU(id))
	wantErr(t, d.Hold(id, Holder{GI: gi.GI, PID: 2}), nvml.ErrGPULost)
}

func TestLostGPUFailsEveryCallThatNamesIt(t *testing.T) {
	d := node(t, a100, a100)
	id, other := gpuAt(t, d.Node, 0), gpuAt(t, d.Node, 1)
	in := whole(t, d, id, p1g, 0)
	must(t, d.LoseGPU(id))
	for name, err := range everyCall(d, id, in) {
		if wantErr(t, err, nvml.ErrGPULost); t.Failed() {
			t.Fatalf("after %s on a lost GPU", name)
		}
	}
	whole(t, d, other, p1g, 0)
	if gpus, err := d.GPUs(nil); err != nil || len(gpus) != 2 {
		t.Errorf("GPUs() = %v, %v; want both", gpus, err)
	}
	must(t, d.ResetGPU(id))
	if got := listed(t, d, id); len(got) != 0 {
		t.Errorf("instances after a reset: %v", got)
	}
}

// everyCall calls everything that names a GPU.
func everyCall(d *Driver, id nvml.GPUID, in nvml.Instance) map[string]error {
	errs := map[string]error{}
	_, errs[CallProfiles] = d.Profiles(id)
	_, errs[CallMIGMode] = d.MIGMode(id)
	errs[CallSetMIGMode] = d.SetMIGMode(id, true)
	_, errs[CallInstances] = d.Instances(id)
	_, errs[CallCreateGPUInstance] = d.CreateGPUInstance(id, p1g, 1)
	_, errs[CallCreateComputeInstance] = d.CreateComputeInstance(id, in.GI)
	errs[CallDestroyComputeInstance] = d.DestroyComputeInstance(id, in.GI, in.CI)
	errs[CallDestroyGPUInstance] = d.DestroyGPUInstance(id, in.GI)
	_, errs[CallProcesses] = d.Processes(id, in.GI)
	return errs
}

func TestRebootEndsSessionsAndInstances(t *testing.T) {
	d := node(t, a100, h100)
	id := gpuAt(t, d.Node, 0)
	in := whole(t, d, id, p1g, 0)
	must(t, d.Hold(id, Holder{GI: in.GI, PID: 1}))
	must(t, d.XID(id, in.GI, 31))
	must(t, d.LoseGPU(gpuAt(t, d.Node, 1)))
	must(t, d.Reboot())
	for name, err := range everyCall(d, id, in) {
		if wantErr(t, err, nvml.ErrUninitialized); t.Failed() {
			t.Fatalf("after %s in a lost session", name)
		}
	}
	again := open(t, d.Root())
	for i, wantOn := range []bool{true, false} { // Ampere keeps its mode
		g := dump(t, again.Node).GPUs[i]
		if g.Current != wantOn || len(g.Instances) != 0 || len(g.Holders) != 0 || g.Lost {
			t.Errorf("GPU %d after a reboot: %+v", i, g)
		}
	}
	if second := whole(t, again, id, p1g, 0); second.UUID == in.UUID {
		t.Errorf("UUID %s came back after a reboot", in.UUID)
	}
}

func TestLostSessionKeepsInstances(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	in := whole(t, d, id, p2g, 2)
	must(t, d.LoseSessions())
	_, err := d.Instances(id)
	wantErr(t, err, nvml.ErrUninitialized)
	if diff := cmp.Diff([]nvml.Instance{in}, listed(t, open(t, d.Root()), id)); diff != "" {
		t.Errorf("instances in a new session (-want +got):\n%s", diff)
	}
}

func TestEventsAreInOrder(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	in := whole(t, d, id, p1g, 0)
	must(t, d.XID(id, in.GI, 31))
	must(t, d.XID(id, WholeGPU, 48))
	wantErr(t, d.XID(id, 3, 31), nvml.ErrNotFound)
	must(t, d.LoseGPU(id))
	want := []Event{
		{Seq: 2, GPU: id, GI: WholeGPU, CI: nvml.NoCI, XID: 48},
		{Seq: 3, GPU: id, GI: WholeGPU, CI: nvml.NoCI, XID: 79},
	}
	got, err := d.EventsAfter(1)
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("EventsAfter(1) (-want +got):\n%s", diff)
	}
	if first := dump(t, d.Node).Events[0]; first.GI != in.GI || first.CI != in.CI || first.XID != 31 {
		t.Errorf("first event %+v; want XID 31 of instance %+v", first, in)
	}
}

func TestEventsOfALostGPUComeBeforeItsLoss(t *testing.T) {
	d := node(t, a100, a30)
	lost, stays := gpuAt(t, d.Node, 0), gpuAt(t, d.Node, 1)
	both, err := d.Events(lost, stays)
	must(t, err)
	one, err := d.Events(stays)
	must(t, err)
	must(t, d.LoseGPU(lost))
	event, err := both.Wait(time.Minute)
	must(t, err)
	if want := (nvml.Event{GPU: lost, XID: 79, GI: WholeGPU, CI: nvml.NoCI}); event != want {
		t.Errorf("event %+v; want %+v", event, want)
	}
	_, err = both.Wait(time.Minute)
	wantErr(t, err, nvml.ErrGPULost)
	_, err = d.Events(lost)
	wantErr(t, err, nvml.ErrGPULost)
	_, err = one.Wait(0)
	wantErr(t, err, nvml.ErrTimeout)
	must(t, d.LoseSessions())
	_, err = one.Wait(time.Minute)
	wantErr(t, err, nvml.ErrUninitialized)
}

// What another process does is seen while waiting.
func TestWaitSeesAnEventOfAnotherProcess(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	events, err := d.Events(id)
	must(t, err)
	other, err := Load(d.Root())
	must(t, err)
	raised := make(chan error, 1)
	go func() { raised <- other.XID(id, WholeGPU, 48) }()
	event, err := events.Wait(time.Minute)
	must(t, err)
	must(t, <-raised)
	if event.XID != 48 {
		t.Errorf("event %+v; want XID 48", event)
	}
}
