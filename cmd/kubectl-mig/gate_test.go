// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/dynamig/dynamig/pkg/pool"
)

// TestWhatIsNotAboutGPUs: no GPU is advised where something else keeps a pod off all
// nodes, by explain and what-if alike.
func TestWhatIsNotAboutGPUs(t *testing.T) {
	const scheduler = "schedulerName: dynamig-scheduler, "
	one := func(more string) string {
		return "containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1, nvidia.com/gpumem: 100" + more + "}}}]"
	}
	for _, tc := range []struct {
		name, meta, spec string
		says             []string
	}{
		{"a selector", "", "nodeSelector: {gpu: none}, " + one(""), []string{
			"waits, and not for room on a GPU", "give a node those that nodeSelector or node affinity ask for (gpu=none)"}},
		{"a CPU", "", one(", cpu: 1000"), []string{
			"have no more than 64 cpu, and the pod requests 1000", "A smaller request of cpu than 1000"}},
		{"a resource", "", one(", example.com/nic: 1"), []string{"A node with GPUs that offers example.com/nic"}},
		{"a typing mistake", "", one(", nvidia.com/gpumen: 4000"), []string{
			"asks for nvidia.com/gpumen, which no node offers; did you mean nvidia.com/gpumem?"}},
		{"a resource of NVIDIA's own plugin", "", "containers: [{name: c, resources: {limits: {nvidia.com/mig-1g.5gb: 1}}}]", []string{
			"asks for nvidia.com/mig-1g.5gb, which no node offers; dynamig's resources are"}},
		{"one of its shared GPUs", "", "containers: [{name: c, resources: {limits: {nvidia.com/gpu.shared: 1}}}]", []string{
			"asks for nvidia.com/gpu.shared, which no node offers; dynamig's resources are nvidia.com/gpu, nvidia.com/gpumem, nvidia.com/gpumem-percentage, nvidia.com/gpucores, nvidia.com/priority, and"}},
		{"a vGPU of NVIDIA's", "", "containers: [{name: c, resources: {limits: {nvidia.com/GRID_T4: 1}}}]", []string{
			"asks for nvidia.com/GRID_T4, which no node offers; dynamig's resources are"}},
		{"a profile without a count", "annotations: {nvidia.com/mig-profile: 1g.5gb}", "containers: [{name: c}]", []string{
			"asks for no GPU: annotation nvidia.com/mig-profile says which profile, and not how many; add the limit nvidia.com/gpu: 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "full.yaml")
			text := "{apiVersion: v1, kind: Pod, metadata: {name: asks, namespace: default, uid: uid-asks, " + tc.meta + "}, spec: {" + scheduler + tc.spec + "}}"
			api.add(t, text)
			if err := unstructured.SetNestedField(api.object(t, "Node", "node2"), "7", "status", "allocatable", "nvidia.com/gpu"); err != nil {
				t.Fatal(err)
			}
			// As kubelet leaves it when a plugin has gone.
			if err := unstructured.SetNestedField(api.object(t, "Node", "node2"), "0", "status", "allocatable", "nvidia.com/gpu.shared"); err != nil {
				t.Fatal(err)
			}
			wide := look{"", 400, false, true}
			explained := runOn(t, wide, "explain", "pod", "asks", "--kubeconfig="+kubeconfig)
			api.remove("Pod", "asks")
			tried := whatIfOf(t, kubeconfig, text)
			for i, says := range tc.says {
				if !strings.Contains(explained.out, says) {
					t.Errorf("explain = %d, want %q:\n%s%s", explained.code, says, explained.out, explained.err)
				}
				if i == len(tc.says)-1 && !strings.Contains(strings.Join(strings.Fields(tried.out), " "), says) {
					t.Errorf("what-if = %d, want %q:\n%s%s", tried.code, says, tried.out, tried.err)
				}
			}
			for _, got := range []ran{explained, tried} {
				if got.code != exitWaiting || strings.Contains(got.out, "would be enough") {
					t.Errorf("exit code %d, want %d, and no GPUs advised:\n%s", got.code, exitWaiting, got.out)
				}
			}
		})
	}
}

// TestPodForHAMi lacks two things: each answer tells both, and what would add them.
func TestPodForHAMi(t *testing.T) {
	api, kubeconfig := serve(t, "full.yaml")
	pod := func(scheduler string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {name: asks, namespace: default, uid: uid-asks}, spec: {" + scheduler +
			"containers: [{name: c, resources: {limits: {nvidia.com/gpumem: 3000}}}]}}"
	}
	tried := whatIfOf(t, kubeconfig, pod(""))
	api.add(t, pod("schedulerName: default-scheduler, "))
	for _, got := range []ran{
		tried,
		runOn(t, plainLook, "explain", "pod", "asks", "--kubeconfig="+kubeconfig),
		runOn(t, plainLook, "status", "--kubeconfig="+kubeconfig),
	} {
		out := strings.Join(strings.Fields(got.out), " ")
		for _, says := range []string{"dynamig-scheduler", "asks for nvidia.com/gpumem without nvidia.com/gpu; add the limit nvidia.com/gpu: 1",
			"The component hami-defaults gives new pods both, the scheduler and the number"} {
			if !strings.Contains(out, says) {
				t.Errorf("%q is not said:\n%s%s", says, got.out, got.err)
			}
		}
	}
}

// TestFullAndBarred: what opens a node helps only where its GPUs have room.
func TestFullAndBarred(t *testing.T) {
	cordon := func(t *testing.T, api *fakeAPI, node string) {
		t.Helper()
		if err := unstructured.SetNestedField(api.object(t, "Node", node), true, "spec", "unschedulable"); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*testing.T, *fakeAPI)
		says   []string
		not    []string
	}{
		{"a cordon of full GPUs", func(t *testing.T, api *fakeAPI) {
			t.Helper()
			api.remove("GPUNode", "node2")
			cordon(t, api, "node1")
		}, []string{"waits for room", "node node1 is cordoned", "More than one thing: nodes that something else keeps the pod off have no room on their GPUs either."},
			[]string{"not for room on a GPU", "uncordon"}},
		{"full GPUs beside used CPUs", func(t *testing.T, api *fakeAPI) {
			t.Helper()
			api.remove("GPUNode", "node2")
			if err := unstructured.SetNestedField(api.object(t, "Node", "node1"), "8", "status", "allocatable", "cpu"); err != nil {
				t.Fatal(err)
			}
		}, []string{"waits for room", "node node1 has too little cpu left"}, []string{"not for room on a GPU", "A smaller request"}},
		{"cordons of full and of idle GPUs", func(t *testing.T, api *fakeAPI) {
			t.Helper()
			cordon(t, api, "node1")
			cordon(t, api, "node2")
		}, []string{"not for room on a GPU", "2 nodes (node2, node1) are cordoned; the GPUs of 1 of them have room", "kubectl uncordon node2"}, []string{"uncordon node1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "full.yaml")
			if err := unstructured.SetNestedField(api.object(t, "Node", "node2"), "7", "status", "allocatable", "nvidia.com/gpu"); err != nil {
				t.Fatal(err)
			}
			tc.change(t, api)
			got := runOn(t, look{"", 400, false, true}, "explain", "pod", "wants-10g", "--kubeconfig="+kubeconfig)
			for _, says := range tc.says {
				if !strings.Contains(got.out, says) {
					t.Errorf("explain = %d, want %q:\n%s%s", got.code, says, got.out, got.err)
				}
			}
			for _, not := range tc.not {
				if strings.Contains(got.out, not) {
					t.Errorf("explain = %d, says %q:\n%s%s", got.code, not, got.out, got.err)
				}
			}
		})
	}
}

// TestOneRemedyForOneReason, however many nodes it is about.
func TestOneRemedyForOneReason(t *testing.T) {
	s, reason := &survey{nodes: map[string]*v1.Node{}}, pool.Reason{Text: "is cordoned", Barred: true, Room: 300}
	for i := range 300 {
		name := fmt.Sprintf("node%d", i)
		s.nodes[name] = &v1.Node{Spec: v1.NodeSpec{Unschedulable: true}}
		reason.Nodes = append(reason.Nodes, name)
	}
	want := []string{"Uncordoning a node: kubectl uncordon node0"}
	if diff := cmp.Diff(want, s.remedies(&v1.Pod{}, []pool.Reason{reason})); diff != "" {
		t.Errorf("remedies (-want +got):\n%s", diff)
	}
}

// TestSlotsOfFullGPUs: that kubelet has no more devices either is not what the pod
// waits for.
func TestSlotsOfFullGPUs(t *testing.T) {
	api, kubeconfig := serve(t, "full.yaml")
	if err := unstructured.SetNestedField(api.object(t, "Node", "node1"), "4", "status", "allocatable", "nvidia.com/gpu"); err != nil {
		t.Fatal(err)
	}
	got := runOn(t, look{"", 400, false, true}, "explain", "pod", "wants-10g", "--kubeconfig="+kubeconfig)
	for _, says := range []string{"node node1 has no free MIG placement for 10000 MiB", "The end of default/train-b", "1 more A100-SXM4-40GB would be enough"} {
		if !strings.Contains(got.out, says) {
			t.Errorf("explain = %d, want %q:\n%s%s", got.code, says, got.out, got.err)
		}
	}
}
