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
	"strings"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// profile is a GPU instance profile with both of its numbers (T1).
type profile struct {
	nvml.Profile
	info lib.GpuInstanceProfileInfo
}

// maxEnum ends a scan on a library that has no end of its own (T2). It knows 18
// enums today.
const maxEnum = 64

// Profiles implements nvml.Driver.
func (d *Driver) Profiles(id nvml.GPUID) ([]nvml.Profile, error) {
	if err := d.begin(); err != nil {
		return nil, fmt.Errorf("listing profiles of %s: %w", id, err)
	}
	defer d.end()
	b, err := d.withProfiles(id)
	if err != nil {
		return nil, fmt.Errorf("listing profiles of %s: %w", id, err)
	}
	profiles := make([]nvml.Profile, len(b.profiles))
	for i, p := range b.profiles {
		profiles[i] = p.Profile
		profiles[i].Starts = slices.Clone(p.Starts)
	}
	slices.SortFunc(profiles, func(x, y nvml.Profile) int { return cmp.Compare(x.ID, y.ID) })
	return profiles, nil
}

// withProfiles returns a GPU's board with its profiles, which are read once in a
// session. ErrNotSupported when the GPU cannot do MIG.
func (d *Driver) withProfiles(id nvml.GPUID) (board, error) {
	b, err := d.gpu(id)
	if err != nil || b.profiles != nil {
		return b, err
	}
	if _, _, ret := b.device.GetMigMode(); ret != lib.SUCCESS {
		return board{}, check(ret, "reading MIG mode")
	}
	memory, ret := b.device.GetMemoryInfo()
	if err := check(ret, "reading memory"); err != nil {
		return board{}, err
	}
	if b.profiles, err = d.scan(b.device, int(memory.Total>>20)); err != nil {
		return board{}, d.judge(id, err)
	}
	d.mu.Lock()
	d.boards[id] = b
	d.mu.Unlock()
	return b, nil
}

// scan reads the profiles of a GPU, by enum (T2).
func (d *Driver) scan(device lib.Device, totalMiB int) ([]profile, error) {
	profiles := []profile{}
	for enum := range maxEnum {
		info, ret := device.GetGpuInstanceProfileInfo(enum)
		if ret == lib.ERROR_INVALID_ARGUMENT && enum > 0 {
			break
		}
		if ret == lib.ERROR_NOT_SUPPORTED {
			continue
		}
		if err := check(ret, "reading profile with enum %d", enum); err != nil {
			return nil, err
		}
		p, err := d.read(device, enum, info, totalMiB)
		if err != nil {
			return nil, err
		}
		profiles = append(profiles, p)
	}
	return profiles, nil
}

func (d *Driver) read(device lib.Device, enum int, info lib.GpuInstanceProfileInfo, totalMiB int) (profile, error) {
	placements, ret := device.GetGpuInstancePossiblePlacements(&info)
	if err := check(ret, "reading placements of profile %d", info.Id); err != nil {
		return profile{}, err
	}
	if len(placements) == 0 {
		return profile{}, fmt.Errorf("reading placements of profile %d: there are none: %w", info.Id, nvml.ErrUnknown)
	}
	name, err := d.nameOf(device, enum)
	if err != nil {
		return profile{}, err
	}
	p := profile{info: info, Profile: nvml.Profile{
		ID: nvml.ProfileID(info.Id), MemoryMiB: int(info.MemorySizeMB), SMs: int(info.MultiprocessorCount),
		ComputeSlices: int(info.SliceCount), Size: int(placements[0].Size), Max: int(info.InstanceCount),
		Name: cmp.Or(name, madeName(enum, info, totalMiB)), Enum: enum,
		Engines: nvml.Engines{
			Copy: int(info.CopyEngineCount), Decoder: int(info.DecoderCount), Encoder: int(info.EncoderCount),
			JPEG: int(info.JpegCount), OFA: int(info.OfaCount),
		},
	}}
	for _, at := range placements {
		if int(at.Size) != p.Size {
			return profile{}, fmt.Errorf("reading placements of profile %s: sizes %d and %d: expected one: %w", p.Name, p.Size, at.Size, nvml.ErrUnknown)
		}
		p.Starts = append(p.Starts, int(at.Start))
	}
	slices.Sort(p.Starts)
	return p, nil
}

// named is what a library stand-in offers in place of go-nvml's handlers of
// versioned calls, which nobody else can make.
type named interface {
	GpuInstanceProfileInfoV3(enum int) (lib.GpuInstanceProfileInfo_v3, lib.Return)
	GpuInstanceProfileInfoV2(enum int) (lib.GpuInstanceProfileInfo_v2, lib.Return)
}

// handlers are go-nvml's own.
type handlers struct{ device lib.Device }

func (h handlers) GpuInstanceProfileInfoV3(enum int) (lib.GpuInstanceProfileInfo_v3, lib.Return) {
	return h.device.GetGpuInstanceProfileInfoV(enum).V3()
}

func (h handlers) GpuInstanceProfileInfoV2(enum int) (lib.GpuInstanceProfileInfo_v2, lib.Return) {
	return h.device.GetGpuInstanceProfileInfoV(enum).V2()
}

// nameOf asks the driver what it calls a profile, empty when it does not say:
// drivers before 510 lack the function (T7), and others know older versions only.
func (d *Driver) nameOf(device lib.Device, enum int) (string, error) {
	if d.lib.Extensions().LookupSymbol("nvmlDeviceGetGpuInstanceProfileInfoV") != nil {
		return "", nil
	}
	source, ok := device.(named)
	if !ok {
		source = handlers{device}
	}
	v3, ret := source.GpuInstanceProfileInfoV3(enum)
	err := check(ret, "reading name of profile with enum %d", enum)
	if err == nil {
		return plainName(text(v3.Name[:])), nil
	}
	if !errors.Is(err, nvml.ErrNotSupported) && !errors.Is(err, nvml.ErrInvalidArgument) {
		return "", err
	}
	v2, ret := source.GpuInstanceProfileInfoV2(enum)
	err = check(ret, "reading name of profile with enum %d", enum)
	switch {
	case err == nil:
		return plainName(text(v2.Name[:])), nil
	case errors.Is(err, nvml.ErrNotSupported) || errors.Is(err, nvml.ErrInvalidArgument):
		return "", nil
	}
	return "", err
}

// plainName drops the word that nvidia-smi prints before a profile's name.
func plainName(name string) string { return strings.TrimPrefix(strings.TrimSpace(name), "MIG ") }

// madeName is the name of a profile as drivers make it, for those that do not say:
// the memory is the share of the card in eighths, rounded up, of its whole GiB.
func madeName(enum int, info lib.GpuInstanceProfileInfo, totalMiB int) string {
	eighths := math.Ceil(float64(info.MemorySizeMB) / float64(totalMiB) * 8)
	gb := math.Round(eighths / 8 * math.Ceil(float64(totalMiB)/1024))
	return fmt.Sprintf("%dg.%dgb%s", info.SliceCount, int(gb), suffix(enum))
}

func suffix(enum int) string {
	switch enum {
	case lib.GPU_INSTANCE_PROFILE_1_SLICE_REV1, lib.GPU_INSTANCE_PROFILE_2_SLICE_REV1:
		return "+me"
	case lib.GPU_INSTANCE_PROFILE_1_SLICE_GFX, lib.GPU_INSTANCE_PROFILE_2_SLICE_GFX,
		lib.GPU_INSTANCE_PROFILE_3_SLICE_GFX, lib.GPU_INSTANCE_PROFILE_4_SLICE_GFX:
		return "+gfx"
	case lib.GPU_INSTANCE_PROFILE_1_SLICE_NO_ME, lib.GPU_INSTANCE_PROFILE_2_SLICE_NO_ME:
		return "-me"
	case lib.GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME, lib.GPU_INSTANCE_PROFILE_2_SLICE_ALL_ME:
		return "+me.all"
	}
	return ""
}

// profile returns the profile of a reported id (T1).
func (b board) profile(id nvml.ProfileID) (profile, bool) {
	i := slices.IndexFunc(b.profiles, func(p profile) bool { return p.ID == id })
	if i < 0 {
		return profile{}, false
	}
	return b.profiles[i], true
}
