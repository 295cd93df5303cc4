// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"math"
	"strings"
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
)

func TestMeasuresOfKnownLayouts(t *testing.T) {
	m := modelOf(t, "A100-40GB")
	hardware := newCatalogue(t, m, config{rule: RuleHardware})
	templates := newCatalogue(t, m, config{rule: RuleTemplates, templates: geometriesOfA100()})
	const none = -1
	for _, tc := range []struct {
		name          string
		catalogue     *Catalogue
		layout        string
		fragmentation float64 // of six profiles: 1g.5gb, 1g.10gb, 2g, 3g, 4g, 7g; of four with templates
		stranded      int
		template      int
	}{
		{"an idle GPU", hardware, "........", 0, 0, none},
		{"a full one", hardware, "7g.40gb@0", 0, 0, none},
		{"a small instance at 3 costs 4g and 7g", hardware, "... 1g.5gb@3 ....", 7 * 2 / 6.0, 0, none},
		{"the last slice alone is of no use", hardware, "3g.20gb@0 2g.10gb@4 1g.5gb@6 .", 1, 1, none},
		{"idle: no template is in force", templates, "........", 0, 0, none},
		{"one small instance: the first template", templates, "1g.5gb@0 .......", 7 * 1 / 4.0, 1, 0},
		{"2g is of the second, which leaves the last slice", templates, "2g.10gb@0 ......", 6 * 1 / 4.0, 1, 1},
		{"3g is of the third", templates, "3g.20gb@0 ....", 4 * 1 / 4.0, 0, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := m.Parse(tc.layout)
			if err != nil {
				t.Fatal(err)
			}
			o := mustOccupy(t, m, l)
			if got := tc.catalogue.Fragmentation(o); math.Abs(got-tc.fragmentation) > 1e-9 {
				t.Errorf("Fragmentation = %v, want %v", got, tc.fragmentation)
			}
			if got := tc.catalogue.Stranded(o); got != tc.stranded {
				t.Errorf("Stranded = %d, want %d", got, tc.stranded)
			}
			got, ok := tc.catalogue.TemplateInForce(o)
			if !ok {
				got = none
			}
			if got != tc.template {
				t.Errorf("TemplateInForce = %d, want %d", got, tc.template)
			}
		})
	}
}

// TestMeasuresOnEveryLayout compares with the oracle: F by its own count, stranded
// slices by drawing every choice there is, the template by searching.
func TestMeasuresOnEveryLayout(t *testing.T) {
	for _, tc := range []struct {
		board string
		conf  config
	}{
		{"A30-24GB", config{rule: RuleHardware}},
		{"A100-40GB", config{rule: RuleAllowlist, allowed: []ProfileID{19, 14, 9, 0}}},
		{"A100-40GB", config{rule: RuleTemplates, templates: geometriesOfA100()}},
	} {
		t.Run(tc.board+" "+string(tc.conf.rule), func(t *testing.T) {
			m := modelOf(t, tc.board)
			c, slow := newCatalogue(t, m, tc.conf), newSlowCatalogue(m, tc.conf)
			forEachLayout(m, func(l Layout) {
				o, there := mustOccupy(t, m, l), spansOf(m, l)
				drawn := slow.scorer.on(there).taken
				if want := slow.scorer.fragmentation(drawn); math.Abs(c.Fragmentation(o)-want) > 1e-9 {
					t.Fatalf("%s: Fragmentation = %v, want %v", m.Format(l), c.Fragmentation(o), want)
				}
				gpu := []byte(drawn)
				for _, choice := range slow.choices(there, Want{Oversize: true}) {
					copy(gpu[choice.Start:], strings.Repeat("X", choice.Size))
				}
				if want := strings.Count(string(gpu), "."); c.Stranded(o) != want {
					t.Fatalf("%s: Stranded = %d, want %d", m.Format(l), c.Stranded(o), want)
				}
				want, wantOK := 0, false
				for i, template := range tc.conf.templates {
					if len(l) > 0 && slow.realisable(template, there) {
						want, wantOK = i, true
						break
					}
				}
				if got, ok := c.TemplateInForce(o); got != want || ok != wantOK {
					t.Fatalf("%s: TemplateInForce = %d, %v; want %d, %v", m.Format(l), got, ok, want, wantOK)
				}
			})
		})
	}
}
