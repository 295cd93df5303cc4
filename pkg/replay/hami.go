// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"cmp"
	"slices"

	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/pool"
)

// hami is how HAMi chooses, by its defaults: the fullest node that has room
// ("binpack"), and there the emptiest GPU ("spread"). How full is a matter of
// fullness, what a GPU gives of a giver: HAMi changed that in version 2.10.
//
// HAMi does not look at compute when it chooses a profile, and cannot be asked for
// one by name. So that all policies give the same service, it is taken to: a job
// gets at least the memory and the compute slices of the smallest adequate profile.
type hami struct {
	*cluster
	giver giver
	full  fullness
	load  []load // by GPU
	most  []load // by model: the whole of a GPU
	nodes []nodeLoad
}

// fullness is how full something is with one load, where another is all of it.
type fullness func(used, all load) float64

// giver finds what a GPU has for one more device beside those in spots, which are
// of the same job and GPU. It changes nothing.
type giver interface {
	give(gpu, class int, spots []Spot) (Spot, bool)
	took(spots []Spot)
	gave(spots []Spot)
}

// load is what is in use of a GPU or node.
type load struct {
	instances, cores int // cores in percent
	memory           int // MiB, or slices where MiB are not known
}

func (l load) plus(m load, by int) load {
	return load{l.instances + by*m.instances, l.cores + by*m.cores, l.memory + by*m.memory}
}

// threeRatios is HAMi's score: the ratios of instances, compute and memory in use.
func threeRatios(used, all load) float64 {
	return ratio(used.instances, all.instances) + ratio(used.cores, all.cores) + ratio(used.memory, all.memory)
}

// memoryRatio looks at memory alone.
func memoryRatio(used, all load) float64 { return ratio(used.memory, all.memory) }

func ratio(used, all int) float64 { return float64(used) / float64(max(all, 1)) }

// nodeLoad is what is in use of a node, and all of it.
type nodeLoad struct{ used, all load }

func newHAMi(c *cluster, giver giver, full fullness) *hami {
	h := &hami{cluster: c, giver: giver, full: full, load: make([]load, len(c.fleet.gpus)), nodes: make([]nodeLoad, len(c.fleet.nodes))}
	for _, m := range c.fleet.models {
		all := load{instances: pool.Devices(m.catalogue), cores: 100, memory: m.slices()}
		if m.inMiB() {
			all.memory = m.board.MemoryMiB
		}
		h.most = append(h.most, all)
	}
	for _, g := range c.fleet.gpus {
		n := &h.nodes[g.node]
		n.all = n.all.plus(h.most[g.model], 1)
	}
	return h
}

// inMiB reports whether all memory of the model is known.
func (m *model) inMiB() bool {
	return m.board.MemoryMiB > 0 && !slices.ContainsFunc(m.catalogue.Entries(), func(e geometry.Entry) bool { return e.MemoryMiB == 0 })
}

// charge is what an instance counts as.
func (h *hami) charge(s Spot) load {
	m := h.fleet.models[h.fleet.gpus[s.GPU].model]
	p, _ := m.catalogue.Model().Profile(s.Profile)
	part, whole := p.ComputeSlices, m.catalogue.Model().ComputeSlices()
	if full, ok := m.catalogue.Model().FullProfile(); ok && full.SMs > 0 && p.SMs > 0 {
		part, whole = p.SMs, full.SMs
	}
	l := load{instances: 1, cores: (100*part + whole - 1) / whole, memory: p.Size}
	if m.inMiB() {
		l.memory = p.MemoryMiB
	}
	return l
}

func (h *hami) took(_ int, spots []Spot) error {
	h.giver.took(spots)
	h.count(spots, 1)
	return nil
}

func (h *hami) gave(_ int, spots []Spot) error {
	h.giver.gave(spots)
	h.count(spots, -1)
	return nil
}

func (h *hami) count(spots []Spot, by int) {
	for _, s := range spots {
		l := h.charge(s)
		h.load[s.GPU] = h.load[s.GPU].plus(l, by)
		n := &h.nodes[h.fleet.gpus[s.GPU].node]
		n.used = n.used.plus(l, by)
	}
}

func (h *hami) choose(class int) ([]Spot, bool) {
	var found []Spot
	fullest := -1.0
	for i := range h.nodes {
		n := &h.nodes[i]
		if full := h.full(n.used, n.all); full > fullest {
			if spots, ok := h.onNode(i, class); ok {
				found, fullest = spots, full
			}
		}
	}
	return found, found != nil
}

// onNode walks the GPUs of a node, the emptiest first; each is asked until it has
// nothing left.
func (h *hami) onNode(node, class int) ([]Spot, bool) {
	from, to := h.fleet.first[node], h.fleet.first[node+1]
	order := make([]int, 0, maxGPUsPerNode)
	for i := from; i < to; i++ {
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(h.full(h.load[a], h.most[h.fleet.gpus[a].model]), h.full(h.load[b], h.most[h.fleet.gpus[b].model]))
	})
	var spots []Spot
	for _, i := range order {
		before := len(spots)
		for len(spots) < h.classes[class].devices {
			s, ok := h.giver.give(i, class, spots[before:])
			if !ok {
				break
			}
			spots = append(spots, s)
		}
	}
	return spots, len(spots) == h.classes[class].devices
}

// flexible is HAMi 2.10: any placement. Of the profiles with enough, smallest
// first, it takes the first that has room; 1g and 3g go as high as
// possible, others as low as possible. A request by name gets that profile or none,
// which spares HAMi its silent step to a larger one.
type flexible struct {
	*cluster
	offers [][]geometry.ProfileID // by model, smallest first
}

func newFlexible(c *cluster) *flexible {
	f := &flexible{cluster: c}
	for _, m := range c.fleet.models {
		var ids []geometry.ProfileID
		for _, e := range m.catalogue.Entries() { // by memory; of equal memory by compute
			p, _ := m.catalogue.Model().Profile(e.Profile)
			if !slices.Contains(ids, e.Profile) && (!p.Special() || m.catalogue.Rule() != geometry.RuleHardware) {
				ids = append(ids, e.Profile)
			}
		}
		f.offers = append(f.offers, ids)
	}
	return f
}

func (f *flexible) took([]Spot) {}
func (f *flexible) gave([]Spot) {}

func (f *flexible) give(gpu, class int, spots []Spot) (Spot, bool) {
	at, need := f.at[gpu], f.classes[class].sizes[f.fleet.gpus[gpu].model]
	if need.memory == 0 {
		return Spot{}, false
	}
	occupancy := at.occupancy
	for _, s := range spots {
		occupancy, _ = at.of.model.Occupy(occupancy, s.Placed) // given a moment ago
	}
	for _, id := range f.candidates(gpu, class) {
		p, _ := at.of.model.Profile(id)
		high := p.ComputeSlices == 1 || p.ComputeSlices == 3
		start, found := 0, false
		for s := range at.of.model.Starts(occupancy, id) {
			start, found = s, true
			if !high {
				break
			}
		}
		if found {
			return Spot{gpu, geometry.Placed{Profile: id, Start: start}}, true
		}
	}
	return Spot{}, false
}

// candidates lists the profiles that would do.
func (f *flexible) candidates(gpu, class int) []geometry.ProfileID {
	model := f.fleet.gpus[gpu].model
	c := &f.classes[class]
	need := c.sizes[model].entry.Profile
	if c.want.Profile != "" {
		return []geometry.ProfileID{need}
	}
	var enough []geometry.ProfileID
	for _, id := range f.offers[model] {
		if f.fleet.models[model].enough(id, need) {
			enough = append(enough, id)
		}
	}
	return enough
}

// enough reports whether a profile has the memory and compute of another.
func (m *model) enough(id, need geometry.ProfileID) bool {
	p, _ := m.catalogue.Model().Profile(id)
	q, _ := m.catalogue.Model().Profile(need)
	if p.ComputeSlices < q.ComputeSlices {
		return false
	}
	if p.MemoryMiB > 0 && q.MemoryMiB > 0 {
		return p.MemoryMiB >= q.MemoryMiB
	}
	return p.Size >= q.Size
}
