// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"slices"
	"strings"

	. "github.com/dynamig/dynamig/pkg/geometry"
)

// slowScorer computes S from its definition, with memory slices as booleans and
// one remembered value for each number of requests ahead. With templates it also
// lists what is in use, and tries every template for each start.
type slowScorer struct {
	slices    int
	mix       []Profile
	templates [][]string // names of the profiles; nil in other rules
	profiles  map[string]Profile
	value     map[ahead]float64
	scores    map[move]float64
	found     map[request][]int
}

// slowGPU is what scores tell apart.
type slowGPU struct {
	taken string // a letter for each memory slice
	use   string // with templates: names of the profiles in use, sorted, a space after each
}

type ahead struct {
	gpu slowGPU
	k   int
}

type move struct {
	gpu     slowGPU
	start   int
	profile string
}

type request struct {
	gpu     slowGPU
	profile string
}

func newSlowScorer(m *Model, mix []Profile, templates []Template) *slowScorer {
	s := &slowScorer{
		slices: m.MemorySlices(), mix: mix, profiles: map[string]Profile{},
		value: make(map[ahead]float64), scores: make(map[move]float64), found: make(map[request][]int),
	}
	for _, p := range m.Profiles() {
		s.profiles[p.Name] = p
	}
	for _, t := range templates {
		var names []string
		for _, e := range t {
			p, _ := m.Profile(e.Profile)
			names = append(names, slices.Repeat([]string{p.Name}, e.Count)...)
		}
		s.templates = append(s.templates, names)
	}
	return s
}

// on is a GPU with these spans.
func (s *slowScorer) on(there []span) slowGPU {
	taken := []byte(strings.Repeat(".", s.slices))
	var use []string
	for _, t := range there {
		copy(taken[t.start:], strings.Repeat("X", t.size))
		if t.profile != "" {
			use = append(use, t.profile)
		}
	}
	return slowGPU{string(taken), s.inUse(use)}
}

// inUse is empty where it does not matter.
func (s *slowScorer) inUse(names []string) string {
	if s.templates == nil {
		return ""
	}
	slices.Sort(names)
	return strings.Join(names, " ") + " "
}

// then is the GPU with one more instance.
func (s *slowScorer) then(gpu slowGPU, p Profile, start int) slowGPU {
	taken, _ := with(gpu.taken, start, p.Size)
	return slowGPU{taken, s.inUse(append(strings.Fields(gpu.use), p.Name))}
}

// starts are those where p can be placed, so that what is left of a template can be
// placed afterwards, if there are templates.
func (s *slowScorer) starts(gpu slowGPU, p Profile) []int {
	key := request{gpu, p.Name}
	if known, ok := s.found[key]; ok {
		return known
	}
	starts := []int{}
	for _, start := range p.Starts {
		if _, ok := with(gpu.taken, start, p.Size); ok && s.allowed(s.then(gpu, p, start)) {
			starts = append(starts, start)
		}
	}
	s.found[key] = starts
	return starts
}

// allowed reports whether a template has all that is in use and room for the rest.
func (s *slowScorer) allowed(gpu slowGPU) bool {
	return s.templates == nil || slices.ContainsFunc(s.templates, func(t []string) bool {
		left := slices.Clone(t)
		for _, name := range strings.Fields(gpu.use) {
			i := slices.Index(left, name)
			if i < 0 {
				return false
			}
			left = slices.Delete(left, i, i+1)
		}
		var rest []Profile
		for _, name := range left {
			rest = append(rest, s.profiles[name])
		}
		return placeAll(gpu.taken, rest)
	})
}

// with takes one more span, and returns false if it is not free.
func with(gpu string, start, size int) (string, bool) {
	if strings.Contains(gpu[start:start+size], "X") {
		return "", false
	}
	return gpu[:start] + strings.Repeat("X", size) + gpu[start+size:], true
}

func (s *slowScorer) lookAhead(gpu slowGPU, k int) float64 {
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
		for _, start := range s.starts(gpu, p) {
			best = max(best, float64(p.Size)+s.lookAhead(s.then(gpu, p, start), k-1))
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
func (s *slowScorer) choice(gpu slowGPU) float64 {
	sum := 0.0
	for _, p := range s.mix {
		for i := range s.starts(gpu, p) {
			sum += float64(p.Size) / float64(i+1) / float64(len(s.mix))
		}
	}
	return sum
}

// score is S of placing p at a start, in memory slices.
func (s *slowScorer) score(there []span, p Profile, start int) float64 {
	n := 0
	for _, t := range there {
		if t.profile != "" && s.templates == nil {
			n++
		}
	}
	return s.shift(s.on(there), p, start) - 0.15*float64(n)
}

// shift is S but for the number of instances.
func (s *slowScorer) shift(before slowGPU, p Profile, start int) float64 {
	key := move{before, start, p.Name}
	if known, ok := s.scores[key]; ok {
		return known
	}
	after := s.then(before, p, start)
	pull := 0.2
	if s.templates != nil {
		pull = 0.5
	}
	s.scores[key] = s.lookAhead(before, 10) - s.lookAhead(after, 10) +
		0.5*(s.choice(before)-s.choice(after)) + pull*float64(strings.Count(before.taken, "."))
	return s.scores[key]
}
