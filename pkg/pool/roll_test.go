// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestRollFindsEveryNode: by whichever object, also where many share a row, and from
// many goroutines. Objects come and go, so that some have addresses that others had.
func TestRollFindsEveryNode(t *testing.T) {
	const nodes = 200
	shelves := map[string]*shelf{}
	for i := range nodes {
		shelves[fmt.Sprint("n", i)] = &shelf{}
	}
	roomy, crowded := newRoll(shelves), newRoll(shelves)
	if seats := len(roomy.rows) * len(row{}); seats < 2*nodes {
		t.Errorf("%d nodes have %d seats, want two for each", nodes, seats)
	}
	crowded.rows = crowded.rows[:1]
	var group sync.WaitGroup
	for seed := range uint64(4) {
		group.Go(func() {
			chance := rand.New(rand.NewPCG(seed, 5))
			var objects [2 * nodes]*v1.Node
			for range 20_000 {
				o := &objects[chance.IntN(len(objects))]
				if *o == nil || chance.IntN(10) == 0 {
					*o = object(fmt.Sprint("n", chance.IntN(nodes+1))) // one is not in the pool
				}
				for _, r := range []*roll{roomy, crowded} {
					if got, want := r.find(*o), shelves[(*o).Name]; got != want {
						t.Errorf("find(%s) is %p, want %p", (*o).Name, got, want)
						return
					}
				}
			}
		})
	}
	group.Wait()
}

// TestRollSeatsANode: what was found once is found without its name.
func TestRollSeatsANode(t *testing.T) {
	s := &shelf{}
	r := newRoll(map[string]*shelf{"n": s})
	of := object("n")
	r.find(of)
	clear(r.byName)
	if r.find(of) != s {
		t.Error("the node has no seat")
	}
	if again := *of; r.find(&again) != nil {
		t.Error("a copy of the object has the seat as well")
	}
}
