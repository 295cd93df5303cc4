// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// object is a Node.
func object(name string) *v1.Node { return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }

// one is a span of 1g.5gb at a start of GPU-0.
func one(start int) []Held {
	return []Held{{GPU: "GPU-0", Placed: geometry.Placed{Profile: 19, Start: start}, Size: 1}}
}

// TestARecreatedNodeIsNotAvoided: what an agent refused belongs to its Node object.
func TestARecreatedNodeIsNotAvoided(t *testing.T) {
	for _, tc := range []struct {
		name    string
		between func(p *Pool, obj *v1alpha1.GPUNode) // two reports
		want    bool                                 // still avoided
	}{
		{"the same node", func(*Pool, *v1alpha1.GPUNode) {}, true},
		{"another node of the name", func(_ *Pool, obj *v1alpha1.GPUNode) { obj.Status.NodeUID = "second" }, false},
		{"its GPUNode went in between", func(p *Pool, obj *v1alpha1.GPUNode) { p.Remove(obj.Name) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := New(Options{})
			obj := gpuNode(t, "A100-40GB", 1)
			obj.Status.NodeUID = "first"
			again := avoider(t, p, obj)
			tc.between(p, obj)
			if err := p.Update(obj); err != nil {
				t.Fatal(err)
			}
			node, err := p.Node("n")
			if err != nil {
				t.Fatal(err)
			}
			if got := len(node.GPUs[0].Avoided()) > 0; got != tc.want {
				t.Errorf("a placement is avoided: %v, want %v", got, tc.want)
			}
			again()
			if node, _ = p.Node("n"); len(node.GPUs[0].Avoided()) > 0 {
				t.Errorf("afterwards %v is avoided, want nothing", node.GPUs[0].Avoided())
			}
		})
	}
}

// avoider updates the pool with a node and has its 1g.5gb@6 avoided.
func avoider(t *testing.T, p *Pool, obj *v1alpha1.GPUNode) (again func()) {
	t.Helper()
	if err := p.Update(obj); err != nil {
		t.Fatal(err)
	}
	return p.Avoid(Holder{Node: obj.Name, Spans: one(6)})
}

// TestTheLargestNodeIsKnownWhenNodesComeAndGo: Possible speaks of it.
func TestTheLargestNodeIsKnownWhenNodesComeAndGo(t *testing.T) {
	p := New(Options{})
	update := func(name string, gpus int) {
		obj := gpuNode(t, "A100-40GB", gpus)
		obj.Name = name
		if err := p.Update(obj); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		do   func()
		want int
	}{
		{func() { update("a", 2) }, 2},
		{func() { update("b", 8) }, 8},
		{func() { update("c", 8) }, 8},
		{func() { p.Remove("b") }, 8},
		{func() { update("c", 1) }, 2},
		{func() { p.Remove("a") }, 1},
		{func() { p.Remove("c") }, 0},
	} {
		if step.do(); p.largest() != (size{7 * step.want, step.want}) {
			t.Errorf("the largest node holds %+v, want what %d GPUs hold", p.largest(), step.want)
		}
	}
}

// TestAPodThatIsGivenTwiceHoldsOnce: in Reserve the snapshot and the informer have
// mostly the same pods.
func TestAPodThatIsGivenTwiceHoldsOnce(t *testing.T) {
	node := gpuNode(t, "A100-40GB", 1)
	x := pod("x").wants("c", "gpu=1 gpumem=4000").on(t, node, "1g.5gb@0")
	once, twice := viewOf(t, NewLedger(), node, Scope{}, x), viewOf(t, NewLedger(), node, Scope{}, x, x)
	if once.Occupied(0) != twice.Occupied(0) {
		t.Errorf("given once the pod occupies %v, twice %v", once.Occupied(0), twice.Occupied(0))
	}
}

// TestReasons: of the three ways to have no room beside pods each has its own words.
func TestReasons(t *testing.T) {
	node := featureTemplates(t, gpuNode(t, "A100-40GB", 1))
	full := pod("x").wants("c", "gpu=1").on(t, node, "7g.40gb@0")
	p := New(Options{})
	if err := p.Update(node); err != nil {
		t.Fatal(err)
	}
	p.Avoid(Holder{Node: "n", Spans: []Held{{GPU: "GPU-0", Placed: geometry.Placed{Profile: 0, Start: 0}, Size: 8}}})
	whole := func(name string) podBuilder { return pod(name).wants("c", "gpu=1") }
	none := func(func(*v1.Pod) bool) {}
	if got, want := fit(t, p.CachedView(object("n"), Key{}, none), whole("p")), "node(s) had just refused the only free MIG placement for a whole GPU"; got != want {
		t.Errorf("avoided: %s, want %s", got, want)
	}
	taken := func(yield func(*v1.Pod) bool) { yield(full.Pod) }
	if got, want := fit(t, p.CachedView(object("n"), Key{Pods: 1}, taken), whole("p")), "node(s) had no free MIG placement for a whole GPU"; got != want {
		t.Errorf("avoided and taken: %s, want %s", got, want)
	}
}

// TestASearchThatIsTooLongSaysSo: with GPUs that all look different and one device
// more than they hold there is no short cut.
func TestASearchThatIsTooLongSaysSo(t *testing.T) {
	node := gpuNode(t, "A100-40GB", 16)
	v := viewOf(t, NewLedger(), node, Scope{})
	for i := range v.occupied {
		model := v.Node.GPUs[i].Catalogue.Model()
		for bit := range 4 {
			if i>>bit&1 == 1 {
				v.occupied[i] = model.Block(v.occupied[i], geometry.Placement{Start: 2 * bit, Size: 1})
			}
		}
	}
	v.hold(v.state())
	p := pod("p").wants("c", "gpu=33 gpumem=9000").annotated(v1alpha1.AnnotationNUMABind, "true") // 32 fit
	if got, want := fit(t, v, p), "node(s) took too many steps to search for 33 x 9000 MiB"; got != want {
		t.Errorf("Fit = %s, want %s", got, want)
	}
	r, err := Parse(p.Pod, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, verdict := v.Fit(r); verdict == nil || !verdict.Curable {
		t.Errorf("verdict is %+v, want a curable one: nothing is known", verdict)
	}
}

// TestMoreDevicesThanANodeHasAreNotSearchedFor: hints and wake-ups ask Fits of pods that
// Possible would refuse.
func TestMoreDevicesThanANodeHasAreNotSearchedFor(t *testing.T) {
	v := viewOf(t, NewLedger(), gpuNode(t, "A100-40GB", 2), Scope{})
	for devices, want := range map[int]string{14: "", 15: "node(s) cannot be cut into 15 x 1000 MiB", 1000: "node(s) cannot be cut into 1000 x 1000 MiB"} {
		r, err := Parse(pod("p").wants("c", fmt.Sprintf("gpu=%d gpumem=1000", devices)).Pod, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, verdict := v.Fit(r)
		if got := reasonOf(verdict); got != want || verdict != nil && verdict.Curable {
			t.Errorf("%d devices: %q, want %q, which nothing cures", devices, got, want)
		}
		if allocs := testing.AllocsPerRun(10, func() { v.Fits(r) }); devices > 14 && allocs > 0 {
			t.Errorf("%d devices: %v allocations, want none without a search", devices, allocs)
		}
	}
}

func reasonOf(v *Verdict) string {
	if v == nil {
		return ""
	}
	return v.Reason
}

// TestGroups: containers that have a device in common are of one mode.
func TestGroups(t *testing.T) {
	for _, tc := range []struct {
		name string
		pod  podBuilder
		want []int
	}{
		{"each container its own", pod("p").wants("c", "gpu=2").wants("d", "gpu=1").wants("e", "gpu=3"), []int{0, 0, -1, 1, 1, 1}},
		{"an init container joins those after it", pod("p").init("i", "gpu=3").wants("c", "gpu=2").wants("d", "gpu=1"), []int{0, 0, 0}},
		{"and what it leaves stands alone", pod("p").init("i", "gpu=1").wants("c", "gpu=1").wants("d", "gpu=1"), []int{-1, -1}},
		{
			"a chain of containers, the later ones first", pod("p").sidecar("s", "gpu=1").init("i", "gpu=2").init("j", "gpu=3").
				wants("c", "gpu=1").wants("d", "gpu=4"), []int{-1, 0, 0, 0, 0, 0},
		},
	} {
		r, err := Parse(tc.pod.Pod, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, r.groups()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// TestAReportOfAModelThatIsThereKeepsThePrices: new ones take time, and end
// kube-scheduler's batches of equal pods.
func TestAReportOfAModelThatIsThereKeepsThePrices(t *testing.T) {
	p := New(Options{})
	update := func(name, board string) (outdated bool) {
		t.Helper()
		obj := gpuNode(t, board, 1)
		obj.Name = name
		if err := p.Update(obj); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.prices.stale:
			return true
		default:
			return false
		}
	}
	for _, step := range []struct {
		name, board string
		want        bool
	}{
		{"a", "A100-40GB", true},
		{"a", "A100-40GB", false}, // the only node of its model reports again
		{"b", "A100-40GB", false},
		{"a", "H100-80GB", true},
		{"b", "H100-80GB", false},
		{"b", "A100-40GB", true}, // which nobody had meanwhile
	} {
		if got := update(step.name, step.board); got != step.want {
			t.Errorf("a report of node %s with %s outdates the prices: %v, want %v", step.name, step.board, got, step.want)
		}
	}
}

// TestCataloguesGoWithTheirLastNode: each edit of templates makes another.
func TestCataloguesGoWithTheirLastNode(t *testing.T) {
	p := New(Options{})
	for i := range 10 {
		for _, name := range []string{"a", "b"} {
			obj := featureTemplates(t, gpuNode(t, "A100-40GB", 2))
			obj.Name = name
			obj.Status.Models[0].Templates[0].Entries[0].MemoryMiB += int64(i)
			obj.Status.GPUs[0].Health = v1alpha1.Unhealthy
			if err := p.Update(obj); err != nil {
				t.Fatal(err)
			}
		}
		if p.Nodes()[0].GPUs[0].Catalogue != p.Nodes()[1].GPUs[0].Catalogue {
			t.Error("nodes with equal models do not share a catalogue")
		}
		if got := len(p.catalogues.known); got != 1 {
			t.Errorf("after edit %d there are %d catalogues, want 1", i, got)
		}
	}
	p.Remove("a")
	p.Remove("b")
	if known, used := len(p.catalogues.known), len(p.catalogues.uses); known != 0 || used != 0 {
		t.Errorf("without nodes %d catalogues are known and %d used, want none", known, used)
	}
}

// TestShelvesGoWithNodeAndHolders (I4): names of nodes that come and go are not kept,
// and a node that comes again has a revision that it never had.
func TestShelvesGoWithNodeAndHolders(t *testing.T) {
	p, last := New(Options{}), uint64(0)
	obj := gpuNode(t, "A100-40GB", 1)
	grown := func(when string) {
		t.Helper()
		if now := p.Revision("n"); now <= last {
			t.Errorf("%s the revision is %d, after %d", when, now, last)
		} else {
			last = now
		}
	}
	for round := range 3 {
		if err := p.Update(obj); err != nil {
			t.Fatal(err)
		}
		grown("when the node has come")
		p.Assume(Holder{UID: "x", Node: "n"})
		grown("with a pod")
		if round == 1 {
			p.Forget("x")
			grown("without the pod")
		}
		p.Remove("n")
		if got, want := len(p.Ledger.nodes), round%2^1; got != want {
			t.Errorf("round %d: without the node %d shelves are kept, want %d", round, got, want)
		}
		p.Forget("x")
		if got := len(p.Ledger.nodes); got != 0 {
			t.Errorf("round %d: without node and pod %d shelves are kept", round, got)
		}
	}
}
