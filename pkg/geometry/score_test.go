// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"math"
	"strings"
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
)

// TestSharingFormulaOfOneGPU compares which multisets CheckTemplate and Check
// accept with a closed formula for 7x8 GPUs that was proven by enumeration.
func TestSharingFormulaOfOneGPU(t *testing.T) {
	m := modelOf(t, "H100-80GB")
	possible := 0
	forEachMultiset(func(n7, n4, n3, n2, nx, n1 int) {
		want := oneGPUHolds(n7, n4, n3, n2, nx, n1)
		var template Template
		for id, n := range map[ProfileID]int{0: n7, 5: n4, 9: n3, 14: n2, 15: nx, 19: n1} {
			if n > 0 {
				template = append(template, Entry{Profile: id, Count: n})
			}
		}
		full := Occupancy{Mask: 0xff}
		for i, p := range m.Profiles() {
			full.Counts[i] = uint8(map[ProfileID]int{0: n7, 5: n4, 9: n3, 14: n2, 15: nx, 19: n1}[p.ID])
		}
		if err := m.Check(full); (err == nil) != want {
			t.Errorf("Check(%v) says %v, want it to be %v", full.Counts, err, want)
		}
		if len(template) == 0 {
			return
		}
		if err := m.CheckTemplate(template); (err == nil) != want {
			t.Errorf("CheckTemplate(%v) says %v, want it to be %v", template, err, want)
		}
		if want {
			possible++
		}
	})
	if possible != 77 { // 78 distinct multisets, one of them empty
		t.Errorf("%d multisets are possible, want 77", possible)
	}
}

// forEachMultiset counts one too many of each profile.
func forEachMultiset(f func(n7, n4, n3, n2, nx, n1 int)) {
	for n := range 3 * 3 * 4 * 5 * 6 * 9 {
		digit := func(base int) int {
			d := n % base
			n /= base
			return d
		}
		f(digit(3), digit(3), digit(4), digit(5), digit(6), digit(9))
	}
}

// oneGPUHolds is the formula: 3g goes to the upper half first, and then pairs of
// slices are counted. nx is 1g with double memory.
func oneGPUHolds(n7, n4, n3, n2, nx, n1 int) bool {
	if n7 > 1 {
		return false
	}
	h := 1 - n7
	b3 := min(n3, h)
	a3 := n3 - b3
	if h < n4+a3 {
		return false
	}
	full, short := 2*(h-n4-a3)+(h-b3), h-b3
	x := max(0, nx-short)
	short = max(0, short-nx)
	return n2+x+(max(0, n1-short)+1)/2 <= full
}

// TestScoresFitIntoRanks pins a property of S: over the 192 reachable masks, with any
// number of instances, no plain profile has more than 77 distinct scores. The 101 that
// kube-scheduler knows tell them apart.
func TestScoresFitIntoRanks(t *testing.T) {
	m := onlyProfiles(t, "H100-80GB", func(p Profile) bool { return !p.Special() })
	c := newCatalogue(t, m, config{rule: RuleHardware})
	masks := map[uint64]bool{}
	distinct := map[ProfileID]map[int64]bool{}
	forEachLayout(m, func(l Layout) {
		o, err := m.Occupancy(l)
		if err != nil {
			t.Fatal(err)
		}
		masks[o.Mask] = true
		for _, p := range m.Profiles() {
			if distinct[p.ID] == nil {
				distinct[p.ID] = map[int64]bool{}
			}
			if choice, ok := c.Fit(o, Want{Profile: p.Name}); ok {
				distinct[p.ID][choice.Score] = true
			}
		}
	})
	most := 0
	for _, scores := range distinct {
		most = max(most, len(scores))
	}
	if len(masks) != 192 || most != 77 {
		t.Errorf("%d masks with up to %d distinct scores, want 192 with 77", len(masks), most)
	}
}

func TestMixChangesWhatIsKeptFree(t *testing.T) {
	m := modelOf(t, "H100-80GB")
	c := newCatalogue(t, m, config{rule: RuleHardware})
	start := func(weights map[ProfileID]float64, profile string) int {
		mixed, err := c.WithMix(weights)
		if err != nil {
			t.Fatal(err)
		}
		choice, ok := mixed.Fit(Occupancy{}, Want{Profile: profile})
		if !ok {
			t.Fatal("nothing fits on an idle GPU")
		}
		return choice.Start
	}
	if got := start(map[ProfileID]float64{5: 1}, "3g.40gb"); got != 4 {
		t.Errorf("where all ask for 4g, 3g goes to %d, want 4", got)
	}
	if got := start(map[ProfileID]float64{14: 3}, "1g.10gb"); got != 6 {
		t.Errorf("where all ask for 2g, 1g goes to %d, want 6", got)
	}
	if got := start(map[ProfileID]float64{15: 1, 9: 0}, "1g.10gb+me"); got != 0 {
		t.Errorf("where all ask for double memory all starts are alike, and 1g+me goes to %d, want 0", got)
	}
	uniform, err := c.WithMix(map[ProfileID]float64{0: 2, 5: 2, 9: 2, 14: 2, 15: 2, 19: 2})
	if err != nil {
		t.Fatal(err)
	}
	forEachLayout(m, func(l Layout) {
		o, _ := m.Occupancy(l)
		for _, p := range m.Profiles() {
			a, _ := c.Fit(o, Want{Profile: p.Name})
			if b, _ := uniform.Fit(o, Want{Profile: p.Name}); a != b {
				t.Fatalf("%s: an even mix gives %+v, none gives %+v", m.Format(l), b, a)
			}
		}
	})
}

func TestMixMustBeNumbers(t *testing.T) {
	m := modelOf(t, "H100-80GB")
	c := newCatalogue(t, m, config{rule: RuleHardware})
	for says, weights := range map[string]map[ProfileID]float64{
		"sum up to 0":     nil,
		"sum up to +Inf":  {0: math.MaxFloat64, 5: math.MaxFloat64},
		"profile 77":      {77: 1},
		"weight NaN":      {0: math.NaN()},
		"weight -1":       {0: -1, 5: 2},
		"weight +Inf":     {0: math.Inf(1)},
		"sum up to 0, wa": {0: 0},
	} {
		if _, err := c.WithMix(weights); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("WithMix(%v) says %v, want %q", weights, err, says)
		}
	}
}
