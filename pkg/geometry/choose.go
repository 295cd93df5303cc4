// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"math"
	"math/bits"
)

// Fit returns the best choice for w on a GPU in state o, and false if there is
// none now. The order of preference is that of Choices. It is a few dozen table
// look-ups (well below a microsecond) without allocation, and may run in parallel.
func (c *Catalogue) Fit(o Occupancy, w Want) (Choice, bool) {
	var best Choice
	found := false
	c.Choices(o, w, func(choice Choice) bool {
		best, found = choice, true
		return false
	})
	return best, found
}

// Choices yields every acceptable choice for w on a GPU in state o, best first,
// until yield returns false:
//
//  1. templates in file order (there is only one list in the other rules)
//  2. within it the smallest adequate entry, by memory, then compute slices
//  3. the lowest Score
//  4. the lowest start
//
// A template is considered if it has everything that is in use, as a multiset,
// plus the new instance, and if all that is left of it can then be placed beside
// everything that is on the GPU. A choice that several templates would give is
// yielded once. Without Want.Oversize only exact choices are acceptable.
func (c *Catalogue) Choices(o Occupancy, w Want, yield func(Choice) bool) {
	var q query
	if q.resolve(c, w) {
		c.walk(q, kind{o, o.instances()}, yield)
	}
}

// walk is Choices for a query that has been resolved.
func (c *Catalogue) walk(q query, there kind, yield func(Choice) bool) {
	o := there.Occupancy
	s := search{query: q, catalogue: c, o: o, state: c.model.state(o.Mask), row: c.positions.row(&o), yield: yield}
	s.crowd = int64(there.instances) * c.scores.crowd
	for i := range c.sheets {
		if !s.through(&c.sheets[i]) {
			return
		}
	}
}

// search is one walk through a catalogue, for one want on one GPU.
type search struct {
	query
	catalogue *Catalogue
	o         Occupancy
	state     int                 // of o; see unitsOf
	row       int                 // of o; see positions
	crowd     int64               // off the score, for the instances that are there
	seen      [maxProfiles]uint64 // starts that were yielded, as bits, by profile
	yield     func(Choice) bool
}

// through yields the choices of one sheet, and returns false once yield does.
func (s *search) through(sh *sheet) bool {
	unused, ok := sh.stock.unused(&s.o)
	if !ok {
		return true
	}
	offers := sh.offers[s.by]
	for i := range offers {
		of := &offers[i]
		if !s.adequate(of) || !s.want.Oversize && !s.isExact(of) {
			continue
		}
		starts := s.starts(sh, unused, of.profile) &^ s.seen[of.profile]
		s.seen[of.profile] |= starts
		for starts != 0 {
			choice := s.best(of, starts)
			choice.Template = sh.template
			if !s.yield(choice) {
				return false
			}
			starts &^= 1 << choice.Start
		}
	}
	return true
}

// starts lists, as bits, where an instance of profile index i can be created so
// that the sheet stays realisable. unused is what the sheet has beyond what is in
// use.
func (s *search) starts(sh *sheet, unused, i int) uint64 {
	starts := s.catalogue.model.legal(&s.o, i)
	if sh.template < 0 {
		return starts
	}
	if s.o.Counts[i] >= sh.stock.counts[i] {
		return 0
	}
	rest := unused - sh.stock.strides[i]
	windows := s.catalogue.model.shapes[i].states
	realisable := uint64(0)
	for ; starts != 0; starts &= starts - 1 {
		start := bits.TrailingZeros64(starts)
		if sh.stock.fit(rest, s.state|windows[start]) {
			realisable |= 1 << start
		}
	}
	return realisable
}

// best is the choice of an offer with the lowest score, of equal ones with the
// lowest start. There are few starts and mostly one is taken: no need to sort.
func (s *search) best(of *offer, starts uint64) Choice {
	choice := Choice{
		Placed:    Placed{Profile: of.entry.Profile},
		Size:      of.size,
		MemoryMiB: of.memory[s.by],
		Exact:     s.isExact(of),
		Score:     math.MaxInt64,
	}
	windows := s.catalogue.model.shapes[of.profile].states
	g := s.catalogue.positions
	now, then := g.position(s.row, s.state), g.then(s.row, of.profile)
	for ; starts != 0; starts &= starts - 1 {
		start := bits.TrailingZeros64(starts)
		after := g.position(then, s.state|windows[start])
		if score := s.catalogue.scores.of(s.state, now, after) - s.crowd; score < choice.Score {
			choice.Start, choice.Score = start, score
		}
	}
	return choice
}

// Count is the number of instances of a profile that a GPU in state o could still
// get one after the other, as the catalogue allows.
func (c *Catalogue) Count(o Occupancy, id ProfileID) int {
	i := c.model.index(id)
	if i < 0 {
		return 0
	}
	most := 0
	for j := range c.sheets {
		sh := &c.sheets[j]
		unused, ok := sh.stock.unused(&o)
		switch {
		case !ok:
		case sh.template < 0:
			if sh.offers.has(i) {
				most = max(most, c.model.room(&o, i))
			}
		case sh.stock.fit(unused, c.model.state(o.Mask)): // then all of it can be had
			most = max(most, int(sh.stock.counts[i]-o.Counts[i]))
		}
	}
	return most
}

// has reports whether profile index i is offered.
func (r *ranking) has(i int) bool {
	for _, o := range r[contract] {
		if o.profile == i {
			return true
		}
	}
	return false
}

// room is the number of instances of profile index i that can be added to o.
func (m *Model) room(o *Occupancy, i int) int {
	n, left := 0, int(m.shapes[i].max)-int(o.Counts[i])
	for starts := m.legal(o, i); starts != 0 && n < left; n++ {
		end := bits.TrailingZeros64(starts) + m.shapes[i].size // of the lowest: greedy is optimal for one size
		starts = starts >> end << end
	}
	return n
}

// LargestFree is the largest profile, by memory slices and then compute slices,
// that a GPU in state o could get now. Profiles that are given by name only count
// when the catalogue has no others.
func (c *Catalogue) LargestFree(o Occupancy) (Profile, bool) {
	best := -1
	for _, i := range c.common {
		p := &c.model.profiles[i]
		if best >= 0 {
			largest := &c.model.profiles[best]
			if p.Size < largest.Size || p.Size == largest.Size && p.ComputeSlices <= largest.ComputeSlices {
				continue
			}
		}
		if c.Count(o, p.ID) > 0 {
			best = i
		}
	}
	if best < 0 {
		return Profile{}, false
	}
	return c.model.profiles[best], true
}
