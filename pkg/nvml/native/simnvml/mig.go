// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package simnvml

import (
	"maps"
	"slices"
	"time"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

var (
	_ lib.Device   = (*migDevice)(nil)
	_ lib.EventSet = (*eventSet)(nil)
)

// GetMaxMigDeviceCount implements nvml.Device: 0 with MIG off.
func (d *device) GetMaxMigDeviceCount() (int, lib.Return) {
	g, model, ret := d.look("GetMaxMigDeviceCount")
	if !g.Current {
		return 0, ret
	}
	return model.ComputeSlices, ret
}

// GetMigDeviceHandleByIndex implements nvml.Device. A compute instance that appears
// takes the highest free index, and keeps it while this library sees it.
func (d *device) GetMigDeviceHandleByIndex(index int) (lib.Device, lib.Return) {
	g, model, ret := d.look("GetMigDeviceHandleByIndex")
	if ret != lib.SUCCESS {
		return nil, ret
	}
	if index < 0 || index >= model.ComputeSlices {
		return nil, lib.ERROR_INVALID_ARGUMENT
	}
	uuid, ok := d.indices(g, model.ComputeSlices)[index]
	if !ok {
		return nil, lib.ERROR_NOT_FOUND
	}
	return &migDevice{Device: &mock.Device{}, parent: d, uuid: uuid, index: index}, lib.SUCCESS
}

// indices brings the library's table of MIG devices up to date.
func (d *device) indices(g sim.GPU, count int) map[int]string {
	d.library.mu.Lock()
	defer d.library.mu.Unlock()
	uuids := d.library.gpu(d.facts.ID).uuids
	maps.DeleteFunc(uuids, func(_ int, uuid string) bool {
		return !slices.ContainsFunc(g.Instances, func(in sim.Instance) bool { return in.UUID == uuid })
	})
	for _, in := range g.Instances {
		if in.UUID == "" || slices.Contains(slices.Collect(maps.Values(uuids)), in.UUID) {
			continue
		}
		for i := count - 1; i >= 0; i-- {
			if uuids[i] == "" {
				uuids[i] = in.UUID
				break
			}
		}
	}
	return maps.Clone(uuids)
}

// migDevice is a handle of a MIG device: a compute instance.
type migDevice struct {
	*mock.Device
	parent *device
	uuid   string
	index  int
}

func (m *migDevice) look(call string) (sim.Instance, sim.Model, lib.Return) {
	g, model, ret := m.parent.look("MIG." + call)
	if ret != lib.SUCCESS {
		return sim.Instance{}, model, ret
	}
	i := slices.IndexFunc(g.Instances, func(in sim.Instance) bool { return in.UUID == m.uuid })
	if i < 0 {
		return sim.Instance{}, model, lib.ERROR_INVALID_ARGUMENT
	}
	return g.Instances[i], model, lib.SUCCESS
}

// GetUUID implements nvml.Device.
func (m *migDevice) GetUUID() (string, lib.Return) {
	in, _, ret := m.look("GetUUID")
	return in.UUID, ret
}

// GetGpuInstanceId implements nvml.Device.
func (m *migDevice) GetGpuInstanceId() (int, lib.Return) {
	in, _, ret := m.look("GetGpuInstanceId")
	return in.GI, ret
}

// GetComputeInstanceId implements nvml.Device.
func (m *migDevice) GetComputeInstanceId() (int, lib.Return) {
	in, _, ret := m.look("GetComputeInstanceId")
	return in.CI, ret
}

// GetAttributes implements nvml.Device.
func (m *migDevice) GetAttributes() (lib.DeviceAttributes, lib.Return) {
	in, model, ret := m.look("GetAttributes")
	p, _ := profileOf(model, uint32(in.Profile))
	return lib.DeviceAttributes{
		MultiprocessorCount: uint32(p.SMs), MemorySizeMB: uint64(p.MemoryMiB),
		GpuInstanceSliceCount: uint32(p.ComputeSlices), ComputeInstanceSliceCount: uint32(p.ComputeSlices),
	}, ret
}

// IsMigDeviceHandle implements nvml.Device.
func (m *migDevice) IsMigDeviceHandle() (bool, lib.Return) {
	_, _, ret := m.look("IsMigDeviceHandle")
	return true, ret
}

// GetDeviceHandleFromMigDeviceHandle implements nvml.Device.
func (m *migDevice) GetDeviceHandleFromMigDeviceHandle() (lib.Device, lib.Return) {
	_, _, ret := m.look("GetDeviceHandleFromMigDeviceHandle")
	return m.parent, ret
}

// eventSet is a set of the events of some GPUs.
type eventSet struct {
	*mock.EventSet
	library *Library
	streams []stream
}

type stream struct {
	device *device
	events nvml.Events
}

// Wait implements nvml.EventSet.
func (s *eventSet) Wait(millis uint32) (lib.EventData, lib.Return) {
	if _, ret := s.library.enter("EventSet.Wait"); ret != lib.SUCCESS {
		return lib.EventData{}, ret
	}
	for deadline := time.Now().Add(time.Duration(millis) * time.Millisecond); ; time.Sleep(10 * time.Millisecond) {
		for _, stream := range s.streams {
			event, err := stream.events.Wait(0)
			if ret := code(err); ret == lib.SUCCESS {
				return stream.data(event), ret
			} else if ret != lib.ERROR_TIMEOUT {
				return lib.EventData{}, ret
			}
		}
		if !time.Now().Before(deadline) {
			return lib.EventData{}, lib.ERROR_TIMEOUT
		}
	}
}

func (s stream) data(event nvml.Event) lib.EventData {
	data := lib.EventData{
		Device: s.device, EventType: lib.EventTypeXidCriticalError, EventData: uint64(event.XID),
		GpuInstanceId: unknown, ComputeInstanceId: unknown,
	}
	if event.GI != nvml.WholeGPU {
		data.GpuInstanceId = uint32(event.GI)
		if event.CI != nvml.NoCI {
			data.ComputeInstanceId = uint32(event.CI)
		}
	}
	return data
}

// Free implements nvml.EventSet.
func (s *eventSet) Free() lib.Return {
	_, ret := s.library.enter("EventSet.Free")
	return ret
}
