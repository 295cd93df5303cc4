// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// MonitorAgrees returns an error unless the monitor's metrics tell of a node what its
// NVML holds and its pods own: nodeGPUMigInstance has each instance, with 1 where a
// pod has it, and dynamig_gpu_memory_slices what is used and free. It goes by hardware
// and allocations alone, not by GPUNode. All pods must be prepared, and no instance
// foreign or stuck.
func (s *Stack) MonitorAgrees(ctx context.Context, n *Node) error {
	owned, err := s.owned(ctx, n)
	if err != nil {
		return err
	}
	world, err := sim.Load(n.SimRoot)
	if err != nil {
		return err
	}
	state, err := world.Dump()
	if err != nil {
		return err
	}
	want := map[string]int{}
	for i := range state.GPUs {
		if state.GPUs[i].Current {
			maps.Copy(want, shown(n.Name, &state.GPUs[i], state.Models[state.GPUs[i].Model].MemorySlices, owned))
		}
	}
	got, err := s.scraped(ctx, n.Name)
	if err != nil {
		return err
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("the monitor says of node %s:\n%s\nNVML and the pods' allocations say:\n%s", n.Name, lines(got), lines(want))
	}
	return nil
}

// span is a placement.
type span struct {
	gpu            string
	profile, start int
}

// owned are the placements of the node's pods that have not ended.
func (s *Stack) owned(ctx context.Context, n *Node) (map[span]bool, error) {
	pods, err := s.Kube.CoreV1().Pods(v1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", n.Name).String(),
	})
	if err != nil {
		return nil, err
	}
	owned := map[span]bool{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		text := pod.Annotations[v1alpha1.AnnotationAllocation]
		if text == "" || pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded {
			continue
		}
		a, err := v1alpha1.DecodeAllocation(text)
		if err != nil {
			return nil, fmt.Errorf("pod %s: %w", pod.Name, err)
		}
		for _, devices := range a.Containers {
			for _, d := range devices {
				if d.MIG != nil {
					owned[span{d.GPU, int(d.MIG.ProfileID), int(d.MIG.Start)}] = true
				}
			}
		}
	}
	return owned, nil
}

// shown are the series that a GPU should have, with their values.
func shown(node string, gpu *sim.GPU, slices int, owned map[span]bool) map[string]int {
	out := map[string]int{}
	ordinals := map[string]int{}
	used := 0
	for _, in := range gpu.Instances { // by start
		value := 0
		if owned[span{string(gpu.UUID), int(in.Profile), in.Start}] {
			value = 1
			used += in.Size
		}
		out[fmt.Sprintf(`nodeGPUMigInstance{deviceidx="%d",deviceuuid="%s",migname="%s-%d",nodeid="%s",zone="vGPU"}`,
			gpu.Index, gpu.UUID, in.Name, ordinals[in.Name], node)] = value
		ordinals[in.Name]++
	}
	for state, count := range map[string]int{"used": used, "free": slices - used, "foreign": 0, "stuck": 0, "withheld": 0} {
		out[fmt.Sprintf(`dynamig_gpu_memory_slices{node="%s",device_uuid="%s",device_index="%d",state="%s"}`, node, gpu.UUID, gpu.Index, state)] = count
	}
	return out
}

// scraped are the node's series of both families.
func (s *Stack) scraped(ctx context.Context, node string) (map[string]int, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Monitor()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("scraping the monitor: %s: %s", answer.Status, text)
	}
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for line := range strings.Lines(string(text)) {
		family, _, _ := strings.Cut(line, "{")
		if family != "nodeGPUMigInstance" && family != "dynamig_gpu_memory_slices" {
			continue
		}
		at := strings.LastIndex(line, " ")
		series := line[:at]
		if !strings.Contains(series, fmt.Sprintf(`node="%s"`, node)) && !strings.Contains(series, fmt.Sprintf(`nodeid="%s"`, node)) {
			continue
		}
		value := 0
		if _, err := fmt.Sscan(line[at:], &value); err != nil {
			return nil, fmt.Errorf("reading %q: %w", line, err)
		}
		out[series] = value
	}
	return out, nil
}

func lines(series map[string]int) string {
	var text []string
	for _, name := range slices.Sorted(maps.Keys(series)) {
		text = append(text, fmt.Sprintf("  %s %d", name, series[name]))
	}
	return strings.Join(text, "\n")
}
