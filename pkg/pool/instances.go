// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"slices"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// instances gives each device an instance: the cheapest where that works out for
// all, else the cheapest that leaves room for the others.
func (s *search) instances() bool {
	for i := range s.cut {
		if !s.request.Select.accept(&s.view.Node.GPUs[i]) {
			s.cut[i] = geometry.Closed
		}
	}
	start := s.clone()
	if s.greedily() {
		return true
	}
	s.state = start
	s.room = newRoom(s)
	if !s.room.holds(0) {
		return false
	}
	for i, device := range s.order {
		if !s.leavingRoom(i, device) {
			return false // the bound is reached
		}
	}
	return true
}

// greedily gives each device the cheapest.
func (s *search) greedily() bool {
	for _, device := range s.order {
		a, ok := s.cheapest(device)
		if !ok {
			return false
		}
		if !s.choose(device, a) {
			return false
		}
	}
	return true
}

// cheapest is the first of all candidates for a device.
func (s *search) cheapest(device int) (Assigned, bool) {
	if s.view.Node.simple {
		gpu, c, cost, _ := s.view.Node.cheapest(s.request, device, s.cut)
		if c == nil {
			return Assigned{}, false
		}
		return Assigned{GPU: gpu, Choice: *c, cost: cost}, true
	}
	var best Assigned
	least, found := int64(0), false
	for gpu := range s.view.Node.GPUs {
		if a, ok := s.view.first(s.request, device, gpu, s.cut[gpu]); ok {
			if score := s.view.score(s.request, device, &a, Taken{}); !found || score < least {
				best, least, found = a, score, true
			}
		}
	}
	return best, found
}

// leavingRoom takes the cheapest choice for a device beside which those behind
// position i of the order have room.
func (s *search) leavingRoom(i, device int) bool {
	for _, a := range s.everyChoice(device) {
		occupied, cut := s.occupied[a.GPU], s.cut[a.GPU]
		if s.choose(device, a) && s.room.holds(i+1) {
			return true
		}
		s.occupied[a.GPU], s.cut[a.GPU] = occupied, cut
	}
	return false
}

// choose takes an instance, if it is free, as those that tables offer are.
func (s *search) choose(device int, a Assigned) bool {
	s.chosen[device], s.scores[device] = a, s.view.score(s.request, device, &a, Taken{})
	return s.take(s.view.Node, a)
}

// everyChoice lists the instances for a device, the cheapest first. Of GPUs that
// look the same only the first is tried.
func (s *search) everyChoice(device int) []Assigned {
	tried := map[look]struct{}{}
	var out []Assigned
	for i := range s.view.Node.GPUs {
		g := &s.view.Node.GPUs[i]
		this := look{g.Catalogue, s.cut[i]}
		if _, again := tried[this]; again {
			continue
		}
		if len(g.avoided) == 0 {
			tried[this] = struct{}{}
		}
		s.view.each(s.request, device, i, &s.state, mig, func(a Assigned) { out = append(out, a) })
	}
	score := func(a *Assigned) int64 { return s.view.score(s.request, device, a, Taken{}) }
	slices.SortStableFunc(out, func(a, b Assigned) int { return cmp.Compare(score(&a), score(&b)) })
	return out
}

// look is what decisions can tell of a GPU without avoided placements.
type look struct {
	catalogue *geometry.Catalogue
	state     geometry.State
}
