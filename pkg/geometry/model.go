// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Limits of a model. Real GPUs have at most 12 memory slices and 11 profiles.
const (
	maxSlices   = 64 // bits of Occupancy.Mask
	maxProfiles = 32 // cells of Occupancy.Counts
)

// ProfileID is the id that NVML reports for a GPU instance profile. It is unique
// within a model only: 14 is 2g on an A100 and 1g on an A30.
type ProfileID int

// Placement is a span of memory slices on one GPU (nvmlGpuInstancePlacement_t).
type Placement struct {
	Start int // first memory slice, from 0
	Size  int // in memory slices: 4 for 3g.40gb on an H100, not 3
}

// mask has the bits of the span that are within 64 memory slices.
func (p Placement) mask() uint64 {
	start, end := max(p.Start, 0), min(p.Start+p.Size, maxSlices)
	if start >= end {
		return 0
	}
	return ^uint64(0) >> (maxSlices - (end - start)) << start
}

// Profile is a kind of instance that a model offers.
type Profile struct {
	ID            ProfileID
	Name          string // as the driver prints it: a label, unique within a model
	MemoryMiB     int    // of one instance, as NVML reports; 0 when unknown
	SMs           int    // multiprocessors of one instance; 0 when unknown
	ComputeSlices int
	Size          int // in memory slices
	// Max is how many one GPU can hold at once. NewModel takes it as reported,
	// 0 for unknown, and trusts it as an upper bound only (an A30 reports wrong
	// counts); a Model's own profiles have what the placements allow as well.
	Max    int
	Starts []int // memory slices where it may start, ascending
}

// Special reports whether the profile is a variant (+me, +me.all, -me, +gfx, or
// one that we do not know). Outside templates such a profile is given only to
// requests that name it.
func (p Profile) Special() bool {
	attributes, known := attributesOf(p.Name)
	return !known || attributes != Plain
}

// at is the span of an instance that starts there.
func (p Profile) at(start int) Placement { return Placement{Start: start, Size: p.Size} }

// Grid is the size of a GPU.
type Grid struct {
	MemorySlices  int
	ComputeSlices int
}

// Model is what one type of GPU allows. It is immutable.
type Model struct {
	name     string
	grid     Grid
	profiles []Profile // by ascending ID
	shapes   []shape   // shapes[i] belongs to profiles[i]
	full     int       // index of the profile that is the whole GPU, or -1
	units    []uint64  // see unitsOf
}

// shape is the part of a profile that decisions need, as bits.
type shape struct {
	size   int
	starts uint64 // bit i: may start at memory slice i
	max    uint8
	apart  uint32 // bit i: must not share a GPU with profiles[i]
	states []int  // the units (see unitsOf) that it takes, by start
}

// NewModel checks profiles and builds a model from them, on the grid that their
// placements span. Give all profiles that NVML reports; for a part of them use
// NewModelOnGrid. The profiles may be in any order and are copied.
func NewModel(name string, profiles []Profile) (*Model, error) {
	var grid Grid
	for _, p := range profiles {
		grid.ComputeSlices = max(grid.ComputeSlices, p.ComputeSlices)
		for _, start := range p.Starts {
			grid.MemorySlices = max(grid.MemorySlices, start+p.Size)
		}
	}
	return NewModelOnGrid(name, grid, profiles)
}

// NewModelOnGrid is NewModel where the grid is known and the profiles may be some
// of the GPU's only, so that they need not span it.
func NewModelOnGrid(name string, grid Grid, profiles []Profile) (*Model, error) {
	m := &Model{name: name, grid: grid, full: -1}
	if err := m.take(profiles); err != nil {
		return nil, fmt.Errorf("building model %q: %w", name, err)
	}
	for i, p := range m.profiles {
		m.shapes = append(m.shapes, shapeOf(m.profiles, i))
		m.profiles[i].Max = int(m.shapes[i].max)
		if p.Size == grid.MemorySlices && !p.Special() && (m.full < 0 || p.ComputeSlices > m.profiles[m.full].ComputeSlices) {
			m.full = i
		}
	}
	m.units = unitsOf(m.profiles)
	for i, p := range m.profiles {
		m.shapes[i].states = make([]int, grid.MemorySlices)
		for _, start := range p.Starts {
			m.shapes[i].states[start] = m.state(p.at(start).mask())
		}
	}
	return m, nil
}

// take checks the profiles against the grid and keeps sorted copies.
func (m *Model) take(profiles []Profile) error {
	if len(profiles) == 0 || len(profiles) > maxProfiles {
		return fmt.Errorf("it has %d profiles, want 1 to %d", len(profiles), maxProfiles)
	}
	if m.grid.MemorySlices > maxSlices || m.grid.MemorySlices < 1 || m.grid.ComputeSlices < 1 {
		return fmt.Errorf("its grid is %d compute x %d memory slices, want at least 1 x 1 and at most %d memory slices",
			m.grid.ComputeSlices, m.grid.MemorySlices, maxSlices)
	}
	for _, p := range profiles {
		if err := p.check(m.grid); err != nil {
			return fmt.Errorf("profile %d (%s): %w", p.ID, p.Name, err)
		}
		if other, ok := m.Profile(p.ID); ok {
			return fmt.Errorf("profiles %s and %s have the same id %d", other.Name, p.Name, p.ID)
		}
		if other, ok := m.ByName(p.Name); ok {
			return fmt.Errorf("profiles %d and %d have the same name %s", other.ID, p.ID, p.Name)
		}
		p.Starts = slices.Clone(p.Starts)
		m.profiles = append(m.profiles, p)
	}
	slices.SortFunc(m.profiles, func(a, b Profile) int { return cmp.Compare(a.ID, b.ID) })
	return nil
}

// check tells what is wrong with one profile on a grid of this size.
func (p Profile) check(grid Grid) error {
	switch {
	case p.ID < 0:
		return fmt.Errorf("its id is negative")
	case p.Name == "" || strings.ContainsAny(p.Name, " @\t\n") || strings.Trim(p.Name, ".") == "":
		return fmt.Errorf("its name %q is empty, only dots, or has a space or an @", p.Name)
	case p.MemoryMiB < 0 || p.SMs < 0 || p.Max < 0:
		return fmt.Errorf("its memory, SMs or maximum is negative")
	case p.ComputeSlices < 1 || p.ComputeSlices > grid.ComputeSlices:
		return fmt.Errorf("it has %d compute slices, want 1 to %d", p.ComputeSlices, grid.ComputeSlices)
	case p.Size < 1 || len(p.Starts) == 0:
		return fmt.Errorf("it has size %d and %d starts, want at least 1 of each", p.Size, len(p.Starts))
	}
	for i, start := range p.Starts {
		if start < 0 || start > grid.MemorySlices-p.Size {
			return fmt.Errorf("start %d with size %d is outside %d memory slices", start, p.Size, grid.MemorySlices)
		}
		if i > 0 && start <= p.Starts[i-1] {
			return fmt.Errorf("its starts %v do not ascend", p.Starts)
		}
	}
	return nil
}

// shapeOf is the shape of profiles[i].
func shapeOf(profiles []Profile, i int) shape {
	p := profiles[i]
	s := shape{size: p.Size, max: uint8(p.limit())}
	for _, start := range p.Starts {
		s.starts |= 1 << start
	}
	for j, other := range profiles {
		if j != i && !p.canBeside(other) {
			s.apart |= 1 << j
		}
	}
	return s
}

// abreast is how many instances of p lie side by side on an idle GPU.
func (p Profile) abreast() int {
	fit, end := 0, 0
	for _, start := range p.Starts { // ascending, all of one size: greedy is optimal
		if start >= end {
			fit, end = fit+1, start+p.Size
		}
	}
	return fit
}

// limit is the largest number of instances of p on one GPU: as many as lie side
// by side, and not more than reported. Of +me.all there is only one by meaning,
// and of +me where nothing is reported.
func (p Profile) limit() int {
	fit := p.abreast()
	attributes, _ := attributesOf(p.Name)
	switch {
	case attributes == AllMedia, attributes == MediaExtensions && p.Max == 0:
		return 1
	case p.Max == 0:
		return fit
	}
	return min(fit, p.Max)
}

// canBeside reports whether p and another profile may share a GPU: one with
// +me.all leaves no media engine to others.
func (p Profile) canBeside(other Profile) bool {
	a, _ := attributesOf(p.Name)
	b, _ := attributesOf(other.Name)
	return (a != AllMedia || b == NoMedia) && (b != AllMedia || a == NoMedia)
}

// Name is the model's name, normally NVML's product name.
func (m *Model) Name() string { return m.name }

// Grid is the GPU's size in both kinds of slices.
func (m *Model) Grid() Grid { return m.grid }

// MemorySlices is the GPU's size in memory slices.
func (m *Model) MemorySlices() int { return m.grid.MemorySlices }

// ComputeSlices is the GPU's size in compute slices.
func (m *Model) ComputeSlices() int { return m.grid.ComputeSlices }

// Profiles lists the model's profiles by ascending ID, with Max as it holds. The
// index of a profile here is its index in Occupancy.Counts. The list is shared:
// do not change it.
func (m *Model) Profiles() []Profile { return m.profiles }

// Profile finds a profile by its id.
func (m *Model) Profile(id ProfileID) (Profile, bool) {
	if i := m.index(id); i >= 0 {
		return m.profiles[i], true
	}
	return Profile{}, false
}

// index is the place of a profile in Profiles and Counts, or -1.
func (m *Model) index(id ProfileID) int {
	for i := range m.profiles {
		if m.profiles[i].ID == id {
			return i
		}
	}
	return -1
}

// ByName finds a profile by its exact name.
func (m *Model) ByName(name string) (Profile, bool) {
	for _, p := range m.profiles {
		if p.Name == name {
			return p, true
		}
	}
	return Profile{}, false
}

// Nearest finds the profile that a name in a configuration means: the same compute
// slices and attributes and the nearest GB, at most max(1, 5 %) away. So the old
// name 7g.79gb finds 7g.80gb. Of two equally near the smaller wins.
func (m *Model) Nearest(n Name) (Profile, bool) {
	best, distance := -1, 0
	for i, p := range m.profiles {
		has, err := ParseName(p.Name)
		if err != nil || has.ComputeSlices != n.ComputeSlices || has.Attributes != n.Attributes {
			continue
		}
		d := max(has.GB-n.GB, n.GB-has.GB)
		near := d <= 1 || 20*d <= n.GB
		smaller := best >= 0 && d == distance && has.GB < n.GB
		if near && (best < 0 || d < distance || smaller) {
			best, distance = i, d
		}
	}
	if best < 0 {
		return Profile{}, false
	}
	return m.profiles[best], true
}

// FullProfile is the plain profile that spans all memory slices, the one with most
// compute slices if there are several.
func (m *Model) FullProfile() (Profile, bool) {
	if m.full < 0 {
		return Profile{}, false
	}
	return m.profiles[m.full], true
}
