// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// The oracle answers the same questions as the package, from the text of the
// design, with lists in place of bits and searches in place of tables. It takes
// nothing from the package but the profiles.

// modelOf is the model of a board.
func modelOf(tb testing.TB, key string) *Model {
	tb.Helper()
	b, ok := boards.Named(key)
	if !ok {
		tb.Fatalf("no board is named %s", key)
	}
	m, err := b.Model()
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// onlyProfiles is the board's model with some of its profiles.
func onlyProfiles(tb testing.TB, key string, keep func(Profile) bool) *Model {
	tb.Helper()
	full := modelOf(tb, key)
	kept := slices.DeleteFunc(slices.Clone(full.Profiles()), func(p Profile) bool { return !keep(p) })
	m, err := NewModelOnGrid(key, full.Grid(), kept)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// span is a placed thing; a blocked one has no profile.
type span struct {
	start, size int
	profile     string
}

// spansOf lists the instances of a layout.
func spansOf(m *Model, l Layout) []span {
	var spans []span
	for _, p := range l {
		profile, _ := m.Profile(p.Profile)
		spans = append(spans, span{p.Start, profile.Size, profile.Name})
	}
	return spans
}

// slowStarts tries every start of p against everything that is there.
func slowStarts(there []span, p Profile) []int {
	same := 0
	for _, s := range there {
		if s.profile == p.Name {
			same++
		}
		all, other := strings.HasSuffix(p.Name, "+me.all"), strings.HasSuffix(s.profile, "+me.all")
		if s.profile != "" && (all && !strings.HasSuffix(s.profile, "-me") || other && !strings.HasSuffix(p.Name, "-me")) {
			return nil
		}
	}
	if same >= p.Max {
		return nil
	}
	var starts []int
	for _, start := range p.Starts {
		if !slices.ContainsFunc(there, func(s span) bool { return start < s.start+s.size && s.start < start+p.Size }) {
			starts = append(starts, start)
		}
	}
	return starts
}

// forEachLayout calls f with every layout that can be reached, once each.
func forEachLayout(m *Model, f func(Layout)) {
	var extend func(l Layout)
	extend = func(l Layout) {
		f(slices.Clone(l))
		for _, p := range m.Profiles() {
			for _, start := range slowStarts(spansOf(m, l), p) {
				if len(l) == 0 || start > l[len(l)-1].Start {
					extend(append(slices.Clone(l), Placed{p.ID, start}))
				}
			}
		}
	}
	extend(Layout{})
}

// slowCatalogue is a catalogue as the design tells it.
type slowCatalogue struct {
	model   *Model
	rule    Rule
	groups  []Template // the templates, or one of everything that is allowed
	sorted  [2]sorted  // the same, smallest first, by file and by NVML
	unknown [2]bool    // some memory is unknown, by file and by NVML
	common  []Profile  // what requests get without naming it, or all
	scorer  *slowScorer
}

// sorted are entries in order of preference: in each group, and in all together.
type sorted struct {
	groups []Template
	all    Template
}

// config is what a catalogue is built of.
type config struct {
	rule      Rule
	allowed   []ProfileID
	templates []Template
}

func newSlowCatalogue(m *Model, conf config) *slowCatalogue {
	c := &slowCatalogue{model: m, rule: conf.rule, groups: conf.templates}
	if conf.rule != RuleTemplates {
		c.groups = []Template{nil}
	}
	var listed, plain []Profile // by any template or rule
	for _, p := range m.Profiles() {
		if conf.rule == RuleHardware || conf.rule == RuleAllowlist && slices.Contains(conf.allowed, p.ID) {
			c.groups[0] = append(c.groups[0], Entry{Profile: p.ID, Count: p.Max, MemoryMiB: p.MemoryMiB})
		}
		for _, e := range slices.Concat(c.groups...) {
			if e.Profile == p.ID {
				listed = append(listed, p)
				c.unknown[0] = c.unknown[0] || e.MemoryMiB == 0 && p.MemoryMiB == 0
				c.unknown[1] = c.unknown[1] || p.MemoryMiB == 0
				break
			}
		}
	}
	for _, p := range listed {
		if !p.Special() {
			plain = append(plain, p)
		}
	}
	if conf.rule == RuleTemplates || len(plain) == 0 {
		plain = listed
	}
	c.common = plain
	c.scorer = newSlowScorer(m, plain, conf.templates)
	for i, w := range []Want{{Strict: false}, {Strict: true}} {
		for _, group := range c.groups {
			c.sorted[i].groups = append(c.sorted[i].groups, slices.SortedFunc(slices.Values(group), c.smaller(w)))
		}
		c.sorted[i].all = slices.SortedFunc(slices.Values(slices.Concat(c.groups...)), c.smaller(w))
	}
	return c
}

// sortedFor is by file or by NVML, as is wanted.
func (c *slowCatalogue) sortedFor(w Want) sorted {
	if w.Strict {
		return c.sorted[1]
	}
	return c.sorted[0]
}

// memory is what an entry is compared by.
func (c *slowCatalogue) memory(e Entry, w Want) int {
	p, _ := c.model.Profile(e.Profile)
	if w.Strict || e.MemoryMiB == 0 {
		return p.MemoryMiB
	}
	return e.MemoryMiB
}

func (c *slowCatalogue) adequate(e Entry, w Want) bool {
	p, _ := c.model.Profile(e.Profile)
	if w.Profile != "" && p.Name != w.Profile {
		return false
	}
	if w.Profile == "" && c.rule != RuleTemplates && p.Special() {
		return false
	}
	if w.MemoryMiB > 0 && c.memory(e, w) < w.MemoryMiB {
		return false
	}
	if w.Full && w.Profile == "" {
		return !p.Special() && p.Size == c.model.MemorySlices()
	}
	cores := e.Cores
	if cores == 0 {
		cores = 100 * p.ComputeSlices / c.model.ComputeSlices()
	}
	share := float64(w.Percent) * float64(c.model.MemorySlices()) / 100
	return cores >= w.Cores && float64(p.Size) >= share
}

// smaller orders entries by memory, then compute slices, then plain ones first.
func (c *slowCatalogue) smaller(w Want) func(a, b Entry) int {
	return func(a, b Entry) int {
		pa, _ := c.model.Profile(a.Profile)
		pb, _ := c.model.Profile(b.Profile)
		if pa.Special() != pb.Special() && c.larger(a, b, w) == 0 {
			return map[bool]int{false: -1, true: 1}[pa.Special()]
		}
		return cmp.Or(c.larger(a, b, w), cmp.Compare(pa.ID, pb.ID))
	}
}

// larger is above 0 if a is larger than b. Where a board's memories are not all
// known, sizes are compared.
func (c *slowCatalogue) larger(a, b Entry, w Want) int {
	pa, _ := c.model.Profile(a.Profile)
	pb, _ := c.model.Profile(b.Profile)
	by := cmp.Compare(c.memory(a, w), c.memory(b, w))
	if c.unknown[0] && !w.Strict || c.unknown[1] && w.Strict {
		by = cmp.Compare(pa.Size, pb.Size)
	}
	return cmp.Or(by, cmp.Compare(pa.ComputeSlices, pb.ComputeSlices))
}

// exact is the smallest adequate entry of all.
func (c *slowCatalogue) exact(w Want) (Entry, bool) {
	for _, e := range c.sortedFor(w).all {
		if c.adequate(e, w) {
			return e, true
		}
	}
	return Entry{}, false
}

// realisable tries everything to place what is left of t beside what is there.
func (c *slowCatalogue) realisable(t Template, there []span) bool {
	var left []Profile
	for _, e := range t {
		p, _ := c.model.Profile(e.Profile)
		for range e.Count {
			left = append(left, p)
		}
	}
	for _, s := range there {
		if i := slices.IndexFunc(left, func(p Profile) bool { return p.Name == s.profile }); i >= 0 {
			left = slices.Delete(left, i, i+1)
		} else if s.profile != "" {
			return false // in use and not in the template
		}
	}
	return placeAll(c.scorer.on(there).taken, left)
}

func placeAll(gpu string, left []Profile) bool {
	if len(left) == 0 {
		return true
	}
	for _, start := range left[0].Starts {
		if after, ok := with(gpu, start, left[0].Size); ok && placeAll(after, left[1:]) {
			return true
		}
	}
	return false
}

// choices lists everything that is acceptable, in order of preference. The Score
// is left out; see sameChoices.
func (c *slowCatalogue) choices(there []span, w Want) []Choice {
	exact, ok := c.exact(w)
	if !ok {
		return nil
	}
	var list []Choice
	for t, template := range c.sortedFor(w).groups {
		for _, e := range template {
			if !c.adequate(e, w) {
				continue
			}
			isExact := e.Profile == exact.Profile || c.larger(e, exact, w) == 0
			if !isExact && !w.Oversize {
				continue
			}
			p, _ := c.model.Profile(e.Profile)
			for _, start := range c.bestFirst(there, p) {
				choice := Choice{Placed: Placed{p.ID, start}, Size: p.Size, MemoryMiB: c.memory(e, w), Exact: isExact, Template: t}
				if c.rule != RuleTemplates {
					choice.Template = -1
				} else if !c.realisable(template, append(slices.Clone(there), span{start, p.Size, p.Name})) {
					continue
				}
				if !slices.ContainsFunc(list, func(o Choice) bool { return o.Placed == choice.Placed }) {
					list = append(list, choice)
				}
			}
		}
	}
	return list
}

// bestFirst orders the starts of p by S, and equal ones ascending.
func (c *slowCatalogue) bestFirst(there []span, p Profile) []int {
	starts := slowStarts(there, p)
	slices.SortStableFunc(starts, func(a, b int) int {
		d := c.scorer.score(there, p, a) - c.scorer.score(there, p, b)
		if math.Abs(d) < 3e-9 {
			return 0
		}
		return cmp.Compare(d, 0)
	})
	return starts
}
