// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/cluster"
	"github.com/dynamig/dynamig/test/stack"
)

const namespace = "default"

// limits reads "gpu=2 gpumem=8000".
func limits(text string) v1.ResourceRequirements {
	list := v1.ResourceList{}
	for _, field := range strings.Fields(text) {
		name, value, _ := strings.Cut(field, "=")
		list[v1.ResourceName("nvidia.com/"+name)] = resource.MustParse(value)
	}
	return v1.ResourceRequirements{Limits: list}
}

func container(name, wants string) v1.Container {
	return v1.Container{
		Name: name, Image: cluster.BusyboxImage, ImagePullPolicy: v1.PullIfNotPresent,
		Command: []string{"sleep", "86400"}, Resources: limits(wants),
	}
}

// newPod is a pod with one container "main", for dynamig's scheduler, on node1.
func newPod(name, wants string) *v1.Pod {
	grace := int64(1)
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-" + rand.String(4), Annotations: map[string]string{}},
		Spec: v1.PodSpec{
			SchedulerName:                 v1alpha1.SchedulerName,
			TerminationGracePeriodSeconds: &grace,
			NodeSelector:                  map[string]string{v1.LabelHostname: "node1"},
			Containers:                    []v1.Container{container("main", wants)},
		},
	}
}

// create creates a pod and removes it when the test ends.
func create(t *testing.T, pod *v1.Pod) *v1.Pod {
	t.Helper()
	made, err := st.Kube.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, made.Name) })
	return made
}

// remove deletes a pod and waits until its object is gone; one that is gone already
// is fine.
func remove(t *testing.T, name string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	_ = st.Kube.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{})
	if err := st.WaitGone(ctx, namespace, name); err != nil {
		t.Error(err)
	}
}

func waitPod(t *testing.T, name string, done func(*v1.Pod) bool) *v1.Pod {
	t.Helper()
	pod, err := st.WaitPod(t.Context(), namespace, name, done)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// runs creates a pod, waits until it runs, and checks that everybody agrees on it.
func runs(t *testing.T, pod *v1.Pod) *v1.Pod {
	t.Helper()
	pod = waitPod(t, create(t, pod).Name, stack.Running)
	agree(t, pod)
	return pod
}

// agree waits until annotation, NVML, GPUNode and container tell the same story.
func agree(t *testing.T, pod *v1.Pod) {
	t.Helper()
	err := stack.Until(t.Context(), "agreement on "+pod.Name, func() (bool, error) {
		err := st.Agree(t.Context(), pod)
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// event waits for an event of a pod and returns its text.
func event(t *testing.T, pod, reason string) string {
	t.Helper()
	text, err := st.Event(t.Context(), namespace, pod, reason)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// unscheduled waits until the scheduler says why a pod waits.
func unscheduled(t *testing.T, name string) string {
	t.Helper()
	return reason(waitPod(t, name, func(p *v1.Pod) bool { return reason(p) != "" }))
}

func reason(pod *v1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse {
			return c.Message
		}
	}
	return ""
}

// allocation is a pod's, decoded.
func allocation(t *testing.T, pod *v1.Pod) v1alpha1.Allocation {
	t.Helper()
	a, err := v1alpha1.DecodeAllocation(pod.Annotations[v1alpha1.AnnotationAllocation])
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// uuids are those of the instances that NVML holds for a pod's container "main".
func uuids(t *testing.T, pod *v1.Pod) []string {
	t.Helper()
	out, err := st.UUIDs(pod, "main")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// profiles are the names of what a pod was given, container "main".
func profiles(t *testing.T, pod *v1.Pod) []string {
	t.Helper()
	var names []string
	for _, d := range allocation(t, pod).Containers["main"] {
		names = append(names, d.MIG.Profile)
	}
	return names
}

// example reads a pod of examples/.
func example(t *testing.T, file string) *v1.Pod {
	t.Helper()
	text, err := os.ReadFile("../../examples/" + file)
	if err != nil {
		t.Fatal(err)
	}
	pod := &v1.Pod{}
	if err := yaml.UnmarshalStrict(text, pod); err != nil {
		t.Fatal(err)
	}
	if pod.GenerateName != "" {
		pod.GenerateName, pod.Name = "", pod.GenerateName+rand.String(4)
	}
	return pod
}

func gpuNode(t *testing.T, name string) *v1alpha1.GPUNode {
	t.Helper()
	n, err := st.GPUs.DynamigV1alpha1().GPUNodes().Get(context.WithoutCancel(t.Context()), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func node(t *testing.T, name string) *stack.Node {
	t.Helper()
	n, err := st.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
