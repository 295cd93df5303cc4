// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// TestOtherModes: a pod that only the modes keep waiting hears which of the two would
// help: its annotation, or GPUs that nobody uses.
func TestOtherModes(t *testing.T) {
	const wants = "gpu=1 gpumem=20000"
	mode := func(m string) podBuilder { return pod("w").wants("c", wants).annotated(v1alpha1.AnnotationMode, m) }
	cut := gpuNode(t, "A100-40GB", 2)
	half := sharing(gpuNode(t, "A100-40GB", 2), capacity, 1)
	full := pod("full").wants("c", "gpu=1").on(t, half, "7g.40gb@0").Pod
	sharer := shared(t, "sharer", "GPU-1:1000:10").Pod
	both := sharing(gpuNode(t, "A100-40GB", 2), capacity, 0, 1)
	for _, tc := range []struct {
		name string
		node *v1alpha1.GPUNode
		pods []*v1.Pod
		asks podBuilder
		pod  string // place without the annotation
		gpus string
	}{
		{"a share where all GPUs are cut", cut, nil, mode("hami-core"), "3g.20gb of 0", "[0] to hami-core with the library"},
		{"a share beside one that another GPU offers", half, []*v1.Pod{sharer}, pod("w").wants("c", "gpu=1 gpumem=40000").annotated(v1alpha1.AnnotationMode, "hami-core"), "7g.40gb of 0", "[0] to hami-core"},
		{"an instance beside a GPU that is shared by nobody", half, []*v1.Pod{full}, mode("mig"), "share of 1", "[1] to mig"},
		{"by somebody", half, []*v1.Pod{full, sharer}, mode("mig"), "share of 1", ""},
		{"a profile by name", both, []*v1.Pod{sharer}, pod("w").wants("c", "gpu=1").annotated(v1alpha1.AnnotationProfile, "3g.20gb"), "", "[0] to mig"},
		{"what neither mode holds", half, []*v1.Pod{full, sharer}, pod("w").wants("c", "gpu=2 gpumem=20000"), "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := fleetOf(t, []*v1alpha1.GPUNode{tc.node}, tc.pods).Advise(tc.asks.Pod, nil)
			if err != nil {
				t.Fatal(err)
			}
			gotPod, gotGPUs := "", ""
			if a.Modes != nil && a.Modes.Pod != nil {
				spot := a.Modes.Pod.Spots[0]
				gotPod = fmt.Sprintf("share of %d", spot.GPUIndex)
				if spot.MIG != nil {
					gotPod = fmt.Sprintf("%s of %d", spot.MIG.Profile, spot.GPUIndex)
				}
			}
			if a.Modes != nil && a.Modes.GPUs != nil {
				gotGPUs = fmt.Sprintf("%v to %s", a.Modes.GPUs.GPUs, a.Modes.GPUs.Mode)
				if a.Modes.GPUs.Library {
					gotGPUs += " with the library"
				}
			}
			if gotPod != tc.pod || gotGPUs != tc.gpus || a.Fits != nil {
				t.Errorf("without the annotation %q, with GPUs switched %q; want %q and %q", gotPod, gotGPUs, tc.pod, tc.gpus)
			}
		})
	}
}

// TestReasonsOfShares tell what shared GPUs lack, cores as well, and nothing of slices
// that the pod may not have.
func TestReasonsOfShares(t *testing.T) {
	n := gpuNode(t, "A100-40GB", 2)
	n.Status.GPUs[1].Mode = v1alpha1.GPUMode{Wanted: v1alpha1.ModeHAMiCore, Current: v1alpha1.ModeHAMiCore}
	n.Status.GPUs[1].Shares = &v1alpha1.ShareCapacity{Count: 10, MemoryMiB: 40000, Cores: 100}
	const want = "node n has no GPU with enough left to share for 2000 MiB and 30 percent of a GPU's cores " +
		"(the shared GPU with the most memory left has 34000 MiB, 10 percent of the cores and room for 7 shares)"
	asks := pod("asks").wants("c", "gpu=1 gpumem=2000 gpucores=30")
	asks.Annotations = map[string]string{v1alpha1.AnnotationMode: v1alpha1.ModeHAMiCore}
	trials, err := fleetOf(t, []*v1alpha1.GPUNode{n}, nil).Try(asks.Pod, 4, nil)
	if err != nil || len(trials.Reasons) != 1 || trials.Reasons[0].String() != want {
		t.Errorf("%v, reasons %v; want %q", err, trials, want)
	}
}

// TestAdviceNamesAnnotations: which annotation accepts no GPU, and what there is.
func TestAdviceNamesAnnotations(t *testing.T) {
	f := fleetOf(t, []*v1alpha1.GPUNode{gpuNode(t, "A100-40GB", 2)}, nil)
	for _, tc := range []struct{ key, value, want string }{
		{v1alpha1.AnnotationUseType, "H100", `node n has no GPU that the pod's annotations accept: nvidia.com/use-gputype is "H100", and the GPUs there are ` + gpuNode(t, "A100-40GB", 1).Status.GPUs[0].Model},
		{v1alpha1.AnnotationMode, "hami-core", `node n has no GPU in a mode that annotation nvidia.com/vgpu-mode allows: nvidia.com/vgpu-mode is "hami-core", and the GPUs there are in mode mig`},
	} {
		a, err := f.Advise(pod("w").wants("c", "gpu=1 gpumem=2000").annotated(tc.key, tc.value).Pod, nil)
		if err != nil || len(a.Reasons) != 1 || a.Reasons[0].String() != tc.want {
			t.Errorf("%s: %v, %v; want %q", tc.key, err, a, tc.want)
		}
	}
}

// TestReasonsAreNoFormats: kube-scheduler formats the text of a FailedScheduling event.
func TestReasonsAreNoFormats(t *testing.T) {
	asks := []string{"gpu=1", "gpu=1 gpumem=2000 gpucores=30", "gpu=2 gpumem-percentage=50", "gpu=1 gpucores=30"}
	for _, text := range asks {
		r, err := Parse(pod("p").wants("c", text).Pod, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, words := range reasonsBy {
			for _, w := range []string{words.never, words.full, words.refused} {
				if reason := r.verdict(w, true).Reason; strings.Contains(reason, "%") {
					t.Errorf("%s: the reason %q has a percent sign", text, reason)
				}
			}
		}
	}
}
