// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
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
