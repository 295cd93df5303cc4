// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/rand/v2"
	"runtime"
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

// TestRollFreesTheSeatsOfOldObjects: kubelets renew their Node objects every five
// minutes. Many times later as many nodes have a seat as at first: all but those whose
// row is full of nodes that are there.
func TestRollFreesTheSeatsOfOldObjects(t *testing.T) {
	const nodes, renewals, seatless = 600, 10, 30
	shelves := map[string]*shelf{}
	for i := range nodes {
		shelves[fmt.Sprint("n", i)] = &shelf{}
	}
	r := newRoll(shelves)
	names := r.byName
	var objects [renewals][]*v1.Node // none has the address of an earlier one
	for i := range objects {
		for name := range names {
			objects[i] = append(objects[i], object(name))
		}
		for range 2 { // in the first, nodes that have not come yet still sit with their old objects
			for _, of := range objects[i] {
				r.find(of)
			}
		}
		r.byName = nil
		fallen := 0
		for _, of := range objects[i] {
			if r.find(of) == nil {
				fallen++
			}
		}
		r.byName = names
		if fallen > seatless {
			t.Errorf("objects renewed %d times: %d of %d nodes have no seat, want %d at most", i, fallen, nodes, seatless)
		}
	}
	runtime.KeepAlive(objects)
}
