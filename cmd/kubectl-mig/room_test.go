// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// TestRoomCountsAsGPUNodes: a GPU on its way to mode hami-core is in neither sum, one
// that is lost in the second.
func TestRoomCountsAsGPUNodes(t *testing.T) {
	gpu := func(wanted string, free int) pool.GPUPicture {
		return pool.GPUPicture{Mode: v1alpha1.GPUMode{Wanted: wanted, Current: v1alpha1.ModeMIG}, MemorySlices: 8, FreeSlices: free}
	}
	r := roomOf([]pool.GPUPicture{gpu(v1alpha1.ModeMIG, 1), gpu(v1alpha1.ModeMIG, 0), gpu(v1alpha1.ModeHAMiCore, 0)})
	if r.free != 1 || r.slices != 16 {
		t.Errorf("%d/%d free; want 1/16", r.free, r.slices)
	}
}

// TestTotalsWithoutRoom: where all GPUs are on their way to another mode.
func TestTotalsWithoutRoom(t *testing.T) {
	st := &fleetStatus{Nodes: []nodeStatus{{NodePicture: pool.NodePicture{GPUs: []pool.GPUPicture{{Mode: v1alpha1.GPUMode{Wanted: v1alpha1.ModeHAMiCore}, MemorySlices: 8}}}}}}
	if got, want := st.totals(), "1 node, 1 GPU: none takes new work."; got != want {
		t.Errorf("totals = %q; want %q", got, want)
	}
}
