// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"fmt"
	"math/bits"
	"slices"
)

// maxPositions bounds the tables of a catalogue with templates, in rows times states.
// The documented templates need 4 352 on an A100; templates of all 127 multisets that
// an A100 can hold need 32 768.
const maxPositions = 1 << 22

// stuck is the position from which nothing can be had any more.
const stuck = 0

// positions number what scores tell apart of a GPU: the units that are taken (see
// unitsOf) and, with templates, the counts of what is in use, since these decide
// which templates are left. They have the moves between them: what can be had, and
// what is left then. They do not depend on the mix, and are shared by WithMix.
//
// With templates positions are those (counts, units) in which a template can still
// be completed by what it has unused, whoever took the other units; all else is
// stuck. Positions of the other rules are the states of the units themselves.
type positions struct {
	profiles int // of the model
	states   int // 2^units

	// With templates: rows of positions, one for each multiset that is part of one.
	rows  map[[maxProfiles]uint8]int
	next  []int    // by row and index of the profile: the row with one more instance, or -1
	at    []int32  // by row and state: the position
	parts [][]part // by row: the templates that it is part of

	// Moves to other positions, by position and in it by index of the profile: of one
	// those from its bound to the next, by ascending start.
	after  []int32
	bounds []int32
}

// part is what is left of a template.
type part struct {
	stock  *stock
	unused int // see stock
}

// newPositions finds all positions of a catalogue whose sheets are complete.
func newPositions(c *Catalogue) (*positions, error) {
	g := &positions{profiles: len(c.model.profiles), states: 1 << len(c.model.units), bounds: []int32{0}}
	if c.rule != RuleTemplates {
		g.joinStates(c.model)
		return g, nil
	}
	if err := g.findRows(c); err != nil {
		return nil, err
	}
	g.number(c.model)
	g.joinRows(c.model)
	return g, nil
}

// joinStates finds the moves where taken units decide all.
func (g *positions) joinStates(m *Model) {
	windows := m.allWindows()
	for state := range g.states {
		for i := range windows {
			for _, w := range windows[i] {
				if state&w == 0 {
					g.after = append(g.after, int32(state|w))
				}
			}
			g.bounds = append(g.bounds, int32(len(g.after)))
		}
	}
}

// allWindows are the windows of every profile, by index.
func (m *Model) allWindows() [][]int {
	var all [][]int
	for i := range m.profiles {
		all = append(all, m.windows(i))
	}
	return all
}

// findRows lists the multisets that are part of any template, the empty one first.
func (g *positions) findRows(c *Catalogue) error {
	list := []Occupancy{{}}
	g.rows = map[[maxProfiles]uint8]int{{}: 0}
	for row := 0; row < len(list); row++ {
		g.parts = append(g.parts, c.partsWith(&list[row]))
		for i := range g.profiles {
			one := list[row]
			one.Counts[i]++
			known, ok := g.rows[one.Counts]
			switch {
			case ok:
			case len(c.partsWith(&one)) == 0:
				known = -1
			case (len(list)+1)*g.states > maxPositions:
				return fmt.Errorf("its templates have too many different parts; use fewer, or fewer profiles in each")
			default:
				known = len(list)
				g.rows[one.Counts] = known
				list = append(list, one)
			}
			g.next = append(g.next, known)
		}
	}
	return nil
}

// partsWith lists the templates of which everything in use is part, with the rest.
func (c *Catalogue) partsWith(o *Occupancy) []part {
	var parts []part
	for i := range c.sheets {
		if unused, ok := c.sheets[i].stock.unused(o); ok {
			parts = append(parts, part{&c.sheets[i].stock, unused})
		}
	}
	return parts
}

// number gives a position to each row and state where a template is realisable that
// is not used up.
func (g *positions) number(m *Model) {
	least := make([]int, len(g.parts)) // units that the instances of a row take
	for counts, row := range g.rows {
		for i := range g.profiles {
			least[row] += int(counts[i]) * fewestUnits(m.windows(i))
		}
	}
	g.at = make([]int32, len(g.parts)*g.states)
	n := int32(stuck)
	for row, parts := range g.parts {
		for state := range g.states {
			if bits.OnesCount(uint(state)) >= least[row] && slices.ContainsFunc(parts, func(p part) bool {
				return p.unused > 0 && p.stock.fit(p.unused, state)
			}) {
				n++
				g.at[row*g.states+state] = n
			}
		}
	}
}

// fewestUnits is the number of units that the smallest window takes.
func fewestUnits(windows []int) int {
	fewest := maxUnits
	for _, w := range windows {
		fewest = min(fewest, bits.OnesCount(uint(w)))
	}
	return fewest
}

// joinRows finds the moves between positions, in the order of their numbers: those
// after which the rest of a template is still realisable.
func (g *positions) joinRows(m *Model) {
	windows := m.allWindows()
	for range windows { // no way out of stuck
		g.bounds = append(g.bounds, 0)
	}
	for row, parts := range g.parts {
		for state := range g.states {
			if g.at[row*g.states+state] == stuck {
				continue
			}
			for i := range windows {
				if next := g.then(row, i); next >= 0 {
					for _, w := range windows[i] {
						if state&w == 0 && completable(parts, i, state|w) {
							g.after = append(g.after, g.at[next*g.states+(state|w)])
						}
					}
				}
				g.bounds = append(g.bounds, int32(len(g.after)))
			}
		}
	}
}

// completable reports whether a template that has one more of profile index i can be
// completed when it is placed, which leads to this state.
func completable(parts []part, i, state int) bool {
	return slices.ContainsFunc(parts, func(p part) bool {
		left := p.unused / p.stock.strides[i] % (int(p.stock.counts[i]) + 1)
		return left > 0 && p.stock.fit(p.unused-p.stock.strides[i], state)
	})
}

// count is the number of positions.
func (g *positions) count() int { return (len(g.bounds) - 1) / g.profiles }

// moves are the positions that an instance of profile index i can lead to, one for
// each start.
func (g *positions) moves(position, i int) []int32 {
	at := position*g.profiles + i
	return g.after[g.bounds[at]:g.bounds[at+1]]
}

// row is where the positions of o begin. What is part of no template has none, and
// nothing can be had beside it.
func (g *positions) row(o *Occupancy) int { return g.rows[o.Counts] }

// then is the row with one more instance of profile index i; -1 if that is part of
// no template.
func (g *positions) then(row, i int) int {
	if g.at == nil {
		return 0
	}
	return g.next[row*g.profiles+i]
}

// position is of a GPU in a row and a state.
func (g *positions) position(row, state int) int {
	if g.at == nil {
		return state
	}
	return int(g.at[row*g.states+state])
}
