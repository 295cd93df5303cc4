// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"

	"github.com/dynamig/dynamig/pkg/nvml"
)

var _ nvml.Driver = (*Driver)(nil)

// DriverVersion implements nvml.Driver.
func (d *Driver) DriverVersion() (string, error) {
	version := ""
	err := d.call(CallDriverVersion, "", func(s *State, _ *GPU, _ Fault) error {
		version = s.DriverVersion
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("reading driver version: %w", err)
	}
	return version, nil
}

// GPUs implements nvml.Driver. A lost GPU stays listed: these facts are cached
// in the driver, only a call that names it finds out.
func (d *Driver) GPUs(skip func(nvml.GPUID, int) bool) ([]nvml.GPU, error) {
	var gpus []nvml.GPU
	err := d.call(CallGPUs, "", func(s *State, _ *GPU, _ Fault) error {
		for i := range s.GPUs {
			gpu := s.GPUs[i].facts()
			if skip != nil && skip(gpu.ID, gpu.Index) {
				gpu = nvml.GPU{ID: gpu.ID, Index: gpu.Index}
			}
			gpus = append(gpus, gpu)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing GPUs: %w", err)
	}
	return gpus, nil
}

func (g *GPU) facts() nvml.GPU {
	return nvml.GPU{
		ID:           g.UUID,
		Index:        g.Index,
		Minor:        g.Minor,
		Name:         g.Name,
		Architecture: g.Architecture,
		PCIBusID:     g.PCIBusID,
		PCIDeviceID:  g.PCIDeviceID,
		PCISubsystem: g.PCISubsystem,
		VGPU:         g.VGPU,
		MemoryMiB:    g.MemoryMiB,
		NUMANode:     g.NUMANode,
		MIGCapable:   g.Model != "",
	}
}

// Profiles implements nvml.Driver.
func (d *Driver) Profiles(id nvml.GPUID) ([]nvml.Profile, error) {
	var profiles []nvml.Profile
	err := d.call(CallProfiles, id, func(s *State, g *GPU, _ Fault) error {
		if g.Model == "" {
			return g.notCapable()
		}
		for _, p := range s.Models[g.Model].Profiles {
			profiles = append(profiles, g.reported(p))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing profiles of %s: %w", id, err)
	}
	return profiles, nil
}

// reported is p as NVML shows it on this GPU with this driver.
func (g *GPU) reported(p Profile) nvml.Profile {
	memory := p.MemoryMiB
	if other, ok := g.ProfileMemoryMiB[p.ID]; ok {
		memory = other
	}
	return nvml.Profile{
		ID:            p.ID,
		Name:          p.Name,
		MemoryMiB:     memory,
		SMs:           p.SMs,
		ComputeSlices: p.ComputeSlices,
		Size:          p.Size,
		Starts:        slices.Clone(p.Starts),
		Max:           p.ReportedMax,
		Enum:          p.Enum,
		Engines:       p.Engines,
	}
}

// MIGMode implements nvml.Driver.
func (d *Driver) MIGMode(id nvml.GPUID) (nvml.MIGMode, error) {
	var mode nvml.MIGMode
	err := d.call(CallMIGMode, id, func(_ *State, g *GPU, _ Fault) error {
		if g.Model == "" {
			return g.notCapable()
		}
		mode = nvml.MIGMode{Current: g.Current, Pending: g.Pending}
		return nil
	})
	if err != nil {
		return nvml.MIGMode{}, fmt.Errorf("reading MIG mode of %s: %w", id, err)
	}
	return mode, nil
}

// SetMIGMode implements nvml.Driver.
func (d *Driver) SetMIGMode(id nvml.GPUID, on bool) error {
	err := d.call(CallSetMIGMode, id, func(_ *State, g *GPU, _ Fault) error { return g.setMode(on) })
	if err != nil {
		return fmt.Errorf("turning MIG mode %s on %s: %w", onOff(on), id, err)
	}
	return nil
}

// Instances implements nvml.Driver.
func (d *Driver) Instances(id nvml.GPUID) ([]nvml.Instance, error) {
	var instances []nvml.Instance
	err := d.call(CallInstances, id, func(_ *State, g *GPU, _ Fault) error {
		if g.Model == "" {
			return g.notCapable()
		}
		instances = g.list(func(Instance) bool { return true })
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing instances of %s: %w", id, err)
	}
	return instances, nil
}

// InstancesOf lists the instances of one profile, as the library's own call does.
// It counts as CallInstances.
func (d *Driver) InstancesOf(id nvml.GPUID, profile nvml.ProfileID) ([]nvml.Instance, error) {
	var instances []nvml.Instance
	err := d.call(CallInstances, id, func(_ *State, g *GPU, _ Fault) error {
		if err := g.checkMIG(); err != nil {
			return err
		}
		instances = g.list(func(in Instance) bool { return in.Profile == profile })
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing instances of profile %d of %s: %w", profile, id, err)
	}
	return instances, nil
}

// CreateGPUInstance implements nvml.Driver.
func (d *Driver) CreateGPUInstance(id nvml.GPUID, profile nvml.ProfileID, start int) (nvml.Instance, error) {
	var created nvml.Instance
	err := d.call(CallCreateGPUInstance, id, func(s *State, g *GPU, _ Fault) error {
		in, err := g.createGPUInstance(s.Models[g.Model], profile, start)
		if err != nil {
			return err
		}
		created = g.live(*in)
		return nil
	})
	if err != nil {
		return nvml.Instance{}, fmt.Errorf("creating GPU instance of profile %d at %d on %s: %w", profile, start, id, err)
	}
	return created, nil
}

// CreateComputeInstance implements nvml.Driver.
func (d *Driver) CreateComputeInstance(id nvml.GPUID, gi int) (nvml.Instance, error) {
	var created nvml.Instance
	err := d.call(CallCreateComputeInstance, id, func(s *State, g *GPU, _ Fault) error {
		in, err := s.createComputeInstance(g, gi)
		if err != nil {
			return err
		}
		created = g.live(*in)
		return nil
	})
	if err != nil {
		return nvml.Instance{}, fmt.Errorf("creating compute instance in GPU instance %d on %s: %w", gi, id, err)
	}
	return created, nil
}

// DestroyComputeInstance implements nvml.Driver.
func (d *Driver) DestroyComputeInstance(id nvml.GPUID, gi, ci int) error {
	err := d.call(CallDestroyComputeInstance, id, func(_ *State, g *GPU, _ Fault) error {
		return g.destroyComputeInstance(gi, ci)
	})
	if err != nil {
		return fmt.Errorf("destroying compute instance %d of GPU instance %d on %s: %w", ci, gi, id, err)
	}
	return nil
}

// DestroyGPUInstance implements nvml.Driver.
func (d *Driver) DestroyGPUInstance(id nvml.GPUID, gi int) error {
	err := d.call(CallDestroyGPUInstance, id, func(_ *State, g *GPU, f Fault) error {
		return g.destroyGPUInstance(gi, f.Linger)
	})
	if err != nil {
		return fmt.Errorf("destroying GPU instance %d on %s: %w", gi, id, err)
	}
	return nil
}

// Processes implements nvml.Driver.
func (d *Driver) Processes(id nvml.GPUID, gi int) ([]nvml.Process, error) {
	var processes []nvml.Process
	err := d.call(CallProcesses, id, func(_ *State, g *GPU, _ Fault) error {
		if err := g.checkListed(gi); err != nil {
			return err
		}
		for _, h := range g.Holders {
			if (h.GI == gi || gi == WholeGPU) && h.PID != 0 {
				processes = append(processes, nvml.Process{PID: h.PID, MemoryMiB: h.MemoryMiB})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing processes of GPU instance %d on %s: %w", gi, id, err)
	}
	return processes, nil
}

// computeSlices by enum of compute instance profiles (nvml.h:
// NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE to _1_SLICE_REV1).
var computeSlices = []int{1, 2, 3, 4, 7, 8, 6, 1}

// ComputeProfiles lists what an instance of the profile offers. The simulation makes
// spanning compute instances only. Their ids are other numbers than their enums.
func (p Profile) ComputeProfiles() []nvml.ComputeProfile {
	var out []nvml.ComputeProfile
	for enum, n := range computeSlices {
		if n <= p.ComputeSlices {
			out = append(out, nvml.ComputeProfile{
				ID: 100 + enum, Enum: enum, ComputeSlices: n, SMs: p.SMs * n / p.ComputeSlices, Max: p.ComputeSlices / n,
			})
		}
	}
	return out
}

// ComputeProfiles implements nvml.Driver.
func (d *Driver) ComputeProfiles(id nvml.GPUID, gi int) ([]nvml.ComputeProfile, error) {
	var profiles []nvml.ComputeProfile
	err := d.call(CallComputeProfiles, id, func(s *State, g *GPU, _ Fault) error {
		if err := g.checkMIG(); err != nil {
			return err
		}
		in, err := g.instance(gi)
		if err != nil {
			return err
		}
		for _, p := range s.Models[g.Model].Profiles {
			if p.ID == in.Profile {
				profiles = p.ComputeProfiles()
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing compute profiles of GPU instance %d on %s: %w", gi, id, err)
	}
	return profiles, nil
}

// checkListed says whether there can be processes of GPU instance gi.
func (g *GPU) checkListed(gi int) error {
	if gi == WholeGPU {
		return nil
	}
	if err := g.checkMIG(); err != nil {
		return err
	}
	_, err := g.instance(gi)
	return err
}

// Close implements nvml.Driver. Every call after it gives ErrUninitialized.
func (d *Driver) Close() error {
	d.closed.Store(true)
	return nil
}
