// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// ScoreScale is the Score of one memory slice: scores are in billionths of it.
const ScoreScale = 1_000_000_000

// Weights of the score; see scores. docs/packing.md says what was tried.
const (
	lookAhead    = 10   // requests ahead, k
	choiceWeight = 0.5  // of what is left to choose from
	packWeight   = 0.25 // per memory slice free before: prefer fuller GPUs
)

// scores has the placement score S for every state of a GPU. For a state m, the
// state m' after the placement, and a mix p of requests to come:
//
//	V0(m) = 0
//	Vk(m) = sum_p mix[p] * max( Vk-1(m), max over starts of size_p + Vk-1(m with p there) )
//	C(m)  = sum_p mix[p] * size_p * (1 + 1/2 + ... + 1/n),  n the legal starts of p in m
//	S     = V10(m) - V10(m') + 0.5 (C(m) - C(m')) + 0.25 free(m)
//
// V is what the next ten requests can get of this GPU alone if each is placed as
// well as possible and none ends. C is what it leaves to choose from: the first
// place that a profile has counts most, a second one half as much, because where
// instances end at any time a profile is better off with two places than with one.
// The last term prefers GPUs that are full already, so that others run empty. All
// terms are in memory slices.
//
// S is potential[m'] - potential[m] + pack[m]: two look-ups for a placement.
type scores struct {
	potential []int64 // - V10 - 0.5 C by state, times ScoreScale
	pack      []int64 // 0.25 free by state, times ScoreScale
}

// of is S of going from a state to another.
func (s *scores) of(before, after int) int64 {
	return s.potential[after] - s.potential[before] + s.pack[before]
}

// share is a profile's part in the mix.
type share struct {
	weight  float64 // all together 1
	size    float64 // memory slices
	windows []int   // placements as states
}

// newScores fills the tables for a mix, by index of the profile. Profiles with
// weight 0 do not count at all.
func newScores(m *Model, mix map[int]float64) scores {
	var shares []share
	for _, i := range slices.Sorted(maps.Keys(mix)) { // floating-point sums need an order
		if mix[i] > 0 {
			shares = append(shares, share{mix[i], float64(m.profiles[i].Size), m.windows(i)})
		}
	}
	states := 1 << len(m.units)
	value := values(shares, states)
	s := scores{potential: make([]int64, states), pack: make([]int64, states)}
	for state := range states {
		s.potential[state] = scaled(-value[state] - float64(choiceWeight*choice(shares, state)))
		s.pack[state] = scaled(float64(packWeight * float64(m.freeIn(state))))
	}
	return s
}

// choice is C of a state.
func choice(shares []share, state int) float64 {
	sum := 0.0
	for _, p := range shares {
		worth := 0.0
		for i := range countFree(p.windows, state) {
			worth += 1 / float64(i+1)
		}
		sum += float64(p.weight * p.size * worth)
	}
	return sum
}

// values is V10 by state. Products are converted before they are added, so that
// no processor fuses the two and all replicas compute the same.
func values(shares []share, states int) []float64 {
	after, ends := moves(shares, states)
	value, next := make([]float64, states), make([]float64, states)
	for range lookAhead {
		from, entry := int32(0), 0
		for state := range states {
			sum := 0.0
			for i := range shares {
				best := value[state]
				for _, to := range after[from:ends[entry]] {
					if v := shares[i].size + value[to]; v > best { // max would look for NaN
						best = v
					}
				}
				sum += float64(shares[i].weight * best)
				from = ends[entry]
				entry++
			}
			next[state] = sum
		}
		value, next = next, value
	}
	return value
}

// moves lists the states that a request can lead to: for each state and, in it,
// each share those up to its end.
func moves(shares []share, states int) (after []uint16, ends []int32) {
	windows := 0
	for i := range shares {
		windows += len(shares[i].windows)
	}
	after, ends = make([]uint16, 0, states*windows), make([]int32, 0, states*len(shares))
	for state := range states {
		for i := range shares {
			for _, w := range shares[i].windows {
				if state&w == 0 {
					after = append(after, uint16(state|w))
				}
			}
			ends = append(ends, int32(len(after)))
		}
	}
	return after, ends
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

// scaled rounds memory slices to a score.
func scaled(memorySlices float64) int64 { return int64(math.Round(memorySlices * ScoreScale)) }

// uniform is the mix that expects all profiles alike that requests get unasked.
func (c *Catalogue) uniform() map[int]float64 {
	mix := make(map[int]float64)
	for _, i := range c.common {
		mix[i] = 1 / float64(len(c.common))
	}
	return mix
}

// WithMix returns the same catalogue with scores for another mix of requests: how
// often each profile is asked for, in any unit. Profiles that are not named count
// as never. It takes as long as NewCatalogue; keep it out of decisions.
func (c *Catalogue) WithMix(weights map[ProfileID]float64) (*Catalogue, error) {
	sum := 0.0
	for _, id := range slices.Sorted(maps.Keys(weights)) {
		w := weights[id]
		switch {
		case c.model.index(id) < 0:
			return nil, fmt.Errorf("mixing requests for %s: profile %d: %w", c.model.name, id, ErrUnknownProfile)
		case !(w >= 0) || math.IsInf(w, 1):
			return nil, fmt.Errorf("mixing requests for %s: weight %v of profile %d is not a finite number from 0", c.model.name, w, id)
		}
		sum += w
	}
	if !(sum > 0) || math.IsInf(sum, 1) {
		return nil, fmt.Errorf("mixing requests for %s: the weights sum up to %v, want a finite number above 0", c.model.name, sum)
	}
	mix := make(map[int]float64)
	for id, w := range weights {
		mix[c.model.index(id)] = w / sum
	}
	other := *c
	other.scores, other.tables = newScores(c.model, mix), new(tables)
	return &other, nil
}
