// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// mixes of memory slices that pods ask for, as they are used to compare policies.
var mixes = map[string][]struct {
	percent int // of a GPU of 8 memory slices
	weight  float64
}{
	"uniform":    {{100, 1}, {50, 2}, {25, 2}, {12, 1}},
	"skew-small": {{100, .05}, {50, .2}, {25, .45}, {12, .3}},
	"skew-big":   {{100, .3}, {50, .45}, {25, .2}, {12, .05}},
	"halves":     {{50, 1}, {25, 1}},
}

// randomDevices asks for n devices of a mix: by share, by memory or by cores.
func randomDevices(chance *rand.Rand, mix string, n int, oversize bool) []geometry.Want {
	sum := 0.0
	for _, m := range mixes[mix] {
		sum += m.weight
	}
	var wants []geometry.Want
	for len(wants) < n {
		left := chance.Float64() * sum
		for _, m := range mixes[mix] {
			if left -= m.weight; left > 0 {
				continue
			}
			w := geometry.Want{Percent: m.percent, Oversize: oversize}
			switch chance.IntN(3) {
			case 0:
				w = geometry.Want{MemoryMiB: 39000 * m.percent / 100, Oversize: oversize}
			case 1:
				w.Cores = m.percent / 2
			}
			wants = append(wants, w)
			break
		}
	}
	return wants
}

// crowded is a node of 16 GPUs with about so many instances on each.
func crowded(tb testing.TB, chance *rand.Rand, boards []string, instances int) *View {
	tb.Helper()
	var gpus []GPU
	for i := range 16 {
		c := hardware(tb, boards[i*len(boards)/16])
		gpus = append(gpus, GPU{ID: fmt.Sprint("GPU-", i), Catalogue: c, Offered: true})
	}
	node, err := NewNode("n", gpus)
	if err != nil {
		tb.Fatal(err)
	}
	s := node.nothing()
	for i := range gpus {
		s.occupied[i] = randomlyTaken(gpus[i].Catalogue, chance, instances)
	}
	return newView(node, s)
}

// TestSearchStaysFarBelowItsBound has 16 GPUs with random instances and 16 devices.
// TestSearchFindsWhatExists and others compare the answers with searches that try
// everything; here only that there is an answer matters, and that all answers occur.
func TestSearchStaysFarBelowItsBound(t *testing.T) {
	chance := rand.New(rand.NewPCG(11, 16))
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	most, greedy, thorough, none := 0, 0, 0, 0
	for _, fleet := range [][]string{{"A100-40GB"}, {"H100-80GB"}, {"A100-40GB", "H100-80GB"}, {"H100-80GB", "RTX-PRO-6000-96GB"}} {
		for _, mix := range slices.Sorted(maps.Keys(mixes)) {
			for round := range rounds {
				v := crowded(t, chance, fleet, 1+round%7)
				r := benchmarkRequest(randomDevices(chance, mix, 16, round%2 == 0)...)
				s := newSearch(v, r, r.groups())
				s.any = mig
				ok := s.run()
				most = max(most, s.steps)
				switch {
				case s.exceeded():
					t.Fatalf("%v, mix %s, round %d: the search took more than %d steps", fleet, mix, round, maxSteps)
				case !ok:
					none++
				case s.room == nil:
					greedy++
				default:
					thorough++
				}
				if ok && !v.Has(v.Holder(r, s.plan())) {
					t.Fatalf("%v, mix %s, round %d: the plan %+v does not fit its own node", fleet, mix, round, s.chosen)
				}
			}
		}
	}
	t.Logf("at most %d steps of %d; found at once %d times, by the thorough search %d times, none %d times", most, maxSteps, greedy, thorough, none)
	if most > maxSteps/2 || greedy == 0 || thorough == 0 || none == 0 {
		t.Errorf("%d steps at most, %d greedy, %d thorough, %d none; want all kinds, and steps far below %d", most, greedy, thorough, none, maxSteps)
	}
}

// TestSharesStayBelowTheBound is the same for the depth-first search: half of the
// GPUs are shared, and pods take either, or one NUMA node for each container.
func TestSharesStayBelowTheBound(t *testing.T) {
	chance := rand.New(rand.NewPCG(12, 16))
	capacity := v1alpha1.ShareCapacity{Count: 10, MemoryMiB: 40960, Cores: 100}
	for _, mix := range slices.Sorted(maps.Keys(mixes)) {
		for round := range 4 {
			v := crowded(t, chance, []string{"A100-40GB"}, 1+round%5)
			node := *v.Node
			node.GPUs = append([]GPU(nil), v.Node.GPUs...)
			for i := range node.GPUs {
				node.GPUs[i].NUMA = int32(i / 8)
				if i%2 == 0 {
					node.GPUs[i].Offered, node.GPUs[i].Shares, v.occupied[i] = false, &capacity, geometry.Occupancy{}
				}
			}
			node.divide()
			v = newView(&node, v.state())
			p := pod("p")
			devices := 0
			for c := 0; devices < 16; c++ {
				n := 1 + chance.IntN(3)
				w := randomDevices(chance, mix, 1, true)[0]
				p.wants(fmt.Sprint("c", c), fmt.Sprintf("gpu=%d gpumem=%d gpucores=%d", n, max(w.MemoryMiB, 400*w.Percent), w.Cores))
				devices += n
			}
			if round%3 == 0 {
				p.annotated(v1alpha1.AnnotationNUMABind, "true")
			}
			r, err := Parse(p.Pod, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, out := v.search(r); out == exceeded {
				t.Errorf("mix %s, round %d: the search for %s took more than %d steps", mix, round, describeAll(r), maxSteps)
			}
		}
	}
}

func BenchmarkSearchFor16DevicesOn16GPUs(b *testing.B) {
	for _, load := range []int{2, 4, 6} {
		b.Run(fmt.Sprintf("up-to-%d-instances-on-each", load), func(b *testing.B) {
			chance := rand.New(rand.NewPCG(11, 17))
			var views []*View
			var requests []*Request
			for range 32 {
				views = append(views, crowded(b, chance, []string{"H100-80GB"}, load))
				requests = append(requests, benchmarkRequest(randomDevices(chance, "skew-small", 16, true)...))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				views[i%32].Fits(requests[i/32%32])
			}
		})
	}
}
