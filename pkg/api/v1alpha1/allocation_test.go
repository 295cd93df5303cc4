// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func mig(gpu string, id, start, size int32) Device {
	return Device{GPU: gpu, MIG: &MIGInstance{ProfileID: id, Profile: "p", Start: start, Size: size, MemoryMiB: 1}}
}

func valid() Allocation {
	return Allocation{
		Version: 1, Node: "n", PodUID: "u",
		Containers: map[string][]Device{"c": {mig("GPU-0", 14, 0, 2), mig("GPU-0", 14, 2, 2)}},
	}
}

func TestEncodeThenDecodeIsIdentity(t *testing.T) {
	want := valid()
	want.Containers["share"] = []Device{{GPU: "GPU-1", Share: &Share{MemoryMiB: 8000, Cores: 30}}}
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeAllocation(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("allocation (-encoded +decoded):\n%s", diff)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	const head = `{"version":1,"node":"n","podUID":"u","containers":`
	for _, tc := range []struct{ name, text, want string }{
		{"not JSON", `GPU-0:1g.5gb`, "invalid character"},
		{"empty", ``, "unexpected end"},
		{"an unknown version", `{"version":2,"fancy":true}`, "version 2 is unknown, this program knows 1"},
		{"no version", `{}`, "version 0 is unknown"},
		{"an unknown field", `{"version":1,"nodes":"n"}`, `unknown field "nodes"`},
		{"an unknown field deep inside", head + `{"c":[{"gpu":"g","mig":{"profil":1}}]}}`, `unknown field "profil"`},
		{"text behind", head + `{"c":[{"gpu":"g","share":{"memoryMiB":1,"cores":0}}]}} x`, "after top-level value"},
		{"no node", `{"version":1,"podUID":"u","containers":{"c":[]}}`, "node is empty"},
		{"no pod", `{"version":1,"node":"n","containers":{"c":[]}}`, "podUID is empty"},
		{"no containers", head + `{}}`, "containers is empty"},
		{"a container without devices", head + `{"c":[]}}`, "containers[c] is empty"},
		{"no GPU", head + `{"c":[{"mig":{"profileID":1,"profile":"p","start":0,"size":1,"memoryMiB":1}}]}}`, "containers[c][0]: gpu is empty"},
		{"neither instance nor share", head + `{"c":[{"gpu":"g"}]}}`, "exactly one of mig and share"},
		{"a share without a limit", head + `{"c":[{"gpu":"g","share":{"memoryMiB":0,"cores":0}}]}}`, "share.memoryMiB is 0"},
		{"more memory than sums can hold", head + `{"c":[{"gpu":"g","share":{"memoryMiB":9223372036854775807,"cores":0}}]}}`, "share.memoryMiB is 9223372036854775807, want more than 0 and at most 2147483647"},
		{"more than all cores", head + `{"c":[{"gpu":"g","share":{"memoryMiB":1,"cores":101}}]}}`, "share.cores is 101"},
		{"a negative start", head + `{"c":[{"gpu":"g","mig":{"profileID":1,"profile":"p","start":-1,"size":1,"memoryMiB":1}}]}}`, "negative"},
		{"a long name of a field", `{"version":1,"` + strings.Repeat("x", 1000) + `":1}`, "xxx..."},
		{"far too long", strings.Repeat(" ", maxAllocationBytes+1), "bytes are more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := DecodeAllocation(tc.text)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "annotation "+AnnotationAllocation) {
				t.Errorf("error = %v, want the annotation's key and %q", err, tc.want)
			}
		})
	}
}

func FuzzDecodeAllocation(f *testing.F) {
	text, err := valid().Encode()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{text, `{}`, `{"version":1}`, `[]`, `{"version":1,"containers":{"":null}}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := DecodeAllocation(text)
		if err != nil {
			return
		}
		again, err := a.Encode()
		if err != nil {
			t.Fatalf("decoded but not encoded: %v", err)
		}
		b, err := DecodeAllocation(again)
		if err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("Encode and Decode give %+v, %v; want %+v", b, err, a)
		}
	})
}

func TestOwns(t *testing.T) {
	pod := func() *v1.Pod {
		return &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{UID: "u"},
			Spec: v1.PodSpec{Containers: []v1.Container{{
				Name:      "c",
				Resources: v1.ResourceRequirements{Limits: v1.ResourceList{ResourceGPU: resource.MustParse("2")}},
			}}},
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*Allocation, *v1.Pod)
		node   string
		want   string
	}{
		{name: "its own", node: "n"},
		{name: "another pod's", node: "n", change: func(_ *Allocation, p *v1.Pod) { p.UID = "v" }, want: "podUID is u, the pod's is v"},
		{name: "for another node", node: "m", want: "node is n, want m"},
		{
			name: "for a container that the pod lacks", node: "n",
			change: func(a *Allocation, _ *v1.Pod) { a.Containers["d"] = a.Containers["c"] }, want: "containers[d] has 2 devices, the pod's container asks for 0",
		},
		{
			name: "with another number of devices", node: "n",
			change: func(a *Allocation, _ *v1.Pod) { a.Containers["c"] = a.Containers["c"][:1] }, want: "containers[c] has 1 devices, the pod's container asks for 2",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, p := valid(), pod()
			if tc.change != nil {
				tc.change(&a, p)
			}
			err := a.Owns(p, tc.node)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Owns = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	status := &GPUNodeStatus{
		Models: []GPUModel{{Model: "m", Profiles: []Profile{
			{ID: 14, Name: "2g.10gb", Size: 2, Starts: []int32{0, 2, 4}}, {ID: 19, Name: "1g.5gb", Size: 1, Starts: []int32{0, 1, 2}},
		}}},
		GPUs: []GPU{{UUID: "GPU-0", Model: "m"}, {UUID: "GPU-1", Model: "lost"}},
	}
	for _, tc := range []struct {
		name string
		with map[string][]Device
		want string
	}{
		{"on the grid", valid().Containers, ""},
		{"shared by two containers", map[string][]Device{"c": {mig("GPU-0", 14, 0, 2)}, "init": {mig("GPU-0", 14, 0, 2)}}, ""},
		{"off the grid", map[string][]Device{"c": {mig("GPU-0", 14, 1, 2)}}, "2g.10gb has no placement at 1"},
		{"of another size", map[string][]Device{"c": {mig("GPU-0", 14, 0, 4)}}, "2g.10gb has 2 memory slices, not 4"},
		{"overlapping", map[string][]Device{"c": {mig("GPU-0", 14, 0, 2), mig("GPU-0", 19, 1, 1)}}, "overlaps another of the same pod"},
		{"an unknown profile", map[string][]Device{"c": {mig("GPU-0", 5, 0, 4)}}, "has no profile with id 5"},
		{"an unknown GPU", map[string][]Device{"c": {mig("GPU-9", 14, 0, 2)}}, "GPU GPU-9 is not on this node"},
		{"a GPU without a model", map[string][]Device{"c": {mig("GPU-1", 14, 0, 2)}}, `model "lost", which is not in models`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := valid()
			a.Containers = tc.with
			err := a.Validate(status)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Validate = %v, want %q", err, tc.want)
			}
		})
	}
}

// TestDocumentedExamples: what docs/wire.md shows decodes strictly, and fits
// together.
func TestDocumentedExamples(t *testing.T) {
	a, err := DecodeAllocation(documented(t, "allocation"))
	if err != nil {
		t.Fatal(err)
	}
	var node GPUNode
	if err := yaml.UnmarshalStrict([]byte(documented(t, "gpunode")), &node); err != nil {
		t.Fatal(err)
	}
	if err := a.Validate(&node.Status); err != nil {
		t.Error(err)
	}
	for i := range node.Status.Models {
		if _, err := node.Status.Models[i].Catalogue(); err != nil {
			t.Error(err)
		}
	}
}

// documented is the code block after <!-- example: NAME --> in docs/wire.md.
func documented(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "<!-- example: "+name+" -->")
	_, rest, fence := strings.Cut(rest, "```")
	_, rest, newline := strings.Cut(rest, "\n")
	block, _, end := strings.Cut(rest, "```")
	if !ok || !fence || !newline || !end {
		t.Fatalf("docs/wire.md has no example %q", name)
	}
	return block
}
