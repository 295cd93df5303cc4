// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"slices"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Plan is a choice for each device of a Request, in its order.
type Plan struct {
	Devices []Assigned

	// Score orders plans over GPUs and nodes, lower is better: the number of
	// oversize devices first, then the sum of the geometry's scores.
	Score int64
}

// Assigned is the choice for one device.
type Assigned struct {
	GPU int // position in Node.GPUs
	geometry.Choice
}

// bandWeight is larger than any sum of geometry scores of one pod.
const bandWeight = int64(1) << 50

// score of one choice on its own.
func score(c geometry.Choice) int64 {
	if c.Exact {
		return c.Score
	}
	return bandWeight + c.Score
}

// maxSteps bounds the search for several devices. Realistic mixes need a few
// steps per device; beyond the bound the node counts as full.
const maxSteps = 20000

// Fit finds placements for all devices of r on the node, or says why there are
// none. Each device goes to the best free choice, larger devices first, with
// backtracking: what the node can hold is found, unless the search exceeds
// maxSteps. Ties go to the lower GPU position and start, so equal input gives
// equal output. Pure; safe for parallel use.
func (v *View) Fit(r *Request) (Plan, *Verdict) {
	if verdict := v.precheck(r); verdict != nil {
		return Plan{}, verdict
	}
	if len(r.Devices) == 1 {
		if best, ok := v.best(r.Devices[0]); ok {
			return Plan{Devices: []Assigned{best}, Score: score(best.Choice)}, nil
		}
		return Plan{}, v.explain(r)
	}
	s := newSearch(v, r)
	if !s.place(0) {
		return Plan{}, v.explain(r)
	}
	return s.plan(), nil
}

// precheck rejects what needs no look at the GPUs.
func (v *View) precheck(r *Request) *Verdict {
	switch {
	case v.contested:
		return &Verdict{Reason: ReasonNominated, Curable: true}
	case !r.MIG:
		return &Verdict{Reason: ReasonNoMode}
	case !slices.ContainsFunc(v.Node.GPUs, func(g GPU) bool { return g.Offered }):
		return &Verdict{Reason: ReasonNotOffered}
	}
	return nil
}

// best is the best choice for a single device.
func (v *View) best(w geometry.Want) (best Assigned, found bool) {
	for i := range v.Node.GPUs {
		g := &v.Node.GPUs[i]
		if !g.Offered {
			continue
		}
		c, ok := v.first(i, w)
		if ok && (!found || score(c) < score(best.Choice)) {
			best, found = Assigned{GPU: i, Choice: c}, true
		}
	}
	return best, found
}

// first is the preferred choice on one GPU.
func (v *View) first(gpu int, w geometry.Want) (first geometry.Choice, found bool) {
	if g := &v.Node.GPUs[gpu]; len(g.avoided) == 0 {
		return g.Catalogue.Fit(v.occupied[gpu], w)
	}
	v.choices(gpu, v.occupied[gpu], w, func(c geometry.Choice) bool {
		first, found = c, true
		return false
	})
	return first, found
}

// choices yields the choices on one GPU in a state, preferred ones first, without
// those that are avoided.
func (v *View) choices(gpu int, o geometry.Occupancy, w geometry.Want, yield func(geometry.Choice) bool) {
	g := &v.Node.GPUs[gpu]
	g.Catalogue.Choices(o, w, func(c geometry.Choice) bool {
		return !v.regardless && slices.Contains(g.avoided, c.Placed) || yield(c)
	})
}

// search is one depth-first search over the devices of a request.
type search struct {
	view     *View
	request  *Request
	order    []int // devices, largest want first
	occupied []geometry.Occupancy
	chosen   []Assigned // by device
	dead     map[string]struct{}
	steps    int
}

func newSearch(v *View, r *Request) *search {
	s := &search{
		view:     v,
		request:  r,
		order:    make([]int, len(r.Devices)),
		occupied: slices.Clone(v.occupied),
		chosen:   make([]Assigned, len(r.Devices)),
		dead:     map[string]struct{}{},
	}
	for i := range s.order {
		s.order[i] = i
	}
	slices.SortStableFunc(s.order, func(a, b int) int {
		return compareWants(r.Devices[b], r.Devices[a])
	})
	return s
}

// compareWants orders by size, as far as a want tells without a model.
func compareWants(a, b geometry.Want) int {
	full := func(w geometry.Want) int {
		if w.Full {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(full(a), full(b)), cmp.Compare(a.Percent, b.Percent),
		cmp.Compare(a.MemoryMiB, b.MemoryMiB), cmp.Compare(a.Cores, b.Cores), cmp.Compare(a.Profile, b.Profile))
}

// place assigns the devices from position i of the order on.
func (s *search) place(i int) bool {
	if i == len(s.order) {
		return true
	}
	state := s.key(i)
	if _, known := s.dead[state]; known {
		return false
	}
	device := s.order[i]
	for _, a := range s.candidates(s.request.Devices[device]) {
		if s.steps++; s.steps > maxSteps {
			return false
		}
		before := s.occupied[a.GPU]
		next, err := s.view.Node.GPUs[a.GPU].Catalogue.Model().Occupy(before, a.Placed)
		if err != nil {
			continue // not reached: the catalogue offers free placements only
		}
		s.occupied[a.GPU], s.chosen[device] = next, a
		if s.place(i + 1) {
			return true
		}
		s.occupied[a.GPU] = before
	}
	s.dead[state] = struct{}{}
	return false
}

// candidates lists the choices for a want, best first. Of GPUs that look the
// same only the first is tried.
func (s *search) candidates(w geometry.Want) []Assigned {
	type look struct {
		catalogue *geometry.Catalogue
		occupied  geometry.Occupancy
	}
	tried := map[look]struct{}{}
	var out []Assigned
	for i := range s.view.Node.GPUs {
		g := &s.view.Node.GPUs[i]
		this := look{g.Catalogue, s.occupied[i]}
		if _, again := tried[this]; again || !g.Offered {
			continue
		}
		if len(g.avoided) == 0 {
			tried[this] = struct{}{}
		}
		s.view.choices(i, s.occupied[i], w, func(c geometry.Choice) bool {
			out = append(out, Assigned{GPU: i, Choice: c})
			return true
		})
	}
	slices.SortStableFunc(out, func(a, b Assigned) int { return cmp.Compare(score(a.Choice), score(b.Choice)) })
	return out
}

// key names a state of the search: what is left to place, and where.
func (s *search) key(i int) string {
	key := make([]byte, 0, 1+len(s.occupied)*12)
	key = append(key, byte(i))
	for _, o := range s.occupied {
		for shift := 0; shift < 64; shift += 8 {
			key = append(key, byte(o.Mask>>shift))
		}
		key = append(key, o.Counts[:]...)
	}
	return string(key)
}

func (s *search) plan() Plan {
	p := Plan{Devices: s.chosen}
	for _, a := range s.chosen {
		p.Score += score(a.Choice)
	}
	return p
}

// Allocation is the annotation that publishes the plan.
func (v *View) Allocation(r *Request, p Plan) v1alpha1.Allocation {
	a := v1alpha1.Allocation{
		Version: v1alpha1.AllocationVersion, Node: v.Node.Name, PodUID: r.UID,
		Containers: make(map[string][]v1alpha1.Device, len(r.Containers)),
	}
	for name, indexes := range r.Containers {
		for _, i := range indexes {
			a.Containers[name] = append(a.Containers[name], v.device(p.Devices[i]))
		}
	}
	return a
}

func (v *View) device(d Assigned) v1alpha1.Device {
	g := &v.Node.GPUs[d.GPU]
	profile, _ := g.Catalogue.Model().Profile(d.Profile)
	return v1alpha1.Device{GPU: g.ID, MIG: &v1alpha1.MIGInstance{
		ProfileID: int32(d.Profile), Profile: profile.Name, Start: int32(d.Start), Size: int32(d.Size), MemoryMiB: int64(d.MemoryMiB),
	}}
}

// Holder is what the pod holds once the plan is assumed.
func (v *View) Holder(r *Request, p Plan) Holder {
	h := Holder{Pod: r.Pod, UID: r.UID, Node: v.Node.Name, Spans: make([]Held, len(p.Devices))}
	for i, d := range p.Devices {
		h.Spans[i] = Held{GPU: v.Node.GPUs[d.GPU].ID, Placed: d.Placed, Size: d.Size}
	}
	return h
}

// Offers reports whether the node still offers what h holds: its GPUs are there
// and take instances, its profiles exist, and nobody else's instance is in the
// way. It is the last check before a choice is published.
func (n *Node) Offers(h Holder) bool { return n.idle().Has(h) }

// Has reports whether all of h's placements are on offer and free in v.
func (v *View) Has(h Holder) bool {
	occupied := slices.Clone(v.occupied)
	for _, s := range h.Spans {
		i, ok := v.Node.index[s.GPU]
		if !ok || !v.Node.GPUs[i].Offered {
			return false
		}
		next, err := v.Node.GPUs[i].Catalogue.Model().Occupy(occupied[i], s.Placed)
		if err != nil {
			return false
		}
		occupied[i] = next
	}
	return true
}
