// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// pod is a pod of our profile with one container c; wants is such as
// "gpu=2 gpumem=8000", and "" is a pod without our resources.
func pod(name, wants string) *st.PodWrapper {
	p := st.MakePod().Name(name).Namespace("default").UID("uid-" + name).SchedulerName(v1alpha1.SchedulerName)
	return p.Containers([]v1.Container{container("c", wants)})
}

// container has limits and, as the API server's defaulting makes them, requests.
func container(name, wants string) v1.Container {
	list := map[v1.ResourceName]string{}
	for _, field := range strings.Fields(wants) {
		key, value, _ := strings.Cut(field, "=")
		if !slices.Contains([]string{"cpu", "memory", "ephemeral-storage"}, key) {
			key = "nvidia.com/" + key
		}
		list[v1.ResourceName(key)] = value
	}
	return st.MakeContainer().Name(name).Resources(list).Obj()
}

// node is a Node with room for many pods and slots.
func node(name string) *st.NodeWrapper {
	return st.MakeNode().Name(name).UID("uid-" + name).Capacity(map[v1.ResourceName]string{
		v1.ResourceCPU: "64", v1.ResourceMemory: "256Gi", v1.ResourcePods: "250", v1alpha1.ResourceGPU: "56",
	})
}

// reportBuilder builds a GPUNode.
type reportBuilder struct{ *v1alpha1.GPUNode }

// report is the GPUNode of node(name) with n healthy A100-40GB in mode mig under
// rule Hardware: GPU-0 and on.
func report(t testing.TB, name string, n int) reportBuilder {
	t.Helper()
	board, ok := boards.Named("A100-40GB")
	if !ok {
		t.Fatal("boards has no A100-40GB")
	}
	hardware, err := board.Model()
	if err != nil {
		t.Fatal(err)
	}
	m := v1alpha1.ModelOf(board.Products[0], hardware)
	b := reportBuilder{&v1alpha1.GPUNode{}}
	b.Name = name
	b.Status.NodeUID = node(name).Obj().UID
	b.Status.Models = []v1alpha1.GPUModel{m}
	for i := range n {
		b.Status.GPUs = append(b.Status.GPUs, v1alpha1.GPU{
			UUID: fmt.Sprintf("GPU-%d", i), Index: int32(i), Model: m.Model, Health: v1alpha1.Healthy,
			Mode: v1alpha1.GPUMode{Wanted: v1alpha1.ModeMIG, Current: v1alpha1.ModeMIG},
		})
	}
	return b
}

// change returns a changed copy.
func (b reportBuilder) change(how func(status *v1alpha1.GPUNodeStatus)) reportBuilder {
	b = reportBuilder{b.DeepCopy()}
	how(&b.Status)
	return b
}

// unhealthy makes one GPU unhealthy.
func (b reportBuilder) unhealthy(gpu int) reportBuilder {
	return b.change(func(s *v1alpha1.GPUNodeStatus) { s.GPUs[gpu].Health = v1alpha1.Unhealthy })
}

// templates puts the model under rule Templates, each such as "7x1g.5gb" with
// NVML's memory.
func (b reportBuilder) templates(texts ...string) reportBuilder {
	return b.change(func(s *v1alpha1.GPUNodeStatus) {
		s.Models[0].Rule, s.Models[0].Templates = v1alpha1.RuleTemplates, nil
		for _, text := range texts {
			count, name, _ := strings.Cut(text, "x")
			profile, _, _ := b.parse(name + "@0")
			entry := v1alpha1.TemplateEntry{ProfileID: profile.ID, MemoryMiB: profile.MemoryMiB}
			fmt.Sscan(count, &entry.Count)
			s.Models[0].Templates = append(s.Models[0].Templates, v1alpha1.Template{Entries: []v1alpha1.TemplateEntry{entry}})
		}
	})
}

// instance adds an instance such as "7g.40gb@0" to GPU-0.
func (b reportBuilder) instance(text string, state v1alpha1.InstanceState) reportBuilder {
	p, start, _ := b.parse(text)
	return b.change(func(s *v1alpha1.GPUNodeStatus) {
		s.GPUs[0].Instances = append(s.GPUs[0].Instances, v1alpha1.Instance{ProfileID: p.ID, Start: start, State: state})
	})
}

// refused adds the agent's word that a pod can never start.
func (b reportBuilder) refused(p *v1.Pod, reason string) reportBuilder {
	return b.change(func(s *v1alpha1.GPUNodeStatus) {
		s.Pods = append(s.Pods, v1alpha1.PodPreparation{UID: p.UID, Phase: v1alpha1.PodRefused, Reason: reason})
	})
}

// placement is the text form of a span.
func placement(profile string, start int32, gpu string) string {
	return fmt.Sprintf("%s@%d:%s", profile, start, gpu)
}

// parse reads "2g.10gb@0" or "2g.10gb@0:GPU-1".
func (b reportBuilder) parse(text string) (p v1alpha1.Profile, start int32, gpu string) {
	name, rest, _ := strings.Cut(text, "@")
	at, gpu, found := strings.Cut(rest, ":")
	if !found {
		gpu = b.Status.GPUs[0].UUID
	}
	fmt.Sscan(at, &start)
	for _, p := range b.Status.Models[0].Profiles {
		if p.Name == name {
			return p, start, gpu
		}
	}
	panic("no profile " + name)
}

// allocation is the annotation for a pod on the node: all spans for container c.
func (b reportBuilder) allocation(p *v1.Pod, spans ...string) string {
	a := v1alpha1.Allocation{
		Version: v1alpha1.AllocationVersion, Node: b.Name, PodUID: p.UID,
		Containers: map[string][]v1alpha1.Device{},
	}
	for _, span := range spans {
		profile, start, gpu := b.parse(span)
		a.Containers["c"] = append(a.Containers["c"], v1alpha1.Device{GPU: gpu, MIG: &v1alpha1.MIGInstance{
			ProfileID: profile.ID, Profile: profile.Name, Start: start, Size: profile.Size, MemoryMiB: profile.MemoryMiB,
		}})
	}
	text, err := a.Encode()
	if err != nil {
		panic(err)
	}
	return text
}

// on binds a pod to the node with an allocation.
func (b reportBuilder) on(p *st.PodWrapper, spans ...string) *st.PodWrapper {
	return p.Node(b.Name).Annotation(v1alpha1.AnnotationAllocation, b.allocation(p.Obj(), spans...))
}
