// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"maps"
	"sync/atomic"
	"unsafe"

	v1 "k8s.io/api/core/v1"
)

// roll finds what the pool has for a node, for Filter, which asks for each node of
// the cluster, for each pod. With thousands of nodes each step of a search is a miss
// in the processor's caches. By name these are four or more. So nodes have seats as
// well, by the address of their Node object: one step. Safe for parallel use.
type roll struct {
	byName map[string]*shelf // never changed
	rows   []row             // a power of two
}

// row is a line of the processor's cache. Which Node objects sit in it is a matter of
// their addresses; a new one takes the place of another when there is none left.
type row [4]struct {
	object atomic.Uintptr // the address
	shelf  atomic.Pointer[shelf]
}

// newRoll has two seats for each node or more.
func newRoll(nodes map[string]*shelf) *roll {
	rows := 1
	for 2*rows < len(nodes) {
		rows *= 2
	}
	return &roll{byName: maps.Clone(nodes), rows: make([]row, rows)}
}

// find returns the shelf of a node; nil when the pool has none. What a seat says
// holds only if the shelf knows the very object: Node objects do not change, and one
// that a shelf refers to shares its address with no other.
func (r *roll) find(of *v1.Node) *shelf {
	const golden = 0x9e3779b97f4a7c15 // spreads addresses over the upper bits
	address := uintptr(unsafe.Pointer(of))
	spread := uint64(address) * golden >> 32
	row := &r.rows[spread&uint64(len(r.rows)-1)]
	for i := range row {
		if row[i].object.Load() == address {
			if s := row[i].shelf.Load(); s != nil && s.object.Load() == of {
				return s
			}
		}
	}
	s := r.byName[of.Name]
	if s != nil {
		s.object.Store(of)
		row.seat(address, s, spread>>30)
	}
	return s
}

// seat gives a shelf the first free seat, or one that chance chooses.
func (r *row) seat(address uintptr, s *shelf, chance uint64) {
	at := chance % uint64(len(r))
	for i := range r {
		if held := r[i].object.Load(); held == 0 || held == address {
			at = uint64(i)
			break
		}
	}
	r[at].shelf.Store(s)
	r[at].object.Store(address)
}
