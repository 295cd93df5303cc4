// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"fmt"
	"math/bits"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// templates is HAMi up to 2.9: a GPU is cut as a whole. An idle one takes the first
// layout of the file with any instance that is enough; from then on, until its
// last job ends, it gives only unused instances of that layout, the first in order
// that has enough.
type templates struct {
	*cluster
	layouts [][]layout // by model, in the order of the file
	cut     []cut      // by GPU
}

// layout is the instances of a template, in order.
type layout []geometry.Placed

// cut is how a GPU is cut, and what is in use.
type cut struct {
	layout int
	used   uint64 // by position in the layout; 0 is idle, and layout means nothing
}

// newTemplates takes the layouts of the device configuration, where it has any for
// the model, else those that HAMi 2.9 had for boards of its grid.
func newTemplates(c *cluster) (*templates, error) {
	t := &templates{cluster: c, cut: make([]cut, len(c.fleet.gpus))}
	for _, m := range c.fleet.models {
		from := m.catalogue.Templates()
		if len(from) == 0 {
			from = usual(m.catalogue.Model())
		}
		var found []layout
		for _, template := range from {
			l, ok := arrange(m.catalogue.Model(), template)
			if !ok {
				return nil, fmt.Errorf("policy %s: %s cannot be cut into %v", Templates, m.board.Key, template)
			}
			found = append(found, l)
		}
		t.layouts = append(t.layouts, found)
	}
	return t, nil
}

// usual are the layouts of HAMi 2.9: on 7 compute slices 7 x 1g, 1g + 3 x 2g,
// 2 x 3g and 7g; on 4 of them 4 x 1g, 2 x 2g and 4g.
func usual(m *geometry.Model) []geometry.Template {
	layouts := [][][2]int{{{1, 4}}, {{2, 2}}, {{4, 1}}} // compute slices, count
	if m.ComputeSlices() == 7 {
		layouts = [][][2]int{{{1, 7}}, {{1, 1}, {2, 3}}, {{3, 2}}, {{7, 1}}}
	}
	var found []geometry.Template
	for _, l := range layouts {
		var t geometry.Template
		for _, e := range l {
			t = append(t, geometry.Entry{Profile: plain(m, e[0]), Count: e[1]})
		}
		found = append(found, t)
	}
	return found
}

// plain is the smallest profile of so many compute slices without a special
// variant; every known board has it.
func plain(m *geometry.Model, compute int) geometry.ProfileID {
	least, id := 0, geometry.ProfileID(-1)
	for _, p := range m.Profiles() {
		if p.ComputeSlices == compute && !p.Special() && (least == 0 || p.Size < least) {
			least, id = p.Size, p.ID
		}
	}
	return id
}

// arrange finds places for all instances of a template.
func arrange(m *geometry.Model, t geometry.Template) (layout, bool) {
	var ids []geometry.ProfileID
	for _, e := range t {
		for range e.Count {
			ids = append(ids, e.Profile)
		}
	}
	found := make(layout, len(ids))
	var place func(i int, o geometry.Occupancy) bool
	place = func(i int, o geometry.Occupancy) bool {
		if i == len(ids) {
			return true
		}
		for start := range m.Starts(o, ids[i]) {
			found[i] = geometry.Placed{Profile: ids[i], Start: start}
			if next, err := m.Occupy(o, found[i]); err == nil && place(i+1, next) {
				return true
			}
		}
		return false
	}
	return found, len(ids) <= 64 && place(0, geometry.Occupancy{})
}

func (t *templates) give(gpu, class int, spots []Spot) (Spot, bool) {
	g := t.fleet.gpus[gpu]
	c := &t.classes[class]
	need := c.sizes[g.model]
	// More devices than the node has GPUs were refused.
	if on := t.fleet.first[g.node+1] - t.fleet.first[g.node]; need.memory == 0 || c.devices > on {
		return Spot{}, false
	}
	now := t.cut[gpu]
	for _, s := range spots {
		now = t.with(gpu, now, s.Placed)
	}
	if now.used != 0 {
		return t.from(gpu, now, need.entry.Profile)
	}
	for i := range t.layouts[g.model] {
		if s, ok := t.from(gpu, cut{layout: i}, need.entry.Profile); ok {
			return s, true
		}
	}
	return Spot{}, false
}

// from finds the first unused instance that has enough.
func (t *templates) from(gpu int, now cut, need geometry.ProfileID) (Spot, bool) {
	model := t.fleet.gpus[gpu].model
	for i, p := range t.layouts[model][now.layout] {
		if now.used>>i&1 == 0 && t.fleet.models[model].enough(p.Profile, need) {
			return Spot{gpu, p}, true
		}
	}
	return Spot{}, false
}

// with is the GPU with one more instance in use. An idle GPU is cut into the first
// layout that has it; an earlier layout has no instance that would have done.
func (t *templates) with(gpu int, now cut, p geometry.Placed) cut {
	for i, l := range t.layouts[t.fleet.gpus[gpu].model] {
		if now.used != 0 && i != now.layout {
			continue
		}
		for j, instance := range l {
			if instance == p && now.used>>j&1 == 0 {
				return cut{i, now.used | 1<<j}
			}
		}
	}
	return now
}

func (t *templates) took(spots []Spot) {
	for _, s := range spots {
		t.cut[s.GPU] = t.with(s.GPU, t.cut[s.GPU], s.Placed)
	}
}

func (t *templates) gave(spots []Spot) {
	for _, s := range spots {
		now := &t.cut[s.GPU]
		for used := now.used; used != 0; used &= used - 1 {
			j := bits.TrailingZeros64(used)
			if t.layouts[t.fleet.gpus[s.GPU].model][now.layout][j] == s.Placed {
				now.used &^= 1 << j
			}
		}
	}
}
