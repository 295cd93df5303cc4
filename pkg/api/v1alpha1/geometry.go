// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// Geometry is the model's hardware as pkg/geometry knows it. The error names the
// model and what makes no sense in it.
func (m *GPUModel) Geometry() (*geometry.Model, error) {
	profiles := make([]geometry.Profile, len(m.Profiles))
	for i, p := range m.Profiles {
		profiles[i] = geometry.Profile{
			ID: geometry.ProfileID(p.ID), Name: p.Name, MemoryMiB: int(p.MemoryMiB), SMs: int(p.SMs),
			ComputeSlices: int(p.ComputeSlices), Size: int(p.Size), Max: int(p.Max), Starts: make([]int, len(p.Starts)),
		}
		for j, start := range p.Starts {
			profiles[i].Starts[j] = int(start)
		}
	}
	grid := geometry.Grid{MemorySlices: int(m.Grid.MemorySlices), ComputeSlices: int(m.Grid.ComputeSlices)}
	model, err := geometry.NewModelOnGrid(m.Model, grid, profiles)
	if err != nil {
		return nil, fmt.Errorf("reading model %s: %w", m.Model, err)
	}
	return model, nil
}

// ModelOf is the inverse of Geometry, for a model of that name under rule Hardware. Max
// is what the placements allow, since some GPUs report more.
func ModelOf(name string, m *geometry.Model) GPUModel {
	out := GPUModel{
		Model: name, Rule: RuleHardware,
		Grid:     Grid{MemorySlices: int32(m.MemorySlices()), ComputeSlices: int32(m.ComputeSlices())},
		Profiles: make([]Profile, len(m.Profiles())),
	}
	for i, p := range m.Profiles() {
		out.Profiles[i] = Profile{
			ID: int32(p.ID), Name: p.Name, MemoryMiB: int64(p.MemoryMiB), SMs: int32(p.SMs),
			ComputeSlices: int32(p.ComputeSlices), Max: int32(p.Max), Size: int32(p.Size),
		}
		for _, start := range p.Starts {
			out.Profiles[i].Starts = append(out.Profiles[i].Starts, int32(start))
		}
	}
	return out
}

// Catalogue is what the model offers under its rule. The error names the model
// and what makes no sense in it.
func (m *GPUModel) Catalogue() (*geometry.Catalogue, error) {
	model, err := m.Geometry()
	if err != nil {
		return nil, err
	}
	allowed := make([]geometry.ProfileID, len(m.Allowed))
	for i, id := range m.Allowed {
		allowed[i] = geometry.ProfileID(id)
	}
	templates := make([]geometry.Template, len(m.Templates))
	for i, t := range m.Templates {
		for _, e := range t.Entries {
			templates[i] = append(templates[i], geometry.Entry{
				Profile: geometry.ProfileID(e.ProfileID), Count: int(e.Count),
				MemoryMiB: int(e.MemoryMiB), Cores: int(e.Cores),
			})
		}
	}
	c, err := geometry.NewCatalogue(model, geometry.Rule(m.Rule), allowed, templates)
	if err != nil {
		return nil, fmt.Errorf("reading model %s: %w", m.Model, err)
	}
	return c, nil
}
