// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"cmp"
	"maps"
	"math"
	"slices"
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

// leftCost is what a 64th of a GPU that is free costs by Binpack: a slice more
// than other costs differ by.
const leftCost = int64(5 * ScoreScale)

// Table has the answers of one catalogue for a class of wants that it does not
// tell apart, by State. Answers are those of Catalogue.Choices; each is found when
// it is first asked for, and from then on a look-up. Safe for parallel use.
type Table struct {
	catalogue *Catalogue
	query     query
	empty     bool // nothing in the catalogue is adequate
	policy    Policy

	mu    sync.Mutex // held to add answers
	known atomic.Pointer[answers]
	order atomic.Pointer[order]
}

// order has states in which something fits, by cost.
type order struct {
	of     int // states: all below
	states []State
}

// answers are what can be had, by State.
type answers struct {
	costs []int64 // apart, to be close together
	of    []*answer
}

// answer is what can be had in one state.
type answer struct {
	choices    []Choice
	successors atomic.Pointer[[]State] // nil until asked for
}

// class names a Table. Wants are of one class if the same entries of the catalogue
// are acceptable, and of these the same exact.
type class struct {
	policy            Policy
	by                measure
	acceptable, exact [2]uint64 // bits, by position in the ranking of all offers

	// want is the want itself where there are more offers than bits.
	want Want
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
	key := class{policy: p}
	if q.resolve(c, w) {
		key = q.class(c, p)
	}
	return c.table(key, q)
}

// table finds or makes the table of a class.
func (c *Catalogue) table(key class, q query) *Table {
	c.tables.mu.RLock()
	t := c.tables.known[key]
	c.tables.mu.RUnlock()
	if t != nil {
		return t
	}
	c.tables.mu.Lock()
	defer c.tables.mu.Unlock()
	if t = c.tables.known[key]; t == nil {
		t = &Table{catalogue: c, query: q, empty: q.exact == nil, policy: key.policy}
		t.known.Store(new(answers))
		if c.tables.known == nil {
			c.tables.known = make(map[class]*Table)
		}
		c.tables.known[key] = t
	}
	return t
}

// Prepare finds the answers that another catalogue, from which c differs by its mix
// only, has been asked for, so that nobody waits for them.
func (c *Catalogue) Prepare(like *Catalogue) {
	like.tables.mu.RLock()
	asked := maps.Clone(like.tables.known)
	like.tables.mu.RUnlock()
	for key, old := range asked {
		t := c.table(key, old.query)
		if known := len(old.known.Load().costs); known > 0 {
			t.Cost(State(known - 1))
		}
	}
}

// class is the class of a query that has been resolved.
func (q *query) class(c *Catalogue, p Policy) class {
	k := class{policy: p, by: q.by}
	offers := c.offers[q.by]
	if len(offers) > 64*len(k.exact) {
		k.want = q.want
		return k
	}
	for i := range offers {
		o, word, bit := &offers[i], i/64, uint64(1)<<(i%64)
		if !q.adequate(o) {
			continue
		}
		exact := q.isExact(o)
		if exact {
			k.exact[word] |= bit
		}
		if exact || q.want.Oversize {
			k.acceptable[word] |= bit
		}
	}
	return k
}

// Cost orders GPUs: the lower the better, NoCost where nothing fits. It is a
// look-up.
func (t *Table) Cost(s State) int64 {
	if costs := t.known.Load().costs; int(s) < len(costs) {
		return costs[s]
	}
	return t.find(s).costs[s]
}

// Cheapest is the position of the state that costs least, the first of equal ones,
// with its best choice; nil and NoCost if nothing fits in any. It is a look-up for
// each. The choice is shared: do not change it.
//
// Costs leave room below ScoreStep for the position, so that the loop keeps one number
// of both, and a state that is new ends it: it takes half as long as one that keeps
// two and calls find.
func (t *Table) Cheapest(states []State) (at int, choice *Choice, cost int64) {
	if len(states) > ScoreStep {
		return t.cheapestOfMany(states)
	}
	known, least := t.known.Load(), NoCost
	costs := known.costs
	for i, s := range states {
		row := uint(s) // so that one comparison is enough for the compiler as well
		if row >= uint(len(costs)) {
			t.find(slices.Max(states))
			return t.Cheapest(states)
		}
		least = min(least, costs[row]|int64(i))
	}
	if least == NoCost {
		return -1, nil, NoCost
	}
	at, cost = int(least&(ScoreStep-1)), least&^(ScoreStep-1) // least may be negative
	return at, &known.of[states[at]].choices[0], cost
}

// cheapestOfMany is Cheapest for more states than there are positions below ScoreStep.
func (t *Table) cheapestOfMany(states []State) (at int, choice *Choice, cost int64) {
	at, choice, cost = t.Cheapest(states[:ScoreStep])
	if behind, c, less := t.Cheapest(states[ScoreStep:]); less < cost {
		return ScoreStep + behind, c, less
	}
	return at, choice, cost
}

// ByCost lists the states in which something fits, the cheapest first: all up to
// one, and some beyond. The list is shared: do not change it.
func (t *Table) ByCost(upTo State) []State {
	if o := t.order.Load(); o != nil && int(upTo) < o.of {
		return o.states
	}
	t.Cost(upTo) // is known then
	costs := t.known.Load().costs
	o := &order{of: len(costs)}
	for s, cost := range costs {
		if cost != NoCost {
			o.states = append(o.states, State(s))
		}
	}
	slices.SortStableFunc(o.states, func(a, b State) int { return cmp.Compare(costs[a], costs[b]) })
	t.order.Store(o)
	return o.states
}

// Choices lists every acceptable choice, best first, as Catalogue.Choices yields
// them. The list is shared: do not change it.
func (t *Table) Choices(s State) []Choice { return t.answer(s).choices }

// Successors lists the states that the choices of s lead to, without those in
// which less is left than in another of them: enough to find out what else can be
// had. The list is shared: do not change it.
func (t *Table) Successors(s State) []State {
	a := t.answer(s)
	if known := a.successors.Load(); known != nil {
		return *known
	}
	next := t.catalogue.successors(s, a.choices)
	a.successors.Store(&next) // others may store the same
	return next
}

// CostOf is what one of the Choices of s costs. The first one costs Cost(s).
func (t *Table) CostOf(s State, c Choice) int64 {
	return t.costOf(t.catalogue.states.all()[s].Occupancy, c)
}

// Exact is the smallest adequate profile of the catalogue, with the memory that
// wants are compared with; false if there is none.
func (t *Table) Exact() (p Profile, memoryMiB int, ok bool) {
	if t.empty {
		return Profile{}, 0, false
	}
	o := t.query.exact
	return t.catalogue.model.profiles[o.profile], o.memory[t.query.by], true
}

// answer looks up or finds the answer for a state.
func (t *Table) answer(s State) *answer {
	if of := t.known.Load().of; int(s) < len(of) {
		return of[s]
	}
	return t.find(s).of[s]
}

// find answers for all states up to s, which must be one that the catalogue has
// numbered.
func (t *Table) find(s State) *answers {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := *t.known.Load()
	for _, there := range t.catalogue.states.all()[len(known.of):] {
		cost, a := NoCost, new(answer)
		if closed := len(known.of) == int(Closed); !closed && !t.empty {
			t.catalogue.walk(t.query, there, func(c Choice) bool {
				a.choices = append(a.choices, c)
				return true
			})
		}
		if len(a.choices) > 0 {
			cost = t.costOf(there.Occupancy, a.choices[0])
		}
		known.costs, known.of = append(known.costs, cost), append(known.of, a)
	}
	t.known.Store(&known) // readers of the shorter lists never look behind their end
	return &known
}

func (t *Table) costOf(o Occupancy, c Choice) int64 {
	cost := c.Score
	if !c.Exact {
		cost += OversizeCost
	}
	m := t.catalogue.model
	left := int64(64*m.FreeSlices(o)/m.grid.MemorySlices) * leftCost
	switch t.policy {
	case Binpack:
		cost += left
	case Spread:
		cost -= left
	}
	return cost
}
