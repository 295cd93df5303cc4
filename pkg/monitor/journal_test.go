// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// gpuPod has containers with one device each.
func gpuPod(containers ...string) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid", Annotations: map[string]string{}}}
	for _, name := range containers {
		pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: name, Resources: v1.ResourceRequirements{
			Limits: v1.ResourceList{v1alpha1.ResourceGPU: resource.MustParse("1")},
		}})
	}
	return pod
}

// TestSharesAreNoInstances: a pod with an instance and a share is prepared once its
// instance is live.
func TestSharesAreNoInstances(t *testing.T) {
	j := NewJournal(time.Now)
	src := Sources{Pool: pool.New(pool.Options{}), GPUNodes: cache.NewSharedInformer(&cache.ListWatch{}, &v1alpha1.GPUNode{}, 0)}
	pod := gpuPod("a", "b")
	text, err := v1alpha1.Allocation{Version: v1alpha1.AllocationVersion, Node: "n", PodUID: pod.UID, Containers: map[string][]v1alpha1.Device{
		"a": {{GPU: "GPU-0", MIG: &v1alpha1.MIGInstance{ProfileID: 19, Size: 1}}},
		"b": {{GPU: "GPU-1", Share: &v1alpha1.Share{MemoryMiB: 1000}}},
	}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	pod.Spec.NodeName, pod.Annotations[v1alpha1.AnnotationAllocation] = "n", text
	j.onPod(src, nil, pod, false)
	report := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	j.onReport(report, false)
	if !j.stepsOf("uid").prepared.IsZero() {
		t.Error("prepared before the instance is live")
	}
	report.Status.GPUs = []v1alpha1.GPU{{UUID: "GPU-0", Instances: []v1alpha1.Instance{{ProfileID: 19, PodUID: "uid", State: v1alpha1.InstanceLive}}}}
	j.onReport(report, false)
	if j.stepsOf("uid").prepared.IsZero() {
		t.Error("not prepared although the instance is live")
	}
}

// TestJournalKeepsNothingOfPodsThatAreGone: a choice may be told of after the pod's
// end, since scheduling goes on while informers tell of it.
func TestJournalKeepsNothingOfPodsThatAreGone(t *testing.T) {
	j, src := NewJournal(time.Now), Sources{Pool: pool.New(pool.Options{})}
	pod := gpuPod("main")
	j.onPod(src, nil, pod, false)
	if j.Decided("uid", time.Millisecond); j.stepsOf("uid").decided.IsZero() {
		t.Error("the choice of a pod that is there is not noted")
	}
	j.onPodGone(src, cache.DeletedFinalStateUnknown{Obj: pod})
	j.Decided("uid", time.Millisecond)
	if len(j.pods) != 0 {
		t.Errorf("%d pods are kept after their end", len(j.pods))
	}
}
