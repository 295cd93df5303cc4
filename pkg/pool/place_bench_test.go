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
				if _, c, _, _ := v.Node.cheapest(r, 0, v.cut); c == nil {
					b.Fatal("nothing fits")
				}
			}
		})
	}
}

// benchmarkIndex is 5000 nodes of 8 GPUs, in which requests came and went at
// random.
func benchmarkIndex(tb testing.TB) *Index {
	tb.Helper()
	nodes := make([]*Node, 5000)
	node := benchmarkNode(tb, "H100-80GB", 8)
	for i := range nodes {
		nodes[i] = node
	}
	x := NewIndex(nodes)
	chance := rand.New(rand.NewPCG(4, 4))
	for n := range nodes {
		for g := range node.GPUs {
			x.set(n, g, randomlyTaken(node.GPUs[g].Catalogue, chance, 6))
		}
	}
	return x
}

func BenchmarkBestGPUOf40000(b *testing.B) {
	busy, idle := benchmarkIndex(b), NewIndex(benchmarkIndex(b).nodes())
	for _, c := range []struct {
		name string
		x    *Index
		want geometry.Want
	}{
		{"indexed/busy", busy, geometry.Want{MemoryMiB: 8000, Oversize: true}},
		{"indexed/busy-large", busy, geometry.Want{MemoryMiB: 38000, Oversize: true}},
		{"indexed/idle", idle, geometry.Want{MemoryMiB: 8000, Oversize: true}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			r := benchmarkRequest(c.want)
			for b.Loop() {
				if _, choice, _ := c.x.cheapest(r); choice == nil {
					b.Fatal("nothing fits")
				}
			}
		})
	}
	b.Run("scanned/busy", func(b *testing.B) {
		b.ReportAllocs()
		r := benchmarkRequest(geometry.Want{MemoryMiB: 8000, Oversize: true})
		for b.Loop() {
			least := geometry.NoCost
			for _, v := range busy.views {
				if _, c, cost, _ := v.Node.cheapest(r, 0, v.cut); c != nil {
					least = min(least, cost)
				}
			}
			if least == geometry.NoCost {
				b.Fatal("nothing fits")
			}
		}
	})
}

func (x *Index) nodes() []*Node {
	var nodes []*Node
	for _, v := range x.views {
		nodes = append(nodes, v.Node)
	}
	return nodes
}

func BenchmarkIndexTakeRelease(b *testing.B) {
	b.ReportAllocs()
	x := benchmarkIndex(b)
	r := benchmarkRequest(geometry.Want{MemoryMiB: 8000, Oversize: true})
	for b.Loop() {
		node, plan, ok := x.Best(r)
		if !ok {
			b.Fatal("nothing fits")
		}
		if err := x.Take(node, plan); err != nil {
			b.Fatal(err)
		}
		if err := x.Release(node, plan.Devices[0].GPU, plan.Devices[0].Placed); err != nil {
			b.Fatal(err)
		}
	}
}
