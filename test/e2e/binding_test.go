// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// TestAllocationComesWithTheNode: whoever watches a pod, as its node's agent does,
// sees spec.nodeName and the allocation in one event, and no allocation before.
func TestAllocationComesWithTheNode(t *testing.T) {
	made := create(t, newPod("bound", "gpu=1 gpumem=4000"))
	events, err := st.Kube.CoreV1().Pods(namespace).Watch(t.Context(), metav1.ListOptions{
		FieldSelector: "metadata.name=" + made.Name, ResourceVersion: made.ResourceVersion,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	agree(t, waitPod(t, made.Name, stack.Running)) // so that it does come
	for event := range events.ResultChan() {
		pod, ok := event.Object.(*v1.Pod)
		if !ok {
			t.Fatalf("the watch gave %T", event.Object)
		}
		text := pod.Annotations[v1alpha1.AnnotationAllocation]
		if pod.Spec.NodeName == "" {
			if text != "" {
				t.Errorf("the unbound pod has the allocation %s", text)
			}
			continue
		}
		a, err := v1alpha1.DecodeAllocation(text)
		if err == nil {
			err = a.Owns(pod, pod.Spec.NodeName)
		}
		if err != nil {
			t.Errorf("the first event of the bound pod has the allocation %q: %v", text, err)
		}
		return
	}
	t.Error("the watch ended before the pod was bound")
}
