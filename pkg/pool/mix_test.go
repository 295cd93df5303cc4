// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// startOf is where a small instance goes on an idle GPU under some prices: where all
// ask for 2g it avoids the pairs that 2g can take.
func startOf(t *testing.T, c *geometry.Catalogue, p *Prices, profile string) int {
	t.Helper()
	node, err := NewNode("n", []GPU{{ID: "GPU-0", Catalogue: c, Offered: true}})
	if err != nil {
		t.Fatal(err)
	}
	plan, verdict := newView(node, node.nothing()).Fit(benchmarkRequest(geometry.Want{Profile: profile}).At(p))
	if verdict != nil {
		t.Fatal(verdict.Reason)
	}
	return plan.Devices[0].Start
}

func see(m *Mix, n int, w geometry.Want) (moved int) {
	for range n {
		m.See(benchmarkRequest(w))
		if m.Moved() {
			moved++
		}
	}
	return moved
}

func TestMixIsLearned(t *testing.T) {
	c := hardware(t, "H100-80GB")
	all := []*geometry.Catalogue{c, geometry.Nothing("no MIG")}
	m := NewMix(nil)
	uniform := m.Prices(all, nil)
	if got, want := startOf(t, c, uniform, "3g.40gb"), startOf(t, c, nil, "3g.40gb"); got != want {
		t.Errorf("with nothing learned 3g goes to %d, want %d as without prices", got, want)
	}
	if moved := see(m, 2000, geometry.Want{Profile: "2g.20gb"}); moved == 0 {
		t.Fatal("2000 devices of one kind moved nothing")
	}
	p := m.Prices(all, uniform)
	if p.Version == uniform.Version || uniform.Version == 0 {
		t.Errorf("versions are %d and %d, want different ones", uniform.Version, p.Version)
	}
	if got := startOf(t, c, p, "1g.10gb"); got != 6 {
		t.Errorf("where nearly all ask for 2g, 1g goes to %d, want 6", got)
	}
	if moved := see(m, 500, geometry.Want{Profile: "2g.20gb"}); moved != 0 {
		t.Errorf("more of the same moved the mix %d times", moved)
	}
	if moved := see(m, 500, geometry.Want{Profile: "4g.40gb"}); moved == 0 {
		t.Error("another kind did not move the mix")
	}
	see(m, 20000, geometry.Want{Profile: "4g.40gb"})
	if len(m.seen) != 1 || m.total > 2*halfAfter {
		t.Errorf("after thousands of others, %d kinds are remembered with %v devices; want the rare one forgotten", len(m.seen), m.total)
	}
	if got := startOf(t, c, m.Prices(all, p), "3g.40gb"); got != 4 {
		t.Errorf("where nearly all ask for 4g, 3g goes to %d, want 4", got)
	}
}

// TestMixAsConfigured: amounts mean the smallest adequate profile of each model, and
// few requests do not outweigh the configuration.
func TestMixAsConfigured(t *testing.T) {
	c := hardware(t, "H100-80GB")
	m := NewMix([]Expected{{geometry.Want{MemoryMiB: 20000, Cores: 20}, 7}, {geometry.Want{MemoryMiB: 1 << 20}, 1}})
	see(m, 3, geometry.Want{Profile: "4g.40gb"})
	weights := m.weights(c)
	two, _ := c.Model().ByName("2g.20gb")
	four, _ := c.Model().ByName("4g.40gb")
	if len(weights) != 2 || weights[two.ID] != priorDevices*7./8 || weights[four.ID] != 3 {
		t.Errorf("weights are %v, want %v for 2g and 3 for 4g", weights, priorDevices*7./8)
	}
}

// TestWhatIfReckonsWithTheConfiguredMix: a fleet without a scheduler's ledger has the
// prices that the scheduler begins with.
func TestWhatIfReckonsWithTheConfiguredMix(t *testing.T) {
	for _, tc := range []struct {
		profile, expected string
		start             int32
	}{{"1g.10gb", "2g.20gb", 6}, {"3g.40gb", "4g.40gb", 4}} {
		opts := Options{Expected: []Expected{{geometry.Want{Profile: tc.expected}, 1}}}
		f, _ := NewFleet([]*v1alpha1.GPUNode{gpuNode(t, "H100-80GB", 1)}, nil, opts)
		asker := pod("a").wants("c", "gpu=1")
		asker.Annotations[v1alpha1.AnnotationProfile] = tc.profile
		trials, err := f.Try(asker.Pod, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := trials.Placed[0].Spots[0].MIG.Start; got != tc.start {
			t.Errorf("where all ask for %s, %s goes to %d, want %d", tc.expected, tc.profile, got, tc.start)
		}
	}
}

// TestTooManyKindsAreNotRemembered bounds memory.
func TestTooManyKindsAreNotRemembered(t *testing.T) {
	m := NewMix(nil)
	for i := range 2 * maxExpected {
		see(m, 1, geometry.Want{MemoryMiB: i + 1})
	}
	if len(m.seen) != maxExpected {
		t.Errorf("%d kinds are remembered, want %d", len(m.seen), maxExpected)
	}
}

// TestPoolLearnsFromEachPodOnce also says that prices hold for a request from Parse
// on, and that learning can be switched off.
func TestPoolLearnsFromEachPodOnce(t *testing.T) {
	for _, learn := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p := New(Options{Learn: learn})
			if err := p.Update(gpuNode(t, "A100-40GB", 1)); err != nil {
				t.Fatal(err)
			}
			go p.KeepPrices(ctx)
			synctest.Wait()
			parse := func() *Request {
				r, err := p.Parse(pod("x").wants("c", "gpu=1 gpumem=4000").Pod)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			early := parse()
			before := early.Prices()
			for range 10 * movedAfter {
				p.See(numbered(1))
			}
			synctest.Wait()
			if got := parse().Prices(); got != before {
				t.Errorf("learn=%v: one pod, seen often, changed prices from version %d to %d", learn, before, got)
			}
			for i := range 10 * movedAfter {
				p.See(numbered(i))
			}
			synctest.Wait()
			if after := parse().Prices(); (after != before) != learn {
				t.Errorf("learn=%v: prices went from version %d to %d", learn, before, after)
			}
			if early.Prices() != before {
				t.Errorf("the prices of a request changed from version %d to %d", before, early.Prices())
			}
			for i := range 10 * movedAfter {
				p.Gone(numbered(i).UID)
			}
			if n := len(p.prices.seen); n != 0 {
				t.Errorf("%d pods that are gone are remembered", n)
			}
		})
	}
}

// TestALargePodDoesNotSpeakForAll: its devices count as a few.
func TestALargePodDoesNotSpeakForAll(t *testing.T) {
	m := NewMix(nil)
	see(m, mostOfAPod, geometry.Want{Profile: "2g.20gb"})
	large, err := Parse(pod("p").wants("c", "gpu=112 gpumem=1000").wants("d", "gpu=112 gpumem=70000").Pod, Options{NoOversize: true})
	if err != nil {
		t.Fatal(err)
	}
	m.See(large)
	want := []Expected{
		{geometry.Want{Profile: "2g.20gb"}, mostOfAPod},
		{geometry.Want{MemoryMiB: 1000}, mostOfAPod / 2}, {geometry.Want{MemoryMiB: 70000}, mostOfAPod / 2},
	}
	if diff := cmp.Diff(want, m.seen, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Errorf("what is remembered (-want +got):\n%s", diff)
	}
}

// TestPoolDoesNotLearnWhatCannotBe until it can, or has been placed.
func TestPoolDoesNotLearnWhatCannotBe(t *testing.T) {
	p := New(Options{Learn: true})
	learned := func() float64 { return p.prices.mix.total }
	waiting := numbered(1)
	if p.See(waiting); learned() != 0 {
		t.Errorf("without any GPUNode %v devices were learned, want 0", learned())
	}
	small := featureTemplates(t, gpuNode(t, "A100-40GB", 1))
	small.Status.Models[0].Templates = small.Status.Models[0].Templates[:1] // 7 x 1g.5gb
	if err := p.Update(small); err != nil {
		t.Fatal(err)
	}
	if p.See(waiting); learned() != 0 {
		t.Errorf("with small instances only %v devices were learned, want 0", learned())
	}
	bound := numbered(2)
	bound.Spec.NodeName = "elsewhere"
	if p.See(bound); learned() != 2 {
		t.Errorf("with a bound pod of 2 devices %v were learned", learned())
	}
	if err := p.Update(gpuNode(t, "A100-40GB", 1)); err != nil {
		t.Fatal(err)
	}
	if p.See(waiting); learned() != 4 {
		t.Errorf("with a waiting pod of 2 devices, which have become possible, %v were learned in all, want 4", learned())
	}
}

func numbered(i int) *v1.Pod {
	p := pod("p").wants("c", "gpu=2 gpumem=9000")
	p.UID = types.UID(fmt.Sprint(i))
	return p.Pod
}

func BenchmarkPrices(b *testing.B) {
	c := hardware(b, "H100-80GB")
	m := NewMix(nil)
	see(m, 100, geometry.Want{Profile: "2g.20gb"})
	b.ReportAllocs()
	for b.Loop() {
		m.Prices([]*geometry.Catalogue{c}, nil)
	}
}

// More kinds than are told apart do not end the learning.
func TestMixLearnsOnAfterManyKinds(t *testing.T) {
	c := hardware(t, "H100-80GB")
	m := NewMix(nil)
	for i := range maxExpected + 100 {
		see(m, 1, geometry.Want{MemoryMiB: 30000 + i})
	}
	before := m.Prices([]*geometry.Catalogue{c}, nil)
	if moved := see(m, 2000, geometry.Want{Profile: "2g.20gb"}); moved == 0 {
		t.Error("2000 devices of a new kind moved nothing")
	}
	if got := len(m.seen); got > maxExpected {
		t.Errorf("%d kinds are told apart, want %d at most", got, maxExpected)
	}
	sum := 0.0
	for _, e := range m.seen {
		sum += e.Weight
	}
	if diff := sum - m.total; diff < -1e-6 || diff > 1e-6 {
		t.Errorf("the weights sum up to %v, total is %v", sum, m.total)
	}
	if got := startOf(t, c, m.Prices([]*geometry.Catalogue{c}, before), "1g.10gb"); got != 6 {
		t.Errorf("where nearly all ask for 2g, 1g goes to %d, want 6", got)
	}
}

// TestAmountsOfOneProfileDoNotMoveTheMix: a stream in which no two requests are for
// the same amount moves the mix until its profiles are known, and no more.
func TestAmountsOfOneProfileDoNotMoveTheMix(t *testing.T) {
	all := []*geometry.Catalogue{hardware(t, "H100-80GB"), hardware(t, "A30-24GB")}
	m, moved := NewMix(nil), 0
	for i := range 10000 {
		m.See(benchmarkRequest(geometry.Want{MemoryMiB: 1 + i%6000}))
		if m.Moved() {
			m.Prices(all, nil)
			moved++
		}
	}
	if moved == 0 || moved > 20 {
		t.Errorf("10000 requests for amounts of the smallest profile moved the mix %d times, want a few", moved)
	}
}
