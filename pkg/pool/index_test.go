// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// built are the catalogues that hardware has built.
var built sync.Map

// hardware is the catalogue of everything that a board can.
func hardware(tb testing.TB, board string) *geometry.Catalogue {
	tb.Helper()
	if c, ok := built.Load(board); ok {
		return c.(*geometry.Catalogue)
	}
	b, ok := boards.Named(board)
	if !ok {
		tb.Fatalf("no board is named %s", board)
	}
	m, err := b.Model()
	if err != nil {
		tb.Fatal(err)
	}
	c, err := geometry.NewCatalogue(m, geometry.RuleHardware, nil, nil)
	if err != nil {
		tb.Fatal(err)
	}
	built.Store(board, c)
	return c
}

// randomlyTaken places up to n instances at random.
func randomlyTaken(c *geometry.Catalogue, chance *rand.Rand, n int) geometry.Occupancy {
	var o geometry.Occupancy
	for range chance.IntN(n + 1) {
		profiles := c.Model().Profiles()
		p := profiles[chance.IntN(len(profiles))]
		starts := slices.Collect(c.Model().Starts(o, p.ID))
		if len(starts) == 0 {
			continue
		}
		o, _ = c.Model().Occupy(o, geometry.Placed{Profile: p.ID, Start: starts[chance.IntN(len(starts))]})
	}
	return o
}

// fleet is nodes of several models and rules.
func fleet(tb testing.TB) []*Node {
	tb.Helper()
	a100 := hardware(tb, "A100-40GB")
	m := a100.Model()
	var templates []geometry.Template
	for _, names := range [][]string{{"1g.5gb"}, {"2g.10gb", "1g.5gb"}, {"3g.20gb"}, {"7g.40gb"}} {
		var t geometry.Template
		for _, name := range names {
			p, _ := m.ByName(name)
			count := p.Max
			if len(names) > 1 && name == "1g.5gb" {
				count = 1
			}
			t = append(t, geometry.Entry{Profile: p.ID, Count: count})
		}
		templates = append(templates, t)
	}
	cut, err := geometry.NewCatalogue(m, geometry.RuleTemplates, nil, templates)
	if err != nil {
		tb.Fatal(err)
	}
	catalogues := []*geometry.Catalogue{a100, cut, hardware(tb, "H100-80GB"), hardware(tb, "A30-24GB"), hardware(tb, "RTX-PRO-6000-96GB")}
	var nodes []*Node
	for n := range 12 {
		var gpus []GPU
		for g := range 1 + n%5 {
			c := catalogues[n%len(catalogues)]
			if n == 7 {
				c = catalogues[g%len(catalogues)] // mixed
			}
			gpus = append(gpus, GPU{ID: fmt.Sprintf("GPU-%d-%d", n, g), Catalogue: c, Offered: n != 3 || g != 0})
		}
		node, err := NewNode(fmt.Sprint("n", n), gpus)
		if err != nil {
			tb.Fatal(err)
		}
		nodes = append(nodes, node)
	}
	return nodes
}

// TestIndexAnswersAsFitOnEveryNode places and removes at random.
func TestIndexAnswersAsFitOnEveryNode(t *testing.T) {
	chance := rand.New(rand.NewPCG(5, 5))
	requests := indexRequests()
	for round := range 6 {
		nodes := fleet(t)
		x := NewIndex(nodes)
		type taken struct {
			node, gpu int
			at        geometry.Placed
		}
		var there []taken
		refused := 0
		for range 300 {
			r := requests[chance.IntN(len(requests))]
			node, plan, ok := x.Best(r)
			wantNode, want, wantOK := bestByFit(t, x, r)
			if ok != wantOK || ok && (node != wantNode || !reflect.DeepEqual(plan, want)) {
				t.Fatalf("round %d: Best(%s) = %d, %+v, %v; Fit on every node says %d, %+v, %v", round, describeAll(r), node, plan, ok, wantNode, want, wantOK)
			}
			if ok {
				if err := x.Take(node, plan); err != nil {
					t.Fatal(err)
				}
				for _, d := range plan.Devices {
					there = append(there, taken{node, d.GPU, d.Placed})
				}
			} else {
				refused++
			}
			for len(there) > 0 && (len(there) > 60 || chance.IntN(3) == 0) {
				i := chance.IntN(len(there))
				if err := x.Release(there[i].node, there[i].gpu, there[i].at); err != nil {
					t.Fatal(err)
				}
				there = slices.Delete(there, i, i+1)
			}
		}
		for _, gone := range there {
			if err := x.Release(gone.node, gone.gpu, gone.at); err != nil {
				t.Fatal(err)
			}
		}
		for n, node := range nodes {
			for g := range node.GPUs {
				if o := x.Occupied(n, g); o != (geometry.Occupancy{}) {
					t.Fatalf("GPU %d of node %d is not idle in the end: %v", g, n, o)
				}
			}
		}
		if refused == 0 {
			t.Errorf("round %d: everything fitted, so that a full fleet was not seen", round)
		}
	}
}

// indexRequests are of all sorts.
func indexRequests() []*Request {
	var requests []*Request
	for _, w := range []geometry.Want{
		{MemoryMiB: 4000}, {MemoryMiB: 9000, Oversize: true}, {MemoryMiB: 15000, Cores: 40, Oversize: true}, {MemoryMiB: 23000},
		{Percent: 25}, {Percent: 50, Oversize: true}, {Cores: 30, Oversize: true}, {Full: true}, {Profile: "1g.5gb+me"}, {Profile: "3g.20gb"},
		{Profile: "2g.48gb-me"}, {MemoryMiB: 1 << 20},
	} {
		requests = append(requests, benchmarkRequest(w), benchmarkRequest(w))
	}
	requests = append(requests,
		benchmarkRequest(geometry.Want{MemoryMiB: 9000}, geometry.Want{MemoryMiB: 9000}, geometry.Want{MemoryMiB: 4000}),
		benchmarkRequest(geometry.Want{Full: true}, geometry.Want{Full: true}, geometry.Want{Profile: "1g.5gb"}))
	policies := []geometry.Policy{geometry.ByScore, geometry.Binpack, geometry.Spread}
	for i, r := range requests {
		if i%2 == 1 {
			r.Policy.GPU = policies[i/2%3]
			r.Policy.Node = policies[i/6%3]
		}
	}
	both := benchmarkRequest(geometry.Want{MemoryMiB: 4000, Oversize: true})
	both.Share = true
	picky := benchmarkRequest(geometry.Want{MemoryMiB: 4000, Oversize: true})
	picky.Select.NoUUIDs = []string{"GPU-0-0", "GPU-1-0"}
	return append(requests, both, picky)
}

// TestIndexForgets: requests without end do not fill memory, and are answered as
// the first ones.
func TestIndexForgets(t *testing.T) {
	node := benchmarkNode(t, "A30-24GB", 1)
	x := NewIndex(slices.Repeat([]*Node{node}, maxIndexed/100))
	for range 120 {
		r := benchmarkRequest(geometry.Want{MemoryMiB: 6000}, geometry.Want{MemoryMiB: 6000})
		if n, _, ok := x.Best(r); !ok || n != 0 {
			t.Fatalf("Best is node %d, %v; want the first", n, ok)
		}
		kept := 0
		for _, plans := range x.plans {
			kept += len(plans)
		}
		if x.plans[r] == nil || kept > maxIndexed {
			t.Fatalf("%d answers are kept, the last one among them: %v; want at most %d", kept, x.plans[r] != nil, maxIndexed)
		}
	}
}

// bestByFit asks every node.
func bestByFit(t *testing.T, x *Index, r *Request) (node int, plan Plan, ok bool) {
	t.Helper()
	for n, v := range x.views {
		fresh := newView(v.Node, v.state())
		if got, verdict := fresh.Fit(r); verdict == nil && (!ok || got.Score < plan.Score) {
			node, plan, ok = n, got, true
		}
	}
	return node, plan, ok
}

// TestSimpleNodesDecideAsOthers: the look-up for all GPUs of a node and the walk
// from GPU to GPU are two ways to the same answer.
func TestSimpleNodesDecideAsOthers(t *testing.T) {
	chance := rand.New(rand.NewPCG(6, 6))
	requests := indexRequests()
	for range 40 {
		for _, node := range fleet(t) {
			s := node.nothing()
			for i := range node.GPUs {
				s.occupied[i] = randomlyTaken(node.GPUs[i].Catalogue, chance, 6)
			}
			walked := *node
			walked.simple = false
			for _, r := range requests {
				got, verdict := newView(node, s).find(r)
				want, wantVerdict := newView(&walked, s).find(r)
				if (verdict == nil) != (wantVerdict == nil) || verdict == nil && !reflect.DeepEqual(got, want) {
					t.Fatalf("%s on %s: %+v, %v; walked %+v, %v", describeAll(r), node.Name, got, verdict, want, wantVerdict)
				}
			}
		}
	}
}

func TestPositions(t *testing.T) {
	chance := rand.New(rand.NewPCG(8, 8))
	const size = 5000
	var p positions
	there := map[int]bool{}
	for range 20000 {
		n := chance.IntN(size)
		if there[n] {
			p.remove(n)
			delete(there, n)
		} else {
			p.add(n, size)
			there[n] = true
		}
		if p.count != len(there) {
			t.Fatalf("count is %d, want %d", p.count, len(there))
		}
		if len(there) > 0 {
			if got, want := p.first(), slices.Min(slices.Collect(maps.Keys(there))); got != want {
				t.Fatalf("first is %d, want %d", got, want)
			}
		}
		for len(there) > 40 {
			for n := range there {
				p.remove(n)
				delete(there, n)
				break
			}
		}
	}
}
