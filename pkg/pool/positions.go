// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import "math/bits"

// positions is a set of small numbers that knows its lowest: bits, and above each
// 64 words one word that says which of them are not empty. Every operation takes a
// few steps, whatever the size.
type positions struct {
	count  int
	levels [][]uint64 // the set itself first; the last has one word
}

// add puts in a number that is not there, below size, which must always be the
// same.
func (p *positions) add(n, size int) {
	if p.levels == nil {
		for {
			size = (size + 63) / 64
			p.levels = append(p.levels, make([]uint64, size))
			if size == 1 {
				break
			}
		}
	}
	p.count++
	for _, level := range p.levels {
		level[n/64] |= 1 << (n % 64)
		n /= 64
	}
}

// remove takes out a number that is there.
func (p *positions) remove(n int) {
	p.count--
	for _, level := range p.levels {
		level[n/64] &^= 1 << (n % 64)
		if level[n/64] != 0 {
			return
		}
		n /= 64
	}
}

// first is the lowest number of a set that is not empty.
func (p *positions) first() int {
	n := 0
	for i := len(p.levels) - 1; i >= 0; i-- {
		n = n*64 + bits.TrailingZeros64(p.levels[i][n])
	}
	return n
}
