// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// benchmarkView is a node with that many GPUs, about half of them taken.
func benchmarkView(tb testing.TB, board string, gpus int, seed uint64) *View {
	tb.Helper()
	chance := rand.New(rand.NewPCG(seed, 3))
	node := benchmarkNode(tb, board, gpus)
	occupied := make([]geometry.Occupancy, gpus)
	for i := range occupied {
		occupied[i] = randomlyTaken(node.GPUs[i].Catalogue, chance, 5)
	}
	return newView(node, state{occupied: occupied, taken: make([]Taken, gpus)})
}

func benchmarkNode(tb testing.TB, board string, gpus int) *Node {
	tb.Helper()
	c := hardware(tb, board)
	list := make([]GPU, gpus)
	for i := range list {
		list[i] = GPU{ID: fmt.Sprint("GPU-", i), Index: int32(i), Catalogue: c, Offered: true}
	}
	node, err := NewNode("n", list)
	if err != nil {
		tb.Fatal(err)
	}
	return node
}

// benchmarkRequest asks for instances.
func benchmarkRequest(wants ...geometry.Want) *Request {
	r := &Request{MIG: true, tables: new(tableCache)}
	for _, w := range wants {
		r.add(w, ShareWant{})
	}
	return r
}

func BenchmarkDecideOnNodeOf8(b *testing.B) {
	for _, board := range []string{"A100-40GB", "H100-80GB", "RTX-PRO-6000-96GB"} {
		b.Run(board, func(b *testing.B) {
			b.ReportAllocs()
			v := benchmarkView(b, board, 8, 1)
			r := benchmarkRequest(geometry.Want{MemoryMiB: 4800, Oversize: true})
			for b.Loop() {
				if _, c, _ := v.Node.cheapest(r, 0, v.cut); c == nil {
					b.Fatal("nothing fits")
				}
			}
		})
	}
}
