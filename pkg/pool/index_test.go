// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// hardware is the catalogue of everything that a board can.
func hardware(tb testing.TB, board string) *geometry.Catalogue {
	tb.Helper()
	b, ok := boards.Named(board)
	if !ok {
		tb.Fatalf("no board is named %s", board)
	}
	m, err := b.Model()
	if err != nil {
		tb.Fatal(err)
	}
	c, err := geometry.NewCatalogue(m, geometry.RuleHardware, nil, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// randomlyTaken places up to n instances at random.
func randomlyTaken(c *geometry.Catalogue, chance *rand.Rand, n int) geometry.Occupancy {
	var o geometry.Occupancy
	for range chance.IntN(n + 1) {
		profiles := c.Model().Profiles()
		p := profiles[chance.IntN(len(profiles))]
		starts := slices.Collect(c.Model().Starts(o, p.ID))
		if len(starts) == 0 {
			continue
		}
		o, _ = c.Model().Occupy(o, geometry.Placed{Profile: p.ID, Start: starts[chance.IntN(len(starts))]})
	}
	return o
}
