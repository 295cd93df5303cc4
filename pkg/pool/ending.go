// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// maxTries bounds the search for a smallest set, in calls of Fit: about a second.
const maxTries = 200_000

// ending finds a smallest set of pods of one node whose end would make room. Of
// sets of one size the least important wins: see compareSets.
//
// A set in which no pod can be left out is easy to find, and bounds the size. Up to
// that size all sets are tried, on all nodes, the small ones first.
func (f *Fleet) ending(open []*site, pod *v1.Pod, r *Request, gate Gate) *Ending {
	s := &endingSearch{fleet: f, request: r, asker: askerOf(pod), gate: gate}
	for _, site := range open {
		if set, ok := s.greedy(site); ok {
			s.offer(site, set)
		}
	}
	if s.site == nil {
		return nil
	}
	for size := 0; size <= len(s.best) && s.tries < maxTries; size++ {
		for _, site := range open {
			s.ofSize(site, size)
		}
	}
	return s.result()
}

// endingSearch looks for the best set over all nodes.
type endingSearch struct {
	fleet   *Fleet
	request *Request
	asker   // the pod that waits
	gate    Gate
	tries   int

	site *site // nil: none found yet
	best []*Tenant
}

// offer keeps a set if it is better.
func (s *endingSearch) offer(at *site, set []*Tenant) {
	if s.site == nil || compareSets(set, s.best) < 0 {
		s.site, s.best = at, slices.Clone(set)
	}
}

// fits reports whether the request fits once a set is gone, and what is ending.
func (s *endingSearch) fits(at *site, set []*Tenant) bool {
	s.tries++
	_, verdict := s.after(at, set).Fit(s.request)
	return verdict == nil
}

func (s *endingSearch) after(at *site, set []*Tenant) *View {
	return s.fleet.view(at, s.asker, func(t *Tenant) bool { return t.Ending || slices.Contains(set, t) })
}

// greedy ends everybody and lets them stay again, the most important first, as long
// as there is room.
func (s *endingSearch) greedy(at *site) ([]*Tenant, bool) {
	set := slices.DeleteFunc(slices.Clone(at.tenants), func(t *Tenant) bool { return t.Ending })
	if !s.fits(at, set) {
		return nil, false
	}
	byImportance := slices.Clone(set)
	slices.SortStableFunc(byImportance, func(a, b *Tenant) int { return -compareTenants(a, b) })
	for _, t := range byImportance {
		fewer := slices.DeleteFunc(slices.Clone(set), func(other *Tenant) bool { return other == t })
		if s.fits(at, fewer) {
			set = fewer
		}
	}
	return set, true
}

// ofSize tries every set of a size on a node. One device needs room on one GPU, so
// that only sets of one GPU's pods can be smallest; unless a nominated pod, which
// may stand elsewhere, needs room as well.
func (s *endingSearch) ofSize(at *site, size int) {
	if len(s.request.Devices) > 1 || len(at.nominees) > 0 {
		s.choose(at, at.tenants, nil, size)
		return
	}
	for i := range at.node.GPUs {
		id := at.node.GPUs[i].ID
		s.choose(at, slices.DeleteFunc(slices.Clone(at.tenants), func(t *Tenant) bool {
			return !slices.ContainsFunc(t.Spans, func(h Held) bool { return h.GPU == id })
		}), nil, size)
	}
}

// choose completes a set with so many of the tenants.
func (s *endingSearch) choose(at *site, from, set []*Tenant, more int) {
	if more == 0 {
		if compareSets(set, s.best) < 0 && s.fits(at, set) {
			s.offer(at, set)
		}
		return
	}
	for i, t := range from {
		if s.tries >= maxTries {
			return
		}
		if !t.Ending {
			s.choose(at, from[i+1:], append(set, t), more-1)
		}
	}
}

// compareSets orders sets by size, then by the priorities from the highest down, by
// memory slices, by age (the younger first), and by name.
func compareSets(a, b []*Tenant) int {
	if n := cmp.Compare(len(a), len(b)); n != 0 {
		return n
	}
	down := func(set []*Tenant) []int32 {
		var out []int32
		for _, t := range set {
			out = append(out, t.Priority)
		}
		slices.SortFunc(out, func(x, y int32) int { return cmp.Compare(y, x) })
		return out
	}
	sum := func(set []*Tenant, of func(*Tenant) int64) (n int64) {
		for _, t := range set {
			n += of(t)
		}
		return n
	}
	size := func(t *Tenant) int64 { return int64(t.slices()) }
	created := func(t *Tenant) int64 { return t.Created.Unix() }
	name := func(t *Tenant) string { return t.Pod.String() }
	return cmp.Or(slices.Compare(down(a), down(b)), cmp.Compare(sum(a, size), sum(b, size)),
		cmp.Compare(sum(b, created), sum(a, created)),
		slices.Compare(sortedBy(a, name), sortedBy(b, name)))
}

func sortedBy(set []*Tenant, of func(*Tenant) string) []string {
	var out []string
	for _, t := range set {
		out = append(out, of(t))
	}
	slices.Sort(out)
	return out
}

// compareTenants orders the less important first.
func compareTenants(a, b *Tenant) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.slices(), b.slices()),
		b.Created.Compare(a.Created), cmp.Compare(a.Pod.String(), b.Pod.String()))
}

// slices that a tenant holds, in memory slices.
func (t *Tenant) slices() int {
	n := 0
	for _, s := range t.Spans {
		n += s.Size
	}
	return n
}

func (t *Tenant) victim() Victim {
	return Victim{Namespace: t.Pod.Namespace, Name: t.Pod.Name, Priority: t.Priority, Controller: t.Controller, Slices: t.slices()}
}

// result describes the best set.
func (s *endingSearch) result() *Ending {
	view := s.after(s.site, s.best)
	plan, _ := view.Fit(s.request)
	e := &Ending{
		Node: s.site.node.Name, Pods: []Victim{}, Spots: view.spots(plan), Exact: s.tries < maxTries, Preemptable: true,
		Elsewhere: s.elsewhere(view.with(plan)),
	}
	slices.SortFunc(s.best, compareTenants)
	for _, t := range s.best {
		e.Pods = append(e.Pods, t.victim())
		e.Preemptable = e.Preemptable && t.Priority < s.priority
	}
	for _, t := range s.needed() {
		e.Already = append(e.Already, t.victim())
	}
	return e
}

// needed lists the ending pods without whose end it would not fit.
func (s *endingSearch) needed() []*Tenant {
	var stay, needed []*Tenant
	for _, t := range s.site.tenants {
		if !t.Ending {
			continue
		}
		stay = append(stay, t)
		view := s.fleet.view(s.site, s.asker, func(other *Tenant) bool {
			return slices.Contains(s.best, other) || other.Ending && !slices.Contains(stay, other)
		})
		if _, verdict := view.Fit(s.request); verdict != nil {
			stay = stay[:len(stay)-1]
			needed = append(needed, t)
		}
	}
	return needed
}

// elsewhere reports whether the set's pods would find room, one after the other,
// once the request has taken their place.
func (s *endingSearch) elsewhere(taken *View) bool {
	views := []*View{taken}
	for _, other := range s.fleet.sites {
		if other != s.site {
			views = append(views, s.fleet.view(other, s.asker, nil))
		}
	}
	for _, t := range s.best {
		if t.pod == nil {
			return false
		}
		r, err := Parse(t.pod, s.fleet.opts)
		if err != nil || r == nil || !placeOn(views, r, s.gate.of(t.pod)) {
			return false
		}
	}
	return true
}

// placeOn puts a request on the best of the views, and replaces that.
func placeOn(views []*View, r *Request, barred Barred) bool {
	best, chosen := -1, Plan{}
	for i, v := range views {
		if !barred.open(v.Node.Name, 0) {
			continue
		}
		if plan, verdict := v.Fit(r); verdict == nil && (best < 0 || plan.Score < chosen.Score) {
			best, chosen = i, plan
		}
	}
	if best < 0 {
		return false
	}
	views[best] = views[best].with(chosen)
	return true
}

// maxRepacks bounds the nodes that are repacked in thought.
const maxRepacks = 32

// repack reports whether everything that the pods of one node hold would fit there
// anew together with the request; failing that, whether it would between nodes.
func (f *Fleet) repack(open []*site, r *Request) *Repack {
	if len(open) == 0 || !r.MIG {
		return nil
	}
	byRoom := slices.Clone(open)
	slices.SortStableFunc(byRoom, func(a, b *site) int { return cmp.Compare(f.freeOn(b), f.freeOn(a)) })
	for _, s := range byRoom[:min(len(byRoom), maxRepacks)] {
		all := &Request{MIG: true, tables: new(tableCache)}
		var wants []geometry.Want
		for _, t := range s.tenants {
			wants = append(wants, s.node.wants(t)...)
		}
		for _, w := range append(wants, r.Devices...) {
			all.add(w, ShareWant{})
		}
		if _, verdict := s.node.idle.Fit(all); verdict == nil {
			return &Repack{Node: s.node.Name}
		}
	}
	if repackable(open, r) {
		return &Repack{Fleet: true}
	}
	return nil
}

// repackable asks the exact formula about all GPUs of one model together. It knows
// one device, and GPUs of the common grid that no configuration narrows.
func repackable(open []*site, r *Request) bool {
	if len(r.Devices) != 1 {
		return false
	}
	type group struct {
		kinds geometry.Kinds
		gpus  int
	}
	groups := map[*geometry.Catalogue]*group{}
	for _, s := range open {
		for i := range s.node.GPUs {
			g := &s.node.GPUs[i]
			held, ok := s.kindsOn(g)
			if !ok || !g.Offered || g.blocked.Mask != 0 || g.Catalogue.Rule() != geometry.RuleHardware {
				continue // it stays as it is
			}
			if groups[g.Catalogue] == nil {
				groups[g.Catalogue] = &group{}
			}
			groups[g.Catalogue].gpus++
			groups[g.Catalogue].kinds = groups[g.Catalogue].kinds.Add(held)
		}
	}
	for c, g := range groups {
		if e, ok := c.Can(r.Devices[0]); ok {
			if k, known := c.Model().KindsOf(e.Profile); known && g.kinds.Add(k).Fit(g.gpus) {
				return true
			}
		}
	}
	return false
}

// kindsOn counts what tenants hold on a GPU; false when some of it is of no kind.
func (s *site) kindsOn(g *GPU) (geometry.Kinds, bool) {
	var sum geometry.Kinds
	for _, t := range s.tenants {
		for _, h := range t.Spans {
			if h.GPU != g.ID {
				continue
			}
			k, ok := g.Catalogue.Model().KindsOf(h.Profile)
			if !ok || h.IsShare() {
				return sum, false
			}
			sum = sum.Add(k)
		}
	}
	return sum, true
}

// freeOn is the number of free memory slices of a node.
func (f *Fleet) freeOn(s *site) int {
	var r Reason
	r.add(f.view(s, anybody, nil), mig)
	return r.Free
}

// wants asks for the instances that a tenant holds.
func (n *Node) wants(t *Tenant) []geometry.Want {
	var out []geometry.Want
	for _, h := range t.Spans {
		if i, ok := n.index[h.GPU]; ok && !h.IsShare() {
			if p, known := n.GPUs[i].Catalogue.Model().Profile(h.Profile); known {
				out = append(out, geometry.Want{Profile: p.Name, Oversize: true})
			}
		}
	}
	return out
}
