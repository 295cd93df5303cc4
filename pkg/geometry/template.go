// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import "fmt"

// maxStock bounds the table of one template, in bits. The largest known needs
// 4 096; a template of sixteen different profiles on 16 units would need 2^32.
const maxStock = 1 << 26

// stock is a template as a multiset of profiles, with the answer to the question
// which parts of it can be realised where.
//
// A part of the template (what is not in use yet) is a number in mixed radix: its
// count of profile i times strides[i]. For each part, fits has one bit for each
// state of a GPU: the part can be placed beside what that state has taken.
type stock struct {
	counts  []uint8 // by index of the profile; nil outside RuleTemplates
	strides []int
	words   int // of fits for one part
	fits    []uint64
}

// CheckTemplate tells what is wrong with a template on this model: unknown
// profiles, counts that are not positive, or no way to place it on an idle GPU.
func (m *Model) CheckTemplate(t Template) error {
	err := m.checkUnits()
	if err == nil {
		_, err = newStock(m, t)
	}
	if err != nil {
		return fmt.Errorf("checking template on %s: %w", m.name, err)
	}
	return nil
}

// newStock counts the template's profiles and fills the table.
func newStock(m *Model, t Template) (stock, error) {
	s := stock{counts: make([]uint8, len(m.profiles)), strides: make([]int, len(m.profiles))}
	if len(t) == 0 {
		return s, fmt.Errorf("it has no entry; list one or remove the template")
	}
	for _, e := range t {
		i := m.index(e.Profile)
		switch {
		case i < 0:
			return s, fmt.Errorf("profile %d: %w; remove the entry", e.Profile, ErrUnknownProfile)
		case e.Count < 1 || e.Count > int(m.shapes[i].max)-int(s.counts[i]):
			return s, fmt.Errorf("%s: the count %d is not from 1 to %d, which the GPU has room for; correct it",
				m.profiles[i].Name, e.Count, int(m.shapes[i].max)-int(s.counts[i]))
		case e.MemoryMiB < 0 || e.Cores < 0 || e.Cores > 100:
			return s, fmt.Errorf("%s: memory %d MiB or cores %d %% are out of range; correct them",
				m.profiles[i].Name, e.MemoryMiB, e.Cores)
		}
		s.counts[i] += uint8(e.Count)
	}
	if err := s.checkMedia(m); err != nil {
		return s, err
	}
	parts := 1
	for i, n := range s.counts {
		s.strides[i] = parts
		parts *= int(n) + 1
		if parts<<len(m.units) > maxStock {
			return s, fmt.Errorf("it has too many different parts; use fewer profiles in one template")
		}
	}
	s.fill(m, parts)
	if whole := parts - 1; !s.fit(whole, 0) {
		return s, fmt.Errorf("it cannot be placed on an idle GPU; lower the counts")
	}
	return s, nil
}

// checkMedia refuses a template with +me.all beside anything but -me.
func (s *stock) checkMedia(m *Model) error {
	for i, n := range s.counts {
		for j, other := range s.counts {
			if n > 0 && other > 0 && m.shapes[i].apart>>j&1 == 1 {
				return fmt.Errorf("%s and %s: %w; use separate templates", m.profiles[i].Name, m.profiles[j].Name, ErrMediaEngines)
			}
		}
	}
	return nil
}

// fill computes fits, from the empty part upwards: a part fits beside a state if
// its first profile has a free window there beside which the rest of it fits.
func (s *stock) fill(m *Model, parts int) {
	states := 1 << len(m.units)
	s.words = (states + 63) / 64
	s.fits = make([]uint64, parts*s.words)
	for w := range s.words {
		s.fits[w] = ^uint64(0)
	}
	for part := 1; part < parts; part++ {
		first := s.first(part)
		windows := m.windows(first)
		rest := part - s.strides[first]
		for state := range states {
			for _, w := range windows {
				if state&w == 0 && s.fit(rest, state|w) {
					s.fits[part*s.words+state/64] |= 1 << (state % 64)
					break
				}
			}
		}
	}
}

// first is the index of the first profile that a part, not the empty one, has.
func (s *stock) first(part int) int {
	for i, n := range s.counts {
		if part/s.strides[i]%(int(n)+1) > 0 {
			return i
		}
	}
	panic("geometry: the empty part has no profile")
}

// fit reports whether the part can be placed beside what the state has taken.
func (s *stock) fit(part, state int) bool {
	return s.fits[part*s.words+state/64]>>(state%64)&1 == 1
}

// unused is the part of the template that is not in use in o, and false if
// something is in use that the template does not have.
func (s *stock) unused(o *Occupancy) (part int, ok bool) {
	for i, n := range s.counts {
		used := o.Counts[i]
		if used > n {
			return 0, false
		}
		part += int(n-used) * s.strides[i]
	}
	return part, true
}
