// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/dynamig/dynamig/pkg/cdi"
)

// DriverEdits are what every container with a GPU needs of the driver below root,
// whatever its GPU: control devices, libraries, programs, and hooks that make them
// found, which hook runs (nvidia-cdi-hook of the NVIDIA container toolkit, a path on
// the host). They hold until another driver is loaded.
func DriverEdits(root, hook string) (cdi.Edits, error) {
	var options []lib.LibraryOption
	if root != "" && root != "/" {
		path, err := find(root)
		if err != nil {
			return cdi.Edits{}, err
		}
		options = append(options, lib.WithLibraryPath(path))
	}
	return driverEdits(lib.New(options...), root, hook)
}

func driverEdits(library lib.Interface, root, hook string) (cdi.Edits, error) {
	root = filepath.Join("/", root)
	generator, err := nvcdi.New(
		nvcdi.WithMode(nvcdi.ModeNvml), nvcdi.WithNvmlLib(library), nvcdi.WithLogger(quiet{}),
		nvcdi.WithDriverRoot(root), nvcdi.WithDevRoot(root), nvcdi.WithNVIDIACDIHookPath(hook),
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils, nvcdi.FeatureNoAdditionalGIDsForDeviceNodes),
	)
	if err != nil {
		return cdi.Edits{}, fmt.Errorf("reading the driver's files: %w", err)
	}
	common, err := generator.GetCommonEdits()
	if err != nil {
		return cdi.Edits{}, fmt.Errorf("reading the driver's files: %w", err)
	}
	edits, err := editsOf(common.ContainerEdits)
	if err != nil {
		return cdi.Edits{}, fmt.Errorf("reading the driver's files: %w", err)
	}
	return edits, nil
}

// editsOf converts edits. A driver without control device or CUDA library, and an
// edit that would be lost, are errors: the container would start and fail later.
func editsOf(from *specs.ContainerEdits) (cdi.Edits, error) {
	if from == nil {
		return cdi.Edits{}, errors.New("there are none")
	}
	if from.IntelRdt != nil || len(from.NetDevices) > 0 || len(from.AdditionalGIDs) > 0 {
		return cdi.Edits{}, errors.New("the container toolkit asks for edits that are not known here")
	}
	edits := cdi.Edits{Env: slices.Clone(from.Env)}
	for _, n := range from.DeviceNodes {
		node := cdi.DeviceNode{Path: n.Path, HostPath: n.HostPath, Major: n.Major, Minor: n.Minor, Permissions: n.Permissions}
		if n.FileMode != nil {
			node.FileMode = *n.FileMode
		}
		edits.DeviceNodes = append(edits.DeviceNodes, node)
	}
	for _, m := range from.Mounts {
		edits.Mounts = append(edits.Mounts, cdi.Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath, Options: m.Options})
	}
	for _, h := range from.Hooks {
		edits.Hooks = append(edits.Hooks, cdi.Hook{Name: h.HookName, Path: h.Path, Args: h.Args, Env: h.Env})
	}
	if !slices.ContainsFunc(edits.DeviceNodes, func(n cdi.DeviceNode) bool { return n.Path == "/dev/nvidiactl" }) {
		return cdi.Edits{}, errors.New("/dev/nvidiactl is missing; run nvidia-modprobe -c 0 -u")
	}
	if !slices.ContainsFunc(edits.Mounts, func(m cdi.Mount) bool { return strings.Contains(filepath.Base(m.ContainerPath), "libcuda.so.") }) {
		return cdi.Edits{}, errors.New("libcuda.so of the loaded driver's version is missing; install the driver's libraries, or correct --driver-root")
	}
	return edits, nil
}

// quiet drops what the container toolkit logs of each file that it does not find:
// most are optional, and what must be there is checked.
type quiet struct{}

func (quiet) Debugf(string, ...any)   {}
func (quiet) Errorf(string, ...any)   {}
func (quiet) Info(...any)             {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warning(...any)          {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Tracef(string, ...any)   {}
