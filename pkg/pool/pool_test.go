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
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// pod builds pods: pod("a").wants("c", "gpu=2 gpumem=8000").
type podBuilder struct{ *v1.Pod }

func pod(name string) podBuilder {
	return podBuilder{&v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: "default", UID: types.UID("uid-" + name), Annotations: map[string]string{},
	}}}
}

func limits(text string) v1.ResourceList {
	list := v1.ResourceList{}
	for _, field := range strings.Fields(text) {
		name, value, _ := strings.Cut(field, "=")
		list[v1.ResourceName("nvidia.com/"+name)] = resource.MustParse(value)
	}
	return list
}

func (b podBuilder) wants(container, text string) podBuilder {
	b.Spec.Containers = append(b.Spec.Containers, v1.Container{
		Name: container, Resources: v1.ResourceRequirements{Limits: limits(text)},
	})
	return b
}

func (b podBuilder) init(container, text string) podBuilder {
	b.Spec.InitContainers = append(b.Spec.InitContainers, v1.Container{
		Name: container, Resources: v1.ResourceRequirements{Limits: limits(text)},
	})
	return b
}

func (b podBuilder) sidecar(container, text string) podBuilder {
	b.init(container, text)
	always := v1.ContainerRestartPolicyAlways
	b.Spec.InitContainers[len(b.Spec.InitContainers)-1].RestartPolicy = &always
	return b
}

func (b podBuilder) annotated(key, value string) podBuilder {
	b.Annotations[key] = value
	return b
}

func (b podBuilder) priority(p int32) podBuilder {
	b.Spec.Priority = &p
	return b
}

func (b podBuilder) ending() podBuilder {
	b.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	return b
}

// on binds the pod with an allocation of "2g.10gb@0" words, all on GPU-0.
func (b podBuilder) on(t *testing.T, node *v1alpha1.GPUNode, spans string) podBuilder {
	t.Helper()
	b.Spec.NodeName = node.Name
	container := &b.Spec.Containers[0]
	a := v1alpha1.Allocation{Version: 1, Node: node.Name, PodUID: b.UID, Containers: map[string][]v1alpha1.Device{}}
	for _, word := range strings.Fields(spans) {
		name, at, _ := strings.Cut(word, "@")
		var start int32
		fmt.Sscan(at, &start)
		p := profile(t, node, name)
		a.Containers[container.Name] = append(a.Containers[container.Name], v1alpha1.Device{
			GPU: node.Status.GPUs[0].UUID,
			MIG: &v1alpha1.MIGInstance{ProfileID: p.ID, Profile: p.Name, Start: start, Size: p.Size, MemoryMiB: p.MemoryMiB},
		})
	}
	text, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b.annotated(v1alpha1.AnnotationAllocation, text)
}

func profile(t *testing.T, node *v1alpha1.GPUNode, name string) v1alpha1.Profile {
	t.Helper()
	for _, p := range node.Status.Models[0].Profiles {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no profile %s", name)
	return v1alpha1.Profile{}
}

// gpuNode is a node with n GPUs of a board, GPU-0 and on, under rule Hardware.
func gpuNode(t testing.TB, board string, n int) *v1alpha1.GPUNode {
	t.Helper()
	b, ok := boards.Named(board)
	if !ok {
		t.Fatalf("no board %s", board)
	}
	hardware, err := b.Model()
	if err != nil {
		t.Fatal(err)
	}
	m := v1alpha1.ModelOf(b.Products[0], hardware)
	node := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	node.Status.Models = []v1alpha1.GPUModel{m}
	for i := range n {
		node.Status.GPUs = append(node.Status.GPUs, v1alpha1.GPU{
			UUID: fmt.Sprintf("GPU-%d", i), Index: int32(i), Model: m.Model, Health: v1alpha1.Healthy,
			Mode: v1alpha1.GPUMode{Wanted: v1alpha1.ModeMIG, Current: v1alpha1.ModeMIG},
		})
	}
	return node
}

// featureTemplates are those of facts/feature.md for the A100-40GB.
func featureTemplates(t *testing.T, node *v1alpha1.GPUNode) *v1alpha1.GPUNode {
	m := &node.Status.Models[0]
	m.Rule = v1alpha1.RuleTemplates
	entry := func(name string, memory int64, count int32) v1alpha1.TemplateEntry {
		return v1alpha1.TemplateEntry{ProfileID: profile(t, node, name).ID, MemoryMiB: memory, Count: count}
	}
	m.Templates = []v1alpha1.Template{
		{Entries: []v1alpha1.TemplateEntry{entry("1g.5gb", 5120, 7)}},
		{Entries: []v1alpha1.TemplateEntry{entry("2g.10gb", 10240, 3), entry("1g.5gb", 5120, 1)}},
		{Entries: []v1alpha1.TemplateEntry{entry("3g.20gb", 20480, 2)}},
		{Entries: []v1alpha1.TemplateEntry{entry("7g.40gb", 40960, 1)}},
	}
	return node
}

func viewOf(t *testing.T, ledger *Ledger, obj *v1alpha1.GPUNode, scope Scope, pods ...podBuilder) *View {
	t.Helper()
	node, err := NodeOf(obj, &Catalogues{})
	if err != nil {
		t.Fatal(err)
	}
	return ledger.View(node, func(yield func(*v1.Pod) bool) {
		for _, p := range pods {
			if !yield(p.Pod) {
				return
			}
		}
	}, scope, Options{})
}

// fit is the plan for a pod as text, "2g.10gb@0:GPU-0", or the reason.
func fit(t *testing.T, v *View, p podBuilder) string {
	t.Helper()
	r, err := Parse(p.Pod, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.setOversize()
	plan, verdict := v.Fit(r)
	if verdict != nil {
		return verdict.Reason
	}
	var words []string
	for _, d := range plan.Devices {
		g := v.Node.GPUs[d.GPU]
		profile, _ := g.Catalogue.Model().Profile(d.Profile)
		words = append(words, fmt.Sprintf("%s@%d:%s", profile.Name, d.Start, g.ID))
	}
	return strings.Join(words, " ")
}

func (r *Request) setOversize() {
	for i := range r.Devices {
		r.Devices[i].Oversize = true
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name string
		pod  podBuilder
		want []geometry.Want
		err  string
	}{
		{name: "no GPU resources at all", pod: pod("a").wants("c", "")},
		{
			name: "two devices of 8000 MiB",
			pod:  pod("a").wants("c", "gpu=2 gpumem=8000"),
			want: []geometry.Want{{MemoryMiB: 8000, Oversize: true}, {MemoryMiB: 8000, Oversize: true}},
		},
		{name: "gpu alone is a whole GPU", pod: pod("a").wants("c", "gpu=1"), want: []geometry.Want{{Full: true, Oversize: true}}},
		{name: "all cores is a whole GPU", pod: pod("a").wants("c", "gpu=1 gpucores=100"), want: []geometry.Want{{Full: true, Oversize: true}}},
		{name: "cores alone", pod: pod("a").wants("c", "gpu=1 gpucores=30"), want: []geometry.Want{{Cores: 30, Oversize: true}}},
		{name: "percent and cores", pod: pod("a").wants("c", "gpu=1 gpumem-percentage=25 gpucores=20"), want: []geometry.Want{{Percent: 25, Cores: 20, Oversize: true}}},
		{name: "memory before percent", pod: pod("a").wants("c", "gpu=1 gpumem=5 gpumem-percentage=25"), want: []geometry.Want{{MemoryMiB: 5, Oversize: true}}},
		{
			name: "a profile by name", pod: pod("a").wants("c", "gpu=1").annotated(v1alpha1.AnnotationProfile, "1g.5gb+me"),
			want: []geometry.Want{{Profile: "1g.5gb+me", Oversize: true}},
		},
		{
			name: "an init container shares, and enlarges",
			pod:  pod("a").wants("c", "gpu=1 gpumem=4000").wants("d", "gpu=1 gpumem=3000").init("i", "gpu=1 gpumem=9000"),
			want: []geometry.Want{{MemoryMiB: 9000, Oversize: true}, {MemoryMiB: 3000, Oversize: true}},
		},
		{
			name: "an init container with more devices than the rest",
			pod:  pod("a").wants("c", "gpu=1 gpumem=4000").init("i", "gpu=2 gpumem=1000"),
			want: []geometry.Want{{MemoryMiB: 4000, Oversize: true}, {MemoryMiB: 1000, Oversize: true}},
		},
		{
			name: "init containers one after the other share",
			pod:  pod("a").wants("c", "gpu=1 gpumem=4000").init("i", "gpu=1 gpumem=1000").init("j", "gpu=1 gpumem=2000"),
			want: []geometry.Want{{MemoryMiB: 4000, Oversize: true}},
		},
		{
			name: "a sidecar has its own",
			pod:  pod("a").wants("c", "gpu=1 gpumem=4000").sidecar("s", "gpu=1 gpumem=1000"),
			want: []geometry.Want{{MemoryMiB: 1000, Oversize: true}, {MemoryMiB: 4000, Oversize: true}},
		},
		{
			name: "a sidecar takes over from an earlier init container, an app container from a later one",
			pod: pod("a").wants("c", "gpu=1 gpumem=4000").init("i", "gpu=1 gpumem=2000").
				sidecar("s", "gpu=1 gpumem=1000").init("j", "gpu=1 gpumem=9000"),
			want: []geometry.Want{{MemoryMiB: 2000, Oversize: true}, {MemoryMiB: 9000, Oversize: true}},
		},
		{
			name: "an init container with memory, the rest a whole GPU",
			pod:  pod("a").wants("c", "gpu=1").init("i", "gpu=1 gpumem=9000"),
			want: []geometry.Want{{MemoryMiB: 9000, Full: true, Oversize: true}},
		},
		{
			name: "an init container with a share, the rest with memory",
			pod:  pod("a").wants("c", "gpu=1 gpumem=4000").init("i", "gpu=1 gpumem-percentage=50 gpucores=20"),
			want: []geometry.Want{{MemoryMiB: 4000, Percent: 50, Cores: 20, Oversize: true}},
		},
		{
			name: "gpumem without gpu", pod: pod("a").wants("c", "gpumem=8000"),
			err: `container "c" asks for nvidia.com/gpumem without nvidia.com/gpu; add the limit nvidia.com/gpu: 1`,
		},
		{
			name: "percent 101", pod: pod("a").wants("c", "gpu=1 gpumem-percentage=101"),
			err: `container "c": nvidia.com/gpumem-percentage is 101; use 1 to 100`,
		},
		{name: "cores 101", pod: pod("a").wants("c", "gpu=1 gpucores=101"), err: `container "c": nvidia.com/gpucores is 101; use 0 to 100`},
		{
			name: "an unknown mode", pod: pod("a").wants("c", "gpu=1").annotated(v1alpha1.AnnotationMode, "mgi"),
			err: `annotation nvidia.com/vgpu-mode is "mgi"; use "mig", "hami-core" or both`,
		},
		{
			name: "memory with a suffix", pod: pod("a").wants("c", "gpu=1 gpumem=8Gi"),
			err: `container "c": nvidia.com/gpumem is 8589934592 MiB; no GPU has that much (the unit is MiB, without a suffix)`,
		},
		{
			name: "more devices than one pod may ask for, in one container", pod: pod("a").wants("c", "gpu=32767"),
			err: `container "c": nvidia.com/gpu is 32767, with which the pod asks for more than 1024 devices in all; lower it, or use several pods`,
		},
		{
			name: "more devices than one pod may ask for, init containers included", pod: pod("a").wants("c", "gpu=1 gpumem=1").init("i", "gpu=1024 gpumem=1"),
			err: `container "c": nvidia.com/gpu is 1, with which the pod asks for more than 1024 devices in all; lower it, or use several pods`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := Parse(tc.pod.Pod, Options{})
			if got := fmt.Sprint(err); err != nil && got != tc.err || err == nil && tc.err != "" {
				t.Fatalf("error = %q, want %q", got, tc.err)
			}
			var got []geometry.Want
			if r != nil {
				got = r.Devices
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("devices (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLongestRequest: what a pod may ask for at most is read.
func TestLongestRequest(t *testing.T) {
	list := strings.Repeat("GPU-0,", mostListed-1) + "GPU-0"
	p := pod("a").init("i", "gpu=24 gpumem=1").wants("c", "gpu=1000 gpumem=1")
	for _, key := range []string{v1alpha1.AnnotationUseUUID, v1alpha1.AnnotationNoUseUUID, v1alpha1.AnnotationUseType, v1alpha1.AnnotationNoUseType} {
		p.annotated(key, list)
	}
	r, err := Parse(p.Pod, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(r.Devices), 1000; got != want {
		t.Errorf("%d devices, want %d: the init container's are among them", got, want)
	}
	if got := len(r.Select.NoTypes); got != mostListed {
		t.Errorf("%d types not to use, want %d", got, mostListed)
	}
}

func TestFitFollowsTheFile(t *testing.T) {
	node := featureTemplates(t, gpuNode(t, "A100-40GB", 2))
	for _, tc := range []struct {
		name string
		on   []podBuilder
		pod  podBuilder
		want string
	}{
		{
			name: "the pod of the documentation gets two of the second template",
			pod:  pod("p").wants("c", "gpu=2 gpumem=8000"),
			want: "2g.10gb@0:GPU-0 2g.10gb@2:GPU-0",
		},
		{
			name: "a small pod fills the gap beside it",
			on:   []podBuilder{pod("x").wants("c", "gpu=2 gpumem=8000").on(t, node, "2g.10gb@0 2g.10gb@2")},
			pod:  pod("p").wants("c", "gpu=1 gpumem=4000"),
			want: "1g.5gb@6:GPU-0",
		},
		{
			name: "a whole GPU is the full profile",
			pod:  pod("p").wants("c", "gpu=2"),
			want: "7g.40gb@0:GPU-0 7g.40gb@0:GPU-1",
		},
		{
			name: "more than the model has",
			pod:  pod("p").wants("c", "gpu=1 gpumem=50000"),
			want: "node(s) cannot be cut into 50000 MiB",
		},
		{
			name: "more than is free",
			on:   []podBuilder{pod("x").wants("c", "gpu=1 gpumem=4000").on(t, node, "1g.5gb@0")},
			pod:  pod("p").wants("c", "gpu=2"),
			want: "node(s) had no free MIG placement for 2 whole GPUs",
		},
		{
			name: "a device that an init container had is enough for both: half a GPU, not a small one",
			pod:  pod("p").wants("c", "gpu=1 gpumem=4000").init("i", "gpu=1 gpumem-percentage=50"),
			want: "3g.20gb@0:GPU-0",
		},
		{
			name: "a whole GPU with more memory than the model has",
			pod:  pod("p").wants("c", "gpu=1").init("i", "gpu=1 gpumem=50000"),
			want: "node(s) cannot be cut into a whole GPU and 50000 MiB",
		},
		{
			name: "another mode only",
			pod:  pod("p").wants("c", "gpu=1").annotated(v1alpha1.AnnotationMode, "hami-core"),
			want: ReasonNoMode,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := viewOf(t, NewLedger(), node, Scope{}, tc.on...)
			if got := fit(t, v, tc.pod); got != tc.want {
				t.Errorf("Fit = %s, want %s", got, tc.want)
			}
		})
	}
}

// TestKindsOfPods holds the four kinds of a node view apart.
func TestKindsOfPods(t *testing.T) {
	node := gpuNode(t, "A100-40GB", 1)
	whole := "gpu=1"
	full := "7g.40gb@0:GPU-0"
	taken := "node(s) had no free MIG placement for a whole GPU"
	bound := func(name string) podBuilder {
		return pod(name).wants("c", "gpu=1 gpumem=4000").on(t, node, "1g.5gb@6")
	}
	refusing := node.DeepCopy()
	refusing.Status.Pods = []v1alpha1.PodPreparation{{UID: "uid-x", Phase: v1alpha1.PodRefused}}
	foreign := node.DeepCopy()
	foreign.Status.GPUs[0].Instances = []v1alpha1.Instance{{ProfileID: 19, Start: 3, State: v1alpha1.InstanceForeign}}
	idle := node.DeepCopy()
	idle.Status.GPUs[0].Instances = []v1alpha1.Instance{{ProfileID: 19, Start: 3, State: v1alpha1.InstanceIdle}}

	held := Holder{UID: "uid-x", Node: "n", Spans: []Held{{GPU: "GPU-0", Placed: geometry.Placed{Profile: 19, Start: 0}, Size: 1}}}
	assumed := NewLedger()
	assumed.Assume(held)

	forged := bound("x")
	forged.UID = "another"

	for _, tc := range []struct {
		name   string
		ledger *Ledger
		node   *v1alpha1.GPUNode
		scope  Scope
		on     []podBuilder
		want   string
	}{
		{name: "an empty node", want: full},
		{name: "bound with a valid annotation takes its span", on: []podBuilder{bound("x")}, want: taken},
		{name: "a forged annotation takes nothing", on: []podBuilder{forged}, want: full},
		{name: "refused by the agent takes nothing", node: refusing, on: []podBuilder{bound("x")}, want: full},
		{name: "a foreign instance takes its span", node: foreign, want: "node(s) had foreign or stuck MIG instances in the way of a whole GPU"},
		{name: "an idle instance takes nothing", node: idle, want: full},
		{name: "assumed but not in the NodeInfo does not count in Filter", ledger: assumed, want: full},
		{name: "it counts in Reserve", ledger: assumed, scope: Scope{Ledger: LedgerUnbound}, want: taken},
		{name: "unless it is the pod itself", ledger: assumed, scope: Scope{Ledger: LedgerUnbound, Except: "uid-x"}, want: full},
		{name: "a nominated pod is placed virtually", on: []podBuilder{pod("x").wants("c", "gpu=1 gpumem=4000")}, want: taken},
		{
			name: "a nominated pod without room makes others yield",
			on:   []podBuilder{bound("y"), pod("x").wants("c", whole)}, want: ReasonNominated,
		},
		{
			name: "a nominated pod takes the place of its ending victim, which still counts",
			on:   []podBuilder{bound("y").ending(), pod("x").wants("c", "gpu=1 gpumem=20000").priority(1)}, want: taken,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ledger, obj := tc.ledger, tc.node
			if ledger == nil {
				ledger = NewLedger()
			}
			if obj == nil {
				obj = node
			}
			v := viewOf(t, ledger, obj, tc.scope, tc.on...)
			if got := fit(t, v, pod("p").wants("c", whole)); got != tc.want {
				t.Errorf("Fit = %s, want %s", got, tc.want)
			}
		})
	}
}

// TestANomineeTakesThePlacesOfItsVictims, which are marked some time after it is
// nominated, and leaves the rest of the node open.
func TestANomineeTakesThePlacesOfItsVictims(t *testing.T) {
	node := gpuNode(t, "A100-40GB", 2)
	last := gpuNode(t, "A100-40GB", 2)
	last.Status.GPUs = last.Status.GPUs[1:]
	first := func() podBuilder { return pod("y").wants("c", "gpu=1 gpumem=4000").on(t, node, "1g.5gb@6") }
	second := func() podBuilder { return pod("z").wants("c", "gpu=1 gpumem=4000").on(t, last, "1g.5gb@6") }
	for _, tc := range []struct {
		name string
		on   []podBuilder
		want string
	}{
		{"of two victims to choose from the marked one", []podBuilder{first(), second().ending()}, "3g.20gb@0:GPU-0"},
		{"one that is not marked yet", []podBuilder{first(), second().priority(1)}, "3g.20gb@0:GPU-1"},
		{"none where all are as important", []podBuilder{first().priority(1), second().priority(1)}, ReasonNominated},
	} {
		v := viewOf(t, NewLedger(), node, Scope{}, append(tc.on, pod("nominee").wants("c", "gpu=1").priority(1))...)
		if got := fit(t, v, pod("p").wants("c", "gpu=1 gpumem=20000")); got != tc.want {
			t.Errorf("%s: half a GPU goes to %s, want %s", tc.name, got, tc.want)
		}
	}
}

// TestLedgerWinsOverAnnotation: an assumed pod's copy may carry an older
// annotation (I2).
func TestLedgerWinsOverAnnotation(t *testing.T) {
	node := gpuNode(t, "A100-40GB", 1)
	ledger := NewLedger()
	stale := pod("x").wants("c", "gpu=1 gpumem=4000").on(t, node, "1g.5gb@6")
	ledger.Assume(Holder{UID: stale.UID, Node: "n", Spans: []Held{{GPU: "GPU-0", Placed: geometry.Placed{Profile: 19, Start: 0}, Size: 1}}})
	v := viewOf(t, ledger, node, Scope{}, stale)
	if got, want := v.Occupied(0).Mask, uint64(1); got != want {
		t.Errorf("occupied slices = %b, want %b: the ledger's placement at 0", got, want)
	}
}

// TestSearchFindsWhatExists compares with a search that tries everything.
func TestSearchFindsWhatExists(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	sizes := []string{"4000", "9000", "15000", "39000"}
	found := 0
	for range 300 {
		node := gpuNode(t, "A100-40GB", 1+rng.Intn(3))
		v := viewOf(t, NewLedger(), node, Scope{})
		for i := range v.occupied { // some random occupancy
			for range rng.Intn(4) {
				model := v.Node.GPUs[i].Catalogue.Model()
				p := model.Profiles()[rng.Intn(len(model.Profiles()))]
				o, err := model.Occupy(v.occupied[i], geometry.Placed{Profile: p.ID, Start: p.Starts[rng.Intn(len(p.Starts))]})
				if err == nil {
					v.occupied[i] = o
				}
			}
		}
		v.hold(v.state())
		p := pod("p")
		for c := range 1 + rng.Intn(4) {
			p.wants(fmt.Sprint("c", c), "gpu=1 gpumem="+sizes[rng.Intn(len(sizes))])
		}
		r, err := Parse(p.Pod, Options{})
		if err != nil {
			t.Fatal(err)
		}
		plan, verdict := v.Fit(r)
		if want := exhaustive(v, r, slices.Clone(v.occupied), 0); (verdict == nil) != want {
			t.Fatalf("Fit of %d devices found = %v, exhaustive search = %v", len(r.Devices), verdict == nil, want)
		}
		if verdict == nil {
			found++
			if !v.Has(v.Holder(r, plan)) {
				t.Fatalf("plan %v does not fit its own view", plan)
			}
		}
	}
	if found < 30 || found > 270 {
		t.Errorf("%d of 300 cases had a plan: the cases do not test both answers", found)
	}
}

func exhaustive(v *View, r *Request, occupied []geometry.Occupancy, i int) bool {
	if i == len(r.Devices) {
		return true
	}
	ok := false
	for g := range v.Node.GPUs {
		before := occupied[g]
		v.Node.GPUs[g].Catalogue.Choices(before, r.Devices[i], func(c geometry.Choice) bool {
			next, err := v.Node.GPUs[g].Catalogue.Model().Occupy(before, c.Placed)
			if err != nil {
				panic(err)
			}
			occupied[g] = next
			ok = exhaustive(v, r, occupied, i+1)
			occupied[g] = before
			return !ok
		})
		if ok {
			return true
		}
	}
	return false
}

// TestPossible names the field that asks for too much.
func TestPossible(t *testing.T) {
	p := New(Options{})
	ask := func(b podBuilder) string {
		r, err := p.Parse(b.Pod)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(p.Possible(r))
	}
	if got, want := ask(pod("a").wants("c", "gpu=1")), "no node offers GPUs yet: no GPUNode reports a usable GPU; kubectl mig status says why, node by node"; got != want {
		t.Errorf("empty pool: %s, want %s", got, want)
	}
	if err := p.Update(featureTemplates(t, gpuNode(t, "A100-40GB", 2))); err != nil {
		t.Fatal(err)
	}
	for b, want := range map[*podBuilder]string{
		ptr(pod("a").wants("c", "gpu=1 gpumem=8000")):                                     "<nil>",
		ptr(pod("a").wants("c", "gpu=100 gpumem=8000")):                                   "the pod asks for 100 devices of nvidia.com/gpu; the largest node can hold 14",
		ptr(pod("a").wants("c", "gpu=100")):                                               "the pod asks for 100 whole GPUs with nvidia.com/gpu; the largest node can hold 2",
		ptr(pod("a").wants("c", "gpu=3 gpumem-percentage=100")):                           "the pod asks for 3 whole GPUs with nvidia.com/gpu; the largest node can hold 2",
		ptr(pod("a").wants("c", "gpu=1 gpumem=50000")):                                    "limit nvidia.com/gpumem asks for 50000 MiB; no GPU in the cluster can be cut into that, the largest profile on offer is 7g.40gb with 40960 MiB",
		ptr(pod("a").wants("c", "gpu=1").annotated(v1alpha1.AnnotationProfile, "9g.1gb")): "annotation nvidia.com/mig-profile asks for profile 9g.1gb; no GPU in the cluster can be cut into that, on offer are 1g.5gb, 2g.10gb, 3g.20gb, 7g.40gb",
	} {
		if got := ask(*b); got != want {
			t.Errorf("Possible = %s\nwant       %s", got, want)
		}
	}
	p.Remove("n")
	if got := ask(pod("a").wants("c", "gpu=1")); !strings.HasPrefix(got, "no node offers") {
		t.Errorf("after Remove: %s", got)
	}
}

// TestAvoidedPlacementsAreNotChosen until they may be again.
func TestAvoidedPlacementsAreNotChosen(t *testing.T) {
	p := New(Options{})
	obj := gpuNode(t, "A100-40GB", 1)
	if err := p.Update(obj); err != nil {
		t.Fatal(err)
	}
	none := func(func(*v1.Pod) bool) {}
	small := func() string {
		return fit(t, p.CachedView(object("n"), Key{}, none), pod("p").wants("c", "gpu=1 gpumem=4000"))
	}
	first := small()
	var start int
	if _, err := fmt.Sscanf(first, "1g.5gb@%d:GPU-0", &start); err != nil {
		t.Fatalf("before: %s: %v", first, err)
	}
	again := p.Avoid(Holder{Node: "n", Spans: []Held{{GPU: "GPU-0", Placed: geometry.Placed{Profile: 19, Start: start}, Size: 1}}})
	for _, when := range []string{"avoided", "after another report"} {
		if got := small(); got == first || !strings.HasPrefix(got, "1g.5gb@") {
			t.Errorf("%s: %s, want another start than %d", when, got, start)
		}
		whole := fit(t, p.CachedView(object("n"), Key{}, none), pod("p").wants("c", "gpu=1"))
		if want := "7g.40gb@0:GPU-0"; whole != want {
			t.Errorf("%s: another profile over it = %s, want %s", when, whole, want)
		}
		if err := p.Update(obj); err != nil {
			t.Fatal(err)
		}
	}
	again()
	again()
	if got := small(); got != first {
		t.Errorf("when it may be again: %s, want %s", got, first)
	}
}

func ptr[T any](v T) *T { return &v }

// TestCachedViewFollowsEveryChange: generation alone does not name a view (I4).
func TestCachedViewFollowsEveryChange(t *testing.T) {
	p := New(Options{})
	obj := gpuNode(t, "A100-40GB", 1)
	if err := p.Update(obj); err != nil {
		t.Fatal(err)
	}
	none := func(func(*v1.Pod) bool) {}
	key := Key{Generation: 7}
	first := p.CachedView(object("n"), key, none)
	if again := p.CachedView(object("n"), key, none); again != first {
		t.Error("an unchanged node was built twice")
	}
	p.Assume(Holder{UID: "x", Node: "n"})
	second := p.CachedView(object("n"), key, none)
	if second == first {
		t.Error("Assume did not make a new view")
	}
	p.Forget("x")
	if p.CachedView(object("n"), key, none) == second {
		t.Error("Forget did not make a new view")
	}
	if err := p.Update(obj); err != nil {
		t.Fatal(err)
	}
	if got := p.CachedView(object("n"), key, none); got == first || got == second {
		t.Error("a new report did not make a new view")
	}
	if p.CachedView(object("other"), key, none) != nil {
		t.Error("a node that is not in the pool has a view")
	}
	of := object("n")
	last := p.CachedView(of, key, none)
	if p.Remove("n"); p.CachedView(of, key, none) != nil {
		t.Error("a node that was removed has a view")
	}
	if err := p.Update(obj); err != nil {
		t.Fatal(err)
	}
	if got := p.CachedView(of, key, none); got == nil || got == last {
		t.Errorf("a node that came back has the view %p, want one that is not %p", got, last)
	}
}

// TestViewCallsNothingUnderItsLock: the pods come from the scheduler, whose queue
// calls hints, which build views, under its own lock.
func TestViewCallsNothingUnderItsLock(t *testing.T) {
	l := NewLedger()
	node, err := NodeOf(gpuNode(t, "A100-40GB", 1), &Catalogues{})
	if err != nil {
		t.Fatal(err)
	}
	l.View(node, func(yield func(*v1.Pod) bool) {
		if !l.mu.TryLock() {
			t.Error("the ledger is locked while the caller's iterator runs")
			return
		}
		l.mu.Unlock()
		yield(pod("x").wants("c", "gpu=1").Pod)
	}, Scope{Ledger: LedgerUnbound}, Options{})
}

// TestLedgerTransitions runs random operations against a plain model.
func TestLedgerTransitions(t *testing.T) {
	rng := rand.New(rand.NewSource(2))
	l := NewLedger()
	model := map[types.UID]Holder{}
	for range 5000 {
		uid := types.UID(fmt.Sprint(rng.Intn(6)))
		h := Holder{UID: uid, Node: fmt.Sprint("n", rng.Intn(2))}
		before := map[string]uint64{"n0": l.Revision("n0"), "n1": l.Revision("n1")}
		old, had := model[uid]
		switch rng.Intn(5) {
		case 0:
			l.Assume(h)
			h.State = Assumed
			model[uid] = h
		case 1:
			l.Publish(uid)
			if had && old.State == Assumed {
				old.State = Published
				model[uid] = old
			}
		case 2:
			l.Bound(h)
			h.State = Bound
			if !had || old.State != Bound || old.Node != h.Node {
				model[uid] = h
			}
		case 3:
			l.Forget(uid)
			delete(model, uid)
		case 4:
			l.ForgetUnbound(uid)
			if old.State != Bound {
				delete(model, uid)
			}
		}
		got, ok := l.Holder(uid)
		want, wantOK := model[uid]
		if ok != wantOK || cmp.Diff(want, got) != "" {
			t.Fatalf("holder %s = %+v, %v; want %+v, %v", uid, got, ok, want, wantOK)
		}
		for node, r := range before {
			if l.Revision(node) < r {
				t.Fatalf("revision of %s fell", node)
			}
		}
		if now, has := model[uid]; cmp.Diff(old, now) != "" || had != has {
			if has && l.Revision(now.Node) == before[now.Node] || had && l.Revision(old.Node) == before[old.Node] {
				t.Fatalf("a change of %s left a revision as it was", uid)
			}
		}
	}
}
