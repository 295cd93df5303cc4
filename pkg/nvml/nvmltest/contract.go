// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package nvmltest is the contract of nvml.Driver as tests: what the interface's
// comments promise, for every body of the interface, simulated or real.
//
// It works with whatever GPUs the driver under test has. What they cannot show
// (a GPU with MIG off, say) is skipped by name. It creates and destroys instances
// on one GPU that is in MIG mode and empty, and leaves it empty; it changes no
// GPU's mode.
package nvmltest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Holder is implemented by drivers under test that can make a client appear on
// an instance. Without it the cases about clients are skipped.
type Holder interface {
	// HoldInstance makes an invisible client use GPU instance gi until release.
	HoldInstance(id nvml.GPUID, gi int) (release func() error, err error)
}

// XIDRaiser is implemented by drivers under test that can let hardware fail.
// Without it the cases about events that come are skipped.
type XIDRaiser interface {
	// XID has the driver report an XID error of GPU instance gi, or of WholeGPU.
	XID(id nvml.GPUID, gi, xid int) error
}

// aCase is one promise.
type aCase struct {
	name string
	run  func(*bench)
}

// reading are the cases that change nothing on any GPU.
var reading = []aCase{
	{"GPUs are told apart and do not change", gpusAreStable},
	{"GPUs that are skipped are not read", skippedGPUsAreNotRead},
	{"profiles are in order and inside the grid", profilesAreInOrder},
	{"no event comes where nothing happens", noEvent},
	{"a GPU that cannot do MIG says so", notCapable},
	{"a GPU of another node is not found", otherGPU},
	{"a closed session says so", closedSession},
}

// changing are the cases that create and destroy instances, or ask for it.
var changing = []aCase{
	{"every placement can be created, used and destroyed", everyPlacement},
	{"a GPU instance without a compute instance is listed", giAloneIsListed},
	{"instances are listed by start whatever the order of creation", listedByStart},
	{"what overlaps is refused and changes nothing", overlapIsRefused},
	{"a start that the profile does not have is refused", offTableIsRefused},
	{"a profile that the GPU does not have is refused", unknownProfileIsRefused},
	{"a profile's count is a limit", countIsALimit},
	{"the same placement has the same id and a new UUID", idsComeBack},
	{"a neighbour does not notice a creation or a destruction", neighboursStay},
	{"a compute instance is created once and in a live GPU instance", computeInstanceOnce},
	{"a GPU instance with a compute instance is not destroyed", destroyOrder},
	{"a GPU instance offers a compute instance that spans it", offersSpanning},
	{"what is gone is not found", goneIsNotFound},
	{"an idle instance has no processes", idleHasNoProcesses},
	{"a held instance is in use until it is released", heldIsInUse},
	{"events name GPU and instance, in order", eventsNameTheirInstance},
	{"events are of the GPUs asked for, from then on", eventsAreOfTheirGPUs},
	{"events end with their session", eventsEnd},
	{"the mode that is in force can be set again", sameModeAgain},
	{"a GPU with MIG off has profiles and no instances", migOff},
}

// Contract runs all cases, each on a driver of its own.
func Contract(t *testing.T, newDriver func(t *testing.T) nvml.Driver) {
	run(t, slices.Concat(reading, changing), newDriver)
}

// ReadOnly runs the cases that change nothing, for GPUs whose modes and instances
// are somebody else's.
func ReadOnly(t *testing.T, newDriver func(t *testing.T) nvml.Driver) {
	run(t, reading, newDriver)
}

func run(t *testing.T, cases []aCase, newDriver func(t *testing.T) nvml.Driver) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := newDriver(t)
			t.Cleanup(func() { d.Close() })
			c.run(&bench{T: t, Driver: d})
		})
	}
}

func gpusAreStable(b *bench) {
	gpus, err := b.GPUs(nil)
	b.must(err)
	again, err := b.GPUs(nil)
	b.must(err)
	if diff := cmp.Diff(gpus, again); diff != "" {
		b.Errorf("GPUs() twice (-first +second):\n%s", diff)
	}
	seen := map[nvml.GPUID]bool{}
	for _, g := range gpus {
		if seen[g.ID] || !strings.HasPrefix(string(g.ID), "GPU-") {
			b.Errorf("GPU %d has id %q; want one of its own that begins with GPU-", g.Index, g.ID)
		}
		seen[g.ID] = true
		if g.MemoryMiB <= 0 || g.Name == "" || g.PCIBusID == "" {
			b.Errorf("GPU %d lacks memory, name or bus id: %+v", g.Index, g)
		}
	}
	version, err := b.DriverVersion()
	b.must(err)
	if version == "" {
		b.Errorf("DriverVersion() is empty")
	}
}

func offersSpanning(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	in := b.createGI(id, p.ID, p.Starts[0])
	offered, err := b.ComputeProfiles(id, in.GI)
	b.must(err)
	if !slices.ContainsFunc(offered, func(c nvml.ComputeProfile) bool { return c.ComputeSlices == p.ComputeSlices && c.Max >= 1 }) {
		b.Errorf("ComputeProfiles(%s) = %+v; want one of %d slices among them", p.Name, offered, p.ComputeSlices)
	}
	b.must(b.DestroyGPUInstance(id, in.GI))
	_, err = b.ComputeProfiles(id, in.GI)
	b.refused(err, nvml.ErrNotFound, "compute profiles of what is gone")
}

func skippedGPUsAreNotRead(b *bench) {
	want, err := b.GPUs(nil)
	b.must(err)
	last := len(want) - 1
	want[last] = nvml.GPU{ID: want[last].ID, Index: want[last].Index}
	got, err := b.GPUs(func(id nvml.GPUID, index int) bool { return id == want[last].ID && index == want[last].Index })
	b.must(err)
	if diff := cmp.Diff(want, got); diff != "" {
		b.Errorf("GPUs() without the last (-want +got):\n%s", diff)
	}
}

func profilesAreInOrder(b *bench) {
	id := b.capable()
	for _, p := range b.profiles(id) {
		if p.Size < 1 || p.ComputeSlices < 1 || p.MemoryMiB <= 0 || p.Max < 1 || p.Name == "" || len(p.Starts) == 0 {
			b.Errorf("profile %+v lacks something", p)
		}
		if !slices.IsSorted(p.Starts) || p.Starts[0] < 0 {
			b.Errorf("profile %s has starts %v; want them ascending from 0", p.Name, p.Starts)
		}
	}
	ids := b.profiles(id)
	if !slices.IsSortedFunc(ids, func(x, y nvml.Profile) int { return int(x.ID - y.ID) }) {
		b.Errorf("profiles are not by ascending id: %v", ids)
	}
}

func everyPlacement(b *bench) {
	id := b.gpu()
	for _, p := range b.profiles(id) {
		for _, start := range p.Starts {
			gi := b.createGI(id, p.ID, start)
			want := nvml.Instance{GPU: id, Profile: p.ID, Start: start, GI: gi.GI, CI: nvml.NoCI}
			b.same("created GPU instance", want, gi)
			whole := b.createCI(id, gi.GI)
			want.CI, want.UUID = whole.CI, whole.UUID
			b.same("created compute instance", want, whole)
			if !whole.Whole() || !strings.HasPrefix(whole.UUID, "MIG-") {
				b.Errorf("%s at %d: UUID %q, CI %d; want a whole instance", p.Name, start, whole.UUID, whole.CI)
			}
			b.lists(id, whole)
			b.must(b.DestroyComputeInstance(id, gi.GI, whole.CI))
			b.lists(id, gi)
			b.must(b.DestroyGPUInstance(id, gi.GI))
			b.lists(id)
		}
	}
}

func giAloneIsListed(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	b.lists(id, b.createGI(id, p.ID, p.Starts[0]))
}

func listedByStart(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	var want []nvml.Instance
	for _, start := range slices.Backward(p.Starts) {
		want = slices.Insert(want, 0, b.create(id, p.ID, start))
	}
	b.lists(id, want...)
}

func overlapIsRefused(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	first := b.create(id, p.ID, p.Starts[0])
	for _, other := range b.profiles(id) {
		for _, start := range other.Starts {
			if start < first.Start+p.Size && first.Start < start+other.Size {
				_, err := b.CreateGPUInstance(id, other.ID, start)
				b.refused(err, nvml.ErrInsufficientResources, "%s at %d over %s at %d", other.Name, start, p.Name, first.Start)
			}
		}
	}
	b.lists(id, first)
}

func offTableIsRefused(b *bench) {
	id := b.gpu()
	for _, p := range b.profiles(id) {
		for start := -1; start <= slices.Max(p.Starts)+1; start++ {
			if !slices.Contains(p.Starts, start) {
				_, err := b.CreateGPUInstance(id, p.ID, start)
				b.refused(err, nvml.ErrInvalidArgument, "%s at %d", p.Name, start)
			}
		}
	}
	b.lists(id)
}

func unknownProfileIsRefused(b *bench) {
	_, err := b.CreateGPUInstance(b.gpu(), 9999, 0)
	b.refused(err, nvml.ErrInvalidArgument, "profile 9999")
	b.lists(b.gpu())
}

func countIsALimit(b *bench) {
	id := b.gpu()
	profiles := b.profiles(id)
	i := slices.IndexFunc(profiles, func(p nvml.Profile) bool { return p.Max < len(p.Starts) && p.Max == 1 })
	if i < 0 {
		b.Skip("no profile has more starts than instances")
	}
	p := profiles[i]
	only := b.create(id, p.ID, p.Starts[0])
	_, err := b.CreateGPUInstance(id, p.ID, p.Starts[1])
	b.refused(err, nvml.ErrInsufficientResources, "a second %s at a free start", p.Name)
	b.lists(id, only)
}

func idsComeBack(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	start := p.Starts[len(p.Starts)-1]
	first := b.create(id, p.ID, start)
	b.destroy(first)
	second := b.create(id, p.ID, start)
	if first.GI != second.GI {
		b.Errorf("GPU instance ids of %s at %d are %d, then %d; want the same", p.Name, start, first.GI, second.GI)
	}
	if first.UUID == second.UUID {
		b.Errorf("UUID %s came back; want a new one with each creation", first.UUID)
	}
	// Also where only the compute instance is made again.
	b.must(b.DestroyComputeInstance(id, second.GI, second.CI))
	if third := b.createCI(id, second.GI); third.UUID == second.UUID {
		b.Errorf("UUID %s came back with a new compute instance", third.UUID)
	}
}

func neighboursStay(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	if len(p.Starts) < 2 {
		b.Skip("the GPU holds one instance only")
	}
	stays := b.create(id, p.ID, p.Starts[1])
	goes := b.create(id, p.ID, p.Starts[0])
	b.lists(id, goes, stays)
	b.destroy(goes)
	b.lists(id, stays)
}

func computeInstanceOnce(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	in := b.create(id, p.ID, p.Starts[0])
	_, err := b.CreateComputeInstance(id, in.GI)
	b.refused(err, nvml.ErrInsufficientResources, "a second compute instance that spans GPU instance %d", in.GI)
	b.lists(id, in)
	b.destroy(in)
	_, err = b.CreateComputeInstance(id, in.GI)
	b.refused(err, nvml.ErrNotFound, "a compute instance in GPU instance %d, which is gone", in.GI)
}

func destroyOrder(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	in := b.create(id, p.ID, p.Starts[0])
	b.refused(b.DestroyGPUInstance(id, in.GI), nvml.ErrInUse, "destroying GPU instance %d before its compute instance", in.GI)
	b.lists(id, in)
}

func goneIsNotFound(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	in := b.create(id, p.ID, p.Starts[0])
	b.must(b.DestroyComputeInstance(id, in.GI, in.CI))
	b.refused(b.DestroyComputeInstance(id, in.GI, in.CI), nvml.ErrNotFound, "destroying a compute instance twice")
	b.must(b.DestroyGPUInstance(id, in.GI))
	b.refused(b.DestroyGPUInstance(id, in.GI), nvml.ErrNotFound, "destroying a GPU instance twice")
	b.refused(b.DestroyComputeInstance(id, in.GI, in.CI), nvml.ErrNotFound, "destroying a compute instance of a GPU instance that is gone")
	_, err := b.Processes(id, in.GI)
	b.refused(err, nvml.ErrNotFound, "listing processes of a GPU instance that is gone")
}

func idleHasNoProcesses(b *bench) {
	id := b.gpu()
	p := b.smallest(id)
	processes, err := b.Processes(id, b.create(id, p.ID, p.Starts[0]).GI)
	b.must(err)
	if len(processes) != 0 {
		b.Errorf("processes of a new instance: %v; want none", processes)
	}
	processes, err = b.Processes(id, nvml.WholeGPU)
	b.must(err)
	if len(processes) != 0 {
		b.Errorf("processes of an empty GPU: %v; want none", processes)
	}
}

func heldIsInUse(b *bench) {
	holder, ok := b.Driver.(Holder)
	if !ok {
		b.Skip("the driver under test cannot make clients")
	}
	id := b.gpu()
	p := b.smallest(id)
	in := b.create(id, p.ID, p.Starts[0])
	release, err := holder.HoldInstance(id, in.GI)
	b.must(err)
	b.refused(b.DestroyComputeInstance(id, in.GI, in.CI), nvml.ErrInUse, "destroying a held compute instance")
	b.lists(id, in)
	b.must(release())
	b.destroy(in)
	b.lists(id)
}

func noEvent(b *bench) {
	_, err := b.Events()
	b.refused(err, nvml.ErrInvalidArgument, "events of no GPU")
	events := b.events(b.capable())
	_, err = events.Wait(0)
	b.refused(err, nvml.ErrTimeout, "waiting for no time")
	_, err = events.Wait(time.Millisecond)
	b.refused(err, nvml.ErrTimeout, "waiting for a moment")
}

func eventsNameTheirInstance(b *bench) {
	raiser := b.raiser()
	id := b.gpu()
	p := b.smallest(id)
	in := b.create(id, p.ID, p.Starts[0])
	events := b.events(id)
	b.must(raiser.XID(id, in.GI, 94))
	b.must(raiser.XID(id, nvml.WholeGPU, 48))
	for _, want := range []nvml.Event{
		{GPU: id, XID: 94, GI: in.GI, CI: in.CI},
		{GPU: id, XID: 48, GI: nvml.WholeGPU, CI: nvml.NoCI},
	} {
		got, err := events.Wait(time.Minute)
		b.must(err)
		b.same("event", want, got)
	}
	_, err := events.Wait(0)
	b.refused(err, nvml.ErrTimeout, "waiting for a third event")
}

func eventsAreOfTheirGPUs(b *bench) {
	raiser := b.raiser()
	id := b.gpu()
	other, ok := b.find(func(g nvml.GPU, _ nvml.MIGMode) bool { return g.ID != id })
	if !ok {
		b.Skip("there is one MIG capable GPU only")
	}
	b.must(raiser.XID(id, nvml.WholeGPU, 1))
	one, both := b.events(id), b.events(other, id)
	b.must(raiser.XID(other, nvml.WholeGPU, 2))
	b.must(raiser.XID(id, nvml.WholeGPU, 3))
	for i, got := range []nvml.Events{both, both, one} {
		event, err := got.Wait(time.Minute)
		b.must(err)
		if want := []int{2, 3, 3}[i]; event.XID != want {
			b.Errorf("event %d is %+v; want XID %d", i, event, want)
		}
	}
	_, err := one.Wait(0)
	b.refused(err, nvml.ErrTimeout, "waiting for another GPU's event")
}

func eventsEnd(b *bench) {
	id := b.gpu()
	events := b.events(id)
	b.must(b.Close())
	_, err := events.Wait(time.Minute)
	b.refused(err, nvml.ErrUninitialized, "waiting after Close")
	_, err = b.Events(id)
	b.refused(err, nvml.ErrUninitialized, "Events after Close")
}

func sameModeAgain(b *bench) {
	id := b.gpu()
	b.must(b.SetMIGMode(id, true))
	mode, err := b.MIGMode(id)
	b.must(err)
	b.same("mode", nvml.MIGMode{Current: true, Pending: true}, mode)
}

func migOff(b *bench) {
	id, ok := b.find(func(_ nvml.GPU, m nvml.MIGMode) bool { return !m.Current })
	if !ok {
		b.Skip("no GPU has MIG mode off")
	}
	p := b.smallest(id)
	b.lists(id)
	_, err := b.CreateGPUInstance(id, p.ID, p.Starts[0])
	b.refused(err, nvml.ErrNotSupported, "creating a GPU instance with MIG off")
	b.lists(id)
}

func notCapable(b *bench) {
	gpus, err := b.GPUs(nil)
	b.must(err)
	i := slices.IndexFunc(gpus, func(g nvml.GPU) bool { return !g.MIGCapable })
	if i < 0 {
		b.Skip("all GPUs can do MIG")
	}
	id := gpus[i].ID
	_, err = b.Profiles(id)
	b.refused(err, nvml.ErrNotSupported, "Profiles")
	_, err = b.MIGMode(id)
	b.refused(err, nvml.ErrNotSupported, "MIGMode")
	b.refused(b.SetMIGMode(id, true), nvml.ErrNotSupported, "SetMIGMode")
	_, err = b.CreateGPUInstance(id, 0, 0)
	b.refused(err, nvml.ErrNotSupported, "CreateGPUInstance")
}

func otherGPU(b *bench) {
	const id nvml.GPUID = "GPU-00000000-0000-5000-8000-000000000000"
	_, err := b.Instances(id)
	b.refused(err, nvml.ErrNotFound, "Instances")
	_, err = b.CreateGPUInstance(id, 0, 0)
	b.refused(err, nvml.ErrNotFound, "CreateGPUInstance")
}

func closedSession(b *bench) {
	id := b.capable()
	b.must(b.Close())
	_, err := b.Instances(id)
	b.refused(err, nvml.ErrUninitialized, "Instances after Close")
	_, err = b.GPUs(nil)
	b.refused(err, nvml.ErrUninitialized, "GPUs after Close")
}
