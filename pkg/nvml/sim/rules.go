// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// The rules of one GPU: plain functions of plain values, no I/O. Each checks
// first and changes last, so that a refused operation changes nothing.

// createGPUInstance obeys I1 to I4 and returns the new instance.
func (g *GPU) createGPUInstance(m Model, id nvml.ProfileID, start int) (*Instance, error) {
	if err := g.checkMIG(); err != nil {
		return nil, err
	}
	p, ok := m.profile(id)
	if !ok {
		return nil, fmt.Errorf("%s has no profile %d: %w", g.Name, id, nvml.ErrInvalidArgument)
	}
	if !slices.Contains(p.Starts, start) {
		return nil, fmt.Errorf("profile %s starts at %v only: %w", p.Name, p.Starts, nvml.ErrInvalidArgument)
	}
	if err := g.checkRoom(m, p, start); err != nil {
		return nil, err
	}
	gi, err := m.instanceID(p.Size, start)
	if err != nil {
		return nil, err
	}
	at, _ := slices.BinarySearchFunc(g.Instances, start, func(in Instance, start int) int { return in.Start - start })
	g.Instances = slices.Insert(g.Instances, at, Instance{Profile: id, Name: p.Name, Start: start, Size: p.Size, GI: gi, CI: nvml.NoCI})
	return &g.Instances[at], nil
}

// checkRoom says whether p fits at start beside the live instances.
func (g *GPU) checkRoom(m Model, p Profile, start int) error {
	same := 0
	for _, in := range g.Instances {
		if start < in.Start+in.Size && in.Start < start+p.Size {
			return fmt.Errorf("memory slices %d to %d overlap GPU instance %d (%s at %d): %w",
				start, start+p.Size-1, in.GI, in.Name, in.Start, nvml.ErrInsufficientResources)
		}
		other, _ := m.profile(in.Profile)
		if mediaConflict(p.Enum, other.Enum) {
			return fmt.Errorf("profile %s needs media engines of GPU instance %d (%s): %w",
				p.Name, in.GI, in.Name, nvml.ErrInsufficientResources)
		}
		if in.Profile == p.ID {
			same++
		}
	}
	if same >= p.Max {
		return fmt.Errorf("profile %s allows %d instance(s) and has them: %w", p.Name, p.Max, nvml.ErrInsufficientResources)
	}
	return nil
}

// createComputeInstance gives GPU instance gi its one spanning compute instance.
func (s *State) createComputeInstance(g *GPU, gi int) (*Instance, error) {
	if err := g.checkMIG(); err != nil {
		return nil, err
	}
	in, err := g.instance(gi)
	if err != nil {
		return nil, err
	}
	if in.CI != nvml.NoCI {
		return nil, fmt.Errorf("compute instance %d spans GPU instance %d: %w", in.CI, gi, nvml.ErrInsufficientResources)
	}
	if in.Lingers != 0 {
		return nil, fmt.Errorf("GPU instance %d is being destroyed: %w", gi, nvml.ErrInvalidState)
	}
	in.CI, in.UUID = 0, "MIG-"+s.newUUID()
	return in, nil
}

func (g *GPU) destroyComputeInstance(gi, ci int) error {
	if err := g.checkMIG(); err != nil {
		return err
	}
	in, err := g.instance(gi)
	if err != nil {
		return err
	}
	if in.CI == nvml.NoCI || in.CI != ci {
		return fmt.Errorf("GPU instance %d has no compute instance %d: %w", gi, ci, nvml.ErrNotFound)
	}
	if g.held(gi) {
		return fmt.Errorf("compute instance %d of GPU instance %d has clients: %w", ci, gi, nvml.ErrInUse)
	}
	in.CI, in.UUID = nvml.NoCI, ""
	return nil
}

// destroyGPUInstance removes GPU instance gi, or leaves it listed for lingers
// more calls of Instances (for ever when negative).
func (g *GPU) destroyGPUInstance(gi, lingers int) error {
	if err := g.checkMIG(); err != nil {
		return err
	}
	in, err := g.instance(gi)
	switch {
	case err != nil:
		return err
	case in.CI != nvml.NoCI:
		return fmt.Errorf("GPU instance %d has compute instance %d: %w", gi, in.CI, nvml.ErrInUse)
	case g.held(gi):
		return fmt.Errorf("GPU instance %d has clients: %w", gi, nvml.ErrInUse)
	case in.Lingers != 0: // reported as done before, and again
		return nil
	case lingers != 0:
		in.Lingers = lingers
		return nil
	}
	g.Instances = slices.DeleteFunc(g.Instances, func(in Instance) bool { return in.GI == gi })
	return nil
}

// list returns the instances that are wanted and lets the lingering ones of them age.
func (g *GPU) list(wanted func(Instance) bool) []nvml.Instance {
	listed := make([]nvml.Instance, 0, len(g.Instances))
	kept := g.Instances[:0]
	for _, in := range g.Instances {
		if !wanted(in) {
			kept = append(kept, in)
			continue
		}
		listed = append(listed, g.live(in))
		if in.Lingers == 1 {
			continue
		}
		if in.Lingers > 1 {
			in.Lingers--
		}
		kept = append(kept, in)
	}
	g.Instances = kept
	return listed
}

// setMode obeys I6.
func (g *GPU) setMode(on bool) error {
	if g.Model == "" {
		return g.notCapable()
	}
	if on == g.Current {
		g.Pending = on // takes back a change that waits
		return nil
	}
	if !on && len(g.Instances) > 0 {
		return fmt.Errorf("%d GPU instance(s) exist: %w", len(g.Instances), nvml.ErrInUse)
	}
	if len(g.Holders) > 0 {
		return fmt.Errorf("the GPU has %d client(s): %w", len(g.Holders), nvml.ErrInUse)
	}
	g.Pending = on
	if g.Architecture == nvml.Ampere {
		return fmt.Errorf("mode %s is stored: %w", onOff(on), nvml.ErrResetRequired)
	}
	g.Current = on
	return nil
}

// restart is what a reset and a reboot do to a GPU, I5 and I6.
func (g *GPU) restart() {
	g.Instances, g.Holders, g.Lost = nil, nil, false
	if g.Architecture != nvml.Ampere {
		g.Pending = false
	}
	g.Current = g.Pending
}

func (g *GPU) checkMIG() error {
	switch {
	case g.Model == "":
		return g.notCapable()
	case !g.Current:
		return fmt.Errorf("MIG mode is off: %w", nvml.ErrNotSupported)
	}
	return nil
}

func (g *GPU) notCapable() error {
	return fmt.Errorf("%s cannot do MIG: %w", g.Name, nvml.ErrNotSupported)
}

// held says whether anybody uses GPU instance gi. A handle on the whole GPU does
// not keep an instance from being destroyed.
func (g *GPU) held(gi int) bool {
	return slices.ContainsFunc(g.Holders, func(h Holder) bool { return h.GI == gi })
}

// Values of GPU_INSTANCE_PROFILE_* whose instances share the few media engines.
const (
	enum1SliceMedia    = 7
	enum2SliceMedia    = 8
	enum1SliceNoMedia  = 13
	enum2SliceNoMedia  = 14
	enum1SliceAllMedia = 15
	enum2SliceAllMedia = 16
)

// mediaConflict says whether two profiles cannot live on one GPU: there is one
// set of media extensions (+me), and +me.all takes every media engine, so that
// only -me profiles may live beside it.
func mediaConflict(a, b int) bool {
	extends := func(e int) bool { return e == enum1SliceMedia || e == enum2SliceMedia }
	takesAll := func(e int) bool { return e == enum1SliceAllMedia || e == enum2SliceAllMedia }
	takesNone := func(e int) bool { return e == enum1SliceNoMedia || e == enum2SliceNoMedia }
	return extends(a) && extends(b) || takesAll(a) && !takesNone(b) || takesAll(b) && !takesNone(a)
}

// instanceID is the GPU instance id that the driver gives to a span: a function
// of size and start, not a counter, so ids come back after a destroy (seen in
// listings of seven-slice and four-slice GPUs; two-wide at 6 is inferred).
//
//	seven slices:  8 -> 0   4 at 4,0 -> 1,2   2 at 0,2,4,6 -> 3..6   1 at i -> 7+i
//	four slices:   full -> 0   half at 0, middle -> 1,2   quarter i -> 3+i
func (m Model) instanceID(size, start int) (int, error) {
	quarter := m.MemorySlices / 4
	switch {
	case size == m.MemorySlices:
		return 0, nil
	case m.ComputeSlices == 7 && m.MemorySlices == 8 && size == 4:
		return 2 - start/4, nil
	case m.ComputeSlices == 7 && m.MemorySlices == 8 && size == 2:
		return 3 + start/2, nil
	case m.ComputeSlices == 7 && m.MemorySlices == 8 && size == 1:
		return 7 + start, nil
	case m.ComputeSlices == 4 && size == 2*quarter:
		return 1 + start/size, nil
	case m.ComputeSlices == 4 && size == quarter:
		return 3 + start/size, nil
	}
	return 0, fmt.Errorf("numbering of a span of %d of %d memory slices is not known: add it to instanceID: %w",
		size, m.MemorySlices, nvml.ErrNotSupported)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
