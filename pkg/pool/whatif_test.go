// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// fleetOf is a fleet that must be readable.
func fleetOf(t *testing.T, nodes []*v1alpha1.GPUNode, pods []*v1.Pod) *Fleet {
	t.Helper()
	f, problems := NewFleet(nodes, pods, Options{})
	if len(problems) > 0 {
		t.Fatalf("reading the fleet: %v", problems)
	}
	return f
}

// named is a node of another name, whose GPUs have other UUIDs.
func named(name string, node *v1alpha1.GPUNode) *v1alpha1.GPUNode {
	node.Name = name
	for i := range node.Status.GPUs {
		node.Status.GPUs[i].UUID = fmt.Sprintf("GPU-%s-%d", name, i)
	}
	return node
}

// cluster places pods by the scheduler's own steps: fit on every node, assume on
// the best. It is the oracle of Try.
type cluster struct {
	t     *testing.T
	pool  *Pool
	nodes []*v1alpha1.GPUNode
	pods  []*v1.Pod
}

func newCluster(t *testing.T, nodes ...*v1alpha1.GPUNode) *cluster {
	c := &cluster{t: t, pool: New(Options{}), nodes: nodes}
	for _, n := range nodes {
		if err := c.pool.Update(n); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// schedule binds the pod where the decision code puts it; false when it fits
// nowhere.
func (c *cluster) schedule(p podBuilder) bool {
	c.t.Helper()
	r, err := c.pool.Parse(p.Pod)
	if err != nil {
		c.t.Fatal(err)
	}
	var best *View
	var chosen Plan
	for _, n := range c.nodes {
		node, _ := c.pool.Node(n.Name)
		v := c.pool.FreshView(node, slices.Values([]*v1.Pod(nil)), Scope{Ledger: LedgerAll})
		if plan, verdict := v.Fit(r); verdict == nil && (best == nil || plan.Score < chosen.Score) {
			best, chosen = v, plan
		}
	}
	if best == nil {
		return false
	}
	text, err := best.Allocation(r, chosen).Encode()
	if err != nil {
		c.t.Fatal(err)
	}
	c.pool.Assume(best.Holder(r, chosen))
	p.Spec.NodeName = best.Node.Name
	p.Annotations[v1alpha1.AnnotationAllocation] = text
	c.pods = append(c.pods, p.Pod)
	return true
}

// end removes a pod.
func (c *cluster) end(p *v1.Pod) {
	c.pool.Forget(p.UID)
	c.pods = slices.DeleteFunc(c.pods, func(other *v1.Pod) bool { return other == p })
}

// randomCluster is two nodes, filled and then thinned out.
func randomCluster(t *testing.T, rng *rand.Rand, gpus int) *cluster {
	nodes := []*v1alpha1.GPUNode{named("a", gpuNode(t, "A100-40GB", gpus)), named("b", gpuNode(t, "A100-40GB", gpus))}
	if rng.Intn(2) == 0 {
		featureTemplates(t, nodes[1])
	}
	c := newCluster(t, nodes...)
	for i := range 4 + rng.Intn(20) {
		p := pod(fmt.Sprintf("p%d", i)).wants("c", sizes[rng.Intn(len(sizes))]).priority(int32(rng.Intn(3)))
		p.CreationTimestamp = metav1.Time{Time: time.Unix(int64(rng.Intn(5)), 0)}
		c.schedule(p)
	}
	for range len(c.pods) / 4 {
		c.end(c.pods[rng.Intn(len(c.pods))])
	}
	for range rng.Intn(2) {
		if len(c.pods) > 0 {
			c.pods[rng.Intn(len(c.pods))].DeletionTimestamp = &metav1.Time{Time: time.Unix(9, 0)}
		}
	}
	return c
}

var sizes = []string{
	"gpu=1 gpumem=4000", "gpu=1 gpumem=4000", "gpu=1 gpumem=4000", "gpu=1 gpumem=8000", "gpu=1 gpumem=15000",
	"gpu=2 gpumem=4000", "gpu=2 gpumem=9000", "gpu=1", "gpu=1 gpucores=40",
}

// TestTryDoesWhatTheSchedulerDoes: as many replicas fit, on the same nodes, at the
// same places, as when the decision code places and assumes them one by one.
func TestTryDoesWhatTheSchedulerDoes(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	waited := 0
	for round := range 150 {
		c := randomCluster(t, rng, 1+rng.Intn(2))
		template := pod("replica").wants("c", sizes[rng.Intn(len(sizes))])
		replicas := 1 + rng.Intn(12)
		f := fleetOf(t, c.nodes, c.pods)
		got, err := f.Try(template.Pod, replicas, nil)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		before := len(c.pods)
		for i := range replicas {
			r := podBuilder{template.DeepCopy()}
			r.Name = fmt.Sprintf("replica-%d", i)
			r.UID = types.UID(r.Name)
			if !c.schedule(r) {
				break
			}
		}
		var want []Trial
		for _, p := range c.pods[before:] {
			a, err := v1alpha1.DecodeAllocation(p.Annotations[v1alpha1.AnnotationAllocation])
			if err != nil {
				t.Fatal(err)
			}
			trial := Trial{Node: p.Spec.NodeName}
			for _, d := range a.Containers["c"] {
				trial.Spots = append(trial.Spots, Spot{Device: d})
			}
			want = append(want, trial)
		}
		if diff := cmp.Diff(placesOf(want), placesOf(got.Placed)); diff != "" || got.Waiting != replicas-len(want) {
			t.Fatalf("round %d: %d of %s (-scheduler +try), %d waiting:\n%s", round, replicas, got.Request, got.Waiting, diff)
		}
		if got.Waiting > 0 {
			waited++
			checkMore(t, c, template, got)
		}
		if again, err := f.Try(template.Pod, replicas, nil); err != nil || cmp.Diff(got, again, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".After" }, cmp.Ignore())) != "" {
			t.Fatalf("round %d: asking again gives another answer: Try changes the fleet", round)
		}
	}
	if waited < 25 {
		t.Errorf("only %d rounds had replicas that wait", waited)
	}
}

func placesOf(trials []Trial) []string {
	var out []string
	for _, trial := range trials {
		text := trial.Node
		for _, s := range trial.Spots {
			text += fmt.Sprintf(" %s@%d:%s", s.MIG.Profile, s.MIG.Start, s.GPU)
		}
		out = append(out, text)
	}
	return out
}

// checkMore: so many idle GPUs are enough for the replicas that wait, and one
// fewer is not.
func checkMore(t *testing.T, c *cluster, template podBuilder, got *Trials) {
	t.Helper()
	if len(got.More) == 0 {
		t.Fatalf("%s: %d wait, and no number of GPUs would do", got.Request, got.Waiting)
	}
	for _, m := range got.More {
		of := slices.IndexFunc(c.nodes, func(n *v1alpha1.GPUNode) bool { return n.Name == m.Like })
		fits := func(gpus int) bool {
			per := 1
			if m.Together {
				r, err := c.pool.Parse(template.Pod)
				if err != nil {
					t.Fatal(err)
				}
				per = len(r.Devices)
			}
			var nodes []*v1alpha1.GPUNode
			for i := 0; i < gpus; i += per {
				node := gpuNode(t, "A100-40GB", per)
				node.Status.Models = c.nodes[of].Status.Models
				nodes = append(nodes, named(fmt.Sprintf("new%d", i), node))
			}
			if len(nodes) == 0 {
				return false
			}
			trials, err := fleetOf(t, nodes, nil).Try(template.Pod, got.Waiting, nil)
			return err == nil && trials.Waiting == 0
		}
		if !fits(m.Count) {
			t.Errorf("%d of %s wait: %d more %s are not enough", got.Waiting, got.Request, m.Count, m.Model)
		}
		if m.Count > 1 && !m.Together && fits(m.Count-1) {
			t.Errorf("%d of %s wait: %d more %s are more than needed", got.Waiting, got.Request, m.Count, m.Model)
		}
	}
}

// TestEndingIsTheSmallestSet: the pods that Advise names make room when they end,
// and no set is better, by brute force over all sets of each node.
func TestEndingIsTheSmallestSet(t *testing.T) {
	rng := rand.New(rand.NewSource(2))
	asked := map[int]int{} // by size of the set
	for round := range 350 {
		c := randomCluster(t, rng, 1)
		waiting := pod("waits").wants("c", sizes[rng.Intn(len(sizes))]).priority(1)
		f := fleetOf(t, c.nodes, c.pods)
		a, err := f.Advise(waiting.Pod, nil)
		if err != nil {
			if strings.Contains(err.Error(), "largest node can hold") {
				continue
			}
			t.Fatalf("round %d: %v", round, err)
		}
		if a.Fits != nil {
			if len(a.Reasons) > 0 || a.End != nil {
				t.Fatalf("round %d: it fits, and yet: %+v", round, a)
			}
			continue
		}
		want := smallestByBruteForce(t, f, waiting)
		if (want == nil) != (a.End == nil) {
			t.Fatalf("round %d: End = %+v, brute force finds %v", round, a.End, want)
		}
		if want == nil {
			continue
		}
		got := f.tenantsNamed(a.End.Pods)
		if compareSets(got, want) != 0 || !a.End.Exact {
			t.Fatalf("round %d: %s: End = %v on %s, brute force finds %v", round, a.Request, namesOf(got), a.End.Node, namesOf(want))
		}
		asked[len(got)]++
		checkEnding(t, c, waiting, a.End)
	}
	if asked[1] < 30 || asked[2] < 5 {
		t.Errorf("sets by size: %v; the test sees too few of some", asked)
	}
}

// smallestByBruteForce tries all sets of each node's pods.
func smallestByBruteForce(t *testing.T, f *Fleet, waiting podBuilder) []*Tenant {
	t.Helper()
	var best []*Tenant
	found := false
	for _, s := range f.sites {
		staying := slices.DeleteFunc(slices.Clone(s.tenants), func(t *Tenant) bool { return t.Ending })
		for bits := range 1 << len(staying) {
			var set []*Tenant
			for i, tenant := range staying {
				if bits>>i&1 == 1 {
					set = append(set, tenant)
				}
			}
			if found && compareSets(set, best) >= 0 {
				continue
			}
			v := f.view(s, askerOf(waiting.Pod), func(t *Tenant) bool { return t.Ending || slices.Contains(set, t) })
			if r, err := Parse(waiting.Pod, f.opts); err == nil && r != nil && v.Fits(r) {
				best, found = set, true
			}
		}
	}
	if !found {
		return nil
	}
	return append([]*Tenant{}, best...)
}

func (f *Fleet) tenantsNamed(victims []Victim) []*Tenant {
	set := []*Tenant{}
	for _, v := range victims {
		for _, t := range f.uid {
			if t.Pod.Namespace == v.Namespace && t.Pod.Name == v.Name {
				set = append(set, t)
			}
		}
	}
	return set
}

func namesOf(set []*Tenant) []string {
	return sortedBy(set, func(t *Tenant) string { return t.Pod.Name })
}

// checkEnding rebuilds the cluster without the pods: it fits then, at that place,
// and not when any one of them stays.
func checkEnding(t *testing.T, c *cluster, waiting podBuilder, e *Ending) {
	t.Helper()
	gone := slices.Concat(e.Pods, e.Already)
	fits := func(but string) bool {
		left := slices.DeleteFunc(slices.Clone(c.pods), func(p *v1.Pod) bool {
			return p.Name != but && slices.ContainsFunc(gone, func(v Victim) bool { return v.Name == p.Name })
		})
		trials, err := fleetOf(t, c.nodes, left).Try(waiting.Pod, 1, func(node string, _ int) (string, bool) {
			if node != e.Node {
				return "is not the node in question", false
			}
			return "", false
		})
		if err != nil {
			t.Fatal(err)
		}
		return trials.Waiting == 0
	}
	if !fits("") {
		t.Errorf("%v and %v are gone, and it does not fit", e.Pods, e.Already)
	}
	for _, v := range gone {
		if fits(v.Name) {
			t.Errorf("%s stays, and it fits all the same: %v %v", v.Name, e.Pods, e.Already)
		}
	}
}

// TestTemplateThatWouldHelp: with the layout that Advise shows added to the file,
// the pod fits; the file's memory counts in it, not NVML's.
func TestTemplateThatWouldHelp(t *testing.T) {
	node := featureTemplates(t, gpuNode(t, "A100-40GB", 1))
	c := newCluster(t, node)
	if !c.schedule(pod("small").wants("c", "gpu=1 gpumem=5000")) {
		t.Fatal("the first pod does not fit")
	}
	waiting := pod("waits").wants("c", "gpu=1 gpumem=20000")
	a, err := fleetOf(t, c.nodes, c.pods).Advise(waiting.Pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &TemplateChange{
		Node: "n", Model: node.Status.Models[0].Model, Rule: geometry.RuleTemplates, Wanted: "3g.20gb",
		Layout: []LayoutEntry{{"3g.20gb", 20480, 1}, {"1g.5gb", 5120, 1}},
	}
	if diff := cmp.Diff(want, a.Templates); diff != "" {
		t.Fatalf("Templates (-want +got):\n%s", diff)
	}
	added := v1alpha1.Template{}
	for _, e := range a.Templates.Layout {
		added.Entries = append(added.Entries, v1alpha1.TemplateEntry{
			ProfileID: profile(t, node, e.Profile).ID, MemoryMiB: int64(e.MemoryMiB), Count: int32(e.Count),
		})
	}
	node.Status.Models[0].Templates = append(node.Status.Models[0].Templates, added)
	if trials, err := fleetOf(t, c.nodes, c.pods).Try(waiting.Pod, 1, nil); err != nil || trials.Waiting != 0 {
		t.Errorf("with %+v it does not fit: %+v, %v", a.Templates, trials, err)
	}
}

// TestLeastImportantFirst: of sets of one size those with the lowest priorities, then
// the smallest, then the youngest.
func TestLeastImportantFirst(t *testing.T) {
	for _, tc := range []struct {
		name    string
		there   string // name:priority:age in s:limits, on one A100-40GB
		waits   string
		want    []string
		already []string
	}{
		{"the lowest priority goes", "a:2:9:7000 b:1:9:7000 c:3:9:7000 d:9:9:7000", "gpu=1 gpumem=7000", []string{"b"}, nil},
		{"of equal ones the youngest", "a:1:9:7000 b:1:3:7000 c:1:5:7000 d:1:9:7000", "gpu=1 gpumem=7000", []string{"b"}, nil},
		{"few important ones before many unimportant ones", "e:9:9:19000 a:1:9:4000 b:1:9:4000 c:1:9:4000 d:1:9:4000", "gpu=1 gpumem=19000", []string{"e"}, nil},
		{"a whole GPU needs all of them, the least important first", "a:2:9:4000 b:1:9:8000 c:3:9:15000", "gpu=1", []string{"b", "a", "c"}, nil},
		{"what is ending counts as gone", "a:1:9:7000 b:1:9:7000 c:1:9:7000 d:1:-1:7000", "gpu=1 gpumem=7000", nil, []string{"d"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, gpuNode(t, "A100-40GB", 1))
			for _, word := range strings.Fields(tc.there) {
				f := strings.Split(word, ":")
				var priority, age int
				fmt.Sscan(f[1], &priority)
				fmt.Sscan(f[2], &age)
				p := pod(f[0]).wants("c", "gpu=1 gpumem="+f[3]).priority(int32(priority))
				p.CreationTimestamp = metav1.Time{Time: time.Unix(int64(1000-age), 0)}
				if !c.schedule(p) {
					t.Fatalf("%s does not fit", word)
				}
				if age < 0 {
					p.ending()
				}
			}
			a, err := fleetOf(t, c.nodes, c.pods).Advise(pod("waits").wants("c", tc.waits).Pod, nil)
			if err != nil {
				t.Fatal(err)
			}
			if a.End == nil {
				t.Fatalf("nothing would help: %+v", a)
			}
			var got, already []string
			for _, v := range a.End.Pods {
				got = append(got, v.Name)
			}
			for _, v := range a.End.Already {
				already = append(already, v.Name)
			}
			if !slices.Equal(got, tc.want) || !slices.Equal(already, tc.already) {
				t.Errorf("End = %v, ending already %v; want %v, %v", got, already, tc.want, tc.already)
			}
		})
	}
}

// TestRepackAgainstFormula: on nodes without templates, one node's repacking is
// found if and only if the exact formula says that its GPUs can hold everything.
func TestRepackAgainstFormula(t *testing.T) {
	rng := rand.New(rand.NewSource(3))
	seen := map[string]int{}
	for round := range 250 {
		gpus := 1 + rng.Intn(2)
		c := newCluster(t, named("a", gpuNode(t, "A100-40GB", gpus)), named("b", gpuNode(t, "A100-40GB", 1)))
		for i := range 24 {
			c.schedule(pod(fmt.Sprintf("p%d", i)).wants("c", sizes[rng.Intn(len(sizes))]))
		}
		for range len(c.pods) / 3 {
			c.end(c.pods[rng.Intn(len(c.pods))])
		}
		waiting := pod("waits").wants("c", sizes[rng.Intn(len(sizes))])
		f := fleetOf(t, c.nodes, c.pods)
		a, err := f.Advise(waiting.Pod, nil)
		if err != nil || a.Fits != nil {
			continue
		}
		r, err := Parse(waiting.Pod, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var all geometry.Kinds
		one, count := "", 0
		for _, s := range f.sites {
			k := s.kinds(t, r)
			if k.Fit(len(s.node.GPUs)) {
				one = "one"
			}
			for _, tenant := range s.tenants {
				all = all.Add(s.held(t, tenant))
			}
			count += len(s.node.GPUs)
		}
		want := "none"
		switch {
		case one != "":
			want = "one"
		case len(r.Devices) == 1 && all.Add(f.sites[0].asked(t, r)).Fit(count):
			want = "fleet"
		}
		got := "none"
		switch {
		case a.Repack != nil && a.Repack.Node != "":
			got = "one"
		case a.Repack != nil && a.Repack.Fleet:
			got = "fleet"
		}
		if got != want {
			t.Errorf("round %d: %s: Repack = %+v, the formula says %s", round, a.Request, a.Repack, want)
		}
		seen[got]++
	}
	if seen["one"] < 3 || seen["fleet"] < 3 || seen["none"] < 3 {
		t.Errorf("answers: %v; the test sees too few of some", seen)
	}
}

func (s *site) kind(t *testing.T, id geometry.ProfileID) geometry.Kinds {
	t.Helper()
	k, ok := s.node.GPUs[0].Catalogue.Model().KindsOf(id)
	if !ok {
		t.Fatalf("profile %d is of no kind", id)
	}
	return k
}

func (s *site) held(t *testing.T, tenant *Tenant) (k geometry.Kinds) {
	for _, h := range tenant.Spans {
		k = k.Add(s.kind(t, h.Profile))
	}
	return k
}

func (s *site) asked(t *testing.T, r *Request) (k geometry.Kinds) {
	for _, w := range r.Devices {
		e, ok := s.node.GPUs[0].Catalogue.Can(w)
		if !ok {
			t.Fatalf("%s is impossible", Describe(w))
		}
		k = k.Add(s.kind(t, e.Profile))
	}
	return k
}

func (s *site) kinds(t *testing.T, r *Request) geometry.Kinds {
	k := s.asked(t, r)
	for _, tenant := range s.tenants {
		k = k.Add(s.held(t, tenant))
	}
	return k
}

// TestWhy: exact and oversize, what it costs, and whether a better place is free.
func TestWhy(t *testing.T) {
	c := newCluster(t, featureTemplates(t, gpuNode(t, "A100-40GB", 2)))
	first := pod("first").wants("c", "gpu=2 gpumem=8000")
	second := pod("second").wants("c", "gpu=1 gpumem=4000")
	for _, p := range []podBuilder{first, second} {
		if !c.schedule(p) {
			t.Fatalf("%s does not fit", p.Name)
		}
	}
	f := fleetOf(t, c.nodes, c.pods)
	w, err := f.Why(first.Pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.Request != "2 x 8000 MiB" || w.Node != "n" || len(w.Devices) != 2 || w.Better != 0 {
		t.Errorf("Why = %+v; want 2 x 8000 MiB on n, and nothing better", w)
	}
	for i, d := range w.Devices {
		if d.MIG.Profile != "2g.10gb" || !d.Exact || d.Smallest != "2g.10gb" || d.Template == nil || *d.Template != 1 || d.Score == nil {
			t.Errorf("device %d = %+v; want an exact 2g.10gb of template 1, with a score", i, d)
		}
	}
	// Without it the small pod's template 0 would be open to its GPU again.
	if len(w.Devices[0].Cost) == 0 {
		t.Errorf("it costs nothing: %+v", w.Devices[0])
	}
	// A pod that could now be placed better: the large neighbour goes.
	over := newCluster(t, gpuNode(t, "A100-40GB", 1))
	for i := range 4 {
		over.schedule(pod(fmt.Sprintf("f%d", i)).wants("c", "gpu=1 gpumem=8000"))
	}
	over.end(over.pods[0])
	over.end(over.pods[0])
	p := pod("third").wants("c", "gpu=1 gpumem=4000")
	over.schedule(p)
	w, err = fleetOf(t, over.nodes, over.pods).Why(p.Pod, nil)
	if err != nil || w.Devices[0].Smallest != "1g.5gb" || !w.Devices[0].Exact || w.Better != 0 {
		t.Errorf("Why = %+v, %v; want an exact 1g.5gb", w, err)
	}
	// A GPU that takes no new work has no score, and says why.
	lost := c.nodes[0].DeepCopy()
	for i := range lost.Status.GPUs {
		lost.Status.GPUs[i].Health, lost.Status.GPUs[i].Reason = v1alpha1.Unhealthy, "the GPU is lost"
	}
	w, err = fleetOf(t, []*v1alpha1.GPUNode{lost}, c.pods).Why(first.Pod, nil)
	if err != nil || w.Devices[0].Score != nil || w.Devices[0].Withheld != "the GPU is lost" || w.Devices[0].GPUIndex < 0 {
		t.Errorf("Why on a lost GPU = %+v, %v; want no score, and the agent's reason", w, err)
	}
	if _, err := f.Why(pod("unbound").wants("c", "gpu=1").Pod, nil); err == nil {
		t.Error("Why of a pod without an allocation is no error")
	}
}

// TestMistakesNameTheField: parse errors, and what no GPU could be.
func TestMistakesNameTheField(t *testing.T) {
	f := fleetOf(t, []*v1alpha1.GPUNode{gpuNode(t, "A100-40GB", 1)}, nil)
	for _, tc := range []struct {
		pod  podBuilder
		want string
	}{
		{pod("a").wants("c", "gpumem=4000"), "add the limit nvidia.com/gpu: 1"},
		{pod("b").wants("c", ""), "the pod asks for no GPU"},
		{pod("c").wants("c", "gpu=1 gpumem=90000"), "limit nvidia.com/gpumem asks for 90000 MiB"},
	} {
		if _, err := f.Advise(tc.pod.Pod, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("Advise(%s) = %v, want %q", tc.pod.Name, err, tc.want)
		}
	}
}

// TestReasonsByClass: nodes that answer alike are one class, the largest first; what
// bars a pod comes before what its GPUs say.
func TestReasonsByClass(t *testing.T) {
	var nodes []*v1alpha1.GPUNode
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		nodes = append(nodes, named(name, gpuNode(t, "A100-40GB", 1)))
	}
	nodes[3].Status.GPUs[0].Health = v1alpha1.Unhealthy
	c := newCluster(t, nodes...)
	for i := range 3 { // on a, b and c
		c.schedule(pod(fmt.Sprint("p", i)).wants("c", "gpu=1"))
	}
	a, err := fleetOf(t, nodes, c.pods).Advise(pod("waits").wants("c", "gpu=1 gpumem=8000").Pod, func(*v1.Pod) Barred {
		return func(node string, _ int) (string, bool) {
			if node == "b" || node == "e" {
				return "has the taint x=y:NoSchedule, which the pod does not tolerate", false
			}
			return "", false
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range a.Reasons {
		got = append(got, r.String())
	}
	want := []string{
		"2 nodes (a, c) have no free MIG placement for 8000 MiB (0 of 16 memory slices are free, and nothing more fits)",
		"2 nodes (e, b) have the taint x=y:NoSchedule, which the pod does not tolerate; the GPUs of 1 of them have room",
		"node d has no GPU that takes new instances",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
}

// TestNominatedPods: a pod that preempted others waits for them and does not stand in
// its own way; another of its priority must not count on that place.
func TestNominatedPods(t *testing.T) {
	c := newCluster(t, gpuNode(t, "A100-40GB", 1))
	victim := pod("victim").wants("c", "gpu=1").priority(0)
	if !c.schedule(victim) {
		t.Fatal("the victim does not fit")
	}
	victim.ending()
	nominee := pod("nominee").wants("c", "gpu=1").priority(5)
	nominee.Status.NominatedNodeName = "n"
	f := fleetOf(t, c.nodes, append(c.pods, nominee.Pod))
	a, err := f.Advise(nominee.Pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.End == nil || len(a.End.Pods) != 0 || len(a.End.Already) != 1 || a.End.Already[0].Name != "victim" {
		t.Errorf("the nominated pod: End = %+v; want it to wait for the victim alone", a.End)
	}
	for _, tc := range []struct {
		priority int32
		helped   bool // by the victim's end
	}{{5, false}, {9, true}} {
		a, err := f.Advise(pod("other").wants("c", "gpu=1").priority(tc.priority).Pod, nil)
		if err != nil || a.Fits != nil || (a.End != nil) != tc.helped {
			t.Errorf("another of priority %d: End = %+v, %v; want that the victim's end helps: %v", tc.priority, a.End, err, tc.helped)
		}
	}
}
