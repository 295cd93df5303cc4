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
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// instance adds one to the first GPU's report: "2g.10gb@0 Live uid-a".
func instance(t *testing.T, node *v1alpha1.GPUNode, text string) {
	t.Helper()
	var word, state, uid string
	fmt.Sscan(text, &word, &state, &uid)
	name, at, _ := strings.Cut(word, "@")
	var start int32
	fmt.Sscan(at, &start)
	g := &node.Status.GPUs[0]
	n := int32(len(g.Instances))
	g.Instances = append(g.Instances, v1alpha1.Instance{
		ProfileID: profile(t, node, name).ID, Start: start, GI: n + 3, UUID: fmt.Sprintf("MIG-%d", n),
		PodUID: types.UID(uid), State: v1alpha1.InstanceState(state),
	})
}

// told is a GPU's spans as text: "2g.10gb#0@0 Used default/a[c:0]".
func told(g GPUPicture) []string {
	out := []string{}
	for _, s := range g.Spans {
		text := fmt.Sprintf("%s#%d@%d %s", s.Profile, s.Ordinal, s.Start, s.State)
		if s.Owner != nil {
			text += fmt.Sprintf(" %s/%s", s.Owner.Namespace, s.Owner.Name)
			for _, u := range s.Owner.Uses {
				text += fmt.Sprintf("[%s:%d]", u.Container, u.Device)
			}
		}
		out = append(out, text)
	}
	return out
}

func plain(pods ...podBuilder) []*v1.Pod {
	var out []*v1.Pod
	for _, p := range pods {
		out = append(out, p.Pod)
	}
	return out
}

func TestPictureOfEveryState(t *testing.T) {
	node := gpuNode(t, "A100-40GB", 2)
	node.Status.GPUs[1].Health, node.Status.GPUs[1].Reason = v1alpha1.Unhealthy, "XID 79"
	instance(t, node, "1g.5gb@0 Live uid-a")
	instance(t, node, "1g.5gb@1 Idle")
	instance(t, node, "1g.5gb@2 Foreign")
	instance(t, node, "1g.5gb@3 Stuck")
	instance(t, node, "1g.5gb@4 Live uid-gone")
	node.Status.Pods = []v1alpha1.PodPreparation{{UID: "uid-b", Phase: v1alpha1.PodFailing, Reason: "busy"}}
	a := pod("a").wants("c", "gpu=1 gpumem=4000").on(t, node, "1g.5gb@0")
	b := pod("b").wants("c", "gpu=1 gpumem=4000").on(t, node, "1g.5gb@5")
	ended := pod("ended").wants("c", "gpu=1 gpumem=4000").on(t, node, "1g.5gb@6")
	ended.Status.Phase = v1.PodSucceeded

	p := New(Options{})
	if err := p.Update(node); err != nil {
		t.Fatal(err)
	}
	h := Holder{Pod: types.NamespacedName{Namespace: "default", Name: "soon"}, UID: "uid-soon", Node: "n",
		Spans: []Held{{GPU: "GPU-0", Placed: geometry.Placed{Profile: 19, Start: 6}, Size: 1}}}
	p.Assume(h)
	got := p.Draw(node, plain(a, b, ended))
	if diff := cmp.Diff([]string{
		"1g.5gb#0@0 Used default/a[c:0]",
		"1g.5gb#1@1 Idle",
		"1g.5gb#2@2 Foreign",
		"1g.5gb#3@3 Stuck",
		"1g.5gb#4@4 Leaving /",
		"1g.5gb#5@5 Preparing default/b[c:0]",
		"1g.5gb#6@6 Assumed default/soon",
	}, told(got.GPUs[0])); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}
	g := got.GPUs[0]
	if g.FreeSlices != 3 || g.LargestFree != "1g.5gb" || g.Template != nil || g.Stranded != 1 {
		t.Errorf("free %d, largest %s, template %v, stranded %d", g.FreeSlices, g.LargestFree, g.Template, g.Stranded)
	}
	if want := (FitPicture{19, "1g.5gb", 2}); g.Fits[0] != want {
		t.Errorf("fits = %v, want %v first", g.Fits, want)
	}
	if g := got.GPUs[1]; g.Offered || g.FreeSlices != 0 || g.LargestFree != "" || g.Fits[0].Count != 0 || g.Reason != "XID 79" {
		t.Errorf("an unhealthy GPU has room: %+v", g)
	}
	if want := []PreparationPicture{{Namespace: "default", Name: "b", UID: "uid-b", Phase: v1alpha1.PodFailing, Reason: "busy"}}; !slices.Equal(got.Preparations, want) {
		t.Errorf("preparations = %v, want %v", got.Preparations, want)
	}
	p.Publish("uid-soon")
	if got := told(p.Draw(node, plain(a, b)).GPUs[0])[6]; got != "1g.5gb#6@6 Published default/soon" {
		t.Errorf("after Publish: %s", got)
	}
	if got := len(Options{}.Draw(node, plain(a, b), &Catalogues{}).GPUs[0].Spans); got != 6 {
		t.Errorf("without a ledger there are %d spans, want 6", got)
	}
}

func TestPictureWithTemplates(t *testing.T) {
	node := featureTemplates(t, gpuNode(t, "A100-40GB", 1))
	a := pod("a").wants("c", "gpu=1 gpumem=8000").on(t, node, "2g.10gb@0")
	g := Options{}.Draw(node, plain(a), &Catalogues{}).GPUs[0]
	if g.Template == nil || *g.Template != 1 || g.Templates != 4 {
		t.Errorf("template %v of %d, want 1 of 4", g.Template, g.Templates)
	}
	if want := []FitPicture{{19, "1g.5gb", 1}, {14, "2g.10gb", 2}, {9, "3g.20gb", 0}, {0, "7g.40gb", 0}}; !slices.Equal(g.Fits, want) {
		t.Errorf("fits = %v, want %v", g.Fits, want)
	}
}

func TestPictureOfANodeThatCannotBeRead(t *testing.T) {
	node := gpuNode(t, "A100-40GB", 1)
	node.Status.GPUs[0].Model = "another"
	p := New(Options{})
	if p.Update(node) == nil {
		t.Fatal("the node was accepted")
	}
	if got := p.Draw(node, nil); got.Problem == "" || len(got.GPUs) > 0 {
		t.Errorf("picture = %+v, want only a problem", got)
	}
}

// TestPictureIsTheView: whatever pods, ledger and hardware hold, the slices that the
// picture shows as taken are those of the view that decisions are made from, the
// order of pods does not matter, and once all is bound no ledger is needed.
func TestPictureIsTheView(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewSource(seed))
	for round := range 300 {
		node := gpuNode(t, "A100-40GB", 2)
		p := New(Options{})
		if err := p.Update(node); err != nil {
			t.Fatal(err)
		}
		assumed, pods := fill(t, p, node, random)
		for uid := range assumed {
			if random.Intn(2) == 0 {
				p.Publish(uid)
			}
		}
		random.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
		picture := p.Draw(node, pods)
		n, _ := p.Node("n")
		view := p.FreshView(n, slices.Values(pods), Scope{Ledger: LedgerAll})
		for i, g := range picture.GPUs {
			mask, taken := uint64(0), 0
			for _, s := range g.Spans {
				if s.State.Takes() {
					mask |= (1<<s.Size - 1) << s.Start
					taken += s.Size
				}
			}
			if mask != view.Occupied(i).Mask || g.FreeSlices != g.MemorySlices-taken {
				t.Fatalf("round %d: GPU %d is drawn as %08b with %d free, the view has %08b", round, i, mask, g.FreeSlices, view.Occupied(i).Mask)
			}
		}
		slices.Reverse(pods)
		if diff := cmp.Diff(picture, p.Draw(node, pods)); diff != "" {
			t.Fatalf("round %d: another order of pods:\n%s", round, diff)
		}
		for uid := range assumed {
			p.Forget(uid)
		}
		if diff := cmp.Diff(Options{}.Draw(node, pods, &Catalogues{}), p.Draw(node, pods)); diff != "" {
			t.Fatalf("round %d: with and without ledger:\n%s", round, diff)
		}
	}
}

// fill places pods until some do not fit; half are bound, half only assumed.
func fill(t *testing.T, p *Pool, node *v1alpha1.GPUNode, random *rand.Rand) (assumed map[types.UID]bool, pods []*v1.Pod) {
	t.Helper()
	assumed = map[types.UID]bool{}
	for i := range 2 + random.Intn(10) {
		pod := pod(fmt.Sprint("p", i)).wants("c", fmt.Sprintf("gpu=%d gpumem=%d", 1+random.Intn(2), 1000+random.Intn(20000)))
		n, _ := p.Node("n")
		view := p.FreshView(n, slices.Values(pods), Scope{Ledger: LedgerAll})
		r, err := p.Parse(pod.Pod)
		if err != nil {
			t.Fatal(err)
		}
		plan, verdict := view.Fit(r)
		if verdict != nil {
			continue
		}
		if random.Intn(2) == 0 {
			assumed[pod.UID] = true
			p.Assume(view.Holder(r, plan))
			continue
		}
		text, err := view.Allocation(r, plan).Encode()
		if err != nil {
			t.Fatal(err)
		}
		pod.Spec.NodeName = "n"
		pods = append(pods, pod.annotated(v1alpha1.AnnotationAllocation, text).Pod)
		if random.Intn(2) == 0 {
			h, _ := Options{}.HolderOf(pod.Pod)
			p.Bound(h)
		}
	}
	return assumed, pods
}
