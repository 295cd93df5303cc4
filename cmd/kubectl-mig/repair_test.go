// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestRepairs: what can be done about GPUs that are there comes before more of them.
func TestRepairs(t *testing.T) {
	for _, tc := range []struct {
		name, gpu, node, annotations, gpumem string
		change                               map[string]any // of the GPU
		says                                 string
	}{
		{"somebody else's instance", "A30", "node2", "", "10000", nil,
			"Destroying what somebody else has cut on GPU 0 of node2, if nobody needs it (nvidia-smi mig -i 0 -gi 2 -dci, and -dgi): then 2g.12gb on GPU 0 at 2 there"},
		{"a lost GPU", "RTX", "node3", "", "90000", nil,
			"Resetting or replacing GPU 1 of node3, which is unhealthy (the GPU is lost; reset it or reboot the node): then 4g.96gb on GPU 1 at 0 there"},
		{"a mode that waits", "RTX", "node3", ", nvidia.com/vgpu-mode: hami-core", "9000",
			map[string]any{"health": "Healthy", "reason": "A process holds it.", "memoryMiB": int64(97887), "mode": map[string]any{"wanted": "hami-core", "current": "mig", "pending": true}},
			"The end of what holds GPU 1 of node3 back from mode hami-core (A process holds it): then share of 9000 MiB on GPU 1 there"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "cluster.yaml")
			untainted(t, api)
			if tc.change != nil {
				gpus, _, _ := unstructured.NestedSlice(api.object(t, "GPUNode", "node3"), "status", "gpus")
				for field, value := range tc.change {
					gpus[1].(map[string]any)[field] = value
				}
				if err := unstructured.SetNestedSlice(api.object(t, "GPUNode", "node3"), gpus, "status", "gpus"); err != nil {
					t.Fatal(err)
				}
			}
			text := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: asks, namespace: default, uid: uid-asks, annotations: {nvidia.com/use-gputype: %s%s}}, spec: {schedulerName: dynamig-scheduler, "+
				"containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1, nvidia.com/gpumem: %s}}}]}}", tc.gpu, tc.annotations, tc.gpumem)
			tried := whatIfOf(t, kubeconfig, text)
			api.add(t, text)
			explained := runOn(t, look{"", 400, false, true}, "explain", "pod", "asks", "--kubeconfig="+kubeconfig)
			for _, got := range []ran{explained, tried} {
				if out := strings.Join(strings.Fields(got.out), " "); !strings.Contains(out, tc.says) {
					t.Errorf("%d, want %q:\n%s%s", got.code, tc.says, got.out, got.err)
				}
			}
		})
	}
}

// fail makes GPUs of a node unhealthy, and kubelet count so many devices there.
func (f *fakeAPI) fail(t *testing.T, node, devices string, gpus ...int) {
	t.Helper()
	status := f.object(t, "GPUNode", node)["status"].(map[string]any)
	for _, i := range gpus {
		g := status["gpus"].([]any)[i].(map[string]any)
		g["health"], g["reason"] = "Unhealthy", "lost."
	}
	if len(gpus) == len(status["gpus"].([]any)) {
		status["conditions"] = []any{map[string]any{"type": "Ready", "status": "False", "reason": "Waiting"}}
	}
	if err := unstructured.SetNestedField(f.object(t, "Node", node), devices, "status", "allocatable", "nvidia.com/gpu"); err != nil {
		t.Fatal(err)
	}
}

// TestRepairsOfWholeNodes: kubelet counts no devices of GPUs that are lost, and that
// does not hide what their repair would do.
func TestRepairsOfWholeNodes(t *testing.T) {
	const pod = "{apiVersion: v1, kind: Pod, metadata: {name: asks, namespace: default, uid: uid-asks}, " +
		"spec: {schedulerName: dynamig-scheduler, containers: [{name: c, resources: {limits: {%s}}}]}}"
	for _, tc := range []struct {
		name, fixture, limits string
		change                func(*testing.T, *fakeAPI)
		says, problem         string
	}{
		{"a node's only GPU", "full.yaml", "nvidia.com/gpu: 1, nvidia.com/gpumem: 10000",
			func(t *testing.T, api *fakeAPI) { t.Helper(); api.fail(t, "node2", "0", 0) },
			"Resetting or replacing GPU 0 of node2, which is unhealthy (lost): then 2g.10gb on GPU 0 at ", ""},
		{"one of two, and kubelet counts what is held", "cluster.yaml", "nvidia.com/gpu: 1, nvidia.com/gpumem: 90000",
			func(t *testing.T, api *fakeAPI) { t.Helper(); api.fail(t, "node3", "1", 1) },
			"Resetting or replacing GPU 1 of node3, which is unhealthy (lost): then 4g.96gb on GPU 1 at 0 there", ""},
		{"the only ones of their model", "cluster.yaml", "nvidia.com/gpu: 1, nvidia.com/gpumem: 90000",
			func(t *testing.T, api *fakeAPI) { t.Helper(); api.fail(t, "node3", "1", 0, 1) },
			"Resetting or replacing GPU 1 of node3, which is unhealthy (lost): then 4g.96gb on GPU 1 at 0 there",
			"no GPU in the cluster can be cut into that"},
		{"all GPUs of the cluster", "full.yaml", "nvidia.com/gpu: 1, nvidia.com/gpumem: 10000",
			func(t *testing.T, api *fakeAPI) {
				t.Helper()
				api.fail(t, "node1", "8", 0, 1)
				api.fail(t, "node2", "0", 0)
			},
			"Resetting or replacing GPU 0 of node2, which is unhealthy (lost): then 2g.10gb on GPU 0 at ", ""},
		{"both that a pod needs", "cluster.yaml", "nvidia.com/gpu: 2, nvidia.com/gpumem: 90000",
			func(t *testing.T, api *fakeAPI) {
				t.Helper()
				api.remove("Pod", "render-0")
				delete(api.object(t, "GPUNode", "node3")["status"].(map[string]any)["gpus"].([]any)[0].(map[string]any), "instances")
				api.fail(t, "node3", "0", 0, 1)
			},
			"Resetting or replacing GPU 0 of node3, which is unhealthy (lost), and GPU 1 of node3, which is unhealthy (lost): then 4g.96gb on GPU 0 at 0; 4g.96gb on GPU 1 at 0 there", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, tc.fixture)
			if tc.fixture == "cluster.yaml" {
				untainted(t, api)
			}
			tc.change(t, api)
			text := fmt.Sprintf(pod, tc.limits)
			tried := whatIfOf(t, kubeconfig, text)
			api.add(t, text)
			explained := runOn(t, look{"", 400, false, true}, "explain", "pod", "asks", "--kubeconfig="+kubeconfig)
			for _, got := range []ran{explained, tried} {
				out := strings.Join(strings.Fields(got.out), " ")
				if got.code != exitWaiting || !strings.Contains(out, tc.says) || !strings.Contains(out, tc.problem) {
					t.Errorf("%d, want %q and %q:\n%s%s", got.code, tc.says, tc.problem, got.out, got.err)
				}
			}
			if strings.Contains(explained.out, "cannot be placed as it is") {
				t.Errorf("explain has the pod changed, which a repair would do for:\n%s", explained.out)
			}
		})
	}
}

// TestRepairsThatHelpTogether: where no repair helps alone, as few as it takes are named,
// and none that is not needed.
func TestRepairsThatHelpTogether(t *testing.T) {
	foreign := func(t *testing.T, api *fakeAPI, node string, gpu int) {
		t.Helper()
		g := api.object(t, "GPUNode", node)["status"].(map[string]any)["gpus"].([]any)[gpu].(map[string]any)
		g["instances"] = []any{map[string]any{"profileID": int64(0), "start": int64(0), "gi": int64(3), "state": "Foreign", "uuid": "MIG-foreign"}}
	}
	const reset, destroy, start = "esetting or replacing GPU %d of %s, which is unhealthy (lost)", "estroying what somebody else has cut on GPU %d of %s", "Starting the agent, dynamig-nodeagent, on %s"
	for _, tc := range []struct {
		name, gpu, count, gpumem string // gpu may be followed by annotations
		change                   func(*testing.T, *fakeAPI)
		says, not                []string
	}{
		{"one GPU lost, the other somebody else's", "RTX", "2", "90000",
			func(t *testing.T, api *fakeAPI) {
				t.Helper()
				api.remove("Pod", "render-0")
				foreign(t, api, "node3", 0)
				api.fail(t, "node3", "1", 1)
			},
			[]string{"D" + fmt.Sprintf(destroy, 0, "node3"), "; and r" + fmt.Sprintf(reset, 1, "node3"), ": then 4g.96gb on GPU 0 at 0; 4g.96gb on GPU 1 at 0 there, if nothing of this is left out"}, nil},
		{"one GPU, lost and somebody else's", "A30", "1", "10000",
			func(t *testing.T, api *fakeAPI) { t.Helper(); api.fail(t, "node2", "1", 0) },
			[]string{"D" + fmt.Sprintf(destroy, 0, "node2"), "; and r" + fmt.Sprintf(reset, 0, "node2"), ": then 2g.12gb on GPU 0 at 2 there, if nothing of this is left out"}, nil},
		{"a lost GPU where no agent runs", "RTX", "1", "90000",
			func(t *testing.T, api *fakeAPI) { t.Helper(); api.fail(t, "node3", "0", 1) },
			[]string{fmt.Sprintf(start, "node3"), "; and r" + fmt.Sprintf(reset, 1, "node3"), ": then 4g.96gb on GPU 1 at 0 there, if nothing of this is left out"},
			[]string{"no pod gets GPUs there now"}},
		{"of two lost GPUs one is enough", "H100", "1", "80000",
			func(t *testing.T, api *fakeAPI) { t.Helper(); api.fail(t, "node10", "8", 2, 3) },
			[]string{"R" + fmt.Sprintf(reset, 2, "node10"), ": then 7g.80gb on GPU 2 at 0 there."}, []string{"GPU 3 of", "left out"}},
		{"of what two devices could have, one is there", "H100, hami.io/gpu-scheduler-policy: spread", "2", "40000",
			func(t *testing.T, api *fakeAPI) { t.Helper(); api.fail(t, "node10", "8", 2, 3) },
			[]string{"R" + fmt.Sprintf(reset, 2, "node10")}, []string{"GPU 3 of", "left out"}},
		{"none, where all together do not help", "RTX", "3", "90000",
			func(t *testing.T, api *fakeAPI) {
				t.Helper()
				foreign(t, api, "node3", 0)
				api.fail(t, "node3", "1", 1)
			}, nil, []string{"Destroying", "Resetting"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "cluster.yaml")
			untainted(t, api)
			tc.change(t, api)
			text := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: asks, namespace: default, uid: uid-asks, annotations: {nvidia.com/use-gputype: %s}}, spec: {schedulerName: dynamig-scheduler, "+
				"containers: [{name: c, resources: {limits: {nvidia.com/gpu: %s, nvidia.com/gpumem: %s}}}]}}", tc.gpu, tc.count, tc.gpumem)
			tried := whatIfOf(t, kubeconfig, text)
			api.add(t, text)
			explained := runOn(t, look{"", 600, false, true}, "explain", "pod", "asks", "--kubeconfig="+kubeconfig)
			for i, got := range []ran{explained, tried} {
				out := strings.Join(strings.Fields(got.out), " ")
				for _, says := range tc.says {
					if i == 1 {
						says = strings.TrimSuffix(says, ".")
					}
					if got.code != exitWaiting || !strings.Contains(out, says) {
						t.Errorf("%d, want %q:\n%s%s", got.code, says, got.out, got.err)
					}
				}
				for _, not := range tc.not {
					if strings.Contains(out, not) {
						t.Errorf("%d, not %q:\n%s%s", got.code, not, got.out, got.err)
					}
				}
			}
		})
	}
}

// untainted opens node3 of cluster.yaml to all pods.
func untainted(t *testing.T, api *fakeAPI) {
	t.Helper()
	if err := unstructured.SetNestedSlice(api.object(t, "Node", "node3"), nil, "spec", "taints"); err != nil {
		t.Fatal(err)
	}
}

// TestPodsOnGPUsInTrouble: a refused pod has nothing, and one on a GPU that is lost is
// told so first.
func TestPodsOnGPUsInTrouble(t *testing.T) {
	for _, tc := range []struct {
		name, path, says string
		value            func(v any) any
		not              []string
	}{
		{"refused", "pods", "What it was to have, and has not", func(any) any {
			return []any{map[string]any{"uid": "uid-gpu-pod", "phase": "Refused", "reason": "another pod has its slices"}}
		}, []string{"What it has", "Why there"}},
		{"a lost GPU", "gpus", "! GPU 0 of node1, which the pod has, is unhealthy: lost.", func(v any) any {
			g := v.([]any)[0].(map[string]any)
			g["health"], g["reason"] = "Unhealthy", "lost."
			return v
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "cluster.yaml")
			status := api.object(t, "GPUNode", "node1")["status"].(map[string]any)
			status[tc.path] = tc.value(status[tc.path])
			got := runOn(t, look{"", 400, false, true}, "explain", "pod", "gpu-pod", "--kubeconfig="+kubeconfig)
			if !strings.Contains(got.out, tc.says) {
				t.Errorf("explain = %d, want %q:\n%s%s", got.code, tc.says, got.out, got.err)
			}
			for _, not := range tc.not {
				if strings.Contains(got.out, not+"\n") {
					t.Errorf("explain says %q:\n%s", not, got.out)
				}
			}
		})
	}
}
