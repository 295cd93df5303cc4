// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"github.com/dynamig/dynamig/pkg/geometry"
)

// milli is a whole GPU in the openb trace.
const milli = 1000

// openb reads rows of the openb trace (Weng et al., USENIX ATC 2023): num_gpu GPUs
// on one node, and for a single one gpu_milli thousandths of it. Rows without a GPU
// are skipped; which GPU models a row allows (gpu_spec) is not looked at.
//
// A job arrives at creation_time and runs from scheduled_time to deletion_time. One
// that was never scheduled is given the time from its creation to its deletion.
func (t *table) openb(format Format, fleet *Fleet) (read func() (Job, bool), err error) {
	if err := t.need("num_gpu", "gpu_milli", "creation_time", "deletion_time", "scheduled_time"); err != nil {
		return nil, err
	}
	want := byCompute
	if format == OpenbMemory {
		memory, err := fleet.memoryMiB()
		if err != nil {
			return nil, err
		}
		want = func(share int) geometry.Want {
			return geometry.Want{MemoryMiB: (share*memory + milli - 1) / milli}
		}
	}
	t.asked = "gpu_milli"
	return func() (job Job, skip bool) {
		gpus, share := t.whole("num_gpu", 0, maxDevices, 0), t.whole("gpu_milli", 0, milli, 0)
		switch {
		case gpus == 0:
			return Job{}, true
		case gpus > 1 || share == milli:
			job.Want = geometry.Want{Full: true}
		case share == 0:
			t.fail("gpu_milli", "is 0 with a GPU; want 1 to %d", milli)
		default:
			job.Want = want(share)
		}
		job.Devices = gpus
		job.Arrival = t.seconds("creation_time", 0)
		start := job.Arrival
		if t.text("scheduled_time") != "" {
			start = t.seconds("scheduled_time", job.Arrival)
		}
		job.Duration = t.seconds("deletion_time", start) - start
		return job, false
	}, nil
}

// byCompute asks for as many sevenths of a GPU's compute as the share comes to,
// rounded up; more than four of them are the whole GPU.
func byCompute(share int) geometry.Want {
	sevenths := (7*share + milli - 1) / milli
	if sevenths > 4 {
		return geometry.Want{Full: true}
	}
	return geometry.Want{Cores: 100 * sevenths / 7}
}
