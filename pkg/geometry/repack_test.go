// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
)

// TestRepackFormulaAgainstSearch compares Kinds with what a search over layouts
// finds on one, two and three GPUs, for every combination with up to one instance
// more than could be there.
func TestRepackFormulaAgainstSearch(t *testing.T) {
	m := onlyProfiles(t, "H100-80GB", func(p Profile) bool { return !p.Special() })
	one := map[Kinds]bool{}
	forEachLayout(m, func(l Layout) {
		var k Kinds
		for _, p := range l {
			kind, ok := m.KindsOf(p.Profile)
			if !ok {
				t.Fatalf("KindsOf knows no profile %d", p.Profile)
			}
			k = k.Add(kind)
		}
		one[k] = true
	})
	if len(one) != 78 {
		t.Fatalf("one GPU holds %d multisets, want 78", len(one))
	}
	possible := map[Kinds]bool{{}: true}
	for gpus := 1; gpus <= 3; gpus++ {
		next := map[Kinds]bool{}
		for k := range possible {
			for l := range one {
				next[k.Add(l)] = true
			}
		}
		possible = next
		wrong := 0
		forEachKinds(gpus, func(k Kinds) {
			if got := k.Fit(gpus); got != possible[k] {
				if wrong++; wrong <= 5 {
					t.Errorf("%+v on %d GPUs: Fit says %v, search %v", k, gpus, got, possible[k])
				}
			}
			if got := k.GPUs(); k.Fit(gpus) != (got <= gpus) || got > 0 && k.Fit(got-1) || !k.Fit(got) {
				t.Fatalf("%+v: GPUs is %d, and Fit disagrees", k, got)
			}
		})
		if wrong > 0 {
			t.Errorf("%d GPUs: %d combinations differ", gpus, wrong)
		}
	}
}

// forEachKinds counts to one more of each than that many GPUs hold.
func forEachKinds(gpus int, f func(Kinds)) {
	for g7 := range gpus + 2 {
		for g4 := range gpus + 2 {
			for g3 := range 2*gpus + 2 {
				for g2 := range 3*gpus + 2 {
					for gx := range 4*gpus + 2 {
						for g1 := range 7*gpus + 2 {
							f(Kinds{g7, g4, g3, g2, gx, g1})
						}
					}
				}
			}
		}
	}
}

// TestKindsAreOfOneGridOnly: the formula must not be asked about other GPUs.
func TestKindsAreOfOneGridOnly(t *testing.T) {
	for _, board := range []string{"A30-24GB", "RTX-PRO-6000-96GB"} {
		m := modelOf(t, board)
		for _, p := range m.Profiles() {
			if k, ok := m.KindsOf(p.ID); ok {
				t.Errorf("%s of %s counts as %+v", p.Name, board, k)
			}
		}
	}
	m := modelOf(t, "H100-80GB")
	for name, want := range map[string]Kinds{
		"7g.80gb": {G7: 1}, "4g.40gb": {G4: 1}, "3g.40gb": {G3: 1}, "2g.20gb": {G2: 1},
		"1g.20gb": {G1Double: 1}, "1g.10gb": {G1: 1}, "1g.10gb+me": {G1: 1},
	} {
		p, ok := m.ByName(name)
		if got, known := m.KindsOf(p.ID); !ok || !known || got != want {
			t.Errorf("%s counts as %+v (%v), want %+v", name, got, known, want)
		}
	}
	if _, ok := m.KindsOf(999); ok {
		t.Error("a profile that does not exist counts")
	}
}
