// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// TestPodOfTheDocumentation: two MIG instances of 2g.10gb, and no other device.
func TestPodOfTheDocumentation(t *testing.T) {
	pod := runs(t, example(t, "gpu-pod.yaml"))
	var got []string
	for _, d := range allocation(t, pod).Containers["ubuntu-container"] {
		got = append(got, d.MIG.Profile)
	}
	if want := []string{"2g.10gb", "2g.10gb"}; !slices.Equal(got, want) {
		t.Errorf("profiles = %v, want %v", got, want)
	}
	if text := event(t, pod.Name, "GPUsPlaced"); !strings.Contains(text, "2g.10gb at slice") || !strings.Contains(text, "node node1") {
		t.Errorf("event GPUsPlaced = %q", text)
	}
	event(t, pod.Name, "Prepared")
}

// TestContainerMayNotOpenAnotherDevice: the device cgroup refuses a capability that
// the container was not given, even under a node that it makes itself.
func TestContainerMayNotOpenAnotherDevice(t *testing.T) {
	pod := runs(t, newPod("jail", "gpu=1 gpumem=4000"))
	devices, err := st.Seen(t.Context(), pod, "main")
	if err != nil {
		t.Fatal(err)
	}
	granted := map[string]bool{}
	var major int64
	for _, d := range devices {
		granted[fmt.Sprint(d.Major, d.Minor)] = true
		if strings.Contains(d.Path, "nvidia-caps") {
			major = d.Major
		}
	}
	for minor := int64(1); minor < 40; minor++ {
		if granted[fmt.Sprint(major, minor)] {
			continue
		}
		script := fmt.Sprintf("{ mknod /tmp/d c %d %d && cat /tmp/d; rm -f /tmp/d; } 2>&1; true", major, minor)
		out, err := st.Cluster.Kubectl(t.Context(), "exec", "-n", namespace, pod.Name, "--", "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(out), "Operation not permitted") {
			t.Fatalf("opening capability %d:%d, which is not the container's: %s", major, minor, out)
		}
	}
}

// TestWaitingPodRunsWhenAnotherEnds: one more than fits says what is missing, and
// runs soon after a place is free.
func TestWaitingPodRunsWhenAnotherEnds(t *testing.T) {
	var pods []*v1.Pod
	for range 14 { // seven 1g.5gb on each of two GPUs
		pods = append(pods, create(t, newPod("full", "gpu=1 gpumem=4000")))
	}
	for i, p := range pods {
		pods[i] = waitPod(t, p.Name, stack.Running)
	}
	for _, p := range pods {
		agree(t, p)
	}
	waiting := create(t, newPod("waiting", "gpu=1 gpumem=4000"))
	want := "node(s) had no free MIG placement for 4000 MiB"
	if got := unscheduled(t, waiting.Name); !strings.Contains(got, want) {
		t.Errorf("reason = %q, want %q", got, want)
	}
	remove(t, pods[3].Name)
	gone := time.Now()
	agree(t, waitPod(t, waiting.Name, stack.Running))
	t.Logf("running %v after the object was gone", time.Since(gone).Round(time.Millisecond))
	deleteAll(t, slices.Delete(pods, 3, 4)) // together: one after the other takes a minute
}

// TestPlainPodOfOurScheduler: a pod without GPUs is nobody's business but the stock
// plugins'.
func TestPlainPodOfOurScheduler(t *testing.T) {
	made := waitPod(t, create(t, newPod("plain", "")).Name, stack.Running)
	if _, ok := made.Annotations[v1alpha1.AnnotationAllocation]; ok {
		t.Error("the pod has an allocation")
	}
}

// TestManyPodsEndAtOnce: deletions wake waiting pods by hints, which look at what
// Reserve is changing at the same moment. Nobody waits for ever.
func TestManyPodsEndAtOnce(t *testing.T) {
	const rounds, each = 3, 14 // as many as the node holds
	for round := range rounds {
		var now, next []*v1.Pod
		for range each {
			now = append(now, create(t, newPod("now", "gpu=1 gpumem=4000")))
		}
		for _, p := range now {
			waitPod(t, p.Name, stack.Running)
		}
		for range each {
			next = append(next, create(t, newPod("next", "gpu=1 gpumem=4000")))
		}
		for _, p := range next {
			unscheduled(t, p.Name)
		}
		deleteAll(t, now)
		for _, p := range next {
			waitPod(t, p.Name, stack.Running)
		}
		t.Logf("round %d of %d", round+1, rounds)
		deleteAll(t, next)
		for _, p := range append(now, next...) {
			remove(t, p.Name)
		}
	}
}

// deleteAll deletes pods without waiting for each.
func deleteAll(t *testing.T, pods []*v1.Pod) {
	t.Helper()
	for _, p := range pods {
		if err := st.Kube.CoreV1().Pods(namespace).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPodFirstNodeSecond: a pod that waited for a node runs when the node's agent
// has reported, long before the scheduler's flush after five minutes.
func TestPodFirstNodeSecond(t *testing.T) {
	pod := newPod("early", "gpu=1 gpumem=10000")
	pod.Spec.NodeSelector[v1.LabelHostname] = "node2"
	made := create(t, pod)
	t.Logf("waits: %s", unscheduled(t, made.Name))
	if _, err := st.AddNode(t.Context(), "node2", "A30-24GB"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		remove(t, made.Name)
		if err := st.Cluster.RemoveNode(context.WithoutCancel(t.Context()), "node2"); err != nil {
			t.Error(err)
		}
	})
	if err := st.WaitSlots(t.Context(), "node2"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	running := waitPod(t, made.Name, stack.Running)
	t.Logf("running %v after the node's slots appeared", time.Since(began).Round(time.Millisecond))
	agree(t, running)
	if got, want := profiles(t, running), []string{"2g.12gb"}; !slices.Equal(got, want) {
		t.Errorf("profiles = %v, want %v", got, want)
	}
}

// TestSeveralContainers: each container of a pod has its own instance, a plain init
// container has used one of them before.
func TestSeveralContainers(t *testing.T) {
	pod := newPod("several", "gpu=1 gpumem=4000")
	pod.Spec.Containers = append(pod.Spec.Containers, container("second", "gpu=1 gpumem=9000"), container("third", ""))
	init := container("init", "gpu=1 gpumem=2000")
	init.Command = []string{"true"}
	sidecar := container("sidecar", "gpu=1 gpumem=4000")
	always := v1.ContainerRestartPolicyAlways
	sidecar.RestartPolicy = &always
	pod.Spec.InitContainers = []v1.Container{init, sidecar}
	made := waitPod(t, create(t, pod).Name, stack.Running)

	a := allocation(t, made)
	if len(a.Spans()) != 3 {
		t.Errorf("the pod holds %d instances, want 3: %v", len(a.Spans()), a.Containers)
	}
	// Kubelet hands the init container's slot to the next one, which is the sidecar.
	if init, next := a.Containers["init"][0], a.Containers["sidecar"][0]; init.GPU != next.GPU || *init.MIG != *next.MIG {
		t.Errorf("init container and sidecar do not share: %+v, %+v", *init.MIG, *next.MIG)
	}
	if devices, err := st.Seen(t.Context(), made, "third"); err != nil || len(devices) > 0 {
		t.Errorf("the container without a request sees %v, %v", devices, err)
	}
	delete(a.Containers, "init") // it has ended: nothing can be seen inside
	text, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	made.Annotations[v1alpha1.AnnotationAllocation] = text
	agree(t, made)
}

// TestRestartedContainerKeepsItsInstance: the second start gets the same instance.
func TestRestartedContainerKeepsItsInstance(t *testing.T) {
	pod := newPod("restart", "gpu=1 gpumem=4000")
	pod.Spec.Containers[0].Command = []string{"sh", "-c", "until [ -e /tmp/end ]; do sleep 0.2; done"}
	made := runs(t, pod)
	before := uuids(t, made)
	if _, err := st.Cluster.Kubectl(t.Context(), "exec", "-n", namespace, made.Name, "--", "touch", "/tmp/end"); err != nil {
		t.Fatal(err)
	}
	again := waitPod(t, made.Name, func(p *v1.Pod) bool {
		return stack.Running(p) && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	agree(t, again)
	if after := uuids(t, again); !slices.Equal(before, after) {
		t.Errorf("instances after the restart = %v, before %v", after, before)
	}
}

// TestIdleInstanceIsReusedAndGivesWay: an instance outlives its pod, serves the next
// one of the same kind without being created, and is destroyed when it is in the
// way.
func TestIdleInstanceIsReusedAndGivesWay(t *testing.T) {
	first := runs(t, newPod("warm", "gpu=1 gpumem=19000"))
	kept := uuids(t, first)
	where := allocation(t, first).Containers["main"]
	remove(t, first.Name)

	second := runs(t, newPod("warm", "gpu=1 gpumem=19000"))
	if there := allocation(t, second).Containers["main"]; there[0].GPU != where[0].GPU || *there[0].MIG != *where[0].MIG {
		t.Fatalf("the second pod is at %v, the first was at %v: the test needs the same placement", there, where)
	}
	if got := uuids(t, second); !slices.Equal(got, kept) {
		t.Errorf("instance of the second pod = %v, want the first one's %v", got, kept)
	}
	remove(t, second.Name)

	whole := runs(t, newPod("whole", "gpu=2"))
	if got, want := profiles(t, whole), []string{"7g.40gb", "7g.40gb"}; !slices.Equal(got, want) {
		t.Errorf("profiles = %v, want %v", got, want)
	}
}
