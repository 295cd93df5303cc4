// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/pool"
	"github.com/dynamig/dynamig/test/fleet"
)

// TestResourcesOfOtherNames: pods, waiting and placed, and allocatable devices are
// seen by the names in force.
func TestResourcesOfOtherNames(t *testing.T) {
	f := fleetOf(t, pool.Options{Names: v1alpha1.Resources{
		Count: "example.com/vgpu", Memory: "example.com/mem", MemoryPercentage: "example.com/mem-percentage",
		Cores: "example.com/cores", Priority: "example.com/priority",
	}})
	addNode(t, f, "n", "A100-40GB", 1)
	m := monitorOf(t, f, everything)
	url := serve(t, m)
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1, MemoryMiB: 8000})
	f.Refuse(pod, "0/1 nodes are available: 1 Insufficient example.com/vgpu.")
	has := func(line string) func() bool {
		return func() bool { return bytes.Contains(scrapeText(t, m), []byte(line+"\n")) }
	}
	eventually(t, "the waiting pod", has(`dynamig_waiting_pods{reason="no_slot"} 1`))
	eventually(t, "the refusal", has(`dynamig_refusals_total{reason="no_slot"} 1`))
	if !has(`dynamig_node_allocatable_devices{node="n"} 7`)() {
		t.Error("the node's devices are not counted")
	}
	if ok, err := f.Bind(pod, "n"); !ok {
		t.Fatal(err)
	}
	f.Prepare(pod)
	eventually(t, "the preparation", has("dynamig_prepare_duration_seconds_count 1"))
	var story monitor.Story
	if get(t, url+"/monitor/v1/pods/ns/p", &story); story.Request != "main: vgpu 1, mem 8000" || len(story.Places) != 1 {
		t.Errorf("request %q, places %+v", story.Request, story.Places)
	}
}

// TestShareIsPreparing: a share counts as preparing while the agent lists its pod, and
// its story says where it is and, from the agent's event, when it was prepared.
func TestShareIsPreparing(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A30-24GB", 1)
	f.Change("n", func(s *v1alpha1.GPUNodeStatus) {
		g := &s.GPUs[0]
		g.Mode = v1alpha1.GPUMode{Wanted: v1alpha1.ModeHAMiCore, Current: v1alpha1.ModeHAMiCore}
		g.Shares = &v1alpha1.ShareCapacity{Count: 10, MemoryMiB: g.MemoryMiB, Cores: 100}
	})
	eventually(t, "the shares", func() bool {
		n, err := f.Pool.Node("n")
		return err == nil && n != nil && n.GPUs[0].Shares != nil
	})
	m := monitorOf(t, f, everything)
	url := serve(t, m)
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1, MemoryMiB: 8000})
	f.Change("n", func(s *v1alpha1.GPUNodeStatus) {
		s.Pods = []v1alpha1.PodPreparation{{UID: pod.UID, Phase: v1alpha1.PodPreparing}}
	})
	if ok, err := f.Bind(pod, "n"); !ok {
		t.Fatal(err)
	}
	age := func() string {
		lines := series(scrapeText(t, m), "dynamig_node_oldest_preparation_seconds")
		return strings.TrimPrefix(lines[0], `dynamig_node_oldest_preparation_seconds{node="n"} `)
	}
	eventually(t, "the age of the preparation", func() bool { return age() != "0" })
	f.Change("n", func(s *v1alpha1.GPUNodeStatus) { s.Pods = nil })
	eventually(t, "the end of the preparation", func() bool { return age() == "0" })

	prepared := metav1.NewMicroTime(time.Now())
	if _, err := f.Client.CoreV1().Events("ns").Create(t.Context(), &v1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p.1"}, EventTime: prepared, Reason: "Prepared",
		InvolvedObject: v1.ObjectReference{Namespace: "ns", Name: "p", UID: pod.UID},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var story monitor.Story
	get(t, url+"/monitor/v1/pods/ns/p", &story)
	if len(story.Places) != 1 || story.Places[0].Span != nil || story.Places[0].Share == nil || story.Places[0].Share.MemoryMiB != 8000 {
		t.Errorf("places = %+v", story.Places)
	}
	if at := slices.IndexFunc(story.Steps, func(s monitor.Step) bool { return s.Name == "prepared" }); at < 0 || story.Steps[at].From != "api" {
		t.Errorf("steps = %+v", story.Steps)
	}
}

// TestEventsOfOneSecond come in the order in which they usually happen, as their times are
// whole seconds and the API server lists them by name.
func TestEventsOfOneSecond(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A30-24GB", 1)
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1})
	second := time.Unix(1_700_000_000, 0)
	want := []string{"GPUsPlaced", "Scheduled", "Prepared", "Pulled", "Created", "Started"}
	for i, reason := range want {
		e := v1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("p.%d", len(want)-i)}, FirstTimestamp: metav1.NewTime(second), Reason: reason,
			InvolvedObject: v1.ObjectReference{Namespace: "ns", Name: "p", UID: pod.UID},
		}
		if reason == "Scheduled" { // kube-scheduler's events have microseconds
			e.EventTime = metav1.NewMicroTime(second.Add(900 * time.Millisecond))
		}
		if _, err := f.Client.CoreV1().Events("ns").Create(t.Context(), &e, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	url := served(t, f)
	var story monitor.Story
	eventually(t, "the pod", func() bool { return get(t, url+"/monitor/v1/pods/ns/p", &story).StatusCode == http.StatusOK })
	var got []string
	for _, e := range story.Events {
		got = append(got, e.Reason)
	}
	if !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// TestWhatIsHiddenFromStrangers: readers of whom nobody asks who they are get the messages of
// dynamig's own programs, and of all others the reasons only.
func TestWhatIsHiddenFromStrangers(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A30-24GB", 1)
	pod := f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1})
	pod.Status.ContainerStatuses = []v1.ContainerStatus{
		{Name: "main", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: "Error", Message: "secret of main"}}},
		{Name: "side", State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "CreateContainerError", Message: "secret of side"}}},
		{Name: "quiet", State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "PodInitializing"}}},
	}
	f.Refuse(pod, "0/1 nodes are available")
	for from, reason := range map[string]string{"dynamig-scheduler": "GPUsPlaced", "dynamig-nodeagent": "Prepared", "kubelet": "BackOff", "": "GPUsPlaced"} {
		e := v1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p." + from}, EventTime: metav1.NewMicroTime(time.Unix(1_700_000_000, 0)), Reason: reason,
			InvolvedObject: v1.ObjectReference{Namespace: "ns", Name: "p", UID: pod.UID}, Message: "said by " + from, ReportingController: from,
		}
		if _, err := f.Client.CoreV1().Events("ns").Create(t.Context(), &e, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	const no = "message hidden: this monitor does not ask its readers who they are"
	for authenticated, want := range map[bool][]string{
		true: {
			"main Error secret of main", "side CreateContainerError secret of side", "quiet PodInitializing ",
			"GPUsPlaced said by ", "GPUsPlaced said by dynamig-scheduler", "Prepared said by dynamig-nodeagent", "BackOff said by kubelet",
		},
		false: {
			"main Error " + no, "side CreateContainerError " + no, "quiet PodInitializing ",
			"GPUsPlaced " + no, "GPUsPlaced said by dynamig-scheduler", "Prepared said by dynamig-nodeagent", "BackOff " + no,
		},
	} {
		url := serve(t, monitorOf(t, f, monitor.Config{Authenticate: authenticated}))
		var story monitor.Story
		eventually(t, "the pod", func() bool {
			story = monitor.Story{}
			return get(t, url+"/monitor/v1/pods/ns/p", &story).StatusCode == http.StatusOK && len(story.Containers) == 3
		})
		var got []string
		for _, c := range story.Containers {
			got = append(got, c.Name+" "+c.Reason+" "+c.Message)
		}
		for _, e := range story.Events {
			got = append(got, e.Reason+" "+e.Message)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("authenticated: %t (-want +got):\n%s", authenticated, diff)
		}
		if story.Why != "said by dynamig-scheduler" {
			t.Errorf("why = %q", story.Why)
		}
	}
}

// TestWaitingPods: those that cannot start, with what there is to say about them alone.
func TestWaitingPods(t *testing.T) {
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A30-24GB", 1)
	url := served(t, f)
	refused := f.Create(fleet.Pod{Namespace: "ns", Name: "refused", GPUs: 1})
	f.Refuse(refused, "0/1 nodes are available: 1 node(s) had no free MIG placement for a whole GPU. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
	elsewhere := f.Create(fleet.Pod{Namespace: "ns", Name: "bound-by-others", GPUs: 1, Node: "elsewhere"})
	f.Create(fleet.Pod{Namespace: "ns", Name: "stray", GPUs: 1, Node: "n"})
	waiting := func(want ...string) func() bool {
		return func() bool {
			var m message
			get(t, url+"/monitor/v1/fleet", &m)
			var got []string
			for _, w := range m.Waiting {
				got = append(got, w.Name+": "+w.Reason)
			}
			slices.Sort(got)
			return slices.EqualFunc(got, want, strings.HasPrefix)
		}
	}
	const stray, other = "stray: it was bound to n without an allocation", "refused: 1 node(s) had no free MIG placement for a whole GPU."
	eventually(t, "three pods that wait", waiting("bound-by-others: it was bound to elsewhere without", other, stray))
	f.Delete(elsewhere)
	eventually(t, "two", waiting(other, stray))
	if ok, err := f.Bind(refused, "n"); !ok {
		t.Fatal(err)
	}
	eventually(t, "one", waiting(stray))
}

// TestEveryConditionHasASeries holds the metric to the API's constants.
func TestEveryConditionHasASeries(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../api/v1alpha1/types.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Condition") {
			return true
		}
		value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		declared = append(declared, value)
		return true
	})
	f := newFleet(t, 0, 0)
	addNode(t, f, "n", "A30-24GB", 1)
	var shown []string
	for _, s := range parse(t, scrapeText(t, monitorOf(t, f, everything)))["dynamig_node_condition"].Metric {
		for _, l := range s.Label {
			if l.GetName() == "condition" {
				shown = append(shown, l.GetValue())
			}
		}
	}
	slices.Sort(declared)
	slices.Sort(shown)
	if len(declared) < 6 || !slices.Equal(declared, shown) {
		t.Errorf("the API has conditions %v, the metric %v", declared, shown)
	}
}
