// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

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
		{"beside a table", stale, "status -o table", "note: " + silent},
		{"in JSON too", stale, "status -o json", `"silence": "` + silent},
		{"to a pod that waits", stale, "explain pod wants-5g", silent + "it renewed its lease"},
		{"to what would run", stale, "what-if -f testdata/small.yaml", silent},
		{"a scheduler that never ran", remove("Lease", "dynamig-scheduler"), "status", silent + "it has no lease in namespace dynamig-system. See kubectl -n dynamig-system"},
		{"a scheduler that was stopped", set("Lease", "dynamig-scheduler", "", "spec", "holderIdentity"), "status", silent + "nobody holds its lease"},
		{"a pod that nobody has looked at", fresh, "explain pod wants-5g", "No scheduler has looked at this pod yet. dynamig-scheduler renewed its lease 0."},
		{"nor will", both(fresh, stale), "explain pod wants-5g", silent},
		{"a node whose kubelet died", notReady, "status node1", "! The Node is not ready (Kubelet stopped posting node status.)"},
		{"in the table too", notReady, "status node1 -o table", " NotReady "},
		{"a node whose agent died", noAgent, "status node1", "No agent runs: kubelet counts no nvidia.com/gpu here"},
		{"it has nothing free", noAgent, "status node1", "0/16 free"},
		{"in the table", noAgent, "status node1 -o table", " NoAgent "},
		{"nor can it be had", noAgent, "status node1 --free", "No GPUs to show: without --free there would be 2."},
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

// TestAWrongClockOfThisMachine does not make a scheduler dead, nor alive.
func TestAWrongClockOfThisMachine(t *testing.T) {
	for _, ahead := range []time.Duration{-time.Hour, time.Hour} {
		for _, tc := range []struct {
			renewed time.Duration // ago, by the API server's clock
			silence string
		}{{0, ""}, {10*time.Minute + 30*time.Second, "it renewed its lease for the last time 10m ago"}} {
			api, kubeconfig := serve(t, "full.yaml")
			api.ahead = ahead
			renewed := time.Now().Add(ahead - tc.renewed).UTC().Format(metav1.RFC3339Micro)
			if err := unstructured.SetNestedField(api.object(t, "Lease", "dynamig-scheduler"), renewed, "spec", "renewTime"); err != nil {
				t.Fatal(err)
			}
			got := runOn(t, look{"", 400, false, true}, "status", "--kubeconfig="+kubeconfig)
			if says := strings.Contains(got.out, "Nothing is scheduling"); says != (tc.silence != "") || !strings.Contains(got.out, tc.silence) {
				t.Errorf("the API server's clock is ahead by %s, the lease %s old: want %q:\n%s%s", ahead, tc.renewed, tc.silence, got.out, got.err)
			}
		}
	}
}

// TestAPulseThatCannotBeTold is told neither as life nor as death.
func TestAPulseThatCannotBeTold(t *testing.T) {
	for _, tc := range []struct{ name, forbidden, note string }{
		{"no lease may be read", "dynamig-system/leases", "you may not get the lease of dynamig-scheduler"},
		{"nor a Deployment beside an old lease", "dynamig-system/deployments", "whether dynamig-scheduler is running cannot be told: it renewed its lease for the last time"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "full.yaml", tc.forbidden)
			if err := unstructured.SetNestedField(api.object(t, "Lease", "dynamig-scheduler"), "2026-01-01T00:00:00.000000Z", "spec", "renewTime"); err != nil {
				t.Fatal(err)
			}
			if err := unstructured.SetNestedSlice(api.object(t, "Pod", "wants-5g"), []any{}, "status", "conditions"); err != nil {
				t.Fatal(err)
			}
			got := runOn(t, look{"", 400, false, true}, "explain", "pod", "wants-5g", "--kubeconfig="+kubeconfig)
			if !strings.Contains(got.err, tc.note) || !strings.Contains(got.out, "While dynamig-scheduler runs, that takes seconds at most") || strings.Contains(got.out, "Nothing is scheduling") {
				t.Errorf("explain = %d, want the note %q and no claim:\n%s%s", got.code, tc.note, got.err, got.out)
			}
		})
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
