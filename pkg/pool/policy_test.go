// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

func TestPolicyAnnotations(t *testing.T) {
	byDefault := Options{Policy: Policy{Node: geometry.Binpack, GPU: geometry.Spread}}
	for _, tc := range []struct {
		name, node, gpu string
		opts            Options
		want            Policy
		err             string
	}{
		{name: "none"},
		{name: "none, with defaults", opts: byDefault, want: byDefault.Policy},
		{name: "both", node: "spread", gpu: "binpack", want: Policy{Node: geometry.Spread, GPU: geometry.Binpack}},
		{name: "they win over defaults", node: "spread", gpu: "binpack", opts: byDefault, want: Policy{Node: geometry.Spread, GPU: geometry.Binpack}},
		{name: "a list as in HAMi", gpu: "numa, spread,binpack", want: Policy{GPU: geometry.Spread}},
		{name: "an order that we do not have", gpu: "topology-aware"},
		{name: "a mistake for nodes", node: "topology-aware", err: `annotation hami.io/node-scheduler-policy is "topology-aware"; use binpack or spread`},
		{name: "a mistake for GPUs", gpu: "Spread", err: `annotation hami.io/gpu-scheduler-policy is "Spread"; use binpack or spread`},
		{name: "a filter that we do not have", gpu: "mutex,binpack", err: "annotation hami.io/gpu-scheduler-policy asks for mutex, which does not exist here; ask for a whole GPU instead"},
	} {
		p := pod("p").wants("c", "gpu=1 gpumem=1000").annotated(v1alpha1.AnnotationNodePolicy, tc.node).annotated(v1alpha1.AnnotationGPUPolicy, tc.gpu)
		r, err := Parse(p.Pod, tc.opts)
		switch {
		case tc.err != "" && (err == nil || err.Error() != tc.err):
			t.Errorf("%s: error %v, want %s", tc.name, err, tc.err)
		case tc.err == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.err == "" && r.Policy != tc.want:
			t.Errorf("%s: %+v, want %+v", tc.name, r.Policy, tc.want)
		}
	}
}

// TestPolicyChoosesNodeAndGPU has three nodes: idle; both GPUs a quarter full; one
// GPU nearly full and one idle.
func TestPolicyChoosesNodeAndGPU(t *testing.T) {
	node := benchmarkNode(t, "A100-40GB", 2)
	with := func(layouts ...string) *View {
		s := node.nothing()
		for i, text := range layouts {
			m := node.GPUs[i].Catalogue.Model()
			l, err := m.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if s.occupied[i], err = m.Occupancy(l); err != nil {
				t.Fatal(err)
			}
		}
		return newView(node, s)
	}
	views := []*View{
		with("........", "........"),
		with("2g.10gb@0 ......", "2g.10gb@0 ......"),
		with("2g.10gb@0 .. 3g.20gb@4", "........"),
	}
	for _, tc := range []struct {
		name      string
		policy    Policy
		node, gpu int
	}{
		{"the fullest node, there the fullest GPU", Policy{Node: geometry.Binpack, GPU: geometry.Binpack}, 2, 0},
		{"the fullest node, there the emptiest GPU", Policy{Node: geometry.Binpack, GPU: geometry.Spread}, 2, 1},
		{"the emptiest node", Policy{Node: geometry.Spread, GPU: geometry.Binpack}, 0, 0},
		{"the emptiest node, there by score", Policy{Node: geometry.Spread}, 0, 0},
		{"the fullest GPU of all", Policy{GPU: geometry.Binpack}, 2, 0},
		{"the emptiest GPU of all, of the node with the fewest", Policy{GPU: geometry.Spread}, 2, 1},
	} {
		one := geometry.Want{MemoryMiB: 4000, Oversize: true}
		for _, r := range []*Request{benchmarkRequest(one), benchmarkRequest(one, one)} {
			if len(r.Devices) > 1 && tc.policy.Node == geometry.ByScore {
				continue // on two GPUs
			}
			r.Policy = tc.policy
			best, plan := bestView(views, r)
			if best != tc.node || plan.Devices[0].GPU != tc.gpu {
				t.Errorf("%s, %d devices: node %d, GPU %d; want %d, %d", tc.name, len(r.Devices), best, plan.Devices[0].GPU, tc.node, tc.gpu)
			}
		}
	}
}

// bestView is where a request goes, -1 for nowhere.
func bestView(views []*View, r *Request) (best int, plan Plan) {
	best = -1
	for i, v := range views {
		if got, verdict := v.Fit(r); verdict == nil && (best < 0 || got.Score < plan.Score) {
			best, plan = i, got
		}
	}
	return best, plan
}

// TestWholeGPUsAreKeptTogether: of nodes where a pod costs the same, that with the
// fewest idle GPUs gets it.
func TestWholeGPUsAreKeptTogether(t *testing.T) {
	for _, board := range []string{"A100-40GB", "H100-80GB", "A30-24GB", "RTX-PRO-6000-96GB"} {
		empty := benchmarkNode(t, board, 4)
		m := empty.GPUs[0].Catalogue.Model()
		full := m.Block(geometry.Occupancy{}, geometry.Placement{Size: m.MemorySlices()})
		half := empty.nothing()
		half.occupied[0], half.occupied[1] = full, full
		// One idle GPU, a pod's, one with an instance of somebody else, one out of order.
		odd := *empty
		odd.GPUs = slices.Clone(empty.GPUs)
		odd.GPUs[1].blocked = full
		odd.GPUs[2].blocked = m.Block(geometry.Occupancy{}, geometry.Placement{Size: 1})
		odd.GPUs[3].Offered = false
		odd.divide()
		views := []*View{newView(empty, empty.nothing()), newView(&odd, odd.blocked()), newView(empty, half)}

		for devices, want := range []int{1, 2, 0, 0, -1} {
			r := benchmarkRequest(slices.Repeat([]geometry.Want{{Full: true}}, devices+1)...)
			if got, _ := bestView(views, r); got != want {
				t.Errorf("%s: %s go to node %d, want %d", board, describeAll(r), got, want)
			}
		}
	}
}

// TestBandsComeBeforePolicies: a smaller device on a node that the policy likes less
// is still preferred.
func TestBandsComeBeforePolicies(t *testing.T) {
	idle := viewOf(t, NewLedger(), featureTemplates(t, gpuNode(t, "A100-40GB", 1)), Scope{})
	node := featureTemplates(t, gpuNode(t, "A100-40GB", 1))
	used := viewOf(t, NewLedger(), node, Scope{}, pod("a").wants("c", "gpu=1 gpumem=20000").on(t, node, "3g.20gb@0"))
	for _, policy := range []geometry.Policy{geometry.ByScore, geometry.Binpack, geometry.Spread} {
		r := benchmarkRequest(geometry.Want{MemoryMiB: 4000, Oversize: true})
		r.Policy = Policy{Node: policy, GPU: policy}
		exact, verdict := idle.Fit(r)
		oversize, verdict2 := used.Fit(r)
		if verdict != nil || verdict2 != nil || !exact.Devices[0].Exact || oversize.Devices[0].Exact || exact.Score >= oversize.Score {
			t.Errorf("policy %q: exact scores %d, oversize %d (%v, %v)", policy, exact.Score, oversize.Score, verdict, verdict2)
		}
	}
}

// TestWeightsSayWhatIsFull: GPU-0 has much of its memory taken by one share, GPU-1
// little by three, which have most of the cores.
func TestWeightsSayWhatIsFull(t *testing.T) {
	node := sharing(gpuNode(t, "A100-40GB", 2), capacity, 0, 1)
	on := []podBuilder{
		shared(t, "a", "GPU-0:20000:10"),
		shared(t, "b", "GPU-1:1000:30"), shared(t, "c", "GPU-1:1000:30"), shared(t, "d", "GPU-1:1000:20"),
	}
	for _, tc := range []struct{ weights, policy, want string }{
		{"", "", "500/5:GPU-0"},
		{"", "spread", "500/5:GPU-1"},
		{"slot=0,core=0,memory=1", "", "500/5:GPU-0"},
		{"slot=1,core=0,memory=0", "", "500/5:GPU-1"},
		{"slot=1,core=0,memory=0", "spread", "500/5:GPU-0"},
		{"core=1, memory=0, slot=0", "", "500/5:GPU-1"},
		{"slot=0,core=1,memory=100", "", "500/5:GPU-0"},
		{"slot=0,core=100,memory=1", "", "500/5:GPU-1"},
	} {
		p := pod("p").wants("c", "gpu=1 gpumem=500 gpucores=5").annotated(v1alpha1.AnnotationWeights, tc.weights).annotated(v1alpha1.AnnotationGPUPolicy, tc.policy)
		if got := planText(t, viewOf(t, NewLedger(), node, Scope{}, on...), p); got != tc.want {
			t.Errorf("weights %q, policy %q: %s, want %s", tc.weights, tc.policy, got, tc.want)
		}
	}
}
