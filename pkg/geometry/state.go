// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"math/bits"
	"slices"
	"sync"
)

// State is a number for what is there on a GPU, as far as decisions of one
// catalogue can tell: equal states have equal choices, now and after any further
// instance. It is small and dense, so that tables can be indexed by it. States of
// different catalogues have nothing to do with each other, but WithMix keeps them.
type State int32

// Closed is the state, of every catalogue, of a GPU that takes nothing.
const Closed State = 0

// states numbers the occupancies that were met, in the order of their coming.
type states struct {
	tracked uint32 // bit i: the number of instances of profile index i matters

	mu    sync.RWMutex // guards what follows
	known map[Occupancy]State
	list  []Occupancy // by State, reduced; only appended to. The first stands for Closed
}

// newStates knows which counts a catalogue's decisions depend on. With templates
// it is all of them. Otherwise it is those of profiles that run out before their
// places do (+me), or that keep others away (+me.all); see legal.
func newStates(c *Catalogue) *states {
	s := &states{known: make(map[Occupancy]State), list: make([]Occupancy, 1)}
	for i, p := range c.model.profiles {
		shape := &c.model.shapes[i]
		if c.rule == RuleTemplates || int(shape.max) < p.abreast() {
			s.tracked |= 1 << i
		}
		if shape.apart != 0 {
			s.tracked |= 1<<i | shape.apart
		}
	}
	return s
}

// State is the number of o. It takes tens of nanoseconds; keep it with the GPU
// and look up again when the occupancy changes. Safe for parallel use.
func (c *Catalogue) State(o Occupancy) State {
	s := c.states
	o = s.reduced(c.model, o)
	s.mu.RLock()
	number, ok := s.known[o]
	s.mu.RUnlock()
	if ok {
		return number
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if number, ok = s.known[o]; !ok {
		number = State(len(s.list))
		s.known[o] = number
		s.list = append(s.list, o)
	}
	return number
}

// Occupied is an occupancy with this number, which must not be Closed: what all of
// its kind have in common.
func (c *Catalogue) Occupied(s State) Occupancy { return c.states.all()[s] }

// all lists the occupancies known by now. The list is shared.
func (s *states) all() []Occupancy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list
}

// reduced leaves out what no decision depends on.
func (s *states) reduced(m *Model, o Occupancy) Occupancy {
	var r Occupancy
	for _, unit := range m.units {
		if o.Mask&unit != 0 {
			r.Mask |= unit
		}
	}
	for set := s.tracked; set != 0; set &= set - 1 {
		i := bits.TrailingZeros32(set)
		r.Counts[i] = o.Counts[i]
	}
	return r
}

// successors are the states after each choice, without those that another of them
// leaves more than.
func (c *Catalogue) successors(s State, choices []Choice) []State {
	var after []Occupancy
	for _, choice := range choices {
		next, err := c.model.Occupy(c.Occupied(s), choice.Placed)
		if err != nil {
			panic(err) // a choice can be placed now (I6)
		}
		after = append(after, c.states.reduced(c.model, next))
	}
	var best []State
	for i, o := range after {
		if !slices.ContainsFunc(after, func(other Occupancy) bool { return other != o && c.leavesMore(&other, &o) }) &&
			!slices.Contains(after[:i], o) {
			best = append(best, c.State(o))
		}
	}
	return best
}

// leavesMore reports whether everything that can be had in state b can be had in
// state a as well: less is taken there.
func (c *Catalogue) leavesMore(a, b *Occupancy) bool {
	if a.Mask&^b.Mask != 0 {
		return false
	}
	if c.rule == RuleTemplates { // what is in use decides about templates
		return a.Counts == b.Counts
	}
	for set := c.states.tracked; set != 0; set &= set - 1 {
		if i := bits.TrailingZeros32(set); a.Counts[i] > b.Counts[i] {
			return false
		}
	}
	return true
}
