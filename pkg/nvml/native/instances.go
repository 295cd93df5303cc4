// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Instances implements nvml.Driver (T4).
func (d *Driver) Instances(id nvml.GPUID) ([]nvml.Instance, error) {
	if err := d.begin(); err != nil {
		return nil, fmt.Errorf("listing instances of %s: %w", id, err)
	}
	defer d.end()
	b, err := d.withProfiles(id)
	if err != nil {
		return nil, fmt.Errorf("listing instances of %s: %w", id, err)
	}
	mode, err := d.mode(id)
	if err != nil || !mode.Current {
		return nil, err
	}
	var instances []nvml.Instance
	for _, p := range b.profiles {
		of, err := list(id, b.device, p)
		if err != nil {
			return nil, fmt.Errorf("listing instances of %s: %w", id, d.judge(id, err))
		}
		instances = append(instances, of...)
	}
	if len(instances) == 0 {
		return nil, nil
	}
	computes, err := walk(b.device)
	if err != nil {
		return nil, fmt.Errorf("listing instances of %s: %w", id, d.judge(id, err))
	}
	for i := range instances {
		in := &instances[i]
		in.CI, in.UUID = computes.of(in.GI)
	}
	slices.SortFunc(instances, func(x, y nvml.Instance) int { return cmp.Compare(x.Start, y.Start) })
	return instances, nil
}

// list lists the GPU instances of one profile.
func list(id nvml.GPUID, device lib.Device, p profile) ([]nvml.Instance, error) {
	info := p.info
	info.InstanceCount = uint32(max(int(info.InstanceCount), len(p.Starts))) // the size of the buffer
	handles, ret := device.GetGpuInstances(&info)
	if err := check(ret, "listing GPU instances of profile %s", p.Name); err != nil {
		return nil, err
	}
	var instances []nvml.Instance
	for _, gi := range handles {
		in, err := read(id, gi)
		if errors.Is(err, nvml.ErrNotFound) || errors.Is(err, nvml.ErrInvalidArgument) {
			continue // destroyed meanwhile
		}
		if err != nil {
			return nil, err
		}
		instances = append(instances, in)
	}
	return instances, nil
}

// read reads a GPU instance, without compute instances.
func read(id nvml.GPUID, gi lib.GpuInstance) (nvml.Instance, error) {
	info, ret := gi.GetInfo()
	if err := check(ret, "reading a GPU instance of %s", id); err != nil {
		return nvml.Instance{}, err
	}
	return nvml.Instance{
		GPU: id, Profile: nvml.ProfileID(info.ProfileId), Start: int(info.Placement.Start), GI: int(info.Id), CI: nvml.NoCI,
	}, nil
}

// compute is a compute instance, which a MIG handle stands for.
type compute struct {
	gi, ci int
	uuid   string
	spans  bool // it has all compute slices of its GPU instance
}

type computes []compute

// of returns the compute instance of a GPU instance. It has a UUID only if it is
// the only one and spans the GPU instance: nothing else is whole.
func (all computes) of(gi int) (ci int, uuid string) {
	ci = nvml.NoCI
	for _, c := range all {
		switch {
		case c.gi != gi:
		case ci != nvml.NoCI:
			return min(ci, c.ci), ""
		case c.spans:
			ci, uuid = c.ci, c.uuid
		default:
			ci = c.ci
		}
	}
	return ci, uuid
}

// walk lists the compute instances of a GPU by its MIG handles (T5).
func walk(device lib.Device) (computes, error) {
	count, ret := device.GetMaxMigDeviceCount()
	if err := check(ret, "counting MIG devices"); err != nil {
		return nil, err
	}
	var all computes
	for i := range count {
		handle, ret := device.GetMigDeviceHandleByIndex(i)
		if ret == lib.ERROR_NOT_FOUND {
			continue
		}
		if err := check(ret, "opening MIG device %d", i); err != nil {
			return nil, err
		}
		c, err := identify(handle)
		if errors.Is(err, nvml.ErrNotFound) || errors.Is(err, nvml.ErrInvalidArgument) {
			continue // destroyed meanwhile, or a handle that an old driver should not have given
		}
		if err != nil {
			return nil, fmt.Errorf("reading MIG device %d: %w", i, err)
		}
		all = append(all, c)
	}
	return all, nil
}

func identify(handle lib.Device) (compute, error) {
	gi, ret := handle.GetGpuInstanceId()
	if err := check(ret, "reading the GPU instance id"); err != nil {
		return compute{}, err
	}
	ci, ret := handle.GetComputeInstanceId()
	if err := check(ret, "reading the compute instance id"); err != nil {
		return compute{}, err
	}
	uuid, ret := handle.GetUUID()
	if err := check(ret, "reading the UUID"); err != nil {
		return compute{}, err
	}
	attributes, ret := handle.GetAttributes()
	if ret == lib.ERROR_NOT_SUPPORTED { // both counts are 0, and nothing speaks against it
		ret = lib.SUCCESS
	}
	if err := check(ret, "reading attributes"); err != nil {
		return compute{}, err
	}
	return compute{gi: gi, ci: ci, uuid: uuid, spans: attributes.ComputeInstanceSliceCount == attributes.GpuInstanceSliceCount}, nil
}

// CreateGPUInstance implements nvml.Driver (T8).
func (d *Driver) CreateGPUInstance(id nvml.GPUID, profile nvml.ProfileID, start int) (nvml.Instance, error) {
	what := fmt.Sprintf("creating GPU instance of profile %d at %d on %s", profile, start, id)
	if err := d.begin(); err != nil {
		return nvml.Instance{}, fmt.Errorf("%s: %w", what, err)
	}
	defer d.end()
	b, err := d.withProfiles(id)
	if err != nil {
		return nvml.Instance{}, fmt.Errorf("%s: %w", what, err)
	}
	p, ok := b.profile(profile)
	if !ok || !slices.Contains(p.Starts, start) {
		return nvml.Instance{}, fmt.Errorf("%s: the GPU has no such placement: %w", what, nvml.ErrInvalidArgument)
	}
	at := lib.GpuInstancePlacement{Start: uint32(start), Size: uint32(p.Size)}
	gi, ret := b.device.CreateGpuInstanceWithPlacement(&p.info, &at)
	if err := check(ret, "%s", what); err != nil {
		return nvml.Instance{}, d.judge(id, err)
	}
	in, err := read(id, gi)
	if err == nil && (in.Profile != profile || in.Start != start) {
		err = fmt.Errorf("the driver made profile %d at %d: %w", in.Profile, in.Start, nvml.ErrUnknown)
	}
	if err != nil {
		return nvml.Instance{}, errors.Join(fmt.Errorf("%s: %w", what, err), check(gi.Destroy(), "undoing it"))
	}
	return in, nil
}

// CreateComputeInstance implements nvml.Driver.
func (d *Driver) CreateComputeInstance(id nvml.GPUID, gi int) (nvml.Instance, error) {
	in, err := d.createCompute(id, gi)
	if err != nil {
		return nvml.Instance{}, fmt.Errorf("creating compute instance in GPU instance %d on %s: %w", gi, id, d.judge(id, err))
	}
	return in, nil
}

func (d *Driver) createCompute(id nvml.GPUID, gi int) (nvml.Instance, error) {
	if err := d.begin(); err != nil {
		return nvml.Instance{}, err
	}
	defer d.end()
	b, err := d.withProfiles(id)
	if err != nil {
		return nvml.Instance{}, err
	}
	handle, ret := b.device.GetGpuInstanceById(gi)
	if err := check(ret, "finding the GPU instance"); err != nil {
		return nvml.Instance{}, err
	}
	in, err := read(id, handle)
	if err != nil {
		return nvml.Instance{}, err
	}
	info, err := b.spanning(handle, in.Profile)
	if err != nil {
		return nvml.Instance{}, err
	}
	made, ret := handle.CreateComputeInstance(&info)
	if err := check(ret, "creating"); err != nil {
		return nvml.Instance{}, err
	}
	about, ret := made.GetInfo()
	if err := check(ret, "reading it back"); err != nil {
		return nvml.Instance{}, err
	}
	all, err := walk(b.device)
	if err != nil {
		return nvml.Instance{}, err
	}
	i := slices.IndexFunc(all, func(c compute) bool { return c.gi == gi && c.ci == int(about.Id) })
	if i < 0 {
		return nvml.Instance{}, fmt.Errorf("compute instance %d was created, and no MIG device has its ids: %w", about.Id, nvml.ErrInvalidState)
	}
	in.CI, in.UUID = all[i].ci, all[i].uuid
	return in, nil
}

// spanning returns the compute instance profile that has all compute slices of a
// GPU instance: of several the one with the lowest enum, which is the plain one.
func (b board) spanning(gi lib.GpuInstance, id nvml.ProfileID) (lib.ComputeInstanceProfileInfo, error) {
	p, ok := b.profile(id)
	if !ok {
		return lib.ComputeInstanceProfileInfo{}, fmt.Errorf("the GPU does not list profile %d: %w", id, nvml.ErrInvalidArgument)
	}
	var spanning lib.ComputeInstanceProfileInfo
	found := false
	err := eachComputeProfile(gi, func(_ int, info lib.ComputeInstanceProfileInfo) bool {
		spanning, found = info, int(info.SliceCount) == p.ComputeSlices
		return !found
	})
	switch {
	case err != nil:
		return lib.ComputeInstanceProfileInfo{}, err
	case !found:
		return lib.ComputeInstanceProfileInfo{}, fmt.Errorf("profile %s offers no compute instance of %d slices: %w", p.Name, p.ComputeSlices, nvml.ErrNotSupported)
	}
	return spanning, nil
}

// eachComputeProfile calls f for each compute instance profile that a GPU instance
// offers, by enum, until f returns false.
func eachComputeProfile(gi lib.GpuInstance, f func(enum int, info lib.ComputeInstanceProfileInfo) bool) error {
	for enum := range maxEnum {
		info, ret := gi.GetComputeInstanceProfileInfo(enum, lib.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if ret == lib.ERROR_INVALID_ARGUMENT && enum > 0 {
			return nil
		}
		if ret == lib.ERROR_NOT_SUPPORTED {
			continue
		}
		if err := check(ret, "reading compute profile with enum %d", enum); err != nil {
			return err
		}
		if !f(enum, info) {
			return nil
		}
	}
	return nil
}

// ComputeProfiles implements nvml.Driver.
func (d *Driver) ComputeProfiles(id nvml.GPUID, gi int) ([]nvml.ComputeProfile, error) {
	what := fmt.Sprintf("listing compute profiles of GPU instance %d on %s", gi, id)
	if err := d.begin(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer d.end()
	handle, err := d.instance(id, gi)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	var profiles []nvml.ComputeProfile
	err = eachComputeProfile(handle, func(enum int, info lib.ComputeInstanceProfileInfo) bool {
		profiles = append(profiles, nvml.ComputeProfile{
			ID: int(info.Id), Enum: enum, ComputeSlices: int(info.SliceCount), SMs: int(info.MultiprocessorCount), Max: int(info.InstanceCount),
		})
		return true
	})
	if err != nil {
		return nil, d.judge(id, fmt.Errorf("%s: %w", what, err))
	}
	return profiles, nil
}

// DestroyComputeInstance implements nvml.Driver.
func (d *Driver) DestroyComputeInstance(id nvml.GPUID, gi, ci int) error {
	what := fmt.Sprintf("destroying compute instance %d of GPU instance %d on %s", ci, gi, id)
	if err := d.begin(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer d.end()
	handle, err := d.instance(id, gi)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	compute, ret := handle.GetComputeInstanceById(ci)
	if err := check(ret, "%s", what); err != nil {
		return d.judge(id, err)
	}
	return d.judge(id, check(compute.Destroy(), "%s", what))
}

// DestroyGPUInstance implements nvml.Driver.
func (d *Driver) DestroyGPUInstance(id nvml.GPUID, gi int) error {
	what := fmt.Sprintf("destroying GPU instance %d on %s", gi, id)
	if err := d.begin(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer d.end()
	handle, err := d.instance(id, gi)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return d.judge(id, check(handle.Destroy(), "%s", what))
}

// instance looks a GPU instance up, each time anew (T6).
func (d *Driver) instance(id nvml.GPUID, gi int) (lib.GpuInstance, error) {
	b, err := d.gpu(id)
	if err != nil {
		return nil, err
	}
	handle, ret := b.device.GetGpuInstanceById(gi)
	return handle, d.judge(id, check(ret, "finding GPU instance %d", gi))
}

// unknown is the library's id of an instance that it does not know or mean.
const unknown = math.MaxUint32

// Processes implements nvml.Driver (T9). With WholeGPU graphics clients count, too:
// they keep a GPU from being reset.
func (d *Driver) Processes(id nvml.GPUID, gi int) ([]nvml.Process, error) {
	what := fmt.Sprintf("listing processes of GPU instance %d on %s", gi, id)
	if gi == nvml.WholeGPU {
		what = fmt.Sprintf("listing processes of %s", id)
	}
	if err := d.begin(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer d.end()
	if gi != nvml.WholeGPU {
		if _, err := d.instance(id, gi); err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
	}
	b, err := d.gpu(id)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	clients, ret := b.device.GetComputeRunningProcesses()
	if err := check(ret, "%s", what); err != nil {
		return nil, d.judge(id, err)
	}
	if gi == nvml.WholeGPU {
		graphics, ret := b.device.GetGraphicsRunningProcesses()
		if ret != lib.ERROR_NOT_SUPPORTED {
			if err := check(ret, "%s", what); err != nil {
				return nil, d.judge(id, err)
			}
		}
		clients = append(clients, graphics...)
	}
	var processes []nvml.Process
	for _, c := range clients {
		if gi != nvml.WholeGPU && c.GpuInstanceId != uint32(gi) && c.GpuInstanceId != unknown {
			continue
		}
		process := nvml.Process{PID: int(c.Pid)}
		if c.UsedGpuMemory != math.MaxUint64 { // not available
			process.MemoryMiB = int(c.UsedGpuMemory >> 20)
		}
		if !slices.ContainsFunc(processes, func(p nvml.Process) bool { return p.PID == process.PID }) {
			processes = append(processes, process)
		}
	}
	return processes, nil
}
