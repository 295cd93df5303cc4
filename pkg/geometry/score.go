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

// ScoreStep divides every Score and cost. What is below it is left to callers, to
// order what costs the same.
const ScoreStep = 128

// Weights of the score; see scores. docs/packing.md says what was tried.
const (
	lookAhead    = 10   // requests ahead, k
	choiceWeight = 0.5  // of what is left to choose from
	packWeight   = 0.2  // per memory slice free before: prefer fuller GPUs
	stockWeight  = 0.5  // the same with templates
	crowdWeight  = 0.15 // per instance there before, without templates: prefer GPUs with more
)

// scores has the placement score S for every position of a GPU. For a position m,
// the position m' after the placement, and a mix p of requests to come:
//
//	V0(m) = 0
//	Vk(m) = sum_p mix[p] * max( Vk-1(m), max over starts of size_p + Vk-1(m with p there) )
//	C(m)  = sum_p mix[p] * size_p * (1 + 1/2 + ... + 1/n),  n the starts of p in m
//	S     = V10(m) - V10(m') + 0.5 (C(m) - C(m')) + 0.2 free(m) - 0.15 n
//
// n being the instances that are there before; with 0.5 free(m) and without n where
// there are templates.
//
// V is what the next ten requests can get of this GPU alone if each is placed as
// well as possible and none ends. C is what it leaves to choose from: the first
// place that a profile has counts most, a second one half as much, because where
// instances end at any time a profile is better off with two places than with one.
// The next term prefers GPUs that are full already, so that others run empty, and the
// last one those that take longest to run empty, having many instances. All terms are
// in memory slices. Starts are those that Choices offers: with templates
// the ones that leave the rest of a template realisable.
//
// S is potential[m'] - potential[m] + pack[state of m] - n crowd: look-ups for a
// placement.
type scores struct {
	potential []int64 // - V10 - 0.5 C by position, times ScoreScale
	pack      []int64 // 0.2 or 0.5 free by state, times ScoreScale
	crowd     int64   // 0.15 or 0 for each instance, times ScoreScale
}

// of is S, but for n, of going from a position, with a GPU in a state, to another.
func (s *scores) of(state, before, after int) int64 {
	return s.potential[after] - s.potential[before] + s.pack[state]
}

// share is a profile's part in the mix.
type share struct {
	profile int     // index in the model
	weight  float64 // all together 1
	size    float64 // memory slices
}

// newScores fills the tables for a mix, by index of the profile. Profiles with
// weight 0 do not count at all.
func newScores(m *Model, g *positions, mix map[int]float64) scores {
	var shares []share
	for _, i := range slices.Sorted(maps.Keys(mix)) { // floating-point sums need an order
		if mix[i] > 0 {
			shares = append(shares, share{i, mix[i], float64(m.profiles[i].Size)})
		}
	}
	value := values(shares, g)
	s := scores{potential: make([]int64, g.count()), pack: make([]int64, g.states)}
	for position := range s.potential {
		s.potential[position] = scaled(-value[position] - float64(choiceWeight*choice(shares, g, position)))
	}
	weight := packWeight
	s.crowd = scaled(crowdWeight)
	if g.at != nil {
		weight, s.crowd = stockWeight, 0
	}
	for state := range s.pack {
		s.pack[state] = scaled(float64(weight * float64(m.freeIn(state))))
	}
	return s
}

// choice is C of a position.
func choice(shares []share, g *positions, position int) float64 {
	sum := 0.0
	for _, p := range shares {
		worth := 0.0
		for i := range g.moves(position, p.profile) {
			worth += 1 / float64(i+1)
		}
		sum += float64(p.weight * p.size * worth)
	}
	return sum
}

// values is V10 by position. Products are converted before they are added, so that
// no processor fuses the two and all replicas compute the same.
func values(shares []share, g *positions) []float64 {
	value, next := make([]float64, g.count()), make([]float64, g.count())
	for range lookAhead {
		for position := range value {
			sum := 0.0
			for i := range shares {
				best := value[position]
				for _, to := range g.moves(position, shares[i].profile) {
					if v := shares[i].size + value[to]; v > best { // max would look for NaN
						best = v
					}
				}
				sum += float64(shares[i].weight * best)
			}
			next[position] = sum
		}
		value, next = next, value
	}
	return value
}

// scaled rounds memory slices to a score.
func scaled(memorySlices float64) int64 {
	return int64(math.Round(memorySlices*(ScoreScale/ScoreStep))) * ScoreStep
}

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
	other.scores, other.tables = newScores(c.model, c.positions, mix), new(tables)
	return &other, nil
}
