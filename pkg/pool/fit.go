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
	// then the sum of the scores of the places.
	Score int64
}

// Assigned is the choice for one device: a MIG instance, or a software share.
type Assigned struct {
	GPU int // position in Node.GPUs
	geometry.Choice
	Share v1alpha1.Share // zero for an instance; its ID is not set
}

// IsShare tells a software share from an instance.
func (a *Assigned) IsShare() bool { return a.Share.MemoryMiB > 0 }

// Weights of the bands: each is larger than any sum of what stands below it.
const (
	oversizeWeight = int64(1) << 54
	modeWeight     = int64(1) << 44
)

// score of one choice for a device on its own. A software share is always exact:
// its score is the memory that it leaves on the GPU, so that shares fill GPUs up.
func (v *View) score(r *Request, device int, a *Assigned, t Taken) int64 {
	score := modeWeight * v.aversion(r, device, a)
	if a.IsShare() {
		return score + v.Node.GPUs[a.GPU].Shares.MemoryMiB - t.MemoryMiB - a.Share.MemoryMiB
	}
	if !a.Exact {
		score += oversizeWeight
	}
	return score + a.Choice.Score
}

// aversion is how little a mode suits a device whose pod does not name one: an
// instance of which the request fills half or more, 0; a share, 1; any other
// instance, and any of a container with several devices, since one CUDA process
// sees one MIG device, 2.
func (v *View) aversion(r *Request, device int, a *Assigned) int64 {
	switch {
	case !r.MIG || !r.Share:
		return 0
	case a.IsShare():
		return 1
	case r.joint[device] || !fillsHalf(r.Devices[device], v.Node.GPUs[a.GPU].Catalogue.Model(), a):
		return 2
	default:
		return 0
	}
}

// fillsHalf reports whether a want uses half or more of an instance, by what it
// asks for.
func fillsHalf(w geometry.Want, m *geometry.Model, a *Assigned) bool {
	switch {
	case w.Full || w.Profile != "":
		return true
	case w.MemoryMiB > 0:
		return 2*w.MemoryMiB >= a.MemoryMiB
	case w.Percent > 0:
		return 2*w.Percent*m.MemorySlices() >= 100*a.Size
	default:
		profile, _ := m.Profile(a.Profile)
		return 2*w.Cores*m.ComputeSlices() >= 100*profile.ComputeSlices
	}
}

// Fit finds a place for all devices of r on the node, or says why there is none.
// Each device goes to the best free choice, larger devices first, with
// backtracking: what the node can hold is found, unless the search exceeds
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
		return Plan{}, &Verdict{Reason: "node(s) took too many steps to search for " + describeAll(r), Curable: true}
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
		return v.search(r)
	}
	best, score, ok := v.best(r)
	if !ok {
		return Plan{}, none
	}
	return Plan{Devices: []Assigned{best}, Score: score}, found
}

// precheck rejects what needs no look at what is taken.
func (v *View) precheck(r *Request) *Verdict {
	offers := func(g GPU) bool { return g.Offered || g.Shares != nil }
	mode := func(g GPU) bool { return r.MIG && g.Offered || r.Share && g.Shares != nil }
	selected := func(g GPU) bool { return mode(g) && r.Select.accept(&g) }
	switch {
	case v.contested:
		return &Verdict{Reason: ReasonNominated, Curable: true}
	case slices.ContainsFunc(v.Node.GPUs, selected):
		return nil
	case slices.ContainsFunc(v.Node.GPUs, mode):
		return &Verdict{Reason: ReasonNotSelected}
	case slices.ContainsFunc(v.Node.GPUs, offers) || !r.MIG:
		return &Verdict{Reason: ReasonNoMode}
	default:
		return &Verdict{Reason: ReasonNotOffered}
	}
}

// best is the best choice for a single device.
func (v *View) best(r *Request) (best Assigned, lowest int64, found bool) {
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
	if r.MIG && s.cuttable(v.Node, gpu) {
		if c, ok := v.first(gpu, r.Devices[0]); ok {
			a := Assigned{GPU: gpu, Choice: c}
			if score := v.score(r, 0, &a, v.taken[gpu]); !found || score < lowest {
				best, lowest, found = a, score, true
			}
		}
	}
	return best, lowest, found
}

// first is the preferred instance on one GPU.
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
	if in&mig != 0 && s.cuttable(v.Node, gpu) {
		v.choices(gpu, s.occupied[gpu], r.Devices[device], func(c geometry.Choice) bool {
			yield(Assigned{GPU: gpu, Choice: c})
			return true
		})
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

// choices yields the choices on one GPU in a state, preferred ones first, without
// those that are avoided.
func (v *View) choices(gpu int, o geometry.Occupancy, w geometry.Want, yield func(geometry.Choice) bool) {
	g := &v.Node.GPUs[gpu]
	g.Catalogue.Choices(o, w, func(c geometry.Choice) bool {
		return !v.regardless && slices.Contains(g.avoided, c.Placed) || yield(c)
	})
}

// state is what is taken of each GPU, by position.
type state struct {
	occupied []geometry.Occupancy
	taken    []Taken
}

// state is a copy of what is taken in the view.
func (v *View) state() state {
	return state{occupied: slices.Clone(v.occupied), taken: slices.Clone(v.taken)}
}

// cuttable reports whether a GPU takes instances.
func (s *state) cuttable(n *Node, gpu int) bool {
	return n.GPUs[gpu].Offered && s.taken[gpu].Count == 0
}

// admits reports whether a share fits on a GPU.
func (s *state) admits(g *GPU, gpu int, share v1alpha1.Share) bool {
	return s.occupied[gpu].Mask == 0 && s.taken[gpu].admits(share, g.Shares)
}

// take takes a choice, if it is on offer and free.
func (s *state) take(n *Node, a Assigned) bool {
	g := &n.GPUs[a.GPU]
	if a.IsShare() {
		if g.Shares == nil || !s.admits(g, a.GPU, a.Share) {
			return false
		}
		s.taken[a.GPU] = s.taken[a.GPU].with(a.Share)
		return true
	}
	if !s.cuttable(n, a.GPU) {
		return false
	}
	next, err := g.Catalogue.Model().Occupy(s.occupied[a.GPU], a.Placed)
	if err != nil {
		return false
	}
	s.occupied[a.GPU] = next
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

// Offers reports whether the node still offers what h holds: its GPUs are there
// and take instances, its profiles exist, and nobody else's instance is in the
// way. It is the last check before a choice is published.
func (n *Node) Offers(h Holder) bool { return n.idle().Has(h) }

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
