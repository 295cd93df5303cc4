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
// instance, and equal costs. It is small and dense, so that tables can be indexed by it. States of
// different catalogues have nothing to do with each other, but WithMix keeps them.
type State int32

// Closed is the state, of every catalogue, of a GPU that takes nothing.
const Closed State = 0

// states numbers the occupancies that were met, in the order of their coming.
type states struct {
	tracked uint32 // bit i: the number of instances of profile index i matters

	mu    sync.RWMutex // guards what follows
	known map[kind]State
	list  []kind // by State; only appended to. The first stands for Closed
}

// kind is what a State stands for: an occupancy, reduced, and the number of instances,
// which does not matter to what can be had but to what it costs.
type kind struct {
	Occupancy
	instances uint8
}

// instances counts all of them.
func (o *Occupancy) instances() (sum uint8) {
	for _, n := range o.Counts {
		sum += n
	}
	return sum
}

// newStates knows which counts a catalogue's decisions depend on. With templates
// it is all of them. Otherwise it is those of profiles that run out before their
// places do (+me), or that keep others away (+me.all); see legal.
func newStates(c *Catalogue) *states {
	s := &states{known: make(map[kind]State), list: make([]kind, 1)}
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
	return c.states.number(kind{c.states.reduced(c.model, o), o.instances()})
}

func (s *states) number(k kind) State {
	s.mu.RLock()
	number, ok := s.known[k]
	s.mu.RUnlock()
	if ok {
		return number
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if number, ok = s.known[k]; !ok {
		number = State(len(s.list))
		s.known[k] = number
		s.list = append(s.list, k)
	}
	return number
}

// Then is the state after one more instance, and false if it cannot be placed. The
// state before must not be Closed.
func (c *Catalogue) Then(s State, p Placed) (State, bool) {
	before := c.states.all()[s]
	o, err := c.model.Occupy(before.Occupancy, p)
	if err != nil {
		return Closed, false
	}
	return c.states.number(kind{c.states.reduced(c.model, o), before.instances + 1}), true
}

// all lists what is known by now. The list is shared.
func (s *states) all() []kind {
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
	var after []State
	for _, choice := range choices {
		next, ok := c.Then(s, choice.Placed)
		if !ok {
			panic("a choice cannot be placed") // not reached (I6)
		}
		after = append(after, next)
	}
	kinds := c.states.all()
	var best []State
	for i, o := range after {
		if !slices.ContainsFunc(after, func(other State) bool {
			return other != o && c.leavesMore(&kinds[other].Occupancy, &kinds[o].Occupancy)
		}) && !slices.Contains(after[:i], o) {
			best = append(best, o)
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
