// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Layout is what is placed on one GPU, by ascending Start.
type Layout []Placed

// Check reports how l breaks an invariant on m, if it does: order, overlap,
// placement off the table, too many of a profile, media engines.
func (l Layout) Check(m *Model) error {
	if !slices.IsSortedFunc(l, byStart) {
		return fmt.Errorf("checking layout of %s: %s is not sorted by start", m.name, m.Format(l))
	}
	_, err := m.Occupancy(l)
	return err
}

// byStart orders by start; of one start (no legal layout) by profile.
func byStart(a, b Placed) int {
	return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Profile, b.Profile))
}

// Occupancy adds the instances of l, in any order, up on an idle GPU. It refuses
// as Occupy does.
func (m *Model) Occupancy(l Layout) (Occupancy, error) {
	var o Occupancy
	for _, p := range l {
		var err error
		if o, err = m.Occupy(o, p); err != nil {
			return Occupancy{}, err
		}
	}
	return o, nil
}

// Format draws a layout from the first memory slice to the last: instances as
// name@start, and a dot for each free memory slice. An idle A100 is "........".
func (m *Model) Format(l Layout) string {
	var words []string
	end := 0 // of what is drawn, in memory slices
	draw := func(to int) {
		if to > end {
			words = append(words, strings.Repeat(".", to-end))
			end = to
		}
	}
	for _, p := range l {
		draw(min(p.Start, m.grid.MemorySlices))
		words = append(words, m.describe(p))
		if known, ok := m.Profile(p.Profile); ok {
			end = max(end, p.Start+known.Size)
		}
	}
	draw(m.grid.MemorySlices)
	return strings.Join(words, " ")
}

// Parse is the inverse of Format: it accepts exactly what Format prints for a
// legal layout, and tells the right form for what is nearly so.
func (m *Model) Parse(s string) (Layout, error) {
	l := Layout{}
	for _, word := range strings.Fields(s) {
		if strings.Trim(word, ".") == "" {
			continue // free slices: compared below
		}
		p, err := m.parsePlaced(word)
		if err != nil {
			return nil, fmt.Errorf("parsing layout %q of %s: %w", s, m.name, err)
		}
		l = append(l, p)
	}
	if err := l.Check(m); err != nil {
		return nil, fmt.Errorf("parsing layout %q: %w", s, err)
	}
	if want := m.Format(l); s != want {
		return nil, fmt.Errorf("parsing layout %q of %s: write it as %q", s, m.name, want)
	}
	return l, nil
}

// parsePlaced reads "1g.5gb@3".
func (m *Model) parsePlaced(word string) (Placed, error) {
	name, at, ok := strings.Cut(word, "@")
	start, err := strconv.Atoi(at)
	if !ok || err != nil {
		return Placed{}, fmt.Errorf("%q is neither dots nor of the form profile@start", word)
	}
	p, ok := m.ByName(name)
	if !ok {
		return Placed{}, fmt.Errorf("%q: %w", word, ErrUnknownProfile)
	}
	return Placed{Profile: p.ID, Start: start}, nil
}
