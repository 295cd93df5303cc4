// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Plan is a choice for each device of a Request, in its order.
type Plan struct {
	Devices []Assigned

	// Score orders plans over GPUs and nodes, lower is better: the number of
	// oversize devices first, then that of devices in a mode that suits them less,
	// then as the request's Policy says, and last how many GPUs of the node are idle.
	Score int64
}

// Assigned is the choice for one device: a MIG instance, or a software share.
type Assigned struct {
	GPU int // position in Node.GPUs
	geometry.Choice
	Share v1alpha1.Share // zero for an instance; its ID is not set

	cost int64 // of an instance, when it was chosen: geometry.Table.CostOf
}

// IsShare tells a software share from an instance.
func (a *Assigned) IsShare() bool { return a.Share.MemoryMiB > 0 }

// Fit finds a place for all devices of r on the node, or says why there is none.
// Each device goes to the best free choice, larger devices first, unless others
// then have no room: what the node can hold is found, unless the search exceeds
// maxSteps. Devices of one container are all instances or all shares, and shares
// are on different GPUs. Ties go to the lower GPU position and start, so equal
// input gives equal output. Pure; safe for parallel use.
func (v *View) Fit(r *Request) (Plan, *Verdict) {
	plan, verdict := v.find(r)
	if verdict == full {
		verdict = v.explain(r)
	}
	return plan, verdict
}

// Measure is the Score of Fit, for callers that do not need the plan.
func (v *View) Measure(r *Request) (int64, *Verdict) {
	if len(r.Devices) > 1 {
		plan, verdict := v.Fit(r)
		return plan.Score, verdict
	}
	if verdict := v.precheck(r); verdict != nil {
		return 0, verdict
	}
	_, score, ok := v.best(r)
	if !ok {
		return 0, v.explain(r)
	}
	return v.total(r, score), nil
}

// Fits is Fit for callers that need neither the plan nor the reason, which takes
// further searches.
func (v *View) Fits(r *Request) bool {
	_, verdict := v.find(r)
	return verdict == nil
}

// full is find's verdict on a node that has no room as it is; explain knows more.
var full = &Verdict{Reason: "node(s) had no room", Curable: true}

// find is Fit without the reasons that take further searches.
func (v *View) find(r *Request) (Plan, *Verdict) {
	if verdict := v.precheck(r); verdict != nil {
		return Plan{}, verdict
	}
	plan, out := v.plan(r)
	switch out {
	case found:
		return plan, nil
	case exceeded:
		return Plan{}, r.verdict("node(s) took too many steps to search for ", true)
	default:
		return Plan{}, full
	}
}

// outcome of a search for a plan.
type outcome int

const (
	none     outcome = iota // there is no plan
	found                   //
	exceeded                // the search was given up: nothing is known
)

// plan looks for one, whatever precheck says.
func (v *View) plan(r *Request) (Plan, outcome) {
	if len(r.Devices) > 1 {
		plan, out := v.search(r)
		plan.Score = v.total(r, plan.Score)
		return plan, out
	}
	best, score, ok := v.best(r)
	if !ok {
		return Plan{}, none
	}
	return Plan{Devices: []Assigned{best}, Score: v.total(r, score)}, found
}

// precheck rejects what needs no look at what is taken.
func (v *View) precheck(r *Request) *Verdict {
	tooMany := len(r.Devices) > v.Node.devices
	if v.Node.offers && v.simple(r) && !v.replaced && !v.contested && !tooMany {
		return nil // most of all
	}
	offers := func(g GPU) bool { return g.Offered || g.Shares != nil }
	mode := func(g GPU) bool { return r.MIG && g.Offered || r.Share && g.Shares != nil }
	selected := func(g GPU) bool { return mode(g) && r.Select.accept(&g) }
	switch {
	case v.replaced:
		return &Verdict{Reason: ReasonNodeChanged}
	case v.contested:
		return &Verdict{Reason: ReasonNominated, Curable: true}
	case slices.ContainsFunc(v.Node.GPUs, selected):
		if tooMany {
			return r.verdict(reasonsBy[v.considered(r)].never, false) // without a search
		}
		return nil
	case slices.ContainsFunc(v.Node.GPUs, mode):
		return &Verdict{Reason: ReasonNotSelected}
	case r.unshared && slices.ContainsFunc(v.Node.GPUs, offers):
		return &Verdict{Reason: ReasonSharesOnly}
	case r.Share && v.Node.noLibrary:
		return &Verdict{Reason: ReasonNoLibrary}
	case slices.ContainsFunc(v.Node.GPUs, offers) || !r.MIG:
		return &Verdict{Reason: ReasonNoMode}
	default:
		return &Verdict{Reason: ReasonNotOffered}
	}
}

// best is the best choice for a single device.
func (v *View) best(r *Request) (best Assigned, lowest int64, found bool) {
	if v.simple(r) {
		gpu, c, cost, band := v.Node.cheapest(r, 0, v.cut)
		if c == nil {
			return best, 0, false
		}
		return Assigned{GPU: gpu, Choice: *c, cost: cost}, band + cost, true
	}
	for i := range v.Node.GPUs {
		if a, score, ok := v.bestOn(r, i); ok && (!found || score < lowest) {
			best, lowest, found = a, score, true
		}
	}
	return best, lowest, found
}

// bestOn is the best choice for a single device on one GPU.
func (v *View) bestOn(r *Request, gpu int) (best Assigned, lowest int64, found bool) {
	if !r.Select.accept(&v.Node.GPUs[gpu]) {
		return best, 0, false
	}
	s := state{occupied: v.occupied, taken: v.taken} // read only
	if a, ok := v.share(r, 0, gpu, &s); ok {
		best, lowest, found = a, v.score(r, 0, &a, v.taken[gpu]), true
	}
	if r.MIG {
		if a, ok := v.first(r, 0, gpu, v.cut[gpu]); ok {
			if score := v.score(r, 0, &a, v.taken[gpu]); !found || score < lowest {
				best, lowest, found = a, score, true
			}
		}
	}
	return best, lowest, found
}

// mode is a set of modes.
type mode uint8

const (
	mig mode = 1 << iota
	share
)

func (r *Request) modes() (m mode) {
	if r.MIG {
		m |= mig
	}
	if r.Share {
		m |= share
	}
	return m
}

// each yields the choices for a device on one GPU in some modes.
func (v *View) each(r *Request, device, gpu int, s *state, in mode, yield func(Assigned)) {
	if in&share != 0 {
		if a, ok := v.share(r, device, gpu, s); ok {
			yield(a)
		}
	}
	if in&mig == 0 {
		return
	}
	t := r.on(v.Node.GPUs[gpu].Catalogue).tables[device]
	for _, c := range t.Choices(s.cut[gpu]) {
		if !v.avoids(gpu, c.Placed) {
			yield(Assigned{GPU: gpu, Choice: c, cost: t.CostOf(s.cut[gpu], c)})
		}
	}
}

// share is the software share for a device on a GPU, if it fits there.
func (v *View) share(r *Request, device, gpu int, s *state) (Assigned, bool) {
	g := &v.Node.GPUs[gpu]
	if !r.Share || g.Shares == nil || g.avoidsShares && !v.regardless {
		return Assigned{}, false
	}
	share, ok := r.Shares[device].on(g.Shares)
	return Assigned{GPU: gpu, Share: share}, ok && s.admits(g, gpu, share)
}

// state is what is taken of each GPU, by position.
type state struct {
	occupied []geometry.Occupancy
	taken    []Taken
	cut      []geometry.State // both as a state for instances; nil while a view is built
}

// state is a copy of what is taken in the view.
func (v *View) state() state {
	s := state{v.occupied, v.taken, v.cut}
	return s.clone()
}

func (s *state) clone() state {
	return state{occupied: slices.Clone(s.occupied), taken: slices.Clone(s.taken), cut: slices.Clone(s.cut)}
}

// cuttable reports whether a GPU takes instances.
func (s *state) cuttable(n *Node, gpu int) bool {
	return n.GPUs[gpu].Offered && s.taken[gpu].Count == 0
}

// admits reports whether a share fits on a GPU.
func (s *state) admits(g *GPU, gpu int, share v1alpha1.Share) bool {
	return s.occupied[gpu].Mask == 0 && s.taken[gpu].Admits(share, g.Shares)
}

// take takes a choice, if it is on offer and free.
func (s *state) take(n *Node, a Assigned) bool {
	g := &n.GPUs[a.GPU]
	if a.IsShare() {
		if g.Shares == nil || !s.admits(g, a.GPU, a.Share) {
			return false
		}
		s.taken[a.GPU], s.cut[a.GPU] = s.taken[a.GPU].With(a.Share), geometry.Closed
		return true
	}
	if !s.cuttable(n, a.GPU) {
		return false
	}
	next, err := g.Catalogue.Model().Occupy(s.occupied[a.GPU], a.Placed)
	if err != nil {
		return false
	}
	s.occupied[a.GPU], s.cut[a.GPU] = next, g.Catalogue.State(next)
	return true
}

// Allocation is the annotation that publishes the plan.
func (v *View) Allocation(r *Request, p Plan) v1alpha1.Allocation {
	a := v1alpha1.Allocation{
		Version: v1alpha1.AllocationVersion, Node: v.Node.Name, PodUID: r.UID,
		Containers: make(map[string][]v1alpha1.Device, len(r.Containers)),
	}
	for name, indexes := range r.Containers {
		for _, i := range indexes {
			a.Containers[name] = append(a.Containers[name], v.device(i, p.Devices[i]))
		}
	}
	return a
}

// device is one device of the annotation; its position in the plan is a share's id.
func (v *View) device(position int, d Assigned) v1alpha1.Device {
	g := &v.Node.GPUs[d.GPU]
	if d.IsShare() {
		share := d.Share
		share.ID = int32(position)
		return v1alpha1.Device{GPU: g.ID, Share: &share}
	}
	profile, _ := g.Catalogue.Model().Profile(d.Profile)
	return v1alpha1.Device{GPU: g.ID, MIG: &v1alpha1.MIGInstance{
		ProfileID: int32(d.Profile), Profile: profile.Name, Start: int32(d.Start), Size: int32(d.Size), MemoryMiB: int64(d.MemoryMiB),
	}}
}

// Holder is what the pod holds once the plan is assumed.
func (v *View) Holder(r *Request, p Plan) Holder {
	h := Holder{Pod: r.Pod, UID: r.UID, Node: v.Node.Name, Spans: make([]Held, len(p.Devices))}
	for i, d := range p.Devices {
		h.Spans[i] = v.held(i, d)
	}
	return h
}

func (v *View) held(position int, d Assigned) Held {
	h := Held{GPU: v.Node.GPUs[d.GPU].ID, Placed: d.Placed, Size: d.Size, Share: d.Share}
	if d.IsShare() {
		h.Share.ID = int32(position)
	}
	return h
}

// Has reports whether all that h holds is on offer and free in v.
func (v *View) Has(h Holder) bool {
	state := v.state()
	for _, s := range h.Spans {
		i, ok := v.Node.index[s.GPU]
		if !ok || !state.take(v.Node, Assigned{GPU: i, Choice: geometry.Choice{Placed: s.Placed}, Share: s.Share}) {
			return false
		}
	}
	return true
}
