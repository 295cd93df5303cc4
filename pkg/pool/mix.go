// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// Expected is a kind of device and how often it is asked for, in any unit.
type Expected struct {
	Want   geometry.Want
	Weight float64
}

// What a Mix does with what it sees.
const (
	// priorDevices is for how many devices the expectation at the start stands.
	priorDevices = 20
	// halfAfter is the number of devices after which all counts are halved, so that
	// the last one or two thousand decide.
	halfAfter = 1000
	// mostOfAPod is for how many devices those of one pod stand at most, so that the
	// largest pods do not speak for all others.
	mostOfAPod = 16
	// movedBy is by how much the parts of a catalogue's profiles must have changed
	// together, where 2 is everything. It is looked at after every so many devices.
	movedBy    = 0.04
	movedAfter = 32
	// maxExpected bounds how many kinds are told apart: the rarest goes for a new one.
	maxExpected = 512
)

// Mix is what requests are expected to come: at the start as configured, or all
// profiles alike, and then as they do come, if it learns. Slowly, by counting
// devices and halving all counts from time to time; the clock does not matter.
//
//	mix.See(request)              once for each pod
//	if mix.Moved() {
//		prices = mix.Prices(catalogues, prices)
//	}
//	request = request.At(prices)  before it is decided
//
// Nothing is kept when the process ends. Safe for parallel use.
type Mix struct {
	prior []Expected // its weights sum up to priorDevices; empty for all alike

	mu     sync.Mutex                    // guards what follows
	seen   []Expected                    // in the order of their first coming
	total  float64                       // of the weights of seen
	since  float64                       // devices since the last Prices
	check  float64                       // when since is so many, Moved looks again
	priced map[*geometry.Catalogue]parts // of profiles at the last Prices
}

// parts are how often each profile is expected, all together 1.
type parts map[geometry.ProfileID]float64

// NewMix is a mix that expects these requests; all profiles alike where there are
// none.
func NewMix(expected []Expected) *Mix {
	m := &Mix{check: movedAfter}
	sum := 0.0
	for _, e := range expected {
		sum += e.Weight
	}
	for _, e := range expected {
		m.prior = append(m.prior, Expected{e.Want, e.Weight / sum * priorDevices})
	}
	return m
}

// See counts the devices of a request, which must not have been seen before: all
// alike, and together as mostOfAPod at most.
func (m *Mix) See(r *Request) {
	if !r.MIG {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	weight := min(1, mostOfAPod/float64(len(r.Devices)))
	for _, w := range r.Devices {
		m.count(w, weight)
	}
}

func (m *Mix) count(w geometry.Want, weight float64) {
	i := slices.IndexFunc(m.seen, func(e Expected) bool { return e.Want == w })
	if i < 0 {
		if len(m.seen) == maxExpected {
			m.forgetRarest()
		}
		i = len(m.seen)
		m.seen = append(m.seen, Expected{Want: w})
	}
	m.seen[i].Weight += weight
	m.total += weight
	m.since += weight
	if m.total < 2*halfAfter {
		return
	}
	for i := range m.seen {
		m.seen[i].Weight /= 2
	}
	m.total /= 2
	rare := func(e Expected) bool { return e.Weight < 0.1 }
	for i := range m.seen {
		if rare(m.seen[i]) {
			m.total -= m.seen[i].Weight
		}
	}
	m.seen = slices.DeleteFunc(m.seen, rare)
}

// forgetRarest makes room for another kind. Of equally rare ones the oldest goes, so
// that a kind that begins to come has time to come again.
func (m *Mix) forgetRarest() {
	rarest := 0
	for i := range m.seen {
		if m.seen[i].Weight < m.seen[rarest].Weight {
			rarest = i
		}
	}
	m.total -= m.seen[rarest].Weight
	m.seen = slices.Delete(m.seen, rarest, rarest+1)
}

// Moved reports whether the mix has changed enough for new Prices: what the last
// ones expect of some catalogue's profiles. Amounts that mean the same profiles are
// the same to it. It looks now and then only, so that it may be asked after each
// request.
func (m *Mix) Moved() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.since < m.check {
		return false
	}
	m.check = m.since + movedAfter
	for c, was := range m.priced {
		if was.distance(m.parts(c)) >= movedBy {
			return true
		}
	}
	return len(m.priced) == 0
}

// distance is 0 for equal parts, and 2 for those that have nothing in common.
func (p parts) distance(q parts) float64 {
	sum := 0.0
	for id, part := range p {
		sum += math.Abs(part - q[id])
	}
	for id, part := range q {
		if _, both := p[id]; !both {
			sum += part
		}
	}
	return sum
}

// Prices are catalogues with the scores of one mix. Immutable.
type Prices struct {
	Version uint64 // different for different Prices of a process; 0 for none
	mixed   map[*geometry.Catalogue]*geometry.Catalogue
}

// on is the catalogue to decide with.
func (p *Prices) on(c *geometry.Catalogue) *geometry.Catalogue {
	if p != nil {
		if mixed, ok := p.mixed[c]; ok {
			return mixed
		}
	}
	return c
}

// version is 0 for none.
func (p *Prices) version() uint64 {
	if p == nil {
		return 0
	}
	return p.Version
}

// Prices computes the scores for some catalogues, and the answers that the prices
// before (nil at first) had in use. It takes a millisecond or so for each
// catalogue: keep it off the way of a decision.
func (m *Mix) Prices(catalogues []*geometry.Catalogue, before *Prices) *Prices {
	p := &Prices{Version: before.version() + 1, mixed: make(map[*geometry.Catalogue]*geometry.Catalogue)}
	for c, expected := range m.expect(catalogues) {
		mixed, err := c.WithMix(expected)
		if err != nil {
			continue // nothing expected can be had of it: all profiles alike
		}
		mixed.Prepare(before.on(c))
		p.mixed[c] = mixed
	}
	return p
}

// expect notes, and returns, what there is to be priced.
func (m *Mix) expect(catalogues []*geometry.Catalogue) map[*geometry.Catalogue]parts {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.priced, m.since, m.check = make(map[*geometry.Catalogue]parts, len(catalogues)), 0, movedAfter
	for _, c := range catalogues {
		m.priced[c] = m.parts(c)
	}
	return m.priced
}

// parts are what is expected of a catalogue, under the lock.
func (m *Mix) parts(c *geometry.Catalogue) parts {
	weights := m.weights(c)
	sum := 0.0
	for _, id := range slices.Sorted(maps.Keys(weights)) { // floating-point sums need an order
		sum += weights[id]
	}
	for id := range weights {
		weights[id] /= sum
	}
	return weights
}

// weights says how often each profile of a catalogue is expected, in devices.
func (m *Mix) weights(c *geometry.Catalogue) parts {
	weights := parts{}
	add := func(expected []Expected) {
		for _, e := range expected {
			if exact, ok := c.Can(e.Want); ok {
				weights[exact.Profile] += e.Weight
			}
		}
	}
	if add(m.prior); len(weights) == 0 {
		for _, id := range c.Common() {
			weights[id] = priorDevices / float64(len(c.Common()))
		}
	}
	add(m.seen)
	return weights
}

// At is the request where these prices hold.
func (r *Request) At(p *Prices) *Request {
	at := *r
	at.prices, at.tables = p, new(tableCache)
	return &at
}

// Prices says which prices hold for the request: its Version, 0 for none.
func (r *Request) Prices() uint64 { return r.prices.version() }
