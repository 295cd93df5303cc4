// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// TestShown: what MonitorAgrees asks of a GPU with two pods' instances and an idle one
// between them.
func TestShown(t *testing.T) {
	gpu := &sim.GPU{UUID: "GPU-a", Index: 1, Instances: []sim.Instance{
		{Profile: 19, Name: "1g.5gb", Start: 0, Size: 1}, {Profile: 19, Name: "1g.5gb", Start: 1, Size: 1}, {Profile: 14, Name: "2g.10gb", Start: 2, Size: 2},
	}}
	got := shown("n", gpu, 8, map[span]bool{{"GPU-a", 19, 0}: true, {"GPU-a", 14, 2}: true, {"GPU-b", 19, 1}: true})
	want := map[string]int{
		`nodeGPUMigInstance{deviceidx="1",deviceuuid="GPU-a",migname="1g.5gb-0",nodeid="n",zone="vGPU"}`:  1,
		`nodeGPUMigInstance{deviceidx="1",deviceuuid="GPU-a",migname="1g.5gb-1",nodeid="n",zone="vGPU"}`:  0,
		`nodeGPUMigInstance{deviceidx="1",deviceuuid="GPU-a",migname="2g.10gb-0",nodeid="n",zone="vGPU"}`: 1,
		`dynamig_gpu_memory_slices{node="n",device_uuid="GPU-a",device_index="1",state="used"}`:           3,
		`dynamig_gpu_memory_slices{node="n",device_uuid="GPU-a",device_index="1",state="free"}`:           5,
		`dynamig_gpu_memory_slices{node="n",device_uuid="GPU-a",device_index="1",state="foreign"}`:        0,
		`dynamig_gpu_memory_slices{node="n",device_uuid="GPU-a",device_index="1",state="stuck"}`:          0,
		`dynamig_gpu_memory_slices{node="n",device_uuid="GPU-a",device_index="1",state="withheld"}`:       0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
}
