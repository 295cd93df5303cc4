// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// TestHAMiDefaults: with the component hami-defaults, pods as they were written for
// HAMi run as they are.
func TestHAMiDefaults(t *testing.T) {
	const dir = "../../manifests/components/hami-defaults/"
	files := []string{"-f", dir + "policy.yaml", "-f", dir + "binding.yaml"}
	if _, err := st.Cluster.Kubectl(t.Context(), append([]string{"apply"}, files...)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := st.Cluster.Kubectl(context.WithoutCancel(t.Context()), append([]string{"delete"}, files...)...); err != nil {
			t.Error(err)
		}
	})
	hami := func(name, wants string) *v1.Pod {
		pod := newPod(name, wants)
		pod.Spec.SchedulerName = ""
		return pod
	}
	admitted := func(pod *v1.Pod) *v1.Pod {
		t.Helper()
		made, err := st.Kube.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	err := stack.Until(t.Context(), "the policy to be in force", func() (bool, error) {
		name := admitted(hami("probe", "gpu=1")).Spec.SchedulerName
		return name == v1alpha1.SchedulerName, fmt.Errorf("the scheduler's name is %s", name)
	})
	if err != nil {
		t.Fatal(err)
	}
	other := hami("other", "gpumem=3000")
	other.Spec.SchedulerName = "somebody"
	ignored := hami("ignored", "gpumem=3000")
	ignored.Labels = map[string]string{"hami.io/webhook": "ignore"}
	beside := hami("beside", "gpumem=3000")
	beside.Spec.Containers = append([]v1.Container{container("plain", "")}, beside.Spec.Containers...)
	initial := hami("initial", "gpu=1")
	initial.Spec.InitContainers = []v1.Container{container("init", "gpucores=10")}
	for _, tc := range []struct {
		name      string
		pod       *v1.Pod
		scheduler string
		gpus      []int64 // of init containers, then containers
	}{
		{"memory only", hami("memory", "gpumem=3000"), v1alpha1.SchedulerName, []int64{1}},
		{"percentage only", hami("percentage", "gpumem-percentage=10"), v1alpha1.SchedulerName, []int64{1}},
		{"cores only", hami("cores", "gpucores=10"), v1alpha1.SchedulerName, []int64{1}},
		{"a number of its own", hami("own", "gpu=2 gpumem=3000"), v1alpha1.SchedulerName, []int64{2}},
		{"a container without GPUs beside it", beside, v1alpha1.SchedulerName, []int64{0, 1}},
		{"an init container", initial, v1alpha1.SchedulerName, []int64{1, 1}},
		{"no GPUs", hami("none", ""), v1.DefaultSchedulerName, []int64{0}},
		{"another scheduler", other, "somebody", []int64{0}},
		{"opted out", ignored, v1.DefaultSchedulerName, []int64{0}},
	} {
		made := admitted(tc.pod)
		if made.Spec.SchedulerName != tc.scheduler {
			t.Errorf("%s: the scheduler's name is %s, want %s", tc.name, made.Spec.SchedulerName, tc.scheduler)
		}
		var gpus []int64
		for _, c := range append(made.Spec.InitContainers, made.Spec.Containers...) {
			limit, request := c.Resources.Limits[v1alpha1.ResourceGPU], c.Resources.Requests[v1alpha1.ResourceGPU]
			gpus = append(gpus, limit.Value())
			if limit.Cmp(request) != 0 {
				t.Errorf("%s: limit %s, request %s", tc.name, limit.String(), request.String())
			}
		}
		if fmt.Sprint(gpus) != fmt.Sprint(tc.gpus) {
			t.Errorf("%s: containers ask for %v GPUs, want %v", tc.name, gpus, tc.gpus)
		}
	}
	runs(t, hami("hami", "gpumem=3000"))
	pod := example(t, "hami-pod.yaml")
	pod.Spec.NodeSelector = map[string]string{v1.LabelHostname: "node1"}
	if made := runs(t, pod); made.Spec.SchedulerName != v1alpha1.SchedulerName {
		t.Errorf("the example's scheduler is %s", made.Spec.SchedulerName)
	}
}
