// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"fmt"
	"math/bits"
)

// A unit is a set of memory slices that every placement has wholly or not at all:
// one slice on most GPUs, three on an RTX PRO 6000. Taken units are all that
// decides what still fits, so tables are indexed by them: bit i of a state is
// unit i. A unit with any slice taken is taken.

// maxUnits bounds the tables, which have 2^units states.
const maxUnits = 16

// checkUnits refuses a model that is too fine for tables.
func (m *Model) checkUnits() error {
	if len(m.units) > maxUnits {
		return fmt.Errorf("placements divide the GPU into %d units, want at most %d", len(m.units), maxUnits)
	}
	return nil
}

// unitsOf divides the memory slices that have placements by the bounds of all
// placements, by ascending first slice.
func unitsOf(profiles []Profile) []uint64 {
	var covered, bounds uint64 // bit i of bounds: a unit starts at i
	for _, p := range profiles {
		for _, start := range p.Starts {
			covered |= p.at(start).mask()
			bounds |= 1<<start | 1<<(start+p.Size) // the shift by 64 is none
		}
	}
	var units []uint64
	for i := range maxSlices {
		switch bit := uint64(1) << i; {
		case covered&bit == 0:
		case bounds&bit != 0:
			units = append(units, bit)
		default:
			units[len(units)-1] |= bit
		}
	}
	return units
}

// state maps a mask of memory slices to a state, bit by unit.
func (m *Model) state(mask uint64) int {
	state := 0
	for i, unit := range m.units {
		if mask&unit != 0 {
			state |= 1 << i
		}
	}
	return state
}

// windows lists the placements of profile index i as states, by ascending start.
func (m *Model) windows(i int) []int {
	var windows []int
	for _, start := range m.profiles[i].Starts {
		windows = append(windows, m.shapes[i].states[start])
	}
	return windows
}

// freeIn is the number of memory slices in the free units of a state.
func (m *Model) freeIn(state int) int {
	free := 0
	for i, unit := range m.units {
		if state>>i&1 == 0 {
			free += bits.OnesCount64(unit)
		}
	}
	return free
}
