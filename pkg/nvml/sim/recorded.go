// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/facts"
)

// FromFacts describes a node like the one that was recorded. UUIDs and addresses
// are new; MIG mode is as it was.
func FromFacts(node facts.Node) Spec {
	spec := Spec{DriverVersion: node.DriverVersion}
	for i := range node.GPUs {
		g := &node.GPUs[i]
		spec.GPUs = append(spec.GPUs, GPUSpec{Facts: g, MIG: g.MIG.Current, NUMANode: g.NUMANode})
	}
	return spec
}

// addRecordedGPU adds a GPU as it was recorded.
func (s *State) addRecordedGPU(g GPU, spec GPUSpec) error {
	f := spec.Facts
	if spec.Board != "" || spec.Product != "" || spec.MemoryMiB != 0 || len(spec.ProfileMemoryMiB) > 0 || spec.VGPU {
		return errors.New("a recorded GPU has board, product and memory of its own")
	}
	g.Name, g.Architecture, g.MemoryMiB = f.Product, nvml.Architecture(f.Architecture), f.MemoryMiB
	g.PCIDeviceID, g.PCISubsystem, g.VGPU = f.PCIDeviceID, f.PCISubsystem, f.VGPU
	if !f.MIGCapable {
		s.GPUs = append(s.GPUs, g)
		return nil
	}
	model, err := recordedModel(f)
	if err != nil {
		return err
	}
	// Two GPUs of one product may differ in their boards' memory.
	g.Model = f.Product
	if other, ok := s.Models[g.Model]; ok && !same(other, model) {
		g.Model = fmt.Sprintf("%s (GPU %d)", f.Product, g.Index)
	}
	s.Models[g.Model] = model
	g.Current, g.Pending = spec.MIG, spec.MIG
	if spec.MIG == f.MIG.Current {
		g.Pending = f.MIG.Pending
	}
	s.GPUs = append(s.GPUs, g)
	return nil
}

func same(a, b Model) bool {
	return slices.EqualFunc(a.Profiles, b.Profiles, func(x, y Profile) bool {
		return fmt.Sprint(x) == fmt.Sprint(y)
	})
}

// recordedModel is the model of a recorded GPU. What NVML does not report, how many
// instances are really allowed, follows from the placements.
func recordedModel(f *facts.GPU) (Model, error) {
	var m Model
	for _, p := range f.Profiles {
		m.ComputeSlices = max(m.ComputeSlices, p.ComputeSlices)
		for _, start := range p.Starts {
			m.MemorySlices = max(m.MemorySlices, start+p.Size)
		}
		m.Profiles = append(m.Profiles, Profile{
			ID: nvml.ProfileID(p.ID), Enum: p.Enum, Name: p.Name, MemoryMiB: p.MemoryMiB, SMs: p.SMs,
			ComputeSlices: p.ComputeSlices, Size: p.Size, Starts: slices.Clone(p.Starts),
			Max: min(p.Max, disjoint(p.Starts, p.Size)), ReportedMax: p.Max, Engines: p.Engines,
		})
	}
	for _, p := range f.Profiles {
		for _, start := range p.Starts {
			gi, err := m.instanceID(p.Size, start)
			if err != nil {
				return Model{}, err
			}
			if seen, ok := f.GPUInstanceAt(p.ID, start); ok && seen != gi {
				return Model{}, fmt.Errorf("profile %s at %d had GPU instance id %d, and the simulation would give %d: correct instanceID", p.Name, start, seen, gi)
			}
		}
	}
	return m, nil
}

// disjoint is how many of the placements fit beside each other.
func disjoint(starts []int, size int) int {
	n, free := 0, 0
	for _, start := range starts {
		if start >= free {
			n, free = n+1, start+size
		}
	}
	return n
}
