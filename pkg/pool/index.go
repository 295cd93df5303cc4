// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"slices"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// Index is a fleet of nodes of which the best one is found at once: for replay and
// questions of capacity, where nothing but the index changes what is taken. It
// answers what Fit on every node would: the plan with the lowest Score, of equal
// ones that of the first node. A request for one instance looks at no node: GPUs
// are sorted by catalogue, state and how many GPUs of their node are idle, and
// states by what the device would cost.
// Other requests look at each node that has changed since they looked last.
//
// Not safe for parallel use.
type Index struct {
	views []*View // by node; changed in place
	first []int   // by node: position of its first GPU among all
	at    []int   // by position: its node
	lanes []lane  // by catalogue, for GPUs that take instances
	lane  []int   // by position: its lane, -1 where the GPU takes none

	simple   bool // all nodes are
	revision []int
	plans    map[*Request][]indexed // at most maxIndexed in all
	prices   *Prices                // of the requests in plans
}

// maxIndexed is how many answers of nodes are kept, but for those to one request.
const maxIndexed = 1 << 18

// indexed is what a node has answered.
type indexed struct {
	revision int // of the node then, from 1
	fits     bool
	plan     Plan
}

// lane has the GPUs of one catalogue.
type lane struct {
	catalogue *geometry.Catalogue
	in        []gpus // by state: the GPUs in it
	live      []geometry.State
	slot      []int // by state: its position in live
	highest   geometry.State
}

// gpus are the GPUs in one state, by how many GPUs of their node are idle. There is
// at least one.
type gpus struct {
	by    []positions
	count int
}

// first is the GPU to take: of a node with the fewest idle ones, the first.
func (g *gpus) first() (idle, position int) {
	for g.by[idle].count == 0 {
		idle++
	}
	return idle, g.by[idle].first()
}

// before reports whether g's first is to be taken before h's.
func (g *gpus) before(h *gpus) bool {
	idle, position := g.first()
	other, at := h.first()
	return idle < other || idle == other && position < at
}

// fewStates is how many states are looked at one by one. If more are live, the
// table's order is followed, and soon meets one of them.
const fewStates = 48

// NewIndex returns the index of nodes without pods.
func NewIndex(nodes []*Node) *Index {
	x := &Index{simple: true, revision: make([]int, len(nodes)), plans: map[*Request][]indexed{}}
	for n, node := range nodes {
		x.views = append(x.views, newView(node, node.blocked()))
		x.first = append(x.first, len(x.at))
		x.simple = x.simple && node.simple
		for range node.GPUs {
			x.at = append(x.at, n)
		}
	}
	x.lane = make([]int, len(x.at))
	for position, n := range x.at {
		gpu := position - x.first[n]
		x.revision[n] = 1
		x.lane[position] = -1
		if g := &nodes[n].GPUs[gpu]; g.Offered {
			x.lane[position] = x.laneOf(g.Catalogue)
			x.lanes[x.lane[position]].add(x.views[n].cut[gpu], x.views[n].idle, position, len(x.at))
		}
	}
	return x
}

func (x *Index) laneOf(c *geometry.Catalogue) int {
	i := slices.IndexFunc(x.lanes, func(l lane) bool { return l.catalogue == c })
	if i < 0 {
		i = len(x.lanes)
		x.lanes = append(x.lanes, lane{catalogue: c})
	}
	return i
}

// Best is the node with the best plan for a request, and false if none has any. The
// plan is valid until the index changes.
func (x *Index) Best(r *Request) (node int, plan Plan, ok bool) {
	if x.simple && r.MIG && len(r.Devices) == 1 && r.Select.acceptsAll() && r.Policy.Node == geometry.ByScore {
		position, c, cost := x.cheapest(r)
		if c == nil {
			return 0, Plan{}, false
		}
		node = x.at[position]
		a := Assigned{GPU: position - x.first[node], Choice: *c, cost: cost}
		v := x.views[node]
		return node, Plan{Devices: []Assigned{a}, Score: v.total(r, v.score(r, 0, &a, Taken{}))}, true
	}
	return x.look(r)
}

// cheapest is the instance that costs least for a request of one device, on the
// first GPU where it does, of the node with the fewest idle GPUs; nil if nothing
// fits.
func (x *Index) cheapest(r *Request) (position int, c *geometry.Choice, cost int64) {
	least, fewest := geometry.NoCost, 0 // the first with the band
	for i := range x.lanes {
		l := &x.lanes[i]
		on := r.on(l.catalogue)
		s, here := l.cheapest(on.tables[0])
		if here == geometry.NoCost || here+on.bands[0] > least {
			continue
		}
		idle, first := l.in[s].first()
		if here+on.bands[0] < least || idle < fewest || idle == fewest && first < position {
			position, c, cost = first, &on.tables[0].Choices(s)[0], here
			least, fewest = here+on.bands[0], idle
		}
	}
	return position, c, cost
}

// look asks all nodes.
func (x *Index) look(r *Request) (node int, plan Plan, ok bool) {
	node, plan, _, ok = x.BestOf(r, 0, len(x.views))
	return node, plan, ok
}

// BestOf is the best of some nodes: those from one on, and then the first ones, until
// enough have a plan. asked is how many it took.
func (x *Index) BestOf(r *Request, from, enough int) (node int, plan Plan, asked int, ok bool) {
	plans := x.plansOf(r)
	for found := 0; asked < len(x.views) && found < enough; asked++ {
		n := (from + asked) % len(x.views)
		p := &plans[n]
		if p.revision != x.revision[n] {
			made, verdict := x.views[n].find(r)
			*p = indexed{x.revision[n], verdict == nil, made}
		}
		if !p.fits {
			continue
		}
		if found++; !ok || p.plan.Score < plan.Score {
			node, plan, ok = n, p.plan, true
		}
	}
	return node, plan, asked, ok
}

// plansOf is what the nodes have answered to a request, by node.
func (x *Index) plansOf(r *Request) []indexed {
	if x.prices != r.prices { // what was asked at others is not asked again
		x.prices = r.prices
		clear(x.plans)
	}
	plans := x.plans[r]
	if plans == nil {
		if (len(x.plans)+1)*len(x.views) > maxIndexed {
			clear(x.plans) // rare: a trace of thousands of different jobs, on a large fleet
		}
		plans = make([]indexed, len(x.views))
		x.plans[r] = plans
	}
	return plans
}

// Take carries a plan out. The error says what is not free.
func (x *Index) Take(node int, p Plan) error {
	v := x.views[node]
	for i := range p.Devices {
		d := &p.Devices[i]
		g := &v.Node.GPUs[d.GPU]
		if d.IsShare() {
			return fmt.Errorf("taking a share of GPU %s: an index knows instances only", g.ID)
		}
		o, err := g.Catalogue.Model().Occupy(v.occupied[d.GPU], d.Placed)
		if err != nil {
			return fmt.Errorf("taking GPU %s of node %s: %w", g.ID, v.Node.Name, err)
		}
		x.set(node, d.GPU, o)
	}
	return nil
}

// Release gives instances back that were taken on a GPU, by its position in the
// node.
func (x *Index) Release(node, gpu int, p geometry.Placed) error {
	v := x.views[node]
	o, err := v.Node.GPUs[gpu].Catalogue.Model().Vacate(v.occupied[gpu], p)
	if err != nil {
		return fmt.Errorf("releasing GPU %s of node %s: %w", v.Node.GPUs[gpu].ID, v.Node.Name, err)
	}
	x.set(node, gpu, o)
	return nil
}

// Occupied is what is taken of a GPU.
func (x *Index) Occupied(node, gpu int) geometry.Occupancy { return x.views[node].occupied[gpu] }

// set changes a GPU.
func (x *Index) set(node, gpu int, o geometry.Occupancy) {
	v := x.views[node]
	before, idle := v.cut[gpu], v.idle
	v.occupied[gpu] = o
	v.idle = v.countIdle()
	if x.lane[x.first[node]+gpu] >= 0 {
		v.cut[gpu] = v.Node.GPUs[gpu].Catalogue.State(o)
	}
	for i := range v.cut {
		switch {
		case i == gpu:
			x.move(node, i, before, idle)
		case v.idle != idle:
			x.move(node, i, v.cut[i], idle)
		}
	}
	x.revision[node]++
}

// move sorts a GPU in anew that was in a state, on a node with so many idle ones.
func (x *Index) move(node, gpu int, state geometry.State, idle int64) {
	position, v := x.first[node]+gpu, x.views[node]
	if i := x.lane[position]; i >= 0 {
		x.lanes[i].remove(state, idle, position)
		x.lanes[i].add(v.cut[gpu], v.idle, position, len(x.at))
	}
}

// add puts a GPU among those of a state.
func (l *lane) add(s geometry.State, idle int64, position, size int) {
	for len(l.in) <= int(s) {
		l.in, l.slot = append(l.in, gpus{}), append(l.slot, -1)
	}
	in := &l.in[s]
	if in.count == 0 {
		l.slot[s] = len(l.live)
		l.live = append(l.live, s)
		l.highest = max(l.highest, s)
	}
	for len(in.by) <= int(idle) {
		in.by = append(in.by, positions{})
	}
	in.count++
	in.by[idle].add(position, size)
}

// remove takes a GPU out.
func (l *lane) remove(s geometry.State, idle int64, position int) {
	in := &l.in[s]
	in.by[idle].remove(position)
	if in.count--; in.count > 0 {
		return
	}
	last := l.live[len(l.live)-1]
	l.live[l.slot[s]], l.slot[last] = last, l.slot[s]
	l.live = l.live[:len(l.live)-1]
}

// cheapest is the state with GPUs where the table's device costs least; of equal
// ones that with the GPU to take first.
func (l *lane) cheapest(t *geometry.Table) (best geometry.State, least int64) {
	least = geometry.NoCost
	states := l.live
	ordered := len(states) > fewStates
	if ordered {
		states = t.ByCost(l.highest)
	}
	for _, s := range states {
		cost := t.Cost(s)
		if cost > least || cost == geometry.NoCost {
			if ordered {
				break
			}
			continue
		}
		if int(s) >= len(l.in) || l.in[s].count == 0 {
			continue
		}
		if cost < least || l.in[s].before(&l.in[best]) {
			best, least = s, cost
		}
	}
	return best, least
}
