// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
)

// benchmarkCatalogue is a catalogue with a GPU that is half full.
type benchmarkCatalogue struct {
	name     string
	config   config
	model    *Model
	fast     *Catalogue
	halfFull Occupancy
}

func benchmarkCatalogues(tb testing.TB) []benchmarkCatalogue {
	tb.Helper()
	var list []benchmarkCatalogue
	for _, c := range []struct {
		name, board, layout string
		config              config
	}{
		{"a100-templates", "A100-40GB", "2g.10gb@0 ......", config{rule: RuleTemplates, templates: geometriesOfA100()}},
		{"h200-hardware", "H200-141GB", "1g.18gb@0 . 2g.35gb@2 ....", config{rule: RuleHardware}},
		{"rtxpro-hardware", "RTX-PRO-6000-96GB", "2g.48gb@0 ......", config{rule: RuleHardware}},
	} {
		m := modelOf(tb, c.board)
		l, err := m.Parse(c.layout)
		if err != nil {
			tb.Fatal(err)
		}
		o, err := m.Occupancy(l)
		if err != nil {
			tb.Fatal(err)
		}
		list = append(list, benchmarkCatalogue{c.name, c.config, m, newCatalogue(tb, m, c.config), o})
	}
	return list
}

func BenchmarkFit(b *testing.B) {
	for _, c := range benchmarkCatalogues(b) {
		for _, state := range []struct {
			name string
			o    Occupancy
		}{{"idle", Occupancy{}}, {"half-full", c.halfFull}} {
			b.Run(c.name+"/"+state.name, func(b *testing.B) {
				b.ReportAllocs()
				w := Want{MemoryMiB: 4800, Oversize: true}
				for b.Loop() {
					if _, ok := c.fast.Fit(state.o, w); !ok {
						b.Fatal("nothing fits")
					}
				}
			})
		}
	}
}

func BenchmarkOccupyVacate(b *testing.B) {
	c := benchmarkCatalogues(b)[1]
	p := Placed{Profile: 9, Start: 4}
	b.ReportAllocs()
	for b.Loop() {
		o, err := c.model.Occupy(c.halfFull, p)
		if err != nil {
			b.Fatal(err)
		}
		if _, err = c.model.Vacate(o, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewCatalogue(b *testing.B) {
	for _, c := range benchmarkCatalogues(b) {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				newCatalogue(b, c.model, c.config)
			}
		})
	}
}

// BenchmarkTableRebuild computes the scores of every state for another mix.
func BenchmarkTableRebuild(b *testing.B) {
	for _, c := range benchmarkCatalogues(b) {
		b.Run(c.name, func(b *testing.B) {
			mix := map[ProfileID]float64{}
			for i, id := range c.fast.Common() {
				mix[id] = float64(1 + i)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.fast.WithMix(mix); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRepackCheck asks whether a fleet that may be repacked could hold one more
// instance.
func BenchmarkRepackCheck(b *testing.B) {
	held := Kinds{G7: 9000, G4: 3000, G3: 9000, G2: 20000, G1Double: 5000, G1: 30000}
	b.ReportAllocs()
	for b.Loop() {
		if !held.Add(Kinds{G3: 1}).Fit(40000) {
			b.Fatal("it does not fit")
		}
	}
}
