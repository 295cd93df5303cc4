// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"strings"

	. "github.com/dynamig/dynamig/pkg/geometry"
)

// slowScorer computes S from its definition, with memory slices as booleans and
// one remembered value for each number of requests ahead.
type slowScorer struct {
	slices int
	mix    []Profile
	value  map[ahead]float64
	scores map[move]float64
}

type ahead struct {
	gpu string
	k   int
}

type move struct {
	gpu         string
	start, size int
}

func newSlowScorer(m *Model, mix []Profile) *slowScorer {
	return &slowScorer{slices: m.MemorySlices(), mix: mix, value: make(map[ahead]float64), scores: make(map[move]float64)}
}

// taken draws the spans, a letter for each memory slice.
func (s *slowScorer) taken(there []span) string {
	gpu := []byte(strings.Repeat(".", s.slices))
	for _, t := range there {
		copy(gpu[t.start:], strings.Repeat("X", t.size))
	}
	return string(gpu)
}

// with takes one more span, and returns false if it is not free.
func with(gpu string, start, size int) (string, bool) {
	if strings.Contains(gpu[start:start+size], "X") {
		return "", false
	}
	return gpu[:start] + strings.Repeat("X", size) + gpu[start+size:], true
}

func (s *slowScorer) lookAhead(gpu string, k int) float64 {
	if k == 0 {
		return 0
	}
	key := ahead{gpu, k}
	if v, ok := s.value[key]; ok {
		return v
	}
	sum := 0.0
	for _, p := range s.mix {
		best := s.lookAhead(gpu, k-1)
		for _, start := range p.Starts {
			if after, ok := with(gpu, start, p.Size); ok {
				best = max(best, float64(p.Size)+s.lookAhead(after, k-1))
			}
		}
		sum += best / float64(len(s.mix))
	}
	s.value[key] = sum
	return sum
}

// fragmentation is F: what the next request is expected not to be able to use.
func (s *slowScorer) fragmentation(gpu string) float64 {
	f := 0.0
	for _, p := range s.mix {
		fits := false
		for _, start := range p.Starts {
			_, ok := with(gpu, start, p.Size)
			fits = fits || ok
		}
		if !fits {
			f += float64(strings.Count(gpu, ".")) / float64(len(s.mix))
		}
	}
	return f
}

// choice is C: the n-th place of a profile is worth an n-th of its size.
func (s *slowScorer) choice(gpu string) float64 {
	sum := 0.0
	for _, p := range s.mix {
		places := 0
		for _, start := range p.Starts {
			if _, ok := with(gpu, start, p.Size); ok {
				places++
				sum += float64(p.Size) / float64(places) / float64(len(s.mix))
			}
		}
	}
	return sum
}

// score is S of placing p at a start, in memory slices.
func (s *slowScorer) score(there []span, p Profile, start int) float64 {
	before := s.taken(there)
	key := move{before, start, p.Size}
	if known, ok := s.scores[key]; ok {
		return known
	}
	after, _ := with(before, start, p.Size)
	s.scores[key] = s.lookAhead(before, 10) - s.lookAhead(after, 10) +
		0.5*(s.choice(before)-s.choice(after)) + 0.25*float64(strings.Count(before, "."))
	return s.scores[key]
}
