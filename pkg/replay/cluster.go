// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Spot is where one device of a job is.
type Spot struct {
	GPU int // position in the fleet
	geometry.Placed
}

// policy chooses where jobs go. It is told of every change, so that it may keep an
// index of its own.
type policy interface {
	// choose returns a spot for each device of a job of this class, all on one
	// node, and false when it finds none. It changes nothing.
	choose(class int) ([]Spot, bool)
	// took and gave tell that a job now has the spots just chosen, or has its spots
	// no longer.
	took(class int, spots []Spot) error
	gave(class int, spots []Spot) error
}

// learner is a policy that learns from the jobs that arrive.
type learner interface{ learn(class int) }

// gauge is what is measured at one moment.
type gauge struct {
	memory, compute int // slices that running jobs use
	gpus            int // with anything on them
	free            int // memory slices without an instance
	stranded        int // of these, where no profile that the trace asks for can lie
}

// world is what jobs are placed in.
type world interface {
	// arrived tells that there is a new job.
	arrived(class int)
	// choose decides whether and where a job of this class can start.
	choose(class int) (spots []Spot, ok bool)
	// place starts it, as choose just said.
	place(class int, spots []Spot) error
	// remove ends it.
	remove(class int, spots []Spot) error
	// read is the state now.
	read() gauge
}

// cluster is the world of all policies that place instances: it holds what is
// where, and refuses what hardware would refuse.
type cluster struct {
	fleet   *Fleet
	classes []class
	policy  policy
	at      []*state // by GPU
	busy    []int    // instances by GPU
	states  []*states
	now     gauge
}

func newCluster(f *Fleet, classes []class) *cluster {
	c := &cluster{fleet: f, classes: classes, at: make([]*state, len(f.gpus)), busy: make([]int, len(f.gpus))}
	for i := range f.models {
		c.states = append(c.states, newStates(f, i, classes))
	}
	for i, g := range f.gpus {
		c.at[i] = c.states[g.model].idle()
		c.now.free += c.at[i].free
		c.now.stranded += c.at[i].stranded
	}
	return c
}

func (c *cluster) read() gauge { return c.now }

func (c *cluster) arrived(class int) {
	if p, ok := c.policy.(learner); ok {
		p.learn(class)
	}
}

func (c *cluster) choose(class int) ([]Spot, bool) { return c.policy.choose(class) }

func (c *cluster) place(class int, spots []Spot) error {
	for _, s := range spots {
		if err := c.change(class, s, 1); err != nil {
			return err
		}
	}
	return c.policy.took(class, spots)
}

func (c *cluster) remove(class int, spots []Spot) error {
	for _, s := range spots {
		if err := c.change(class, s, -1); err != nil {
			return err
		}
	}
	return c.policy.gave(class, spots)
}

// change puts an instance (by is 1) or removes it (-1).
func (c *cluster) change(class int, s Spot, by int) error {
	g := c.fleet.gpus[s.GPU]
	before := c.at[s.GPU]
	act := before.of.model.Occupy
	if by < 0 {
		act = before.of.model.Vacate
	}
	occupancy, err := act(before.occupancy, s.Placed)
	if err != nil {
		return err
	}
	after := before.of.at(occupancy)
	c.at[s.GPU] = after
	used := c.classes[class].sizes[g.model]
	c.now.memory += by * used.memory
	c.now.compute += by * used.compute
	c.now.free += after.free - before.free
	c.now.stranded += after.stranded - before.stranded
	if before := c.busy[s.GPU]; before == 0 || before+by == 0 {
		c.now.gpus += by
	}
	c.busy[s.GPU] += by
	return nil
}

// states numbers what GPUs of one model have been seen in, so that everything
// about a state is worked out once.
type states struct {
	model     *geometry.Model
	catalogue *geometry.Catalogue
	classes   []class
	position  int // of the model in the fleet
	known     map[geometry.Occupancy]*state
	mix       map[geometry.ProfileID]float64 // of the trace, sums up to 1
}

// state is one of them.
type state struct {
	of        *states
	occupancy geometry.Occupancy
	free      int    // memory slices
	stranded  int    // memory slices
	best      []best // by class, for the comparators
}

func newStates(f *Fleet, model int, classes []class) *states {
	s := &states{
		model: f.models[model].catalogue.Model(), catalogue: f.models[model].catalogue,
		classes: classes, position: model, known: map[geometry.Occupancy]*state{},
		mix: mix(classes, model),
	}
	sum := 0.0
	for i := range classes {
		if classes[i].sizes[model].memory > 0 {
			sum += classes[i].weight
		}
	}
	for id := range s.mix {
		s.mix[id] /= sum
	}
	return s
}

func (s *states) idle() *state { return s.at(geometry.Occupancy{}) }

// at is the state of an occupancy.
func (s *states) at(o geometry.Occupancy) *state {
	if found, ok := s.known[o]; ok {
		return found
	}
	made := &state{of: s, occupancy: o, free: s.model.FreeSlices(o)}
	made.stranded = s.stranded(o)
	s.known[o] = made
	return made
}

// stranded counts free memory slices that no profile of the trace could take.
func (s *states) stranded(o geometry.Occupancy) int {
	reach := o // what could be taken, and what is
	for i := range s.classes {
		if s.classes[i].sizes[s.position].memory == 0 {
			continue
		}
		want := s.classes[i].want
		want.Oversize = false
		s.catalogue.Choices(o, want, func(c geometry.Choice) bool {
			reach = s.model.Block(reach, geometry.Placement{Start: c.Start, Size: c.Size})
			return true
		})
	}
	return s.model.FreeSlices(reach)
}
