// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// hamiCase is a row of testdata/hami-requests.yaml.
type hamiCase struct {
	Name        string            `json:"name"`
	Limits      string            `json:"limits"`
	Requests    string            `json:"requests"`
	Other       map[string]string `json:"other"` // limits by their whole names
	Annotations map[string]string `json:"annotations"`
	Config      hamiConfig        `json:"config"`

	Devices *int   `json:"devices"` // 1 where absent
	MIG     string `json:"mig"`
	Share   string `json:"share"`
	Modes   string `json:"modes"`
	Accepts string `json:"accepts"`
	Rejects string `json:"rejects"`
	NUMA    bool   `json:"numa"`
	Policy  string `json:"policy"`

	AcceptsTypes []string `json:"acceptsTypes"` // by the product's name
	RejectsTypes []string `json:"rejectsTypes"`

	Error string `json:"error"`
	HAMi  string `json:"hami"`
}

type hamiConfig struct {
	DefaultMemory      int32  `json:"defaultMemory"`
	DefaultCores       int32  `json:"defaultCores"`
	MemoryFactor       int32  `json:"memoryFactor"`
	ResourceCountName  string `json:"resourceCountName"`
	ResourceMemoryName string `json:"resourceMemoryName"`
	ResourceCoreName   string `json:"resourceCoreName"`

	ResourceMemoryPercentageName string `json:"resourceMemoryPercentageName"`
	ResourcePriorityName         string `json:"resourcePriorityName"`
}

func (c hamiConfig) options() Options {
	names := v1alpha1.DefaultResources()
	rename := func(dst *v1.ResourceName, name string) {
		if name != "" {
			*dst = v1.ResourceName(name)
		}
	}
	rename(&names.Count, c.ResourceCountName)
	rename(&names.Memory, c.ResourceMemoryName)
	rename(&names.Cores, c.ResourceCoreName)
	rename(&names.MemoryPercentage, c.ResourceMemoryPercentageName)
	rename(&names.Priority, c.ResourcePriorityName)
	return Options{Names: names, Defaults: v1alpha1.RequestDefaults{MemoryMiB: c.DefaultMemory, Cores: c.DefaultCores, MemoryFactor: c.MemoryFactor}}
}

func hamiCases(t *testing.T) (cases []hamiCase) {
	t.Helper()
	text, err := os.ReadFile("testdata/hami-requests.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// TestRequestsAsHAMiDocumentsThem goes through every row of the table.
func TestRequestsAsHAMiDocumentsThem(t *testing.T) {
	for _, c := range hamiCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			p := pod("p").wants("c", c.Limits)
			p.Spec.Containers[0].Resources.Requests = pod("q").wants("c", c.Requests).Spec.Containers[0].Resources.Limits
			for name, value := range c.Other {
				p.Spec.Containers[0].Resources.Limits[v1.ResourceName(name)] = resource.MustParse(value)
			}
			for key, value := range c.Annotations {
				p.annotated(key, value)
			}
			r, err := Parse(p.Pod, c.Config.options())
			if got := fmt.Sprint(err); err != nil && got != c.Error || err == nil && c.Error != "" {
				t.Fatalf("error = %s, want %q", got, c.Error)
			}
			if err == nil {
				c.check(t, r)
			}
		})
	}
}

// TestEveryNameHasRows: each resource and annotation of a request has a row where it is
// good, and one where it is refused, by its name.
func TestEveryNameHasRows(t *testing.T) {
	good, refused := map[string]bool{}, map[string]bool{}
	for _, c := range hamiCases(t) {
		for _, field := range strings.Fields(c.Limits + " " + c.Requests) {
			name, _, _ := strings.Cut(field, "=")
			good["nvidia.com/"+name] = good["nvidia.com/"+name] || c.Error == ""
		}
		for name := range c.Annotations {
			good[name] = good[name] || c.Error == ""
		}
		for _, word := range strings.Fields(c.Error) {
			refused[strings.Trim(word, ":;")] = true
		}
	}
	names := v1alpha1.DefaultResources()
	for _, name := range append(names.RequestOnly(), names.Count,
		v1alpha1.AnnotationMode, v1alpha1.AnnotationUseUUID, v1alpha1.AnnotationNoUseUUID, v1alpha1.AnnotationUseType, v1alpha1.AnnotationNoUseType,
		v1alpha1.AnnotationNUMABind, v1alpha1.AnnotationNodePolicy, v1alpha1.AnnotationGPUPolicy, v1alpha1.AnnotationWeights) {
		anyText := name == v1alpha1.AnnotationUseType || name == v1alpha1.AnnotationNoUseType
		if !good[string(name)] || !refused[string(name)] && !anyText {
			t.Errorf("%s: a good row %v, a refused one %v; want both", name, good[string(name)], refused[string(name)])
		}
	}
}

// TestReasonsAreDocumented: what the documentation has in the place of HAMi's reasons is
// what is said.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/hami-differences.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{
		ReasonNoMode, ReasonNotSelected, ReasonNotOffered, reasonsBy[share].full, reasonsBy[share].never,
		reasonsBy[mig].full, reasonsBy[mig].never, reasonsBy[mig|share].full,
	} {
		if !strings.Contains(string(text), "`"+strings.TrimSpace(reason)) {
			t.Errorf("docs/hami-differences.md does not have the reason %q", reason)
		}
	}
}

func (c *hamiCase) check(t *testing.T, r *Request) {
	t.Helper()
	want := 1
	if c.Devices != nil {
		want = *c.Devices
	}
	if r == nil {
		r = &Request{}
	}
	if len(r.Devices) != want {
		t.Fatalf("%d devices, want %d", len(r.Devices), want)
	}
	for i := range r.Devices {
		if got := Describe(r.Devices[i]); c.MIG != "" && got != c.MIG {
			t.Errorf("as an instance: %s, want %s", got, c.MIG)
		}
		if got := describeShareWant(r.Shares[i]); c.Share != "" && got != c.Share {
			t.Errorf("as a share: %s, want %s", got, c.Share)
		}
	}
	var modes []string
	if r.MIG {
		modes = append(modes, v1alpha1.ModeMIG)
	}
	if r.Share {
		modes = append(modes, v1alpha1.ModeHAMiCore)
	}
	if got := strings.Join(modes, " "); c.Modes != "" && got != c.Modes {
		t.Errorf("modes %s, want %s", got, c.Modes)
	}
	if r.Select.NUMA != c.NUMA {
		t.Errorf("of one NUMA node: %v, want %v", r.Select.NUMA, c.NUMA)
	}
	for _, id := range strings.Fields(c.Accepts) {
		if !r.Select.accept(&GPU{ID: id}) {
			t.Errorf("GPU %s is not accepted", id)
		}
	}
	if got := describePolicy(r.Policy); got != c.Policy {
		t.Errorf("policy %s, want %s", got, c.Policy)
	}
	for _, name := range c.AcceptsTypes {
		if !r.Select.accept(&GPU{Model: name}) {
			t.Errorf("a GPU %s is not accepted", name)
		}
	}
	for _, name := range c.RejectsTypes {
		if r.Select.accept(&GPU{Model: name}) {
			t.Errorf("a GPU %s is accepted", name)
		}
	}
	for _, id := range strings.Fields(c.Rejects) {
		if r.Select.accept(&GPU{ID: id}) {
			t.Errorf("GPU %s is accepted", id)
		}
	}
}

func describePolicy(p Policy) string {
	var parts []string
	if p.Node != "" {
		parts = append(parts, "node "+string(p.Node))
	}
	if p.GPU != "" {
		parts = append(parts, "gpu "+string(p.GPU))
	}
	if w := p.Weights; w != (Weights{}) {
		parts = append(parts, fmt.Sprintf("weights %d %d %d", w.Slot, w.Core, w.Memory))
	}
	return strings.Join(parts, " ")
}

func describeShareWant(w ShareWant) string {
	var parts []string
	if w.MemoryMiB > 0 {
		parts = append(parts, fmt.Sprintf("%d MiB", w.MemoryMiB))
	}
	if w.Percent > 0 {
		parts = append(parts, fmt.Sprintf("%d%% of the memory", w.Percent))
	}
	if w.Cores > 0 {
		parts = append(parts, fmt.Sprintf("%d%% of the cores", w.Cores))
	}
	return strings.Join(parts, " and ")
}
