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
// their addresses; a new one takes the place of another when no seat is free.
type row [4]seat

// seat is where the Node object at an address finds its shelf.
type seat struct {
	object atomic.Uintptr // the address
	shelf  atomic.Pointer[shelf]
}

// free reports whether nobody sits here any more: kubelets renew their Node objects
// every few minutes, and a shelf knows the newest one only.
func (s *seat) free() bool {
	of := s.shelf.Load()
	return of == nil || uintptr(unsafe.Pointer(of.object.Load())) != s.object.Load()
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
	address := uintptr(unsafe.Pointer(of))
	chance := spread(address)
	row := &r.rows[chance&uint64(len(r.rows)-1)]
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
		row.put(address, s, chance>>30)
	}
	return s
}

// spread makes 32 bits of an address that look like chance. One multiplication is too
// few: addresses stand at even distances, and it crowds some rows (of 600 nodes 20 were
// without a seat, and up to 91, instead of 5 and up to 16).
func spread(address uintptr) uint64 {
	const golden = 0x9e3779b97f4a7c15
	x := uint64(address) * golden
	return (x ^ x>>32) * golden >> 32
}

// put gives a shelf the first free seat, or one that chance chooses.
func (r *row) put(address uintptr, s *shelf, chance uint64) {
	at := chance % uint64(len(r))
	for i := range r {
		if r[i].free() || r[i].object.Load() == address {
			at = uint64(i)
			break
		}
	}
	r[at].shelf.Store(s)
	r[at].object.Store(address)
}
