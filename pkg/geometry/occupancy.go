// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"fmt"
	"iter"
	"math/bits"
)

// Occupancy is the whole state of a GPU as far as decisions go. The zero value is
// an idle GPU. It can be compared and used as a map key.
type Occupancy struct {
	Mask uint64 // bit i: memory slice i is taken
	// Counts of instances, by index in Model.Profiles. Spans that were taken by
	// Block are in Mask only.
	Counts [maxProfiles]uint8
}

// holds reports whether there is an instance of any profile of the set.
func (o *Occupancy) holds(set uint32) bool {
	for ; set != 0; set &= set - 1 {
		if o.Counts[bits.TrailingZeros32(set)] > 0 {
			return true
		}
	}
	return false
}

// Placed is an instance of a profile at a place.
type Placed struct {
	Profile ProfileID
	Start   int // first memory slice
}

// free lists, as bits, the starts whose whole span is free in mask.
func (s *shape) free(mask uint64) uint64 {
	blocked := mask // bit i: one of the slices i .. i+span-1 is taken
	for span := 1; span < s.size; {
		step := min(span, s.size-span)
		blocked |= blocked >> step
		span += step
	}
	return s.starts &^ blocked
}

// legal lists, as bits, the starts that profile index i has in o.
func (m *Model) legal(o *Occupancy, i int) uint64 {
	s := &m.shapes[i]
	if o.Counts[i] >= s.max || o.holds(s.apart) {
		return 0
	}
	return s.free(o.Mask)
}

// Starts yields the starts where one more instance of the profile can be created
// now, ascending.
func (m *Model) Starts(o Occupancy, id ProfileID) iter.Seq[int] {
	i := m.index(id)
	return func(yield func(int) bool) {
		if i < 0 {
			return
		}
		for starts := m.legal(&o, i); starts != 0; starts &= starts - 1 {
			if !yield(bits.TrailingZeros64(starts)) {
				return
			}
		}
	}
}

// Occupy returns o with one more instance. It refuses what hardware would refuse:
// ErrUnknownProfile, ErrOffTable, ErrTaken, ErrExhausted, ErrMediaEngines.
func (m *Model) Occupy(o Occupancy, p Placed) (Occupancy, error) {
	i, span, err := m.locate(p)
	switch {
	case err != nil:
	case o.Mask&span != 0:
		err = ErrTaken
	case o.Counts[i] >= m.shapes[i].max:
		err = ErrExhausted
	case o.holds(m.shapes[i].apart):
		err = ErrMediaEngines
	}
	if err != nil {
		return o, fmt.Errorf("placing %s on %s: %w", m.describe(p), m.name, err)
	}
	o.Mask |= span
	o.Counts[i]++
	return o, nil
}

// Vacate returns o without an instance that Occupy put there. It refuses what
// cannot have been: ErrUnknownProfile, ErrOffTable, ErrAbsent. An occupancy does
// not know which instance has which span, so that the caller must.
func (m *Model) Vacate(o Occupancy, p Placed) (Occupancy, error) {
	i, span, err := m.locate(p)
	if err == nil && (o.Mask&span != span || o.Counts[i] == 0) {
		err = ErrAbsent
	}
	if err != nil {
		return o, fmt.Errorf("removing %s from %s: %w", m.describe(p), m.name, err)
	}
	o.Mask &^= span
	o.Counts[i]--
	return o, nil
}

// Block returns o with a span taken by something that is not ours to count: a
// foreign instance, or one that could not be destroyed. What lies outside the GPU
// is ignored, and blocking twice is blocking once.
func (m *Model) Block(o Occupancy, at Placement) Occupancy {
	o.Mask |= at.mask() & m.everything()
	return o
}

// everything is the mask of all memory slices.
func (m *Model) everything() uint64 {
	return Placement{Size: m.grid.MemorySlices}.mask()
}

// FreeSlices is the number of memory slices that are not taken.
func (m *Model) FreeSlices(o Occupancy) int {
	return bits.OnesCount64(m.everything() &^ o.Mask)
}

// Placement is the span of an instance on this model.
func (m *Model) Placement(p Placed) (Placement, error) {
	i, _, err := m.locate(p)
	if err != nil {
		return Placement{}, fmt.Errorf("looking up %s on %s: %w", m.describe(p), m.name, err)
	}
	return m.profiles[i].at(p.Start), nil
}

// locate finds the profile's index and the mask of the span.
func (m *Model) locate(p Placed) (int, uint64, error) {
	i := m.index(p.Profile)
	if i < 0 {
		return 0, 0, ErrUnknownProfile
	}
	if p.Start < 0 || p.Start >= maxSlices || m.shapes[i].starts>>p.Start&1 == 0 {
		return 0, 0, ErrOffTable
	}
	return i, m.profiles[i].at(p.Start).mask(), nil
}

// Check reports how o breaks an invariant, if it does: slices outside the GPU,
// too many of a profile, +me.all beside others, or more instances than fit into
// the slices that are taken. It searches, so it is for tests and self-checks.
func (m *Model) Check(o Occupancy) error {
	if out := o.Mask &^ m.everything(); out != 0 {
		return fmt.Errorf("checking occupancy of %s: memory slices %#x do not exist", m.name, out)
	}
	for i, n := range o.Counts {
		switch {
		case n == 0:
		case i >= len(m.profiles):
			return fmt.Errorf("checking occupancy of %s: count %d is of no profile", m.name, i)
		case n > m.shapes[i].max:
			return fmt.Errorf("checking occupancy of %s: %d of %s: %w", m.name, n, m.profiles[i].Name, ErrExhausted)
		case o.holds(m.shapes[i].apart):
			return fmt.Errorf("checking occupancy of %s: %s: %w", m.name, m.profiles[i].Name, ErrMediaEngines)
		}
	}
	if !m.arrange(o.Counts, o.Mask, 0) {
		return fmt.Errorf("checking occupancy of %s: its instances do not fit into memory slices %#x", m.name, o.Mask)
	}
	return nil
}

// arrange reports whether instances of these counts can lie side by side inside
// area. Instances of one profile are placed by ascending start, from on.
func (m *Model) arrange(counts [maxProfiles]uint8, area uint64, from int) bool {
	for i := range m.shapes {
		if counts[i] == 0 {
			continue
		}
		counts[i]--
		starts := m.shapes[i].free(^area) >> from << from
		for ; starts != 0; starts &= starts - 1 {
			start := bits.TrailingZeros64(starts)
			next := 0
			if counts[i] > 0 {
				next = start + 1
			}
			if m.arrange(counts, area&^m.profiles[i].at(start).mask(), next) {
				return true
			}
		}
		return false
	}
	return true
}

// describe prints an instance for messages.
func (m *Model) describe(p Placed) string {
	if known, ok := m.Profile(p.Profile); ok {
		return fmt.Sprintf("%s@%d", known.Name, p.Start)
	}
	return fmt.Sprintf("profile%d@%d", p.Profile, p.Start)
}
