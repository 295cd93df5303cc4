// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo && !gpu

package native

import (
	"testing"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/native/simnvml"
	"github.com/dynamig/dynamig/pkg/nvml/nvmltest"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// The three grids, and a generation that changes its mode at once.
var boards = []string{"A100-40GB", "A30-24GB", "RTX-PRO-6000-96GB", "H100-80GB"}

func TestContractOverTheSimulation(t *testing.T) {
	for _, board := range boards {
		t.Run(board, func(t *testing.T) {
			nvmltest.Contract(t, func(t *testing.T) nvml.Driver {
				library := node(t, sim.GPUSpec{Board: board}, sim.GPUSpec{Product: "Tesla T4", MemoryMiB: 15360, NUMANode: -1},
					sim.GPUSpec{Board: board, MIG: true, NUMANode: 1})
				return haunted{open(t, library), library}
			})
		})
	}
}

// haunted lets the contract make clients and failures.
type haunted struct {
	*Driver
	library *simnvml.Library
}

func (h haunted) HoldInstance(id nvml.GPUID, gi int) (func() error, error) {
	d := h.library.Driver()
	err := d.Hold(id, sim.Holder{GI: gi})
	return func() error { return d.Release(id, gi, 0) }, err
}

func (h haunted) XID(id nvml.GPUID, gi, xid int) error { return h.library.Driver().XID(id, gi, xid) }
