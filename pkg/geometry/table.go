// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"math"
	"sync"
	"sync/atomic"
)

// Policy says which of several GPUs a choice should be on.
type Policy string

// Policies. A smaller device is preferred to a larger one by all of them, and of
// GPUs that are alike to Binpack or Spread the Score decides.
const (
	ByScore Policy = ""        // the one with the lowest Score
	Binpack Policy = "binpack" // the one with the least left
	Spread  Policy = "spread"  // the one with the most left
)

// NoCost is the Cost of a state where nothing fits.
const NoCost = int64(math.MaxInt64)

// OversizeCost is what a choice costs that is not exact, on top: more than any
// other costs of a pod's devices come to.
const OversizeCost = int64(1) << 56

// shareCost is what a thousandth of a GPU costs by Binpack or Spread: more than
// scores differ for the difference between two GPUs.
const shareCost = int64(10 * ScoreScale)

// Table has the answers of one catalogue for a class of wants that it does not
// tell apart, by State. Answers are those of Catalogue.Choices; each is found when
// it is first asked for, and from then on a look-up. Safe for parallel use.
type Table struct {
	catalogue *Catalogue
	query     query
	empty     bool // nothing in the catalogue is adequate
	policy    Policy

	mu    sync.Mutex // held to add answers
	known atomic.Pointer[[]answer]
}

// answer is what can be had in one state.
type answer struct {
	cost    int64 // of the first choice
	choices []Choice
}

// class names a Table. Wants are of one class if no entry of the catalogue can
// tell them apart: amounts are raised to those of the next larger entry.
type class struct {
	policy                Policy
	by                    measure
	profile               int
	named, full, oversize bool
	memory, slices, cores int
	nothing               bool // is adequate
}

// tables are those of a catalogue.
type tables struct {
	mu    sync.RWMutex // guards known
	known map[class]*Table
}

// Table returns the answers for w. It takes about a hundred nanoseconds: look it
// up once for each request. Safe for parallel use.
func (c *Catalogue) Table(w Want, p Policy) *Table {
	var q query
	key := class{policy: p, nothing: !q.resolve(c, w)}
	if !key.nothing {
		key = q.class(c, p)
	}
	c.tables.mu.RLock()
	t := c.tables.known[key]
	c.tables.mu.RUnlock()
	if t != nil {
		return t
	}
	c.tables.mu.Lock()
	defer c.tables.mu.Unlock()
	if t = c.tables.known[key]; t == nil {
		t = &Table{catalogue: c, query: q, empty: key.nothing, policy: p}
		t.known.Store(new([]answer))
		if c.tables.known == nil {
			c.tables.known = make(map[class]*Table)
		}
		c.tables.known[key] = t
	}
	return t
}

// class is the class of a query that has been resolved.
func (q *query) class(c *Catalogue, p Policy) class {
	k := class{
		policy: p, by: q.by, profile: q.profile,
		named: q.want.Profile != "", full: q.want.Full && q.want.Profile == "", oversize: q.want.Oversize,
		memory: math.MaxInt, slices: math.MaxInt, cores: math.MaxInt,
	}
	raise := func(to *int, from, has int) {
		if has >= from {
			*to = min(*to, has)
		}
	}
	for i := range c.offers[q.by] {
		o := &c.offers[q.by][i]
		raise(&k.memory, q.want.MemoryMiB, o.memory[q.by])
		raise(&k.slices, q.slices, o.size)
		raise(&k.cores, q.want.Cores, o.entry.Cores)
	}
	if k.full { // neither is then compared
		k.slices, k.cores = 0, 0
	}
	return k
}

// Cost orders GPUs: the lower the better, NoCost where nothing fits. It is a
// look-up.
func (t *Table) Cost(s State) int64 {
	if known := *t.known.Load(); int(s) < len(known) {
		return known[s].cost
	}
	return t.find(s).cost
}

// Choices lists every acceptable choice, best first, as Catalogue.Choices yields
// them. The list is shared: do not change it.
func (t *Table) Choices(s State) []Choice {
	if known := *t.known.Load(); int(s) < len(known) {
		return known[s].choices
	}
	return t.find(s).choices
}

// CostOf is what one of the Choices of s costs. The first has the Cost of s.
func (t *Table) CostOf(s State, c Choice) int64 {
	return t.costOf(t.catalogue.states.all()[s], c)
}

// Exact is the smallest adequate entry of the catalogue, and false if there is
// none.
func (t *Table) Exact() (Entry, bool) {
	if t.empty {
		return Entry{}, false
	}
	return t.query.exact.entry, true
}

// find answers for all states up to s, which must be one that the catalogue has
// numbered.
func (t *Table) find(s State) answer {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := *t.known.Load()
	for _, o := range t.catalogue.states.all()[len(known):] {
		known = append(known, t.answer(o))
	}
	t.known.Store(&known) // readers of the shorter list never look behind its end
	return known[s]
}

// answer asks the catalogue.
func (t *Table) answer(o Occupancy) answer {
	a := answer{cost: NoCost}
	if t.empty {
		return a
	}
	t.catalogue.walk(t.query, o, func(c Choice) bool {
		a.choices = append(a.choices, c)
		return true
	})
	if len(a.choices) > 0 {
		a.cost = t.costOf(o, a.choices[0])
	}
	return a
}

func (t *Table) costOf(o Occupancy, c Choice) int64 {
	cost := c.Score
	if !c.Exact {
		cost += OversizeCost
	}
	m := t.catalogue.model
	share := int64(1000*m.FreeSlices(o)/m.grid.MemorySlices) * shareCost
	switch t.policy {
	case Binpack:
		cost += share
	case Spread:
		cost -= share
	}
	return cost
}
