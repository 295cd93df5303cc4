// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

// Kinds counts instances of the plain profiles of GPUs with 7 compute and 8 memory
// slices: all boards from the A100 to the B300. It answers what a fleet could hold
// if every instance could be moved at any time, which bounds what any scheduler can
// reach that moves nothing.
type Kinds struct {
	G7, G4, G3, G2 int // 7g, 4g, 3g, 2g
	G1Double       int // 1g with double memory
	G1             int // 1g
}

// Add returns the sum of both.
func (k Kinds) Add(l Kinds) Kinds {
	return Kinds{k.G7 + l.G7, k.G4 + l.G4, k.G3 + l.G3, k.G2 + l.G2, k.G1Double + l.G1Double, k.G1 + l.G1}
}

// Times returns n of each.
func (k Kinds) Times(n int) Kinds {
	return Kinds{n * k.G7, n * k.G4, n * k.G3, n * k.G2, n * k.G1Double, n * k.G1}
}

// Fit reports whether that many GPUs can hold these instances together. It is
// exact, and takes no longer for a thousand GPUs than for one.
//
// A 4g, and a 3g beside another 3g, takes a lower half; a 3g goes to an upper half
// first, where a 4g cannot be. Of what is left, a lower half is two pairs of
// slices, and an upper half one pair and a short pair: slices 6 and 7, which hold
// one 1g, of either memory, and no 2g.
func (k Kinds) Fit(gpus int) bool {
	halves := gpus - k.G7 // upper ones, and as many lower ones
	if halves < 0 {
		return false
	}
	upper := min(k.G3, halves)
	lower := k.G4 + k.G3 - upper
	if lower > halves {
		return false
	}
	short := halves - upper
	pairs := 2*(halves-lower) + halves - upper
	double := max(0, k.G1Double-short)
	short = max(0, short-k.G1Double)
	return k.G2+double+(max(0, k.G1-short)+1)/2 <= pairs
}

// GPUs is the smallest number of GPUs that can hold these instances together.
func (k Kinds) GPUs() int {
	// One GPU for each instance is enough; each holds less than 9.
	low, high := 0, k.G7+k.G4+k.G3+k.G2+k.G1Double+k.G1
	for low < high {
		if mid := (low + high) / 2; k.Fit(mid) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}

// KindsOf is one instance of a profile as Kinds. False where the model is not of
// the grid that Kinds is about, or the profile is none of the six. Variants (+me
// and others) count as the plain profile whose placements they have.
func (m *Model) KindsOf(id ProfileID) (Kinds, bool) {
	i := m.index(id)
	if i < 0 || m.grid != (Grid{MemorySlices: 8, ComputeSlices: 7}) {
		return Kinds{}, false
	}
	const evenLow = 1<<0 | 1<<2 | 1<<4
	switch s := m.shapes[i]; {
	case s.size == 8 && s.starts == 1<<0:
		return Kinds{G7: 1}, true
	case s.size == 4 && s.starts == 1<<0:
		return Kinds{G4: 1}, true
	case s.size == 4 && s.starts == 1<<0|1<<4:
		return Kinds{G3: 1}, true
	case s.size == 2 && s.starts == evenLow:
		return Kinds{G2: 1}, true
	case s.size == 2 && s.starts == evenLow|1<<6:
		return Kinds{G1Double: 1}, true
	case s.size == 1 && s.starts == 1<<7-1:
		return Kinds{G1: 1}, true
	}
	return Kinds{}, false
}
