// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/dynamig/dynamig/pkg/pool"
)

// whatIfOf answers for a manifest.
func whatIfOf(t *testing.T, kubeconfig, manifest string, flags ...string) ran {
	t.Helper()
	file := filepath.Join(t.TempDir(), "w.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	return runOn(t, plainLook, append([]string{"what-if", "-f", file, "--kubeconfig=" + kubeconfig}, flags...)...)
}

// TestWhatDynamigWouldNotPlace waits, whatever the GPUs hold.
func TestWhatDynamigWouldNotPlace(t *testing.T) {
	const one = "nvidia.com/gpu: 1, nvidia.com/gpumem: 4000"
	manifest := func(kind, meta, scheduler, limits string) string {
		pod := "{" + scheduler + "containers: [{name: c, resources: {limits: {" + limits + "}}}]}"
		if kind != "Pod" {
			pod = "{template: {spec: " + pod + "}}"
		}
		return "{apiVersion: v1, kind: " + kind + ", metadata: {" + meta + "}, spec: " + pod + "}\n"
	}
	const ours = "schedulerName: dynamig-scheduler, "
	for _, tc := range []struct {
		name, manifest string
		admits         bool
		code           int
		says           string
	}{
		{"ours", manifest("Pod", "generateName: x-", ours, one), false, exitFine, "Pod x-  1 replica, each asks for 4000 MiB"},
		{"no scheduler", manifest("Pod", "name: x", "", one), false, exitWaiting, "spec.schedulerName is missing, and dynamig places no pod without it; set dynamig-scheduler"},
		{"no scheduler, which admission sets", manifest("Pod", "name: x", "", one), true, exitFine, "it would run"},
		{"which a label keeps away", manifest("Pod", "name: x, labels: {hami.io/webhook: ignore}", "", one), true, exitWaiting, "spec.schedulerName is missing"},
		{"no number, which admission sets", manifest("Pod", "name: x", "", "nvidia.com/gpumem: 4000"), true, exitFine, "it would run"},
		{"no number", manifest("Pod", "name: x", ours, "nvidia.com/gpumem: 4000"), false, exitWaiting, "asks for nvidia.com/gpumem without nvidia.com/gpu"},
		{"a priority, which is nothing to admission", manifest("Pod", "name: x", "", "nvidia.com/priority: 1"), true, exitWaiting, "it asks for no GPU"},
		{"a namespace that the policy does not select", manifest("Pod", "name: x, namespace: kube-system", "", one), true, exitWaiting, "spec.schedulerName is missing"},
		{"a profile and no number", manifest("Pod", "name: x, annotations: {nvidia.com/mig-profile: 1g.5gb}", ours, ""), false, exitWaiting,
			"Pod x  would get no GPU\n  it asks for no GPU: annotation nvidia.com/mig-profile says which profile, and not how many; add the limit nvidia.com/gpu: 1"},
		{"nothing", manifest("Pod", "name: x", ours, ""), false, exitWaiting, "Pod x  would get no GPU\n"},
		{"less than nothing", manifest("Pod", "name: x", ours, "nvidia.com/gpu: 1, nvidia.com/gpumem: -1"), false, exitWaiting, `the API server refuses it: container "c": nvidia.com/gpumem is -1; use 0 or more`},
		{"half a GPU", manifest("Pod", "name: x", ours, "nvidia.com/gpu: 0.5"), false, exitWaiting, `nvidia.com/gpu is 0.5; use a whole number`},
		{"a request without a limit", manifest("Pod", "name: x", ours, one+"}, requests: {nvidia.com/gpucores: 10"), false, exitWaiting, "nvidia.com/gpucores is 10; give it under limits, too"},
		{"a request beside another limit", manifest("Pod", "name: x", ours, one+"}, requests: {nvidia.com/gpumem: 10"), false, exitWaiting, "nvidia.com/gpumem is 10; the limit is 4000, and both must be equal"},
		{"another scheduler", manifest("Deployment", "name: x", "schedulerName: volcano, ", one), true, exitWaiting, "spec.schedulerName is volcano, which is not dynamig's; set dynamig-scheduler"},
		{"a resource of NVIDIA's own plugin", manifest("Pod", "name: x", ours, "nvidia.com/mig-1g.5gb: 1"), false, exitWaiting, "it asks for nvidia.com/mig-1g.5gb, which no node offers"},
		{"beside ours", manifest("Pod", "name: x", ours, one+", nvidia.com/gpumemory: 4000"), false, exitWaiting, "it asks for nvidia.com/gpumemory, which no node offers; did you mean nvidia.com/gpumem?"},
		{"a resource that no node has", manifest("Pod", "name: x", ours, one+", example.com/nic: 1"), false, exitWaiting, "offer no example.com/nic"},
		{"a mode that is none", manifest("Pod", "name: x, annotations: {nvidia.com/vgpu-mode: migx}", ours, one), false, exitFine, `note: annotation nvidia.com/vgpu-mode is "migx", and "migx" is no mode`},
		{"an annotation that is none", manifest("Pod", "name: x, annotations: {nvidia.com/mig-profiles: 1g.5gb, nvidia.com/driver: x}", ours, one), false, exitFine, "note: annotation nvidia.com/mig-profiles of pod x means nothing to dynamig; did you mean nvidia.com/mig-profile?"},
		{"weights that are none", manifest("Pod", "name: x, annotations: {hami.io/device-scoring-weight: x}", ours, one), false, exitFine, "did you mean hami.io/device-scoring-weights?"},
		{"a DaemonSet", manifest("DaemonSet", "name: x", ours, one), false, exitWaiting, "a DaemonSet puts one pod on each node"},
		{"a kind of which nothing is known", manifest("Pod", "name: a", ours, one) + "---\n" + strings.Replace(manifest("RayCluster", "name: x", ours, one), "template", "head", 1), false, exitFine,
			"note: RayCluster x: where the pods of this kind are is not known"},
		{"several documents", "---\n" + manifest("Pod", "name: a", ours, one) + "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n---\n" + manifest("Job", "name: b", ours, one), false, exitFine, "Job b  1 replica,"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "cluster.yaml")
			if tc.admits {
				api.objects = append(api.objects, &unstructured.Unstructured{Object: map[string]any{
					"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": map[string]any{"name": admissionPolicy},
					"spec": map[string]any{"matchResources": map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"gpus": "dynamig"}}}},
				}})
				api.add(t, "{apiVersion: v1, kind: Namespace, metadata: {name: default, labels: {gpus: dynamig}}}")
				api.add(t, "{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}")
			}
			if got := whatIfOf(t, kubeconfig, tc.manifest); got.code != tc.code || !strings.Contains(got.out+got.err, tc.says) {
				t.Errorf("what-if = %d, want %d and %q:\n%s%s", got.code, tc.code, tc.says, got.out, got.err)
			}
		})
	}
}

// TestAnotherModeComesBeforeMoreGPUs: the node that shares its GPU has room.
func TestAnotherModeComesBeforeMoreGPUs(t *testing.T) {
	_, kubeconfig := serve(t, "shares.yaml")
	const pod = "{apiVersion: v1, kind: Pod, metadata: {name: x, annotations: {nvidia.com/vgpu-mode: mig}}, " +
		"spec: {schedulerName: dynamig-scheduler, containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1, nvidia.com/gpumem: 20000}}}]}}"
	const mode = "or with both modes in it, node2 has room for it now: share of 20000 MiB on GPU 0"
	got := whatIfOf(t, kubeconfig, pod)
	if at := strings.Index(got.out, mode); at < 0 || at > strings.Index(got.out, "1 more A100-SXM4-40GB would be enough") {
		t.Errorf("what-if = %d, want %q before more GPUs:\n%s%s", got.code, mode, got.out, got.err)
	}
}

// TestOnlyPlace is a GPU, or a node, and no slot of one.
func TestOnlyPlace(t *testing.T) {
	api, kubeconfig := serve(t, "shares.yaml")
	if err := unstructured.SetNestedField(api.object(t, "Pod", "cut"), "mig", "metadata", "annotations", "nvidia.com/vgpu-mode"); err != nil {
		t.Fatal(err)
	}
	const want = "As things stand now GPU 0 of node1 is the only GPU that would do."
	if got := runOn(t, plainLook, "explain", "pod", "cut", "--kubeconfig="+kubeconfig); !strings.Contains(got.out, want) {
		t.Errorf("explain = %d, want %q:\n%s%s", got.code, want, got.out, got.err)
	}
	two := &pool.Why{Node: "node1", Devices: make([]pool.WhyDevice, 2)}
	if got, want := onlyPlace(two), "As things stand now node1 is the only node that would do."; got != want {
		t.Errorf("onlyPlace of two devices = %q, want %q", got, want)
	}
}

// TestIdleInstancesThatMakeRoom are not counted among those that stay: the whole GPU
// takes the place of one.
func TestIdleInstancesThatMakeRoom(t *testing.T) {
	api, kubeconfig := serve(t, "cluster.yaml")
	api.remove("Pod", "small-2")
	const pod = "{apiVersion: v1, kind: Pod, metadata: {name: x, annotations: {nvidia.com/use-gpuuuid: GPU-30f90f49-43ab-0a78-bf5c-93ed41ef2da2}}, " +
		"spec: {schedulerName: dynamig-scheduler, containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1}}}]}}"
	if got := whatIfOf(t, kubeconfig, pod); !strings.Contains(got.out, "4 used, 0 idle") {
		t.Errorf("what-if = %d, want no idle instance left on node1:\n%s%s", got.code, got.out, got.err)
	}
}

// TestWorkloadsOfAllKinds: where the template is, and how many run at once.
func TestWorkloadsOfAllKinds(t *testing.T) {
	const template = `{spec: {schedulerName: dynamig-scheduler, containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1, nvidia.com/gpumem: 4000}}}]}}`
	for _, tc := range []struct {
		name, text, want string
	}{
		{"StatefulSet", "{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: x}, spec: {replicas: 3, template: " + template + "}}", "StatefulSet x  3 replicas"},
		{"Deployment without replicas", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: x}, spec: {template: " + template + "}}", "Deployment x  1 replica,"},
		{"Job", "{apiVersion: batch/v1, kind: Job, metadata: {generateName: x-}, spec: {parallelism: 4, completions: 2, template: " + template + "}}", "Job x-  2 replicas"},
		{"CronJob", "{apiVersion: batch/v1, kind: CronJob, metadata: {name: x}, spec: {jobTemplate: {spec: {parallelism: 2, template: " + template + "}}}}", "CronJob x  2 replicas"},
		{"PodTemplate", "{apiVersion: v1, kind: PodTemplate, metadata: {name: x}, template: " + template + "}", "PodTemplate x  1 replica,"},
		{"List", "{apiVersion: v1, kind: List, items: [{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: x}, spec: {replicas: 2, template: " + template + "}}]}", "ReplicaSet x  2 replicas"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, kubeconfig := serve(t, "cluster.yaml")
			got := whatIfOf(t, kubeconfig, tc.text)
			if got.code != exitFine || !strings.Contains(got.out, tc.want) {
				t.Errorf("what-if = %d, want %q:\n%s%s", got.code, tc.want, got.err, got.out)
			}
		})
	}
}
