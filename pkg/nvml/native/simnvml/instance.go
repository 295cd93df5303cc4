// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package simnvml

import (
	"slices"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

var (
	_ lib.GpuInstance     = (*gpuInstance)(nil)
	_ lib.ComputeInstance = (*computeInstance)(nil)
)

// gpuInstance is a handle of a GPU instance.
type gpuInstance struct {
	*mock.GpuInstance
	device     *device
	id         int
	generation int
	listed     *sim.Instance // as a listing showed it, after which it may be gone
}

// handle returns a handle of GPU instance id that is good from now on.
func (d *device) handle(id int) *gpuInstance {
	d.library.mu.Lock()
	defer d.library.mu.Unlock()
	return &gpuInstance{GpuInstance: &mock.GpuInstance{}, device: d, id: id, generation: d.library.gpu(d.facts.ID).instances[id]}
}

// outdate makes the handles of GPU instance id stale.
func (d *device) outdate(id int) {
	d.library.mu.Lock()
	defer d.library.mu.Unlock()
	d.library.gpu(d.facts.ID).instances[id]++
}

// look begins a call on the handle: INVALID_ARGUMENT when the instance that it was
// given for is gone.
func (gi *gpuInstance) look(call string) (sim.Instance, sim.Model, lib.Return) {
	g, model, ret := gi.device.look(call)
	if ret != lib.SUCCESS {
		return sim.Instance{}, model, ret
	}
	i := slices.IndexFunc(g.Instances, func(in sim.Instance) bool { return in.GI == gi.id })
	gi.device.library.mu.Lock()
	stale := gi.device.library.gpu(gi.device.facts.ID).instances[gi.id] != gi.generation
	gi.device.library.mu.Unlock()
	if i < 0 || stale {
		return sim.Instance{}, model, lib.ERROR_INVALID_ARGUMENT
	}
	return g.Instances[i], model, lib.SUCCESS
}

// CreateGpuInstance implements nvml.Device: the driver would choose the place.
func (d *device) CreateGpuInstance(*lib.GpuInstanceProfileInfo) (lib.GpuInstance, lib.Return) {
	panic("CreateGpuInstance lets the driver choose the place, which nothing of ours may do")
}

// CreateGpuInstanceWithPlacement implements nvml.Device: by reported id.
func (d *device) CreateGpuInstanceWithPlacement(info *lib.GpuInstanceProfileInfo, at *lib.GpuInstancePlacement) (lib.GpuInstance, lib.Return) {
	_, model, ret := d.look("CreateGpuInstanceWithPlacement")
	if ret != lib.SUCCESS {
		return nil, ret
	}
	if p, ok := profileOf(model, info.Id); ok && int(at.Size) != p.Size {
		return nil, lib.ERROR_INVALID_ARGUMENT
	}
	in, err := d.library.Driver().CreateGPUInstance(d.facts.ID, nvml.ProfileID(info.Id), int(int32(at.Start)))
	if err != nil {
		return nil, code(err)
	}
	return d.handle(in.GI), lib.SUCCESS
}

// GetGpuInstances implements nvml.Device: those of one profile, by reported id, as
// many as InstanceCount has room for.
func (d *device) GetGpuInstances(info *lib.GpuInstanceProfileInfo) ([]lib.GpuInstance, lib.Return) {
	driver, ret := d.enter("GetGpuInstances")
	if ret != lib.SUCCESS {
		return nil, ret
	}
	instances, err := driver.InstancesOf(d.facts.ID, nvml.ProfileID(info.Id))
	if err != nil {
		return nil, code(err)
	}
	if len(instances) > int(info.InstanceCount) {
		return nil, lib.ERROR_INSUFFICIENT_SIZE
	}
	var handles []lib.GpuInstance
	for _, in := range instances {
		handle := d.handle(in.GI)
		handle.listed = &sim.Instance{Profile: in.Profile, Start: in.Start, GI: in.GI}
		handles = append(handles, handle)
	}
	return handles, lib.SUCCESS
}

// GetGpuInstanceById implements nvml.Device.
func (d *device) GetGpuInstanceById(id int) (lib.GpuInstance, lib.Return) {
	g, _, ret := d.look("GetGpuInstanceById")
	switch {
	case ret != lib.SUCCESS:
		return nil, ret
	case !g.Current:
		return nil, lib.ERROR_NOT_SUPPORTED
	case !slices.ContainsFunc(g.Instances, func(in sim.Instance) bool { return in.GI == id }):
		return nil, lib.ERROR_NOT_FOUND
	}
	return d.handle(id), lib.SUCCESS
}

// GetInfo implements nvml.GpuInstance. What a listing has shown for the last time
// after its destruction can still be read.
func (gi *gpuInstance) GetInfo() (lib.GpuInstanceInfo, lib.Return) {
	in, model, ret := gi.look("GpuInstance.GetInfo")
	if ret == lib.ERROR_INVALID_ARGUMENT && gi.listed != nil && model.Profiles != nil {
		in, ret = *gi.listed, lib.SUCCESS
	}
	p, _ := profileOf(model, uint32(in.Profile))
	return lib.GpuInstanceInfo{
		Device: gi.device, Id: uint32(in.GI), ProfileId: uint32(in.Profile),
		Placement: lib.GpuInstancePlacement{Start: uint32(in.Start), Size: uint32(p.Size)},
	}, ret
}

// Destroy implements nvml.GpuInstance.
func (gi *gpuInstance) Destroy() lib.Return {
	if _, _, ret := gi.look("GpuInstance.Destroy"); ret != lib.SUCCESS {
		return ret
	}
	err := gi.device.library.Driver().DestroyGPUInstance(gi.device.facts.ID, gi.id)
	if err == nil {
		gi.device.outdate(gi.id)
	}
	return code(err)
}

// GetComputeInstanceProfileInfo implements nvml.GpuInstance: by enum; those that do
// not fit are NOT_SUPPORTED.
func (gi *gpuInstance) GetComputeInstanceProfileInfo(enum, engine int) (lib.ComputeInstanceProfileInfo, lib.Return) {
	in, model, ret := gi.look("GetComputeInstanceProfileInfo")
	p, _ := profileOf(model, uint32(in.Profile))
	switch {
	case ret != lib.SUCCESS:
		return lib.ComputeInstanceProfileInfo{}, ret
	case enum < 0 || enum >= lib.COMPUTE_INSTANCE_PROFILE_7_SLICE_NVL || engine != lib.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED:
		return lib.ComputeInstanceProfileInfo{}, lib.ERROR_INVALID_ARGUMENT
	}
	for _, c := range p.ComputeProfiles() {
		if c.Enum == enum {
			return lib.ComputeInstanceProfileInfo{
				Id: uint32(c.ID), SliceCount: uint32(c.ComputeSlices), InstanceCount: uint32(c.Max), MultiprocessorCount: uint32(c.SMs),
			}, lib.SUCCESS
		}
	}
	return lib.ComputeInstanceProfileInfo{}, lib.ERROR_NOT_SUPPORTED
}

// CreateComputeInstance implements nvml.GpuInstance. The simulation has spanning
// ones only.
func (gi *gpuInstance) CreateComputeInstance(info *lib.ComputeInstanceProfileInfo) (lib.ComputeInstance, lib.Return) {
	in, model, ret := gi.look("CreateComputeInstance")
	if ret != lib.SUCCESS {
		return nil, ret
	}
	p, _ := profileOf(model, uint32(in.Profile))
	known := slices.ContainsFunc(p.ComputeProfiles(), func(c nvml.ComputeProfile) bool { return c.ID == int(info.Id) })
	if !known || int(info.SliceCount) != p.ComputeSlices {
		return nil, lib.ERROR_INVALID_ARGUMENT
	}
	made, err := gi.device.library.Driver().CreateComputeInstance(gi.device.facts.ID, gi.id)
	if err != nil {
		return nil, code(err)
	}
	return &computeInstance{ComputeInstance: &mock.ComputeInstance{}, parent: gi, id: made.CI, uuid: made.UUID}, lib.SUCCESS
}

// GetComputeInstanceById implements nvml.GpuInstance.
func (gi *gpuInstance) GetComputeInstanceById(id int) (lib.ComputeInstance, lib.Return) {
	in, _, ret := gi.look("GetComputeInstanceById")
	if ret != lib.SUCCESS {
		return nil, ret
	}
	if in.CI == nvml.NoCI || in.CI != id {
		return nil, lib.ERROR_NOT_FOUND
	}
	return &computeInstance{ComputeInstance: &mock.ComputeInstance{}, parent: gi, id: id, uuid: in.UUID}, lib.SUCCESS
}

// computeInstance is a handle of a compute instance; the UUID tells it from later
// ones of the same id.
type computeInstance struct {
	*mock.ComputeInstance
	parent *gpuInstance
	id     int
	uuid   string
}

func (ci *computeInstance) look(call string) (sim.Instance, lib.Return) {
	in, _, ret := ci.parent.look(call)
	if ret == lib.SUCCESS && in.UUID != ci.uuid {
		return in, lib.ERROR_INVALID_ARGUMENT
	}
	return in, ret
}

// GetInfo implements nvml.ComputeInstance. The device is the parent.
func (ci *computeInstance) GetInfo() (lib.ComputeInstanceInfo, lib.Return) {
	in, ret := ci.look("ComputeInstance.GetInfo")
	return lib.ComputeInstanceInfo{Device: ci.parent.device, GpuInstance: ci.parent, Id: uint32(in.CI)}, ret
}

// Destroy implements nvml.ComputeInstance.
func (ci *computeInstance) Destroy() lib.Return {
	if _, ret := ci.look("ComputeInstance.Destroy"); ret != lib.SUCCESS {
		return ret
	}
	return code(ci.parent.device.library.Driver().DestroyComputeInstance(ci.parent.device.facts.ID, ci.parent.id, ci.id))
}
