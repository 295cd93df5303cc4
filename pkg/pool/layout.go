// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"slices"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// templateChange looks for a node that would do if anything the hardware allows
// were allowed.
func templateChange(prospects []prospect, r *Request) *TemplateChange {
	for i := range prospects {
		p := &prospects[i]
		if p.barred != "" || p.view.contested {
			continue
		}
		freed := p.view.unruled()
		if freed == nil {
			continue
		}
		plan, verdict := freed.Fit(r)
		if verdict != nil {
			continue
		}
		for _, d := range plan.Devices {
			before := p.view.Node.GPUs[d.GPU]
			if !d.IsShare() && before.Catalogue.Rule() != geometry.RuleHardware {
				return freed.with(plan).change(d, before.Catalogue.Rule())
			}
		}
	}
	return nil
}

// unruled is the view with every GPU free of its configuration; nil where that
// changes nothing.
func (v *View) unruled() *View {
	node, changed := *v.Node, false
	node.GPUs = slices.Clone(v.Node.GPUs)
	for i := range node.GPUs {
		g := &node.GPUs[i]
		if !g.Offered || g.Catalogue.Rule() == geometry.RuleHardware {
			continue
		}
		c, err := anything(g.Catalogue)
		if err != nil {
			continue // not reached: the model's own catalogue was built
		}
		g.Catalogue, changed = c, true
	}
	if !changed {
		return nil
	}
	node.divide()
	out := *v
	out.Node = &node
	out.hold(v.state())
	return &out
}

// anything is the catalogue of everything that the hardware can be cut into. What
// the configuration promises of a profile's memory holds for all that have the same,
// so that none of them looks smaller.
func anything(c *geometry.Catalogue) (*geometry.Catalogue, error) {
	model := c.Model()
	profiles := slices.Clone(model.Profiles())
	for i := range profiles {
		for _, e := range c.Entries() {
			if same, _ := model.Profile(e.Profile); same.MemoryMiB == model.Profiles()[i].MemoryMiB {
				profiles[i].MemoryMiB = max(profiles[i].MemoryMiB, e.MemoryMiB)
			}
		}
	}
	free, err := geometry.NewModelOnGrid(model.Name(), model.Grid(), profiles)
	if err != nil {
		return nil, err
	}
	return geometry.NewCatalogue(free, geometry.RuleHardware, nil, nil)
}

// change describes what is on the GPU of a device, itself included.
func (v *View) change(d Assigned, rule geometry.Rule) *TemplateChange {
	g := &v.Node.GPUs[d.GPU]
	model := g.Catalogue.Model()
	wanted, _ := model.Profile(d.Profile)
	c := &TemplateChange{Node: v.Node.Name, GPUIndex: g.Index, Model: model.Name(), Rule: rule, Wanted: wanted.Name}
	for i, p := range model.Profiles() {
		if n := int(v.occupied[d.GPU].Counts[i]); n > 0 {
			c.Layout = append(c.Layout, LayoutEntry{Profile: p.Name, MemoryMiB: p.MemoryMiB, Count: n})
		}
	}
	slices.SortStableFunc(c.Layout, func(a, b LayoutEntry) int { return cmp.Compare(b.MemoryMiB, a.MemoryMiB) })
	return c
}
