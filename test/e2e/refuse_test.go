// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/stack"
)

// TestBadInput: each mistake is answered by one sentence that names the field, and
// disturbs nobody.
func TestBadInput(t *testing.T) {
	neighbour := runs(t, newPod("neighbour", "gpu=1 gpumem=4000"))
	before := uuids(t, neighbour)
	for _, tc := range []struct {
		name, wants, mode string
		want              string
	}{
		{
			name: "more memory than any GPU has", wants: "gpu=1 gpumem=90000",
			want: "limit nvidia.com/gpumem asks for 90000 MiB; no GPU in the cluster can be cut into that, the largest profile on offer is 7g.40gb with 40960 MiB",
		},
		{
			name: "more devices than the largest node holds", wants: "gpu=100 gpumem=4000",
			want: "the pod asks for 100 devices of nvidia.com/gpu; the largest node can hold 14",
		},
		{
			name: "101 percent", wants: "gpu=1 gpumem-percentage=101",
			want: `container "main": nvidia.com/gpumem-percentage is 101; use 1 to 100`,
		},
		{
			name: "gpumem without gpu", wants: "gpumem=8000",
			want: `container "main" asks for nvidia.com/gpumem without nvidia.com/gpu; add the limit nvidia.com/gpu: 1`,
		},
		{
			name: "an unknown mode", wants: "gpu=1 gpumem=4000", mode: "migg-core-x",
			want: "",
		},
		{
			name: "an unknown mode altogether", wants: "gpu=1 gpumem=4000", mode: "exclusive",
			want: `annotation nvidia.com/vgpu-mode is "exclusive"; use "mig", "hami-core" or both`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := newPod("bad", tc.wants)
			if tc.mode != "" {
				pod.Annotations[v1alpha1.AnnotationMode] = tc.mode
			}
			made := create(t, pod)
			if tc.want == "" { // HAMi's rule: text that contains "mig" allows it
				waitPod(t, made.Name, stack.Running)
				return
			}
			if got := unscheduled(t, made.Name); !strings.Contains(got, tc.want) {
				t.Errorf("condition = %q\nwant        %q", got, tc.want)
			}
			if got := event(t, made.Name, "FailedScheduling"); !strings.Contains(got, tc.want) {
				t.Errorf("event = %q\nwant    %q", got, tc.want)
			}
		})
	}
	t.Run("negative memory is refused by the API server", func(t *testing.T) {
		_, err := st.Kube.CoreV1().Pods(namespace).Create(t.Context(), newPod("bad", "gpu=1 gpumem=-1"), metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "nvidia.com/gpumem") {
			t.Errorf("creating the pod: %v, want a refusal that names nvidia.com/gpumem", err)
		}
	})
	agree(t, neighbour)
	if after := uuids(t, neighbour); !slices.Equal(before, after) {
		t.Errorf("the neighbour's instances = %v, before %v", after, before)
	}
}

// TestTypoInDeviceConfiguration: the last good configuration stays in force, and
// GPUNode quotes file, line and reason.
func TestTypoInDeviceConfiguration(t *testing.T) {
	n := node(t, "node1")
	good, err := n.ReadConfig("device-config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	neighbour := runs(t, newPod("neighbour", "gpu=1 gpumem=4000"))
	if err := n.WriteConfig("device-config.yaml", strings.Replace(good, "knownMigGeometries", "knownMigGeometry", 1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.WriteConfig("device-config.yaml", good); err != nil {
			t.Error(err)
		}
		condition(t, "node1", v1alpha1.ConditionConfigInvalid, metav1.ConditionFalse)
	})
	c := condition(t, "node1", v1alpha1.ConditionConfigInvalid, metav1.ConditionTrue)
	for _, want := range []string{"device-config.yaml:", "knownMigGeometry", "knownMigGeometries"} {
		if !strings.Contains(c.Message, want) {
			t.Errorf("condition = %q, want it to contain %q", c.Message, want)
		}
	}
	agree(t, neighbour)
	runs(t, newPod("still", "gpu=1 gpumem=4000"))
}

// condition waits for a GPUNode's condition to have a status; absent is False.
func condition(t *testing.T, node, kind string, status metav1.ConditionStatus) metav1.Condition {
	t.Helper()
	var c metav1.Condition
	err := stack.Until(context.WithoutCancel(t.Context()), fmt.Sprintf("condition %s=%s of %s", kind, status, node), func() (bool, error) {
		found := meta.FindStatusCondition(gpuNode(t, node).Status.Conditions, kind)
		if found == nil {
			found = &metav1.Condition{Type: kind, Status: metav1.ConditionFalse}
		}
		c = *found
		return c.Status == status, fmt.Errorf("last seen: %+v", c)
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestForgedAnnotationBindsNobody: an allocation that an unbound pod brings along is
// overwritten, with a Warning.
func TestForgedAnnotationBindsNobody(t *testing.T) {
	victim := runs(t, newPod("victim", "gpu=1 gpumem=4000"))
	forged := newPod("forger", "gpu=1 gpumem=4000")
	forged.Annotations[v1alpha1.AnnotationAllocation] = victim.Annotations[v1alpha1.AnnotationAllocation]
	forger := runs(t, forged)
	if text := event(t, forger.Name, "AllocationOverwritten"); !strings.Contains(text, v1alpha1.AnnotationAllocation) {
		t.Errorf("event = %q", text)
	}
	if allocation(t, forger).PodUID != forger.UID {
		t.Error("the forged annotation was kept")
	}
	agree(t, victim)
}

// TestChangedAnnotationOfBoundPod: the agent acts on the first annotation it saw and
// reports the change.
func TestChangedAnnotationOfBoundPod(t *testing.T) {
	pod := runs(t, newPod("changed", "gpu=1 gpumem=4000"))
	a := allocation(t, pod)
	a.Containers["main"][0].MIG.Start ^= 1
	text, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{v1alpha1.AnnotationAllocation: text}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Kube.CoreV1().Pods(namespace).Patch(t.Context(), pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	event(t, pod.Name, "AllocationChanged")
	agree(t, pod) // the object as it was before the change
}

// TestPodOfAnotherScheduler: it does not start on our node, and its event says what
// to do.
func TestPodOfAnotherScheduler(t *testing.T) {
	pod := newPod("other", "gpu=1")
	pod.Spec.SchedulerName = v1.DefaultSchedulerName
	made := create(t, pod)
	want := "delete it and create it with spec.schedulerName: dynamig-scheduler"
	got := waitPod(t, made.Name, func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			strings.Contains(p.Status.ContainerStatuses[0].State.Waiting.Message, want)
	})
	if got.Status.ContainerStatuses[0].State.Running != nil {
		t.Error("the pod runs")
	}
	if out, _, _ := kubectlMIG(t, st.Cluster.AdminKubeconfig(), "", "status", "-o", "json"); !strings.Contains(out, "it was bound to node1 without an allocation") {
		t.Errorf("kubectl mig status does not tell of the pod:\n%s", out)
	}
	runs(t, newPod("ours", "gpu=1 gpumem=4000"))
}

// TestAgentRestart: running pods keep their instances and processes, and new ones are
// served.
func TestAgentRestart(t *testing.T) {
	n := node(t, "node1")
	kept := keep(t, "gpu=2 gpumem=8000")
	killAgent(t, n)
	// A pod that is bound at the very moment of the restart fails its admission for
	// good (kubernetes pkg/kubelet/cm/devicemanager/manager.go:639-658), and its
	// controller makes another: hence a Deployment.
	agree(t, podOf(t, deploy(t, newPod("new", "gpu=1 gpumem=4000")), stack.Running))
	kept.check(t)
	tidy(t, n)
}

// TestSchedulerRestart: the next scheduler knows what the last one gave away.
func TestSchedulerRestart(t *testing.T) {
	pod := runs(t, newPod("kept", "gpu=2 gpumem=8000"))
	if err := st.Cluster.Process("scheduler").Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := st.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runs(t, newPod("new", "gpu=1 gpumem=8000"))
	}
	agree(t, pod)
}

// TestPodThatCanNeverStartIsReaped: somebody else cuts the GPU between scheduling
// and creation for good; the agent refuses, and the reaper lets the controller
// make another pod, which runs.
func TestPodThatCanNeverStartIsReaped(t *testing.T) {
	n := node(t, "node1")
	world, err := sim.Load(n.SimRoot)
	if err != nil {
		t.Fatal(err)
	}
	// Every creation fails until the faults are cleared.
	for i := range 200 {
		if err := world.FailCall("CreateGPUInstance", i+1, nvml.ErrInsufficientResources); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := world.ClearFaults(); err != nil {
			t.Error(err)
		}
	})
	labels := deploy(t, newPod("doomed", "gpu=1"))
	first := podOf(t, labels, func(p *v1.Pod) bool { return p.Spec.NodeName != "" })
	if err := st.WaitGone(t.Context(), namespace, first.Name); err != nil {
		t.Fatal(err)
	}
	if err := world.ClearFaults(); err != nil {
		t.Fatal(err)
	}
	agree(t, podOf(t, labels, stack.Running))
}

// deploy makes a Deployment of one such pod, removes it when the test ends, and
// returns the pods' labels.
func deploy(t *testing.T, pod *v1.Pod) map[string]string {
	t.Helper()
	return deployMany(t, pod, 1)
}

func deployMany(t *testing.T, pod *v1.Pod, replicas int32) map[string]string {
	t.Helper()
	labels := map[string]string{"app": pod.Name}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: v1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
		},
	}
	if _, err := st.Kube.AppsV1().Deployments(namespace).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeDeployment(t, d.Name) })
	return labels
}

// podOf waits for a pod with labels that satisfies done.
func podOf(t *testing.T, labels map[string]string, done func(*v1.Pod) bool) *v1.Pod {
	t.Helper()
	var found *v1.Pod
	err := stack.Until(t.Context(), "a pod of the deployment", func() (bool, error) {
		list, err := st.Kube.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels})})
		if err != nil {
			return false, err
		}
		for i := range list.Items {
			if done(&list.Items[i]) {
				found = &list.Items[i]
			}
		}
		return found != nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func removeDeployment(t *testing.T, name string) {
	t.Helper()
	if _, err := st.Cluster.Kubectl(context.WithoutCancel(t.Context()), "delete", "deployment", name, "--wait=true", "--cascade=foreground"); err != nil {
		t.Error(err)
	}
}
