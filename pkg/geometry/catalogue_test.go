// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// compareChoices checks Choices, Fit, tables and scores against the oracle (I5,
// I6, I7).
func compareChoices(t *testing.T, c *Catalogue, slow *slowCatalogue, o Occupancy, there []span, w Want) {
	t.Helper()
	want := slow.choices(there, w)
	var got, scored []Choice
	c.Choices(o, w, func(choice Choice) bool {
		scored = append(scored, choice)
		p, _ := slow.model.Profile(choice.Profile)
		s := slow.scorer.score(there, p, choice.Start)
		if math.Abs(float64(choice.Score)-s*ScoreScale) > 2*ScoreStep || choice.Score%ScoreStep != 0 {
			t.Fatalf("Choices(%v, %+v) scores %+v with %d, want %.0f", there, w, choice.Placed, choice.Score, s*ScoreScale)
		}
		choice.Score = 0
		got = append(got, choice)
		return true
	})
	if !slices.Equal(got, want) {
		t.Fatalf("Choices(%v, %+v) =\n%+v, want\n%+v", there, w, got, want)
	}
	if table := c.Table(w, ByScore).Choices(c.State(o)); !slices.Equal(table, scored) {
		t.Fatalf("Table.Choices(%v, %+v) =\n%+v, and Choices are\n%+v", there, w, table, scored)
	}
	best, ok := c.Fit(o, w)
	best.Score = 0
	if ok != (len(want) > 0) || ok && best != want[0] {
		t.Fatalf("Fit(%v, %+v) = %+v, %v; want the first of %+v", there, w, best, ok, want)
	}
}

// compareCan checks Can against the oracle, and that Fit agrees on an idle GPU.
func compareCan(t *testing.T, c *Catalogue, slow *slowCatalogue, w Want) {
	t.Helper()
	want, wantOK := slow.exact(w)
	got, ok := c.Can(w)
	if ok != wantOK || ok && (got.Profile != want.Profile || got.MemoryMiB != slow.memory(want, Want{})) {
		t.Errorf("Can(%+v) = %+v, %v; want %+v, %v", w, got, ok, want, wantOK)
	}
	if _, fits := c.Fit(Occupancy{}, w); fits != ok {
		t.Errorf("Can(%+v) = %v, and Fit on an idle GPU says %v", w, ok, fits)
	}
}

// wantsFor lists requests around everything that the model has.
func wantsFor(m *Model, entries []Entry) []Want {
	base := []Want{{}, {Full: true}, {MemoryMiB: 1 << 30}, {Profile: "9g.99gb"}}
	for _, percent := range []int{1, 12, 13, 25, 26, 50, 51, 75, 100, 101} {
		base = append(base, Want{Percent: percent})
	}
	for _, cores := range []int{1, 14, 15, 28, 43, 57, 58, 100} {
		base = append(base, Want{Cores: cores})
	}
	for _, p := range m.Profiles() {
		base = append(base, Want{Profile: p.Name}, Want{Profile: p.Name, Full: true, Cores: 29}, Want{Profile: p.Name, MemoryMiB: p.MemoryMiB + 1})
	}
	for _, e := range entries {
		if e.MemoryMiB > 0 {
			base = append(base, Want{MemoryMiB: e.MemoryMiB}, Want{MemoryMiB: e.MemoryMiB + 1}, Want{MemoryMiB: e.MemoryMiB, Cores: 30, Percent: 60},
				Want{MemoryMiB: e.MemoryMiB, Full: true}, Want{MemoryMiB: e.MemoryMiB + 1, Full: true, Percent: 30})
		}
	}
	var wants []Want
	for _, w := range base {
		for _, strict := range []bool{false, true} {
			w.Strict = strict
			w.Oversize = true
			wants = append(wants, w)
			w.Oversize = false
			wants = append(wants, w)
		}
	}
	slices.SortFunc(wants, func(a, b Want) int { return slices.Compare([]byte(fmt.Sprint(a)), []byte(fmt.Sprint(b))) })
	return slices.Compact(wants)
}

// compareAll compares every layout of the model, and every layout with one of its
// instances turned foreign, for one in every so many wants.
func compareAll(t *testing.T, m *Model, conf config, every int) {
	t.Helper()
	c := newCatalogue(t, m, conf)
	slow := newSlowCatalogue(m, conf)
	wants := wantsFor(m, c.Entries())
	for _, w := range wants {
		compareCan(t, c, slow, w)
	}
	nth := 0
	forEachLayout(m, func(l Layout) {
		nth++
		o, there := occupancyWith(t, m, l, -1)
		if nth%((every+3)/4) == 0 {
			compareCounts(t, c, slow, o, there)
		}
		for i, w := range wants {
			if (i+nth)%every == 0 {
				compareChoices(t, c, slow, o, there, w)
			}
		}
		for foreign := range l {
			o, there := occupancyWith(t, m, l, foreign)
			w := wants[(nth*7+foreign)%len(wants)] // each want meets many layouts
			compareChoices(t, c, slow, o, there, w)
			w.Oversize = true
			compareChoices(t, c, slow, o, there, w)
		}
	})
}

// occupancyWith is the state of a GPU where one instance of l is not ours.
func occupancyWith(t *testing.T, m *Model, l Layout, foreign int) (Occupancy, []span) {
	t.Helper()
	var o Occupancy
	there := spansOf(m, l)
	for i, p := range l {
		if i == foreign {
			o = m.Block(o, Placement{Start: p.Start, Size: there[i].size})
			there[i].profile = ""
			continue
		}
		var err error
		if o, err = m.Occupy(o, p); err != nil {
			t.Fatal(err)
		}
	}
	return o, there
}

// compareCounts checks Count and LargestFree by adding instances one by one in
// every possible way.
func compareCounts(t *testing.T, c *Catalogue, slow *slowCatalogue, o Occupancy, there []span) {
	t.Helper()
	var largest Profile
	for _, p := range slow.model.Profiles() {
		want := slowCount(slow, there, p)
		if got := c.Count(o, p.ID); got != want {
			t.Fatalf("Count(%v, %s) = %d, want %d", there, p.Name, got, want)
		}
		unasked := slices.ContainsFunc(slow.common, func(c Profile) bool { return c.ID == p.ID })
		if want > 0 && unasked && (p.Size > largest.Size || p.Size == largest.Size && p.ComputeSlices > largest.ComputeSlices) {
			largest = p
		}
	}
	got, ok := c.LargestFree(o)
	if ok != (largest.Size > 0) || got.Name != largest.Name {
		t.Fatalf("LargestFree(%v) = %s, %v; want %q", there, got.Name, ok, largest.Name)
	}
}

func slowCount(slow *slowCatalogue, there []span, p Profile) int {
	most := 0
	for _, choice := range slow.choices(there, Want{Profile: p.Name, Oversize: true}) {
		most = max(most, 1+slowCount(slow, append(slices.Clone(there), span{choice.Start, p.Size, p.Name}), p))
	}
	return most
}

// newCatalogue fails the test where the configuration is refused.
func newCatalogue(tb testing.TB, m *Model, conf config) *Catalogue {
	tb.Helper()
	c, err := NewCatalogue(m, conf.rule, conf.allowed, conf.templates)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// sample is how many wants share a layout: one on the first board of each grid,
// more on others, since boards of one grid differ in memory only.
func sample(key string) int {
	switch {
	case testing.Short():
		return 23
	case slices.Contains([]string{"A100-40GB", "A30-24GB", "RTX-PRO-6000-96GB"}, key):
		return 1
	}
	return 11
}

func TestHardwareRuleOnEveryLayoutOfEveryBoard(t *testing.T) {
	for _, b := range boards.All() {
		t.Run(b.Key, func(t *testing.T) {
			t.Parallel()
			compareAll(t, modelOf(t, b.Key), config{rule: RuleHardware}, sample(b.Key))
		})
	}
}

func TestAllowlistsOnEveryLayout(t *testing.T) {
	for _, tc := range []struct {
		name, board string
		allowed     []ProfileID
	}{
		{"the four profiles of HAMi's list on an A100", "A100-40GB", []ProfileID{19, 14, 9, 0}},
		{"a special profile is given by name only", "A100-40GB", []ProfileID{20, 15, 9}},
		{"only special profiles", "A100-40GB", []ProfileID{20}},
		{"in the order of the file, twice named", "A30-24GB", []ProfileID{0, 5, 14, 5}},
		{"memory of the large ones unknown", "H100-94GB", []ProfileID{0, 5, 9, 19}},
		{"with and without media engines", "RTX-PRO-6000-96GB", []ProfileID{14, 5, 66, 67, 64, 65}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			compareAll(t, modelOf(t, tc.board), config{rule: RuleAllowlist, allowed: tc.allowed}, 2*sample(tc.board))
		})
	}
}

func TestNewCatalogueRefusesWhatCannotBe(t *testing.T) {
	m := modelOf(t, "A100-40GB")
	one := func(e ...Entry) []Template { return []Template{e} }
	for _, tc := range []struct {
		name      string
		rule      Rule
		allowed   []ProfileID
		templates []Template
		says      string
	}{
		{"an unknown rule", "Whatever", nil, nil, "none of Templates"},
		{"an empty allowlist", RuleAllowlist, nil, nil, "allows no profile"},
		{"an unknown profile in the allowlist", RuleAllowlist, []ProfileID{19, 77}, nil, "allowed profile 77"},
		{"no template", RuleTemplates, nil, nil, "has no template"},
		{"an empty template", RuleTemplates, nil, one(), "template 0: it has no entry"},
		{"an unknown profile in a template", RuleTemplates, nil, one(Entry{Profile: 77, Count: 1}), "profile 77"},
		{"a count of none", RuleTemplates, nil, one(Entry{Profile: 19}), "the count 0"},
		{"more than the profile's maximum", RuleTemplates, nil, one(Entry{Profile: 20, Count: 2}), "is not from 1 to 1, which the GPU has room for"},
		{"more than the maximum in two entries", RuleTemplates, nil, one(Entry{Profile: 9, Count: 1}, Entry{Profile: 9, Count: 2}), "is not from 1 to 1, which the GPU has room for"},
		{"more than fits side by side", RuleTemplates, nil, one(Entry{Profile: 9, Count: 2}, Entry{Profile: 19, Count: 1}), "cannot be placed"},
		{"4g beside two 2g, for want of the last slices", RuleTemplates, nil, one(Entry{Profile: 5, Count: 1}, Entry{Profile: 14, Count: 2}), "cannot be placed"},
		{"cores above 100", RuleTemplates, nil, one(Entry{Profile: 9, Count: 1, Cores: 101}), "cores 101"},
		{"negative memory", RuleTemplates, nil, one(Entry{Profile: 9, Count: 1, MemoryMiB: -1}), "memory -1 MiB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := NewCatalogue(m, tc.rule, tc.allowed, tc.templates)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("NewCatalogue says %v, want %q in it", err, tc.says)
			}
			if len(tc.templates) == 1 && m.CheckTemplate(tc.templates[0]) == nil {
				t.Errorf("CheckTemplate(%v) accepts it", tc.templates[0])
			}
		})
	}
}

func TestTemplateMayNotMixAllMediaWithOthers(t *testing.T) {
	m := modelOf(t, "RTX-PRO-6000-96GB")
	if err := m.CheckTemplate(Template{{Profile: 65, Count: 1}, {Profile: 14, Count: 1}}); !errors.Is(err, ErrMediaEngines) {
		t.Errorf("1g+me.all with 1g: %v, want %v", err, ErrMediaEngines)
	}
	if err := m.CheckTemplate(Template{{Profile: 65, Count: 1}, {Profile: 67, Count: 3}}); err != nil {
		t.Errorf("1g+me.all with 1g-me: %v", err)
	}
}

func TestGPUWithTooManyUnitsHasNoCatalogue(t *testing.T) {
	var starts []int
	for i := range 17 {
		starts = append(starts, i)
	}
	m, err := NewModel("fine", []Profile{{ID: 1, Name: "1g.1gb", ComputeSlices: 1, Size: 1, Starts: starts}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewCatalogue(m, RuleHardware, nil, nil); err == nil || !strings.Contains(err.Error(), "17 units") {
		t.Errorf("NewCatalogue says %v, want a word on 17 units", err)
	}
}

func TestNothingIsAllocatedInADecision(t *testing.T) {
	for _, c := range benchmarkCatalogues(t) {
		o := c.halfFull
		for _, w := range []Want{{MemoryMiB: 8000, Oversize: true}, {Full: true}, {Percent: 30}, {Profile: "2g.10gb"}} {
			if n := testing.AllocsPerRun(100, func() { c.fast.Fit(o, w) }); n != 0 {
				t.Errorf("%s: Fit(%+v) allocates %v times", c.name, w, n)
			}
		}
	}
}
