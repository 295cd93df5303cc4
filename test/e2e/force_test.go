// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/test/stack"
)

// TestPodDeletedWithForce: kubelet lets the container run for its grace period, and
// the control group that it made for the pod says so to the agent: the next pod,
// which gets the same placement, waits.
func TestPodDeletedWithForce(t *testing.T) {
	first := newPod("forced", "gpu=1 gpumem=8000")
	first.Spec.TerminationGracePeriodSeconds = new(int64(10)) // sleep, as process 1, heeds no SIGTERM
	first = runs(t, first)
	had := uuids(t, first)
	err := st.Kube.CoreV1().Pods(namespace).Delete(t.Context(), first.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
	if err != nil {
		t.Fatal(err)
	}
	next := create(t, newPod("next", "gpu=1 gpumem=8000"))
	if why := event(t, next.Name, "PreparationFailed"); !strings.Contains(why, "of the deleted pod that had it still runs") {
		t.Errorf("the next pod says %q", why)
	}
	next = waitPod(t, next.Name, stack.Running)
	agree(t, next)
	if got := uuids(t, next); !slices.Equal(got, had) {
		t.Errorf("the next pod has %v, want the instance that was in use, %v", got, had)
	}
}
