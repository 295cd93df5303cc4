// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package nvmltest

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// bench is one case's driver with the steps that cases are made of. Every step
// that does not go as it must ends the case.
type bench struct {
	*testing.T
	nvml.Driver
	chosen nvml.GPUID
}

// gpu returns an empty GPU in MIG mode, always the same one.
func (b *bench) gpu() nvml.GPUID {
	b.Helper()
	if b.chosen == "" {
		id, ok := b.find(func(g nvml.GPU, m nvml.MIGMode) bool {
			if !m.Current {
				return false
			}
			instances, err := b.Instances(g.ID)
			b.must(err)
			return len(instances) == 0
		})
		if !ok {
			b.Skip("no GPU is in MIG mode and empty")
		}
		b.chosen = id
	}
	return b.chosen
}

// capable returns a GPU that can do MIG, whatever its mode.
func (b *bench) capable() nvml.GPUID {
	b.Helper()
	id, ok := b.find(func(nvml.GPU, nvml.MIGMode) bool { return true })
	if !ok {
		b.Skip("no GPU can do MIG")
	}
	return id
}

// find returns the first MIG capable GPU that ok accepts.
func (b *bench) find(ok func(nvml.GPU, nvml.MIGMode) bool) (nvml.GPUID, bool) {
	b.Helper()
	gpus, err := b.GPUs(nil)
	b.must(err)
	for _, g := range gpus {
		if !g.MIGCapable {
			continue
		}
		mode, err := b.MIGMode(g.ID)
		b.must(err)
		if ok(g, mode) {
			return g.ID, true
		}
	}
	return "", false
}

func (b *bench) profiles(id nvml.GPUID) []nvml.Profile {
	b.Helper()
	profiles, err := b.Profiles(id)
	b.must(err)
	if len(profiles) == 0 {
		b.Fatalf("Profiles(%s) is empty", id)
	}
	return profiles
}

// smallest returns the profile of which most instances fit.
func (b *bench) smallest(id nvml.GPUID) nvml.Profile {
	b.Helper()
	return slices.MaxFunc(b.profiles(id), func(x, y nvml.Profile) int {
		if x.Max != y.Max {
			return x.Max - y.Max
		}
		return y.Size - x.Size
	})
}

// createGI creates a GPU instance that the end of the case destroys.
func (b *bench) createGI(id nvml.GPUID, p nvml.ProfileID, start int) nvml.Instance {
	b.Helper()
	in, err := b.CreateGPUInstance(id, p, start)
	b.must(err)
	b.Cleanup(func() { b.sweep(id, p, start) })
	return in
}

func (b *bench) createCI(id nvml.GPUID, gi int) nvml.Instance {
	b.Helper()
	in, err := b.CreateComputeInstance(id, gi)
	b.must(err)
	return in
}

// create creates a whole instance.
func (b *bench) create(id nvml.GPUID, p nvml.ProfileID, start int) nvml.Instance {
	b.Helper()
	return b.createCI(id, b.createGI(id, p, start).GI)
}

// events asks for events; a GPU may have none.
func (b *bench) events(ids ...nvml.GPUID) nvml.Events {
	b.Helper()
	events, err := b.Events(ids...)
	if errors.Is(err, nvml.ErrNotSupported) {
		b.Skip("the GPU reports no events")
	}
	b.must(err)
	b.Cleanup(func() { events.Close() })
	return events
}

// raiser is the driver's own, for cases that need one.
func (b *bench) raiser() XIDRaiser {
	b.Helper()
	raiser, ok := b.Driver.(XIDRaiser)
	if !ok {
		b.Skip("the driver under test cannot raise XIDs")
	}
	return raiser
}

func (b *bench) destroy(in nvml.Instance) {
	b.Helper()
	b.must(b.DestroyComputeInstance(in.GPU, in.GI, in.CI))
	b.must(b.DestroyGPUInstance(in.GPU, in.GI))
}

// sweep destroys what a case has left of one of its instances. A case that has
// closed its session has created nothing.
func (b *bench) sweep(id nvml.GPUID, p nvml.ProfileID, start int) {
	instances, err := b.Instances(id)
	if err != nil {
		b.Errorf("cleaning up: %v", err)
		return
	}
	for _, in := range instances {
		if in.Profile != p || in.Start != start {
			continue
		}
		if in.CI != nvml.NoCI {
			err = b.DestroyComputeInstance(id, in.GI, in.CI)
		}
		if err := errors.Join(err, b.DestroyGPUInstance(id, in.GI)); err != nil {
			b.Errorf("cleaning up: %v", err)
		}
	}
}

// lists demands that the GPU lists exactly these.
func (b *bench) lists(id nvml.GPUID, want ...nvml.Instance) {
	b.Helper()
	got, err := b.Instances(id)
	b.must(err)
	if len(want) == 0 && len(got) == 0 {
		return
	}
	b.same("listed instances", want, got)
}

func (b *bench) same(what string, want, got any) {
	b.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		b.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// refused demands that err is the sentinel want.
func (b *bench) refused(err, want error, format string, args ...any) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Errorf(format+": error %v; want %q", append(args, err, want)...)
	}
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
