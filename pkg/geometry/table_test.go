// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// configs are one of each rule for a model.
func configs(m *Model) []config {
	var some []ProfileID
	var templates []Template
	for i, p := range m.Profiles() {
		if i%2 == 0 {
			some = append(some, p.ID)
		}
		templates = append(templates, Template{{Profile: p.ID, Count: p.Max}})
	}
	return []config{{rule: RuleHardware}, {rule: RuleAllowlist, allowed: some}, {rule: RuleTemplates, templates: templates}}
}

// TestStatesDecideAlike adds random instances to occupancies of one state: they
// stay of one state (I7). TestHardwareRule... and others compare the choices.
func TestStatesDecideAlike(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	for _, b := range boards.All() {
		m := modelOf(t, b.Key)
		for _, conf := range configs(m) {
			c := newCatalogue(t, m, conf)
			byState := map[State][]Occupancy{}
			for range 300 {
				o := Occupancy{}
				for range chance.IntN(6) {
					o = randomStep(t, m, o, chance)
				}
				byState[c.State(o)] = append(byState[c.State(o)], o)
			}
			for s, alike := range byState {
				compareFuture(t, c, s, alike)
			}
		}
	}
}

// randomStep places a random instance, or blocks a slice.
func randomStep(t *testing.T, m *Model, o Occupancy, chance *rand.Rand) Occupancy {
	t.Helper()
	p := m.Profiles()[chance.IntN(len(m.Profiles()))]
	starts := slices.Collect(m.Starts(o, p.ID))
	if len(starts) == 0 || chance.IntN(8) == 0 {
		return m.Block(o, Placement{Start: chance.IntN(m.MemorySlices()), Size: 1})
	}
	o, err := m.Occupy(o, Placed{p.ID, starts[chance.IntN(len(starts))]})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// compareFuture adds every instance to occupancies that should be alike, and to their
// state.
func compareFuture(t *testing.T, c *Catalogue, s State, alike []Occupancy) {
	t.Helper()
	m := c.Model()
	for _, p := range m.Profiles() {
		want := slices.Collect(m.Starts(alike[0], p.ID))
		for _, o := range alike[1:] {
			if c.Rule() != RuleTemplates && !slices.Equal(slices.Collect(m.Starts(o, p.ID)), want) {
				t.Fatalf("%s: %v and %v are of one state, and %s has other starts", m.Name(), alike[0], o, p.Name)
			}
			for _, start := range want {
				first, err1 := m.Occupy(alike[0], Placed{p.ID, start})
				second, err2 := m.Occupy(o, Placed{p.ID, start})
				if then, ok := c.Then(s, Placed{p.ID, start}); c.Rule() != RuleTemplates && (ok != (err2 == nil) || ok && then != c.State(second)) {
					t.Fatalf("%s: of state %d with %s at %d Then says %d, %v; %v becomes %d, %v", m.Name(), s, p.Name, start, then, ok, o, c.State(second), err2)
				}
				if (err1 == nil) != (err2 == nil) || err1 == nil && c.State(first) != c.State(second) {
					t.Fatalf("%s: %v and %v are of one state, but not after %s at %d", m.Name(), alike[0], o, p.Name, start)
				}
			}
		}
	}
}

func TestWantsOfOneClassShareATable(t *testing.T) {
	c := newCatalogue(t, modelOf(t, "A100-40GB"), config{rule: RuleHardware})
	for _, tc := range []struct {
		name string
		a, b Want
		same bool
	}{
		{"memories between two profiles", Want{MemoryMiB: 5000}, Want{MemoryMiB: 9000}, true},
		{"memories on both sides of a profile", Want{MemoryMiB: 4864}, Want{MemoryMiB: 4865}, false},
		{"shares of one number of slices", Want{Percent: 26}, Want{Percent: 50}, true},
		{"a share and a memory that mean one profile", Want{Percent: 50}, Want{MemoryMiB: 20000}, true},
		{"with and without oversize", Want{Percent: 13}, Want{Percent: 13, Oversize: true}, false},
		{"more than there is", Want{MemoryMiB: 1 << 20}, Want{Profile: "9g.9gb"}, true},
		{"a whole GPU, whatever its cores", Want{Full: true, Cores: 1}, Want{Full: true, Cores: 100}, true},
		{"by name and by size", Want{Profile: "1g.5gb"}, Want{MemoryMiB: 1}, true},
		{"a special one by name and a plain one", Want{Profile: "1g.5gb+me"}, Want{MemoryMiB: 1}, false},
		{"of equal exact ones and of larger ones", Want{Percent: 50, Oversize: true}, Want{Percent: 51, Oversize: true}, false},
	} {
		if got := c.Table(tc.a, ByScore) == c.Table(tc.b, ByScore); got != tc.same {
			t.Errorf("%s: same table = %v, want %v", tc.name, got, tc.same)
		}
	}
	if c.Table(Want{}, ByScore) == c.Table(Want{}, Binpack) {
		t.Error("policies share a table")
	}
}

// TestCostOrdersGPUs says what each policy prefers.
func TestCostOrdersGPUs(t *testing.T) {
	m := modelOf(t, "A100-40GB")
	c := newCatalogue(t, m, config{rule: RuleHardware})
	cost := func(w Want, p Policy, layout string) int64 {
		l, err := m.Parse(layout)
		if err != nil {
			t.Fatal(err)
		}
		return c.Table(w, p).Cost(c.State(mustOccupy(t, m, l)))
	}
	idle, half, full := "........", "4g.20gb@0 ....", "7g.40gb@0"
	oneSlice := "1g.5gb@0 1g.5gb@1 1g.5gb@2 1g.5gb@3 1g.5gb@4 1g.5gb@5 .."
	small := Want{MemoryMiB: 4000, Oversize: true}
	for _, tc := range []struct {
		name         string
		want         Want
		policy       Policy
		better, than string
	}{
		{"S keeps 4g where it can", Want{MemoryMiB: 15000}, ByScore, half, idle},
		{"S takes the GPU that runs empty later", small, ByScore, "1g.5gb@0 1g.5gb@1 1g.5gb@2 1g.5gb@3 ....", half},
		{"binpack takes the fuller", small, Binpack, oneSlice, half},
		{"binpack takes the half-full before the idle", small, Binpack, half, idle},
		{"spread takes the idle", small, Spread, idle, half},
		{"spread takes the half-full before the nearly full", small, Spread, half, oneSlice},
		{"what fits before what does not", small, Spread, oneSlice, full},
	} {
		if better, than := cost(tc.want, tc.policy, tc.better), cost(tc.want, tc.policy, tc.than); better >= than {
			t.Errorf("%s: %s costs %d, %s costs %d", tc.name, tc.better, better, tc.than, than)
		}
	}
	if got := cost(small, ByScore, full); got != NoCost {
		t.Errorf("a full GPU costs %d, want NoCost", got)
	}
	c = newCatalogue(t, m, config{rule: RuleTemplates, templates: geometriesOfA100()})
	for _, p := range []Policy{ByScore, Binpack, Spread} {
		exact, oversize := cost(small, p, idle), cost(small, p, "3g.20gb@0 ....")
		if exact >= OversizeCost/2 || oversize <= OversizeCost/2 || oversize == NoCost {
			t.Errorf("policy %q: an exact device costs %d, the oversize one beside 3g.20gb %d", p, exact, oversize)
		}
	}
}

// TestCheapestIsTheFirstOfTheLeast compares with a look at every cost, for fewer and
// for more states than there are positions below ScoreStep, as they are met first and
// when all is known.
func TestCheapestIsTheFirstOfTheLeast(t *testing.T) {
	m := modelOf(t, "A100-40GB")
	var layouts []Occupancy
	forEachLayout(m, func(l Layout) { layouts = append(layouts, mustOccupy(t, m, l)) })
	chance := rand.New(rand.NewPCG(8, 1))
	c := newCatalogue(t, m, config{rule: RuleHardware})
	found, behind := 0, 0
	for range 3000 {
		states := make([]State, chance.IntN(4*ScoreStep))
		if chance.IntN(2) == 0 {
			states = states[:min(len(states), 8)]
		}
		for i := range states {
			if states[i] = Closed; chance.IntN(8) > 0 {
				states[i] = c.State(layouts[chance.IntN(len(layouts))])
			}
		}
		table := c.Table(Want{MemoryMiB: 1 + chance.IntN(40000), Oversize: chance.IntN(2) == 0}, []Policy{ByScore, Binpack, Spread}[chance.IntN(3)])
		at, choice, cost := table.Cheapest(states)
		wantAt, want := -1, NoCost
		for i, s := range states {
			if here := table.Cost(s); here < want {
				wantAt, want = i, here
			}
		}
		if at != wantAt || cost != want || (choice == nil) != (at < 0) || choice != nil && *choice != table.Choices(states[at])[0] {
			t.Fatalf("of %d states the cheapest is %d at %d with %+v, want %d at %d", len(states), cost, at, choice, want, wantAt)
		}
		if at >= 0 {
			found++
		}
		if at >= ScoreStep {
			behind++
		}
	}
	if found < 1000 || behind < 100 {
		t.Errorf("something fits in %d cases, %d of them behind position %d: the test sees too little", found, behind, ScoreStep)
	}
}

func TestTablesAreFilledInParallel(t *testing.T) {
	m := modelOf(t, "H100-80GB")
	c := newCatalogue(t, m, config{rule: RuleHardware})
	var layouts []Occupancy
	forEachLayout(m, func(l Layout) { layouts = append(layouts, mustOccupy(t, m, l)) })
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			chance := rand.New(rand.NewPCG(7, uint64(worker)))
			for range 2000 {
				o := layouts[chance.IntN(len(layouts))]
				w := Want{MemoryMiB: 1 + chance.IntN(90000), Oversize: true}
				choice, ok := c.Fit(o, w)
				if got := c.Table(w, ByScore).Choices(c.State(o)); ok != (len(got) > 0) || ok && got[0] != choice {
					t.Errorf("table: %+v, Fit: %+v, %v", got, choice, ok)
					return
				}
			}
		})
	}
	all.Wait()
}
