// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"reflect"
	"sync/atomic"

	fwk "k8s.io/kube-scheduler/framework"
)

// measured keeps what Filter has measured for Score, which is asked for the same
// NodeInfos right after it. It may forget: it is a hash table of fixed size that
// gives up after a few steps. Safe for parallel use; a NodeInfo is named by its
// address, which nothing else has as long as the cycle runs.
type measured struct{ slots []slot }

type slot struct {
	node  atomic.Uintptr // 0 while free
	score atomic.Int64
}

const (
	minMeasured = 1 << 4
	maxMeasured = 1 << 11 // 32 KiB: kube-scheduler looks at some hundred nodes
	probes      = 8
)

// newMeasured has room for so many nodes, within reason.
func newMeasured(nodes int) *measured {
	size := minMeasured
	for size < 2*nodes && size < maxMeasured {
		size *= 2
	}
	return &measured{slots: make([]slot, size)}
}

// put keeps the score of a node. The newest one counts.
func (m *measured) put(ni fwk.NodeInfo, score int64) {
	address := reflect.ValueOf(ni).Pointer()
	for i := range uint64(probes) {
		s := m.slot(address, i)
		if s.node.CompareAndSwap(0, address) || s.node.Load() == address {
			s.score.Store(score)
			return
		}
	}
}

// get returns the score of a node, if it was kept.
func (m *measured) get(ni fwk.NodeInfo) (int64, bool) {
	address := reflect.ValueOf(ni).Pointer()
	for i := range uint64(probes) {
		s := m.slot(address, i)
		switch s.node.Load() {
		case address:
			return s.score.Load(), true
		case 0:
			return 0, false
		}
	}
	return 0, false
}

// slot is where the ith probe for an address looks. The multiplier spreads
// addresses, which are multiples of something, over the upper bits.
func (m *measured) slot(address uintptr, i uint64) *slot {
	const golden = 0x9e3779b97f4a7c15
	return &m.slots[(uint64(address)*golden>>32+i)&uint64(len(m.slots)-1)]
}
