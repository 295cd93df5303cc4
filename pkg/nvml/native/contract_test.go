// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo && !gpu

package native

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/facts"
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

// Whatever the simulation says of its GPUs, native says the same.
func TestFactsAreThoseOfTheSimulation(t *testing.T) {
	var gpus []sim.GPUSpec
	for i, board := range boards {
		gpus = append(gpus, sim.GPUSpec{Board: board, NUMANode: i})
	}
	library := node(t, append(gpus, sim.GPUSpec{Product: "Tesla T4", MemoryMiB: 15360, NUMANode: -1},
		sim.GPUSpec{Product: "GRID A100-10C", MemoryMiB: 10240, NUMANode: -1, VGPU: true})...)
	d, err := OpenLibrary(library, library.Root())
	must(t, err)
	defer d.Close()
	native, err := facts.Record(d, facts.Source{})
	must(t, err)
	simulated, err := facts.Record(library.Driver(), facts.Source{})
	must(t, err)
	for i := range simulated.GPUs {
		if !simulated.GPUs[i].MIGCapable {
			simulated.GPUs[i].Architecture = "Turing" // the simulation does not know it
		}
	}
	if diff := cmp.Diff(simulated, native); diff != "" {
		t.Errorf("facts (-simulation +native):\n%s", diff)
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
