// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// plainLook is a screen wide enough for everything.
var plainLook = look{"", 160, false, true}

// TestWhatMayNotBeReadIsSaid: each denial is named, and the rest is answered.
func TestWhatMayNotBeReadIsSaid(t *testing.T) {
	for _, tc := range []struct {
		name      string
		forbidden []string
		args      string
		code      int
		notes     string // on stderr
		out       string // on stdout
	}{
		{"without GPUNodes there is nothing to say", []string{"gpunodes"}, "status", exitError, "ask for the ClusterRole dynamig-viewer", ""},
		{"without pods of others their instances still take slices", []string{"pods"}, "status node3", exitFine,
			"you may not list pods in all namespaces", "9/12 free"},
		{"others' pods have no names", []string{"pods"}, "status node2", exitFine, "drawn without names", "(hidden)"},
		{"without nodes selectors are not looked at", []string{"nodes"}, "what-if -f testdata/pod.yaml", exitFine, "you may not list nodes", "it would run"},
		{"without the lease nobody knows if anything schedules", []string{"dynamig-system/leases"}, "status", exitFine, "you may not get the lease of dynamig-scheduler", "node1"},
		{"without the ConfigMap the defaults are assumed", []string{"dynamig-system/configmaps"}, "explain pod gpu-pod", exitFine,
			"the scheduler's arguments are taken to be the defaults", "runs on node1"},
		{"without events steps come from the pod", []string{"default/events"}, "explain pod gpu-pod", exitFine, "you may not list events", "PodReady"},
		{"history without events says so", []string{"default/events"}, "history pod gpu-pod", exitFine, "you may not list events", "PodScheduled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, kubeconfig := serve(t, "cluster.yaml", tc.forbidden...)
			got := runOn(t, plainLook, append(strings.Fields(tc.args), "--kubeconfig="+kubeconfig)...)
			if got.code != tc.code || !strings.Contains(got.err, tc.notes) || !strings.Contains(got.out, tc.out) {
				t.Errorf("kubectl mig %s = %d, want %d, with %q on stderr and %q on stdout:\n%s%s", tc.args, got.code, tc.code, tc.notes, tc.out, got.err, got.out)
			}
		})
	}
}

// TestMistakesAreUsageErrors: each names what is wrong, with code 2 or 1.
func TestMistakesAreUsageErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"status", "-o", "xml"}, exitUsage, "-o xml is not known; use table, wide, json, yaml"},
		{[]string{"status", "-l", "=="}, exitUsage, "-l"},
		{[]string{"status", "node1", "node2"}, exitUsage, "accepts at most 1 arg"},
		{[]string{"status", "node7"}, exitError, "node node7 has no GPUNode"},
		{[]string{"status", "--free=3g.40GB"}, exitUsage, "--free=3g.40GB: no GPU of this cluster has that profile; use one of 1g.10gb+me, "},
		{[]string{"status", "--free=nonsense", "--watch"}, exitUsage, "use one of"},
		{[]string{"explain"}, exitUsage, "name a pod"},
		{[]string{"explain", "gpu-pod"}, exitUsage, "want pod and a name"},
		{[]string{"explain", "node", "node1"}, exitUsage, `"node" is not known here; use pod`},
		{[]string{"explain", "pod", "nobody"}, exitError, "there is no pod nobody in namespace default"},
		{[]string{"what-if"}, exitUsage, "-f is missing"},
		{[]string{"what-if", "-f", "/does/not/exist"}, exitError, "no such file"},
		{[]string{"what-if", "-f", "testdata/pod.yaml", "--replicas=-1"}, exitUsage, "--replicas is -1"},
		{[]string{"what-if", "-f", write("service.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n")}, exitError, "has neither a pod nor a pod template"},
		{[]string{"what-if", "-f", write("broken.yaml", "kind: [")}, exitError, "reading " + filepath.Join(dir, "broken.yaml")},
		{[]string{"what-if", "-f", write("nogpu.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c}]}\n")}, exitWaiting, ""},
		{[]string{"history", "pod", "nobody"}, exitError, "no event about one is kept"},
		{[]string{"history", "gpu", "0"}, exitUsage, "use pod or node"},
	} {
		_, kubeconfig := serve(t, "cluster.yaml")
		got := runOn(t, plainLook, append(tc.args, "--kubeconfig="+kubeconfig)...)
		if got.code != tc.code || !strings.Contains(got.err, tc.says) {
			t.Errorf("kubectl mig %v = %d, %q; want %d, %q", tc.args, got.code, got.err, tc.code, tc.says)
		}
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
		{"another scheduler", manifest("Deployment", "name: x", "schedulerName: volcano, ", one), true, exitWaiting, "spec.schedulerName is volcano, which is not dynamig's; set dynamig-scheduler"},
		{"a resource of NVIDIA's own plugin", manifest("Pod", "name: x", ours, "nvidia.com/mig-1g.5gb: 1"), false, exitWaiting, "it asks for nvidia.com/mig-1g.5gb, which no node offers"},
		{"beside ours", manifest("Pod", "name: x", ours, one+", nvidia.com/gpumemory: 4000"), false, exitWaiting, "it asks for nvidia.com/gpumemory, which no node offers"},
		{"a resource that no node has", manifest("Pod", "name: x", ours, one+", example.com/nic: 1"), false, exitWaiting, "offers no example.com/nic"},
		{"a mode that is none", manifest("Pod", "name: x, annotations: {nvidia.com/vgpu-mode: migx}", ours, one), false, exitFine, `note: annotation nvidia.com/vgpu-mode is "migx", and "migx" is no mode`},
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
				}})
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

// synced is a buffer that a running command writes to.
type synced struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *synced) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *synced) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestWatchDrawsAgain: a pod that goes is gone from the next picture, and the end of
// the context ends the command well.
func TestWatchDrawsAgain(t *testing.T) {
	api, kubeconfig := serve(t, "cluster.yaml")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := &synced{}
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, newScreen(strings.NewReader(""), out, out, func(string) string { return "" }), []string{"status", "node2", "--watch", "--kubeconfig=" + kubeconfig})
	}()
	until := func(what string, holds func(string) bool) {
		for !holds(out.String()) {
			select {
			case <-ctx.Done():
				t.Fatalf("waiting for %s:\n%s", what, out)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	until("the first picture", func(s string) bool { return strings.Contains(s, "infer-7c9d-x2x4p") })
	api.awaitWatches(t, 3)
	api.remove("Pod", "infer-7c9d-x2x4p")
	until("a picture in which its instance is leaving", func(s string) bool { return strings.Contains(s, "leaving") })
	cancel()
	if got := <-code; got != exitFine {
		t.Errorf("status --watch = %d after an interrupt, want %d:\n%s", got, exitFine, out)
	}
}

// TestCompletion offers commands, nodes and GPU pods.
func TestCompletion(t *testing.T) {
	_, kubeconfig := serve(t, "cluster.yaml")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"__complete", "st"}, "status"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "status", ""}, "node10"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "explain", ""}, "pod"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "explain", "pod", ""}, "gpu-pod"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "history", "node", ""}, "node10"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "status", "--free=1g"}, "1g.5gb"},
		{[]string{"__complete", "what-if", "-o", ""}, "wide"},
		{[]string{"completion", "bash"}, "bash completion"},
		{[]string{"completion", "kubectl"}, "kubectl mig __complete"},
	} {
		if got := runOn(t, plainLook, tc.args...); got.code != exitFine || !strings.Contains(got.out, tc.want) {
			t.Errorf("kubectl mig %v = %d, want %q in %q%s", tc.args, got.code, tc.want, got.out, got.err)
		}
	}
}

// TestGate: what keeps a pod off a node whatever its GPUs hold. Only node10 has room
// for two devices of 15000 MiB.
func TestGate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(node10 *unstructured.Unstructured) error
		code   int
		says   string
	}{
		{"nothing", func(*unstructured.Unstructured) error { return nil }, exitFine, "it would run"},
		{"a cordon", func(n *unstructured.Unstructured) error {
			return unstructured.SetNestedField(n.Object, true, "spec", "unschedulable")
		}, exitWaiting, "node node10 is cordoned; its GPUs have room"},
		{"a taint", func(n *unstructured.Unstructured) error {
			return unstructured.SetNestedSlice(n.Object, []any{map[string]any{"key": "a", "effect": "NoExecute"}}, "spec", "taints")
		}, exitWaiting, "node node10 has the taint a:NoExecute, which the pod does not tolerate"},
		{"slots", func(n *unstructured.Unstructured) error {
			return unstructured.SetNestedField(n.Object, "4", "status", "allocatable", "nvidia.com/gpu")
		}, exitWaiting, "node node10 has too little nvidia.com/gpu left for the pod's request of 2"},
		{"a node that is gone", func(n *unstructured.Unstructured) error {
			n.SetName("another")
			return nil
		}, exitWaiting, "node node10 is gone, and its GPUNode is still there"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "cluster.yaml")
			for _, o := range api.objects {
				if o.GetKind() == "Node" && o.GetName() == "node10" {
					if err := tc.change(o); err != nil {
						t.Fatal(err)
					}
				}
			}
			got := runOn(t, plainLook, "what-if", "-f", "testdata/pod.yaml", "--kubeconfig="+kubeconfig)
			if got.code != tc.code || !strings.Contains(got.out, tc.says) {
				t.Errorf("what-if = %d, want %d and %q:\n%s%s", got.code, tc.code, tc.says, got.err, got.out)
			}
		})
	}
}

// object finds one of a fixture, to be changed.
func (f *fakeAPI) object(t *testing.T, kind, name string) map[string]any {
	t.Helper()
	for _, o := range f.objects {
		if o.GetKind() == kind && o.GetName() == name {
			return o.Object
		}
	}
	t.Fatalf("the fixture has no %s %s", kind, name)
	return nil
}

// TestOutages: what GPUNodes and pods cannot show, since they stay as they were.
func TestOutages(t *testing.T) {
	set := func(kind, name string, value any, path ...string) func(*testing.T, *fakeAPI) {
		return func(t *testing.T, api *fakeAPI) {
			t.Helper()
			if err := unstructured.SetNestedField(api.object(t, kind, name), value, path...); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(kind, name string) func(*testing.T, *fakeAPI) {
		return func(_ *testing.T, api *fakeAPI) { api.remove(kind, name) }
	}
	both := func(a, b func(*testing.T, *fakeAPI)) func(*testing.T, *fakeAPI) {
		return func(t *testing.T, api *fakeAPI) { t.Helper(); a(t, api); b(t, api) }
	}
	const silent = "Nothing is scheduling: dynamig-scheduler does not run, "
	stale := set("Lease", "dynamig-scheduler", "2026-01-01T00:00:00.000000Z", "spec", "renewTime")
	notReady := set("Node", "node1", []any{map[string]any{"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status."}}, "status", "conditions")
	noAgent := set("Node", "node1", "0", "status", "allocatable", "nvidia.com/gpu")
	fresh := set("Pod", "wants-5g", []any{}, "status", "conditions")
	for _, tc := range []struct {
		name   string
		change func(*testing.T, *fakeAPI)
		args   string
		says   string
	}{
		{"a scheduler that died", stale, "status", silent + "it renewed its lease for the last time "},
		{"in JSON too", stale, "status -o json", `"silence": "` + silent},
		{"to a pod that waits", stale, "explain pod wants-5g", silent + "it renewed its lease"},
		{"to what would run", stale, "what-if -f testdata/small.yaml", silent},
		{"a scheduler that never ran", remove("Lease", "dynamig-scheduler"), "status", silent + "it has no lease in namespace dynamig-system. See kubectl -n dynamig-system"},
		{"a scheduler that was stopped", set("Lease", "dynamig-scheduler", "", "spec", "holderIdentity"), "status", silent + "nobody holds its lease"},
		{"a pod that nobody has looked at", fresh, "explain pod wants-5g", "No scheduler has looked at this pod yet, and dynamig-scheduler is running"},
		{"nor will", both(fresh, stale), "explain pod wants-5g", silent},
		{"a node whose kubelet died", notReady, "status node1", "! The Node is not ready (Kubelet stopped posting node status.)"},
		{"in the table too", notReady, "status node1 -o table", " NotReady "},
		{"a node whose agent died", noAgent, "status node1", "No agent runs: kubelet counts no nvidia.com/gpu here"},
		{"it has nothing free", noAgent, "status node1", "0/16 free"},
		{"in the table", noAgent, "status node1 -o table", " NoAgent "},
		{"nor can it be had", noAgent, "status node1 --free", "No GPUs to show."},
		{"to a pod that would fit there", noAgent, "explain pod wants-5g", "Starting the agent, dynamig-nodeagent, on node1: then 1g.5gb on GPU 0 at 5 there."},
		{"to one that another node suits", noAgent, "explain pod wants-all", "Starting the agent, dynamig-nodeagent, on node2: then 7g.40gb on GPU 0 at 0 there."},
		{"where all agents are dead and all is full", both(noAgent, remove("GPUNode", "node2")), "explain pod wants-all",
			"Starting the agent, dynamig-nodeagent, on node1: no pod gets GPUs there now. This one has no room there yet."},
		{"a Node that is gone", remove("Node", "node1"), "status node1", "Its Node is gone"},
		{"a pod of another scheduler", func(*testing.T, *fakeAPI) {}, "status", "its scheduler is default-scheduler, which does not cut GPUs; delete it and create it with spec.schedulerName: dynamig-scheduler"},
		{"placed by it", set("Pod", "other-scheduler", "node1", "spec", "nodeName"), "status", "it was bound to node1 without an allocation: not by dynamig-scheduler. It can never start"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "full.yaml")
			tc.change(t, api)
			got := runOn(t, look{"", 400, false, true}, append(strings.Fields(tc.args), "--kubeconfig="+kubeconfig)...)
			if !strings.Contains(got.out+got.err, tc.says) {
				t.Errorf("kubectl mig %s = %d, want %q:\n%s%s", tc.args, got.code, tc.says, got.out, got.err)
			}
		})
	}
}

// TestASchedulerWithoutALeaseMayRun: its Deployment has a pod that is ready.
func TestASchedulerWithoutALeaseMayRun(t *testing.T) {
	api, kubeconfig := serve(t, "full.yaml")
	api.remove("Lease", "dynamig-scheduler")
	if err := unstructured.SetNestedField(api.object(t, "Deployment", "dynamig-scheduler"), int64(1), "status", "availableReplicas"); err != nil {
		t.Fatal(err)
	}
	if got := runOn(t, plainLook, "status", "--kubeconfig="+kubeconfig); strings.Contains(got.out, "Nothing is scheduling") {
		t.Errorf("status does not believe the Deployment:\n%s", got.out)
	}
}

// TestEventsOfAnEarlierPod of the same name are history, and explain nothing.
func TestEventsOfAnEarlierPod(t *testing.T) {
	api, kubeconfig := serve(t, "full.yaml")
	for _, o := range api.objects {
		if o.GetKind() == "Event" {
			if err := unstructured.SetNestedField(o.Object, "uid-of-another", "involvedObject", "uid"); err != nil {
				t.Fatal(err)
			}
		}
	}
	const event = "(12 times)"
	if got := runOn(t, plainLook, "explain", "pod", "wants-10g", "--kubeconfig="+kubeconfig); strings.Contains(got.out, event) {
		t.Errorf("explain tells the events of another pod:\n%s", got.out)
	}
	if got := runOn(t, plainLook, "history", "pod", "wants-10g", "--kubeconfig="+kubeconfig); !strings.Contains(got.out, event) {
		t.Errorf("history does not tell them:\n%s%s", got.out, got.err)
	}
}

// configured puts another text in the place of one in the scheduler's configuration.
func configured(t *testing.T, api *fakeAPI, old, text string) {
	t.Helper()
	for _, o := range api.objects {
		if o.GetKind() != "ConfigMap" {
			continue
		}
		data, _, err := unstructured.NestedStringMap(o.Object, "data")
		if err != nil {
			t.Fatal(err)
		}
		data["config.yaml"] = strings.ReplaceAll(data["config.yaml"], old, text)
		if err := unstructured.SetNestedStringMap(o.Object, data, "data"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestArgumentsOfTheScheduler are taken from its ConfigMap: with oversize Never the
// pod of 9000 MiB on the A100 with templates has no place.
func TestArgumentsOfTheScheduler(t *testing.T) {
	for _, tc := range []struct{ oversize, want, note string }{
		{"Allow", "The end of", ""}, {"Never", "memory slices are free", ""},
		{"Sometimes", "The end of", `are taken to be the defaults (oversize: Allow, strictMemory: false): DynamicMIGArgs: oversize is "Sometimes"`},
		{"Allow, deviceConfig: /etc/device-config.yaml", "The end of", "no ConfigMap of deployment dynamig-system/dynamig-scheduler is mounted as /etc/device-config.yaml"},
	} {
		api, kubeconfig := serve(t, "full.yaml")
		configured(t, api, "Allow", tc.oversize)
		got := runOn(t, plainLook, "explain", "pod", "wants-10g", "--kubeconfig="+kubeconfig)
		if got.code != exitWaiting || !strings.Contains(got.out, tc.want) || strings.Contains(got.out, "larger than asked for") == (tc.oversize == "Never") ||
			!strings.Contains(got.err, tc.note) || tc.note == "" && got.err != "" {
			t.Errorf("explain with oversize %s = %d, want %q and the note %q:\n%s%s", tc.oversize, got.code, tc.want, tc.note, got.err, got.out)
		}
	}
}

// TestRenamedResources: in a cluster whose device configuration renames resources,
// everything is said of them under their names, and nothing else differs.
func TestRenamedResources(t *testing.T) {
	fixture, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rename := strings.NewReplacer("nvidia.com/gpumem", "example.com/mem", "nvidia.com/gpucores", "example.com/cores", "nvidia.com/gpu", "example.com/vgpu")
	const section = "    config.yaml: |\n"
	text := strings.Replace(rename.Replace(string(fixture)), section, `    device-config.yaml: |
      nvidia:
        resourceCountName: example.com/vgpu
        resourceMemoryName: example.com/mem
        resourceCoreName: example.com/cores
`+section, 1)
	text = strings.Replace(text, "args: {", "args: {deviceConfig: /etc/dynamig/device-config.yaml, ", 1)
	_, before := serve(t, "full.yaml")
	_, after := serveText(t, text)
	manifest, err := os.ReadFile("testdata/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	renamed := filepath.Join(t.TempDir(), "deployment.yaml")
	if err := os.WriteFile(renamed, []byte(rename.Replace(string(manifest))), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][2][]string{
		{{"status"}}, {{"explain", "pod", "wants-10g"}}, {{"history"}}, {{"__complete", "explain", "pod", ""}},
		{{"what-if", "-f", "testdata/deployment.yaml"}, {"what-if", "-f", renamed}},
	} {
		if args[1] == nil {
			args[1] = args[0]
		}
		want := runOn(t, plainLook, append(args[0], "--kubeconfig="+before)...)
		got := runOn(t, plainLook, append(args[1], "--kubeconfig="+after)...)
		if want.out == "" || strings.Contains(want.err, "usage") {
			t.Fatalf("%v: %s%s", args[0], want.out, want.err)
		}
		if diff := cmp.Diff(rename.Replace(want.out+want.err), got.out+got.err); diff != "" || got.code != want.code {
			t.Errorf("%v: code %d and %d, output (-want +got):\n%s", args[0], want.code, got.code, diff)
		}
	}
}
