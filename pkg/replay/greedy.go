// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"math"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// rule scores a choice on a GPU in a state; the least wins.
type rule func(before, after *state) int64

// firstFit takes the first GPU that has room.
func firstFit(before, after *state) int64 { return 0 }

// bestFit takes the GPU with the least free memory.
func bestFit(before, after *state) int64 { return int64(before.free) }

// leastFragmentation is fragmentation gradient descent (Weng et al., USENIX ATC
// 2023) for MIG, told the trace's mix of requests: it takes the steepest descent of
// the free memory that the next request is expected not to be able to use.
func leastFragmentation(before, after *state) int64 {
	return int64(math.Round((after.fragments() - before.fragments()) * geometry.ScoreScale))
}

// fragments is the expected number of free memory slices that the next request
// cannot use.
func (s *state) fragments() float64 {
	stuck := 0.0
	for _, p := range s.of.model.Profiles() { // sums need an order
		weight := s.of.mix[p.ID]
		if weight == 0 {
			continue
		}
		has := false
		for range s.of.model.Starts(s.occupancy, p.ID) {
			has = true
			break
		}
		if !has {
			stuck += weight
		}
	}
	return stuck * float64(s.free)
}

// greedy places by a rule: of all choices on all GPUs an exact one before an
// oversize one, then the least score, the lowest GPU and the lowest start. Several
// devices go to the node where the sum is least, one after the other.
type greedy struct {
	*cluster
	rule rule
}

// best is the choice of a rule on one GPU for one class.
type best struct {
	known, found bool
	placed       geometry.Placed
	cost         cost
}

// cost orders choices.
type cost struct {
	oversize int // memory slices of devices that are larger than needed
	score    int64
}

func (a cost) less(b cost) bool {
	return a.oversize < b.oversize || a.oversize == b.oversize && a.score < b.score
}

func (a cost) plus(b cost) cost { return cost{a.oversize + b.oversize, a.score + b.score} }

func (g *greedy) took(int, []Spot) error { return nil }
func (g *greedy) gave(int, []Spot) error { return nil }

func (g *greedy) choose(class int) ([]Spot, bool) {
	if g.classes[class].devices > 1 {
		return g.chooseNode(class)
	}
	at, least := -1, cost{}
	for i, s := range g.at {
		if b := g.on(s, class); b.found && (at < 0 || b.cost.less(least)) {
			at, least = i, b.cost
		}
	}
	if at < 0 {
		return nil, false
	}
	return []Spot{{at, g.on(g.at[at], class).placed}}, true
}

// chooseNode places several devices.
func (g *greedy) chooseNode(class int) (spots []Spot, found bool) {
	var least cost
	for node := range g.fleet.nodes {
		if on, sum, ok := g.onNode(node, class); ok && (!found || sum.less(least)) {
			spots, least, found = on, sum, true
		}
	}
	return spots, found
}

// onNode places all devices on one node, if they fit there.
func (g *greedy) onNode(node, class int) (spots []Spot, sum cost, ok bool) {
	from, to := g.fleet.first[node], g.fleet.first[node+1]
	at := append([]*state(nil), g.at[from:to]...)
	for range g.classes[class].devices {
		pick, least := -1, cost{}
		for i, s := range at {
			if b := g.on(s, class); b.found && (pick < 0 || b.cost.less(least)) {
				pick, least = i, b.cost
			}
		}
		if pick < 0 {
			return nil, cost{}, false
		}
		placed := g.on(at[pick], class).placed
		after, err := at[pick].of.model.Occupy(at[pick].occupancy, placed)
		if err != nil {
			return nil, cost{}, false // not reached: choices are free placements
		}
		at[pick] = at[pick].of.at(after)
		spots, sum = append(spots, Spot{from + pick, placed}), sum.plus(least)
	}
	return spots, sum, true
}

// on is the rule's choice on a GPU in a state. It is worked out once.
func (g *greedy) on(s *state, class int) *best {
	if s.best == nil {
		s.best = make([]best, len(s.of.classes))
	}
	b := &s.best[class]
	if b.known {
		return b
	}
	b.known = true
	s.of.catalogue.Choices(s.occupancy, s.of.classes[class].want, func(c geometry.Choice) bool {
		after, err := s.of.model.Occupy(s.occupancy, c.Placed)
		if err != nil {
			return true // not reached: choices are free placements
		}
		this := cost{score: g.rule(s, s.of.at(after))}
		if !c.Exact {
			this.oversize = c.Size
		}
		if !b.found || this.less(b.cost) || !b.cost.less(this) && c.Start < b.placed.Start {
			b.found, b.placed, b.cost = true, c.Placed, this
		}
		return true
	})
	return b
}
