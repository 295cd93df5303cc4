// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package simnvml

import (
	"slices"
	"strconv"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

var _ lib.Device = (*device)(nil)

// device is a handle of a GPU.
type device struct {
	*mock.Device
	library    *Library
	facts      nvml.GPU
	generation int
}

// enter begins a call on the handle: INVALID_ARGUMENT when it is stale.
func (d *device) enter(call string) (*sim.Driver, lib.Return) {
	driver, ret := d.library.enter(call)
	if ret != lib.SUCCESS {
		return nil, ret
	}
	d.library.mu.Lock()
	defer d.library.mu.Unlock()
	if d.library.gpu(d.facts.ID).handles != d.generation {
		return nil, lib.ERROR_INVALID_ARGUMENT
	}
	return driver, lib.SUCCESS
}

// look is enter with the GPU's state. A lost GPU is GPU_IS_LOST.
func (d *device) look(call string) (sim.GPU, sim.Model, lib.Return) {
	driver, ret := d.enter(call)
	if ret != lib.SUCCESS {
		return sim.GPU{}, sim.Model{}, ret
	}
	s, err := driver.Dump()
	if err != nil {
		return sim.GPU{}, sim.Model{}, code(err)
	}
	g := s.GPUs[d.facts.Index]
	if g.Lost {
		return g, sim.Model{}, lib.ERROR_GPU_IS_LOST
	}
	return g, s.Models[g.Model], lib.SUCCESS
}

// GetUUID implements nvml.Device. It is known without asking the GPU.
func (d *device) GetUUID() (string, lib.Return) {
	_, ret := d.enter("GetUUID")
	return string(d.facts.ID), ret
}

// GetIndex implements nvml.Device.
func (d *device) GetIndex() (int, lib.Return) {
	_, ret := d.enter("GetIndex")
	return d.facts.Index, ret
}

// GetMinorNumber implements nvml.Device.
func (d *device) GetMinorNumber() (int, lib.Return) {
	_, ret := d.enter("GetMinorNumber")
	return d.facts.Minor, ret
}

// GetName implements nvml.Device.
func (d *device) GetName() (string, lib.Return) {
	_, ret := d.enter("GetName")
	return d.facts.Name, ret
}

// GetMemoryInfo implements nvml.Device.
func (d *device) GetMemoryInfo() (lib.Memory, lib.Return) {
	_, ret := d.enter("GetMemoryInfo")
	return lib.Memory{Total: uint64(d.facts.MemoryMiB) << 20}, ret
}

// GetPciInfo implements nvml.Device.
func (d *device) GetPciInfo() (lib.PciInfo, lib.Return) {
	_, ret := d.enter("GetPciInfo")
	var info lib.PciInfo
	for i, c := range []byte(d.facts.PCIBusID) {
		info.BusId[i] = int8(c)
	}
	info.PciDeviceId, info.PciSubSystemId = pciID(d.facts.PCIDeviceID), pciID(d.facts.PCISubsystem)
	return info, ret
}

func pciID(text string) uint32 {
	if text == "" {
		return 0
	}
	id, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		panic(err)
	}
	return uint32(id)
}

// GetVirtualizationMode implements nvml.Device.
func (d *device) GetVirtualizationMode() (lib.GpuVirtualizationMode, lib.Return) {
	_, ret := d.enter("GetVirtualizationMode")
	if d.facts.VGPU {
		return lib.GPU_VIRTUALIZATION_MODE_VGPU, ret
	}
	return lib.GPU_VIRTUALIZATION_MODE_NONE, ret
}

var architectures = map[nvml.Architecture]lib.DeviceArchitecture{
	nvml.Ampere: lib.DEVICE_ARCH_AMPERE, nvml.Hopper: lib.DEVICE_ARCH_HOPPER, nvml.Blackwell: lib.DEVICE_ARCH_BLACKWELL,
}

// GetArchitecture implements nvml.Device. What the simulation does not know of is
// a Turing.
func (d *device) GetArchitecture() (lib.DeviceArchitecture, lib.Return) {
	_, ret := d.enter("GetArchitecture")
	if architecture, ok := architectures[d.facts.Architecture]; ok {
		return architecture, ret
	}
	return lib.DEVICE_ARCH_TURING, ret
}

// GetMigMode implements nvml.Device.
func (d *device) GetMigMode() (current, pending int, ret lib.Return) {
	driver, ret := d.enter("GetMigMode")
	if ret != lib.SUCCESS {
		return 0, 0, ret
	}
	mode, err := driver.MIGMode(d.facts.ID)
	return number(mode.Current), number(mode.Pending), code(err)
}

func number(on bool) int {
	if on {
		return lib.DEVICE_MIG_ENABLE
	}
	return lib.DEVICE_MIG_DISABLE
}

// SetMigMode implements nvml.Device: the activation status comes first.
func (d *device) SetMigMode(mode int) (activation, ret lib.Return) {
	driver, ret := d.enter("SetMigMode")
	if ret != lib.SUCCESS {
		return lib.SUCCESS, ret
	}
	if mode != lib.DEVICE_MIG_ENABLE && mode != lib.DEVICE_MIG_DISABLE {
		return lib.SUCCESS, lib.ERROR_INVALID_ARGUMENT
	}
	switch ret := code(driver.SetMIGMode(d.facts.ID, mode == lib.DEVICE_MIG_ENABLE)); ret {
	case lib.SUCCESS:
		d.library.Stale(d.facts.ID)
		return lib.SUCCESS, lib.SUCCESS
	case lib.ERROR_RESET_REQUIRED, lib.ERROR_IN_USE:
		return ret, lib.SUCCESS
	default:
		return lib.SUCCESS, ret
	}
}

// enums that this library knows: 0 to 17.
const enums = lib.GPU_INSTANCE_PROFILE_COUNT

// GetGpuInstanceProfileInfo implements nvml.Device: by enum. It works with MIG off.
func (d *device) GetGpuInstanceProfileInfo(enum int) (lib.GpuInstanceProfileInfo, lib.Return) {
	p, ret := d.profile("GetGpuInstanceProfileInfo", enum)
	if ret != lib.SUCCESS {
		return lib.GpuInstanceProfileInfo{}, ret
	}
	return lib.GpuInstanceProfileInfo{
		Id: uint32(p.ID), SliceCount: uint32(p.ComputeSlices), InstanceCount: uint32(p.ReportedMax),
		MultiprocessorCount: uint32(p.SMs), MemorySizeMB: uint64(p.MemoryMiB),
		CopyEngineCount: uint32(p.Engines.Copy), DecoderCount: uint32(p.Engines.Decoder), EncoderCount: uint32(p.Engines.Encoder),
		JpegCount: uint32(p.Engines.JPEG), OfaCount: uint32(p.Engines.OFA),
	}, lib.SUCCESS
}

// GpuInstanceProfileInfoV3 is what GetGpuInstanceProfileInfoV(enum).V3() is in go-nvml,
// whose type nobody else can make.
func (d *device) GpuInstanceProfileInfoV3(enum int) (lib.GpuInstanceProfileInfo_v3, lib.Return) {
	p, ret := d.profile("GetGpuInstanceProfileInfoV3", enum)
	info := lib.GpuInstanceProfileInfo_v3{Id: uint32(p.ID)}
	write(info.Name[:], "MIG "+p.Name)
	return info, ret
}

// GpuInstanceProfileInfoV2 is the same of V2().
func (d *device) GpuInstanceProfileInfoV2(enum int) (lib.GpuInstanceProfileInfo_v2, lib.Return) {
	p, ret := d.profile("GetGpuInstanceProfileInfoV2", enum)
	info := lib.GpuInstanceProfileInfo_v2{Id: uint32(p.ID)}
	write(info.Name[:], p.Name)
	return info, ret
}

func write(to []int8, text string) {
	for i, c := range []byte(text) {
		to[i] = int8(c)
	}
}

// profile finds a profile by enum, with the memory that this driver reports.
func (d *device) profile(call string, enum int) (sim.Profile, lib.Return) {
	g, model, ret := d.look(call)
	if ret != lib.SUCCESS {
		return sim.Profile{}, ret
	}
	if enum < 0 || enum >= enums {
		return sim.Profile{}, lib.ERROR_INVALID_ARGUMENT
	}
	i := slices.IndexFunc(model.Profiles, func(p sim.Profile) bool { return p.Enum == enum })
	if i < 0 {
		return sim.Profile{}, lib.ERROR_NOT_SUPPORTED
	}
	p := model.Profiles[i]
	if memory, ok := g.ProfileMemoryMiB[p.ID]; ok {
		p.MemoryMiB = memory
	}
	return p, lib.SUCCESS
}

// profileOf finds a profile by reported id.
func profileOf(model sim.Model, id uint32) (sim.Profile, bool) {
	i := slices.IndexFunc(model.Profiles, func(p sim.Profile) bool { return uint32(p.ID) == id })
	if i < 0 {
		return sim.Profile{}, false
	}
	return model.Profiles[i], true
}

// GetGpuInstancePossiblePlacements implements nvml.Device: by reported id, and not
// in order.
func (d *device) GetGpuInstancePossiblePlacements(info *lib.GpuInstanceProfileInfo) ([]lib.GpuInstancePlacement, lib.Return) {
	_, model, ret := d.look("GetGpuInstancePossiblePlacements")
	if ret != lib.SUCCESS {
		return nil, ret
	}
	p, ok := profileOf(model, info.Id)
	if !ok {
		return nil, lib.ERROR_INVALID_ARGUMENT
	}
	var placements []lib.GpuInstancePlacement
	for _, start := range slices.Backward(p.Starts) {
		placements = append(placements, lib.GpuInstancePlacement{Start: uint32(start), Size: uint32(p.Size)})
	}
	return placements, lib.SUCCESS
}

// GetSupportedEventTypes implements nvml.Device.
func (d *device) GetSupportedEventTypes() (uint64, lib.Return) {
	_, _, ret := d.look("GetSupportedEventTypes")
	return lib.EventTypeXidCriticalError | lib.EventTypeSingleBitEccError | lib.EventTypeDoubleBitEccError, ret
}

// RegisterEvents implements nvml.Device.
func (d *device) RegisterEvents(types uint64, set lib.EventSet) lib.Return {
	driver, ret := d.enter("RegisterEvents")
	if ret != lib.SUCCESS {
		return ret
	}
	s, ok := set.(*eventSet)
	if !ok || types == 0 {
		return lib.ERROR_INVALID_ARGUMENT
	}
	events, err := driver.Events(d.facts.ID)
	if err == nil && types&lib.EventTypeXidCriticalError != 0 {
		s.streams = append(s.streams, stream{d, events})
	}
	return code(err)
}

// GetComputeRunningProcesses implements nvml.Device: those of all instances, with
// their ids.
func (d *device) GetComputeRunningProcesses() ([]lib.ProcessInfo, lib.Return) {
	driver, ret := d.enter("GetComputeRunningProcesses")
	if ret != lib.SUCCESS {
		return nil, ret
	}
	if _, err := driver.Processes(d.facts.ID, nvml.WholeGPU); err != nil {
		return nil, code(err)
	}
	s, err := driver.Dump()
	if err != nil {
		return nil, code(err)
	}
	var infos []lib.ProcessInfo
	for _, h := range s.GPUs[d.facts.Index].Holders {
		if h.PID == 0 {
			continue
		}
		info := lib.ProcessInfo{Pid: uint32(h.PID), UsedGpuMemory: uint64(h.MemoryMiB) << 20, GpuInstanceId: unknown, ComputeInstanceId: unknown}
		if h.GI != sim.WholeGPU {
			info.GpuInstanceId, info.ComputeInstanceId = uint32(h.GI), 0
		}
		infos = append(infos, info)
	}
	return infos, lib.SUCCESS
}

// GetGraphicsRunningProcesses implements nvml.Device: the simulation has none.
func (d *device) GetGraphicsRunningProcesses() ([]lib.ProcessInfo, lib.Return) {
	_, _, ret := d.look("GetGraphicsRunningProcesses")
	return nil, ret
}

// IsMigDeviceHandle implements nvml.Device.
func (d *device) IsMigDeviceHandle() (bool, lib.Return) {
	_, ret := d.enter("IsMigDeviceHandle")
	return false, ret
}

// unknown is the library's id of no instance.
const unknown = ^uint32(0)
