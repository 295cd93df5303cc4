// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// TestTemplateChangesUnderARunningPod: a pod has a 1g.5gb of the first template,
// seven of them. Another pod needs a 2g.10gb of the same GPU, which only the second
// template has, beside one 1g.5gb: the template changes, and the first pod's
// container keeps instance and process.
func TestTemplateChangesUnderARunningPod(t *testing.T) {
	onlyWholeGPUs(t)
	kept := keep(t, "gpu=1 gpumem=4000")
	gpu := allocation(t, kept.pod).Containers["main"][0].GPU
	inForce(t, gpu, 0)

	pod := newPod("larger", "gpu=1 gpumem=9000")
	pod.Annotations[v1alpha1.AnnotationUseUUID] = gpu
	pod = runs(t, pod)
	if got, want := profiles(t, pod), []string{"2g.10gb"}; !slices.Equal(got, want) {
		t.Errorf("profiles = %v, want %v", got, want)
	}
	inForce(t, gpu, 1)
	kept.check(t)

	remove(t, pod.Name)
	inForce(t, gpu, 0)
	kept.check(t)
}

// inForce waits until a template of node1's GPU, by its place in the file, is the
// first that has everything in use.
func inForce(t *testing.T, gpu string, want int) {
	t.Helper()
	if err := st.WaitTemplate(t.Context(), "node1", gpu, want); err != nil {
		t.Fatal(err)
	}
}
