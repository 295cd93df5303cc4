// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// sharing puts the GPUs at some positions in mode hami-core.
func sharing(node *v1alpha1.GPUNode, c v1alpha1.ShareCapacity, positions ...int) *v1alpha1.GPUNode {
	for _, i := range positions {
		g := &node.Status.GPUs[i]
		g.Mode = v1alpha1.GPUMode{Wanted: v1alpha1.ModeHAMiCore, Current: v1alpha1.ModeHAMiCore}
		g.Shares = &c
	}
	return node
}

var capacity = v1alpha1.ShareCapacity{Count: 10, MemoryMiB: 40960, Cores: 100}

// shared is a bound pod with shares "GPU-0:8000:30", which is MiB and percent, one
// for each container.
func shared(t *testing.T, name, text string) podBuilder {
	t.Helper()
	p := pod(name)
	a := v1alpha1.Allocation{Version: 1, Node: "n", PodUID: p.UID, Containers: map[string][]v1alpha1.Device{}}
	for i, word := range strings.Fields(text) {
		gpu, rest, _ := strings.Cut(word, ":")
		s := v1alpha1.Share{ID: int32(i)}
		if _, err := fmt.Sscanf(rest, "%d:%d", &s.MemoryMiB, &s.Cores); err != nil {
			t.Fatal(err)
		}
		c := fmt.Sprint("c", i)
		p.wants(c, "gpu=1")
		a.Containers[c] = []v1alpha1.Device{{GPU: gpu, Share: &s}}
	}
	p.Spec.NodeName = "n"
	encoded, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return p.annotated(v1alpha1.AnnotationAllocation, encoded)
}

// TestPictureOfShares: what is left, and who has the rest.
func TestPictureOfShares(t *testing.T) {
	node := sharing(gpuNode(t, "A100-40GB", 2), capacity, 0)
	node.Status.Pods = []v1alpha1.PodPreparation{{UID: "uid-b", Phase: v1alpha1.PodPreparing}}
	a, b := shared(t, "a", "GPU-0:8000:30"), shared(t, "b", "GPU-0:4000:0")
	got := Options{}.Draw(node, []*v1.Pod{b.Pod, a.Pod}, &Catalogues{})
	want := &SharesPicture{
		ShareCapacity: capacity, FreeCount: 8, FreeMemoryMiB: 28960, FreeCores: 70,
		Held: []SharePicture{
			{MemoryMiB: 8000, Cores: 30, State: SpanUsed, Owner: OwnerPicture{Namespace: "default", Name: "a", UID: "uid-a", Uses: []UsePicture{{Container: "c0", MemoryMiB: 8000}}}},
			{MemoryMiB: 4000, State: SpanPreparing, Owner: OwnerPicture{Namespace: "default", Name: "b", UID: "uid-b", Uses: []UsePicture{{Container: "c0", MemoryMiB: 4000}}}},
		},
	}
	if diff := cmp.Diff(want, got.GPUs[0].Shares); diff != "" {
		t.Errorf("shares of GPU 0 (-want +got):\n%s", diff)
	}
	if got.GPUs[1].Shares != nil {
		t.Errorf("GPU 1 is in mode mig and has shares: %+v", got.GPUs[1].Shares)
	}
	alone := Options{}.Draw(node, []*v1.Pod{shared(t, "whole", "GPU-0:40960:100").Pod}, &Catalogues{}).GPUs[0].Shares
	if alone.FreeCount != 0 || alone.FreeMemoryMiB != 0 || alone.FreeCores != 0 {
		t.Errorf("beside a share with the whole GPU there is %+v", alone)
	}
}

// planText is a plan as words, "2g.10gb@0:GPU-0" and "8000/30:GPU-1", or the reason.
func planText(t *testing.T, v *View, p podBuilder) string {
	t.Helper()
	r, err := Parse(p.Pod, Options{})
	if err != nil {
		t.Fatal(err)
	}
	plan, verdict := v.Fit(r)
	if verdict != nil {
		return verdict.Reason
	}
	var words []string
	for _, d := range plan.Devices {
		g := v.Node.GPUs[d.GPU]
		if d.IsShare() {
			words = append(words, fmt.Sprintf("%d/%d:%s", d.Share.MemoryMiB, d.Share.Cores, g.ID))
			continue
		}
		profile, _ := g.Catalogue.Model().Profile(d.Profile)
		words = append(words, fmt.Sprintf("%s@%d:%s", profile.Name, d.Start, g.ID))
	}
	return strings.Join(words, " ")
}

func TestFitOfShares(t *testing.T) {
	two := sharing(gpuNode(t, "A100-40GB", 2), capacity, 0, 1)
	small := sharing(gpuNode(t, "A100-40GB", 1), v1alpha1.ShareCapacity{Count: 2, MemoryMiB: 40960, Cores: 100}, 0)
	scaled := sharing(gpuNode(t, "A100-40GB", 1), v1alpha1.ShareCapacity{Count: 10, MemoryMiB: 81920, Cores: 200}, 0)
	uncuttable := sharing(gpuNode(t, "A100-40GB", 1), capacity, 0)
	uncuttable.Status.Models = nil
	away := sharing(gpuNode(t, "A100-40GB", 1), capacity, 0)
	away.Status.GPUs[0].Mode.Wanted = v1alpha1.ModeMIG
	missing := sharing(gpuNode(t, "A100-40GB", 1), capacity, 0)
	missing.Status.GPUs[0].Shares = nil
	missing.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionLibraryUnusable, Status: metav1.ConditionTrue}}
	for _, tc := range []struct {
		name string
		node *v1alpha1.GPUNode
		on   []podBuilder
		pod  podBuilder
		want string
	}{
		{name: "memory and cores", pod: pod("p").wants("c", "gpu=1 gpumem=8000 gpucores=30"), want: "8000/30:GPU-0"},
		{name: "a GPU that cannot be cut at all", node: uncuttable, pod: pod("p").wants("c", "gpu=1 gpumem=8000"), want: "8000/0:GPU-0"},
		{name: "percent of what is offered", node: scaled, pod: pod("p").wants("c", "gpu=1 gpumem-percentage=25"), want: "20480/0:GPU-0"},
		{name: "one percent of nearly nothing is still a limit", node: sharing(gpuNode(t, "A100-40GB", 1), v1alpha1.ShareCapacity{Count: 1, MemoryMiB: 50, Cores: 100}, 0),
			pod: pod("p").wants("c", "gpu=1 gpumem-percentage=1"), want: "1/0:GPU-0"},
		{name: "gpu alone is a GPU of one's own", pod: pod("p").wants("c", "gpu=1"), want: "40960/100:GPU-0"},
		{name: "so is all of its memory", pod: pod("p").wants("c", "gpu=1 gpumem-percentage=100"), want: "40960/100:GPU-0"},
		{name: "cores alone leave all memory", pod: pod("p").wants("c", "gpu=1 gpucores=30"), want: "40960/30:GPU-0"},
		{name: "the fuller GPU", on: []podBuilder{shared(t, "x", "GPU-1:8000:0")}, pod: pod("p").wants("c", "gpu=1 gpumem=8000"), want: "8000/0:GPU-1"},
		{name: "not where memory is short", on: []podBuilder{shared(t, "x", "GPU-1:8000:0")}, pod: pod("p").wants("c", "gpu=1 gpumem=33000"), want: "33000/0:GPU-0"},
		{name: "not where cores are short", on: []podBuilder{shared(t, "x", "GPU-1:8000:80")}, pod: pod("p").wants("c", "gpu=1 gpumem=8000 gpucores=30"), want: "8000/30:GPU-0"},
		{name: "all cores want the GPU alone", on: []podBuilder{shared(t, "x", "GPU-1:8000:0")}, pod: pod("p").wants("c", "gpu=1 gpumem=8000 gpucores=100"), want: "8000/100:GPU-0"},
		{name: "an exclusive GPU takes nobody else", on: []podBuilder{shared(t, "x", "GPU-0:8000:100 GPU-1:8000:100")},
			pod: pod("p").wants("c", "gpu=1 gpumem=100"), want: "node(s) had no GPU with enough left to share for 100 MiB"},
		{name: "nobody without a limit of cores where all are taken", on: []podBuilder{shared(t, "x", "GPU-0:8000:50 GPU-0:8000:50 GPU-1:8000:50 GPU-1:8000:50")},
			pod: pod("p").wants("c", "gpu=1 gpumem=100"), want: "node(s) had no GPU with enough left to share for 100 MiB"},
		{name: "no more shares than deviceSplitCount", node: small, on: []podBuilder{shared(t, "x", "GPU-0:1:0 GPU-0:1:0")},
			pod: pod("p").wants("c", "gpu=1 gpumem=100"), want: "node(s) had no GPU with enough left to share for 100 MiB"},
		{name: "scaled memory", node: scaled, on: []podBuilder{shared(t, "x", "GPU-0:40000:100")}, pod: pod("p").wants("c", "gpu=1 gpumem=100"),
			want: "node(s) had no GPU with enough left to share for 100 MiB"},
		{name: "scaled memory and cores", node: scaled, on: []podBuilder{shared(t, "x", "GPU-0:40000:90")}, pod: pod("p").wants("c", "gpu=1 gpumem=40000 gpucores=90"), want: "40000/90:GPU-0"},
		{name: "more than is offered", pod: pod("p").wants("c", "gpu=1 gpumem=41000"), want: "node(s) cannot share GPUs as 41000 MiB"},
		{name: "a container's devices are on different GPUs", pod: pod("p").wants("c", "gpu=2 gpumem=8000"), want: "8000/0:GPU-0 8000/0:GPU-1"},
		{name: "and not more than there are", pod: pod("p").wants("c", "gpu=3 gpumem=8000"), want: "node(s) cannot share GPUs as 3 x 8000 MiB"},
		{name: "different containers may share a GPU", pod: pod("p").wants("c", "gpu=1 gpumem=8000").wants("d", "gpu=1 gpumem=9000"), want: "8000/0:GPU-0 9000/0:GPU-0"},
		{name: "init containers hand theirs on", pod: pod("p").wants("c", "gpu=1 gpumem=8000").init("i", "gpu=1 gpumem=9000 gpucores=10"), want: "9000/0:GPU-0"},
		{name: "unless to several, which must be MIG", pod: pod("p").wants("c", "gpu=1 gpumem=8000").wants("d", "gpu=1 gpumem=8000").init("i", "gpu=2 gpumem=9000"), want: ReasonSharesOnly},
		{name: "a profile by name is no share", pod: pod("p").wants("c", "gpu=1").annotated(v1alpha1.AnnotationProfile, "1g.5gb"), want: ReasonSharesOnly},
		{name: "pinned to mig", pod: pod("p").wants("c", "gpu=1 gpumem=8000").annotated(v1alpha1.AnnotationMode, "mig"), want: ReasonNoMode},
		{name: "more devices than the library knows", pod: pod("p").wants("c", "gpu=17 gpumem=1"), want: ReasonSharesOnly},
		{name: "a GPU that is to change its mode", node: away, pod: pod("p").wants("c", "gpu=1 gpumem=8000"), want: ReasonNotOffered},
		{name: "a GPU without the library", node: missing, pod: pod("p").wants("c", "gpu=1 gpumem=8000"), want: ReasonNoLibrary},
		{name: "a GPU without the library, of a pod that must share", node: missing,
			pod: pod("p").wants("c", "gpu=1 gpumem=8000").annotated(v1alpha1.AnnotationMode, "hami-core"), want: ReasonNoLibrary},
		{name: "a GPU without the library, of a pod that must not", node: missing,
			pod: pod("p").wants("c", "gpu=1 gpumem=8000").annotated(v1alpha1.AnnotationMode, "mig"), want: ReasonNotOffered},
		{name: "by UUID", pod: pod("p").wants("c", "gpu=1 gpumem=8000").annotated(v1alpha1.AnnotationUseUUID, "GPU-x, GPU-1"), want: "8000/0:GPU-1"},
		{name: "not by UUID", pod: pod("p").wants("c", "gpu=1 gpumem=8000").annotated(v1alpha1.AnnotationNoUseUUID, "GPU-0"), want: "8000/0:GPU-1"},
		{name: "by type", pod: pod("p").wants("c", "gpu=1 gpumem=8000").annotated(v1alpha1.AnnotationUseType, "H100,a100"), want: "8000/0:GPU-0"},
		{name: "not by type", pod: pod("p").wants("c", "gpu=1 gpumem=8000").annotated(v1alpha1.AnnotationNoUseType, "a100"), want: ReasonNotSelected},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := tc.node
			if node == nil {
				node = two
			}
			if got := planText(t, viewOf(t, NewLedger(), node, Scope{}, tc.on...), tc.pod); got != tc.want {
				t.Errorf("Fit = %s, want %s", got, tc.want)
			}
		})
	}
}

// TestBands: GPU-0 is cut, GPU-1 shared.
func TestBands(t *testing.T) {
	both := sharing(gpuNode(t, "A100-40GB", 2), capacity, 1)
	templates := sharing(featureTemplates(t, gpuNode(t, "A100-40GB", 2)), capacity, 1)
	whole := pod("x").wants("c", "gpu=1").on(t, both, "7g.40gb@0")
	half := pod("x").wants("c", "gpu=1 gpumem=20000").on(t, templates, "3g.20gb@0")
	for _, tc := range []struct {
		name string
		node *v1alpha1.GPUNode
		on   []podBuilder
		pod  podBuilder
		want string
	}{
		{name: "a request that fills half of a profile is an instance", pod: pod("p").wants("c", "gpu=1 gpumem=4000"), want: "1g.5gb@4:GPU-0"},
		{name: "a smaller one is a share", pod: pod("p").wants("c", "gpu=1 gpumem=2000"), want: "2000/0:GPU-1"},
		{name: "unless it must be an instance", pod: pod("p").wants("c", "gpu=1 gpumem=2000").annotated(v1alpha1.AnnotationMode, "mig"), want: "1g.5gb@4:GPU-0"},
		{name: "a large one that must be a share", pod: pod("p").wants("c", "gpu=1 gpumem=4000").annotated(v1alpha1.AnnotationMode, "hami-core"), want: "4000/0:GPU-1"},
		{name: "both named is as none named", pod: pod("p").wants("c", "gpu=1 gpumem=4000").annotated(v1alpha1.AnnotationMode, "hami-core,mig"), want: "1g.5gb@4:GPU-0"},
		{name: "a share where no instance is free", on: []podBuilder{whole}, pod: pod("p").wants("c", "gpu=1 gpumem=4000"), want: "4000/0:GPU-1"},
		{name: "a share before an oversize instance", node: templates, on: []podBuilder{half},
			pod: pod("p").wants("c", "gpu=1 gpumem=8000"), want: "8000/0:GPU-1"},
		{name: "an oversize instance where no share is left", node: templates, on: []podBuilder{half, shared(t, "y", "GPU-1:40960:0")},
			pod: pod("p").wants("c", "gpu=1 gpumem=8000"), want: "3g.20gb@4:GPU-0"},
		{name: "several devices of one container are shares", node: sharing(gpuNode(t, "A100-40GB", 3), capacity, 1, 2),
			pod: pod("p").wants("c", "gpu=2 gpumem=4000"), want: "4000/0:GPU-1 4000/0:GPU-2"},
		{name: "or all instances, where shares do not suffice", pod: pod("p").wants("c", "gpu=2 gpumem=4000"), want: "1g.5gb@4:GPU-0 1g.5gb@5:GPU-0"},
		{name: "never of both kinds", on: []podBuilder{whole}, pod: pod("p").wants("c", "gpu=2 gpumem=4000"),
			want: "node(s) had neither a free MIG placement nor enough of a GPU left to share for 2 x 4000 MiB"},
		{name: "but different containers may differ", pod: pod("p").wants("c", "gpu=1 gpumem=4000").wants("d", "gpu=1 gpumem=1000"), want: "1g.5gb@4:GPU-0 1000/0:GPU-1"},
		{name: "a whole GPU is cut before shared", pod: pod("p").wants("c", "gpu=1"), want: "7g.40gb@0:GPU-0"},
		{name: "a whole GPU for itself", on: []podBuilder{whole}, pod: pod("p").wants("c", "gpu=1"), want: "40960/100:GPU-1"},
		{name: "neither", pod: pod("p").wants("c", "gpu=1 gpumem=50000"), want: "node(s) can neither be cut into nor share GPUs as 50000 MiB"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := tc.node
			if node == nil {
				node = both
			}
			if got := planText(t, viewOf(t, NewLedger(), node, Scope{}, tc.on...), tc.pod); got != tc.want {
				t.Errorf("Fit = %s, want %s", got, tc.want)
			}
		})
	}
}

func TestNUMABind(t *testing.T) {
	node := sharing(gpuNode(t, "A100-40GB", 4), capacity, 0, 1, 2, 3)
	for i := range node.Status.GPUs {
		node.Status.GPUs[i].NUMA = int32(i % 2)
	}
	v := viewOf(t, NewLedger(), node, Scope{}, shared(t, "x", "GPU-0:1:100"))
	p := func(n int) podBuilder { return pod("p").wants("c", fmt.Sprintf("gpu=%d gpumem=1000", n)) }
	bound := func(n int) podBuilder { return p(n).annotated(v1alpha1.AnnotationNUMABind, "true") }
	for _, tc := range []struct {
		name string
		pod  podBuilder
		want string
	}{
		{"two on one node", bound(2), "1000/0:GPU-1 1000/0:GPU-3"},
		{"three are too many for one", bound(3), "node(s) cannot share GPUs as 3 x 1000 MiB"},
		{"but not for two", p(3), "1000/0:GPU-1 1000/0:GPU-2 1000/0:GPU-3"},
	} {
		if got := planText(t, v, tc.pod); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestMistakesInAnnotations(t *testing.T) {
	for _, tc := range []struct{ name, key, value, want string }{
		{"a mode misspelt", v1alpha1.AnnotationMode, "mps", `annotation nvidia.com/vgpu-mode is "mps"; use "mig", "hami-core" or both`},
		{"no boolean", v1alpha1.AnnotationNUMABind, "yes", `annotation nvidia.com/numa-bind is "yes"; use true or false`},
		{"a list without end", v1alpha1.AnnotationUseType, strings.Repeat("a,", 80000), "annotation nvidia.com/use-gputype lists 80001 entries; use at most 64"},
		{"one too many", v1alpha1.AnnotationNoUseUUID, strings.Repeat("GPU-0,", 64) + "GPU-0", "annotation nvidia.com/nouse-gpuuuid lists 65 entries; use at most 64"},
	} {
		_, err := Parse(pod("p").wants("c", "gpu=1").annotated(tc.key, tc.value).Pod, Options{})
		if got := fmt.Sprint(err); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	for text, odd := range map[string]string{"mig": "", "mig,hami-core": "", `["hami-core", "mig"]`: "", "migx": "migx", "hami-core;mps": "mps"} {
		r, err := Parse(pod("p").wants("c", "gpu=1").annotated(v1alpha1.AnnotationMode, text).Pod, Options{})
		if err != nil || odd == "" && r.Remark != "" || odd != "" && !strings.Contains(r.Remark, fmt.Sprintf("and %q is no mode of dynamig", odd)) {
			t.Errorf("the remark on mode %s is %q (%v), want one on %q", text, r.Remark, err, odd)
		}
	}
	split := pod("p").wants("c", "gpu=1").wants("d", "gpu=1").init("i", "gpu=2").annotated(v1alpha1.AnnotationMode, "hami-core")
	want := `the devices of init container "i" go to different containers after it, which a pod in mode hami-core cannot have; change that or annotation nvidia.com/vgpu-mode`
	if _, err := Parse(split.Pod, Options{}); fmt.Sprint(err) != want {
		t.Errorf("split devices: %v, want %s", err, want)
	}
}

// TestAllocationOfAPlanIsWhatTheViewCounts: publishing a plan and reading it back
// takes what was planned.
func TestAllocationOfAPlanIsWhatTheViewCounts(t *testing.T) {
	obj := sharing(gpuNode(t, "A100-40GB", 3), capacity, 1, 2)
	v := viewOf(t, NewLedger(), obj, Scope{})
	p := pod("p").wants("c", "gpu=2 gpumem=3000 gpucores=20").wants("d", "gpu=1 gpumem=4000").init("i", "gpu=1 gpumem=1000 gpucores=10")
	r, err := Parse(p.Pod, Options{})
	if err != nil {
		t.Fatal(err)
	}
	plan, verdict := v.Fit(r)
	if verdict != nil {
		t.Fatal(verdict.Reason)
	}
	text, err := v.Allocation(r, plan).Encode()
	if err != nil {
		t.Fatal(err)
	}
	p.Spec.NodeName = "n"
	p.annotated(v1alpha1.AnnotationAllocation, text)
	read, ok := Options{}.HolderOf(p.Pod)
	if !ok {
		t.Fatalf("the pod does not own its allocation %s", text)
	}
	assumed := NewLedger()
	assumed.Assume(v.Holder(r, plan))
	byLedger := viewOf(t, assumed, obj, Scope{Ledger: LedgerAll})
	byPod := viewOf(t, NewLedger(), obj, Scope{}, p)
	if diff := cmp.Diff(byLedger.taken, byPod.taken); diff != "" || !slices.Equal(byLedger.occupied, byPod.occupied) {
		t.Errorf("taken (-ledger +annotation):\n%s\nholder %+v", diff, read)
	}
	if got, want := byPod.Taken(1), (Taken{Count: 1, MemoryMiB: 3000, Cores: 20}); got != want {
		t.Errorf("GPU-1 has %+v taken, want %+v", got, want)
	}
	a, err := v1alpha1.DecodeAllocation(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Validate(&obj.Status); err != nil {
		t.Error(err)
	}
}

// TestSearchAgainstBruteForce compares with a search that tries everything and
// knows the rules in its own words.
func TestSearchAgainstBruteForce(t *testing.T) {
	rng := rand.New(rand.NewSource(3))
	found := 0
	for range 400 {
		n := 1 + rng.Intn(3)
		obj := gpuNode(t, "A100-40GB", n)
		for i := range n {
			if rng.Intn(2) == 0 {
				sharing(obj, v1alpha1.ShareCapacity{Count: int32(1 + rng.Intn(3)), MemoryMiB: 20000 * int64(1+rng.Intn(2)), Cores: 100}, i)
			}
			obj.Status.GPUs[i].NUMA = int32(rng.Intn(2))
		}
		v := viewOf(t, NewLedger(), obj, Scope{})
		for i := range v.Node.GPUs {
			if v.Node.GPUs[i].Shares != nil && rng.Intn(2) == 0 {
				v.taken[i] = v.taken[i].With(v1alpha1.Share{MemoryMiB: int64(rng.Intn(20000)), Cores: int32(rng.Intn(3) * 50)})
			} else if v.Node.GPUs[i].Offered && rng.Intn(2) == 0 {
				v.occupied[i] = v.Node.GPUs[i].Catalogue.Model().Block(v.occupied[i], geometry.Placement{Start: rng.Intn(8), Size: 1})
			}
		}
		v.hold(v.state())
		p := pod("p").annotated(v1alpha1.AnnotationNUMABind, fmt.Sprint(rng.Intn(3) == 0))
		p.annotated(v1alpha1.AnnotationMode, []string{"", "", "mig", "hami-core"}[rng.Intn(4)])
		for c := range 1 + rng.Intn(2) {
			p.wants(fmt.Sprint("c", c), fmt.Sprintf("gpu=%d gpumem=%d gpucores=%d", 1+rng.Intn(2), []int{4000, 9000, 19000}[rng.Intn(3)], rng.Intn(3)*25))
		}
		r, err := Parse(p.Pod, Options{})
		if err != nil {
			t.Fatal(err)
		}
		plan, verdict := v.Fit(r)
		if want := bruteForce(v, r, make([]Assigned, 0, len(r.Devices))); (verdict == nil) != want {
			t.Fatalf("Fit of %s found = %v, brute force = %v", describeAll(r), verdict == nil, want)
		}
		if verdict == nil {
			found++
			if why := breaks(v, r, plan.Devices); why != "" {
				t.Fatalf("plan %+v of %s: %s", plan, describeAll(r), why)
			}
		}
	}
	if found < 40 || found > 360 {
		t.Errorf("%d of 400 cases had a plan: the cases do not test both answers", found)
	}
}

// bruteForce tries every choice for every device.
func bruteForce(v *View, r *Request, chosen []Assigned) bool {
	if breaks(v, r, chosen) != "" {
		return false
	}
	if len(chosen) == len(r.Devices) {
		return true
	}
	device := len(chosen)
	for i := range v.Node.GPUs {
		g := &v.Node.GPUs[i]
		if r.Share && g.Shares != nil {
			w := r.Shares[device]
			s := v1alpha1.Share{MemoryMiB: w.MemoryMiB, Cores: w.Cores}
			if bruteForce(v, r, append(chosen, Assigned{GPU: i, Share: s})) {
				return true
			}
		}
		if !r.MIG || !g.Offered {
			continue
		}
		for _, p := range g.Catalogue.Model().Profiles() {
			if p.Special() || p.MemoryMiB < r.Devices[device].MemoryMiB || 100*p.ComputeSlices/7 < r.Devices[device].Cores {
				continue
			}
			for _, start := range p.Starts {
				c := geometry.Choice{Placed: geometry.Placed{Profile: p.ID, Start: start}, Size: p.Size}
				if bruteForce(v, r, append(chosen, Assigned{GPU: i, Choice: c})) {
					return true
				}
			}
		}
	}
	return false
}

// breaks says which rule the choices for the first devices break, by counting all
// of them anew.
func breaks(v *View, r *Request, chosen []Assigned) string {
	mask := make([]uint64, len(v.Node.GPUs))
	taken := slices.Clone(v.taken)
	for i := range v.Node.GPUs {
		mask[i] = v.occupied[i].Mask
	}
	for i, a := range chosen {
		if a.IsShare() {
			t := &taken[a.GPU]
			c := v.Node.GPUs[a.GPU].Shares
			t.Count, t.MemoryMiB, t.Cores = t.Count+1, t.MemoryMiB+a.Share.MemoryMiB, t.Cores+int(a.Share.Cores)
			switch {
			case t.Count > int(c.Count), t.MemoryMiB > c.MemoryMiB, t.Cores > int(c.Cores):
				return fmt.Sprintf("device %d is too much for GPU %d", i, a.GPU)
			case a.Share.Cores == 0 && t.Cores == int(c.Cores) && coresBefore(v, chosen[:i], a.GPU) == int(c.Cores):
				return fmt.Sprintf("device %d has no cores left on GPU %d", i, a.GPU)
			}
			continue
		}
		window := uint64(1)<<a.Size - 1
		if mask[a.GPU]&(window<<a.Start) != 0 {
			return fmt.Sprintf("device %d overlaps", i)
		}
		mask[a.GPU] |= window << a.Start
	}
	for _, devices := range r.Containers {
		for _, x := range devices {
			for _, y := range devices {
				if x >= y || y >= len(chosen) {
					continue
				}
				a, b := chosen[x], chosen[y]
				switch {
				case a.IsShare() != b.IsShare():
					return "two modes in one container"
				case a.IsShare() && a.GPU == b.GPU:
					return "two shares of a GPU in one container"
				case r.Select.NUMA && v.Node.GPUs[a.GPU].NUMA != v.Node.GPUs[b.GPU].NUMA:
					return "two NUMA nodes in one container"
				}
			}
		}
	}
	return ""
}

func coresBefore(v *View, chosen []Assigned, gpu int) int {
	cores := v.taken[gpu].Cores
	for _, a := range chosen {
		if a.IsShare() && a.GPU == gpu {
			cores += int(a.Share.Cores)
		}
	}
	return cores
}

// TestReportAboutShares: what the agent gave up takes nothing, and a GPU that is
// avoided comes back.
func TestReportAboutShares(t *testing.T) {
	p := New(Options{})
	if err := p.Update(sharing(gpuNode(t, "A100-40GB", 1), capacity, 0)); err != nil {
		t.Fatal(err)
	}
	none := func(func(*v1.Pod) bool) {}
	ask := func() string {
		return planText(t, p.CachedView(object("n"), Key{}, none), pod("p").wants("c", "gpu=1 gpumem=100"))
	}
	again := p.Avoid(Holder{Node: "n", Spans: []Held{{GPU: "GPU-0", Share: v1alpha1.Share{MemoryMiB: 1}}}})
	if got, want := ask(), "node(s) had just refused the only GPU with enough left to share for 100 MiB"; got != want {
		t.Errorf("avoided: %s, want %s", got, want)
	}
	again()
	if got, want := ask(), "100/0:GPU-0"; got != want {
		t.Errorf("when it may be again: %s, want %s", got, want)
	}
}
