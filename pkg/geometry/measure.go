// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import "math/bits"

// Fragmentation is F(o), in memory slices: the number of free slices that the next
// request is expected to find unusable, when every profile that requests get
// unasked is asked for equally often. It is 0 for a full GPU, and the free slices
// themselves where nothing fits.
//
//	F(o) = sum_p mix[p] * free(o) * [p has no legal start in o]
//
// It measures hardware and catalogue, not templates: see Stranded for those.
func (c *Catalogue) Fragmentation(o Occupancy) float64 {
	state := c.model.state(o.Mask)
	free := float64(c.model.freeIn(state))
	mix, stuck := c.uniform(), 0.0
	for _, i := range c.common {
		if countFree(c.model.windows(i), state) == 0 {
			stuck += mix[i]
		}
	}
	return stuck * free
}

// Stranded is the number of free memory slices that no instance can cover now,
// whatever is asked for unasked: those that every placement left in the catalogue,
// in its templates where it has any, leaves out. A slice that no placement of the
// model ever covers (1g.5gb alone never reaches the last one of eight) counts too.
func (c *Catalogue) Stranded(o Occupancy) int {
	covered := uint64(0)
	c.Choices(o, Want{Oversize: true}, func(choice Choice) bool {
		covered |= Placement{Start: choice.Start, Size: choice.Size}.mask()
		return true
	})
	return bits.OnesCount64(c.model.everything() &^ o.Mask &^ covered)
}

// TemplateInForce is the first template, in file order, that everything in use on
// the GPU is part of and whose rest can still be placed. There is none in other
// rules, while nothing is in use, and where other hands have left no room for any.
func (c *Catalogue) TemplateInForce(o Occupancy) (index int, ok bool) {
	if o.Counts == [maxProfiles]uint8{} {
		return 0, false
	}
	state := c.model.state(o.Mask)
	for i := range c.sheets {
		sh := &c.sheets[i]
		if sh.template < 0 {
			continue
		}
		if rest, part := sh.stock.unused(&o); part && sh.stock.fit(rest, state) {
			return sh.template, true
		}
	}
	return 0, false
}

// countFree is the number of windows that are free in a state.
func countFree(windows []int, state int) int {
	n := 0
	for _, w := range windows {
		if state&w == 0 {
			n++
		}
	}
	return n
}
