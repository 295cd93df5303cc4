// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestBindingMergesAnnotations pins what a later allocationWrite: Binding rests on:
// the API server merges a Binding's annotations into the pod in the same write as
// spec.nodeName (kubernetes pkg/registry/core/pod/storage/storage.go:213-263).
func TestBindingMergesAnnotations(t *testing.T) {
	pod := newPod("binding", "")
	pod.Spec.SchedulerName = "nobody"
	pod.Annotations["kept"] = "yes"
	made := create(t, pod)
	binding := &v1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: made.Name, UID: made.UID, Annotations: map[string]string{"dynamig.io/test": "merged"}},
		Target:     v1.ObjectReference{Kind: "Node", Name: "node1"},
	}
	if err := st.Kube.CoreV1().Pods(namespace).Bind(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bound := waitPod(t, made.Name, func(p *v1.Pod) bool { return p.Spec.NodeName != "" })
	if bound.Annotations["dynamig.io/test"] != "merged" || bound.Annotations["kept"] != "yes" {
		t.Errorf("annotations after Bind = %v; ADR 0001 and docs/design.md section 2 rest on the merge", bound.Annotations)
	}
}
