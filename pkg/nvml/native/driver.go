// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Built says whether this program can use real GPUs.
const Built = true

var _ nvml.Driver = (*Driver)(nil)

// Driver is one session with the library. Safe for parallel use, as nvml.Driver
// says.
type Driver struct {
	lib  lib.Interface
	root string // of the node's file system; "" is "/"

	mu      sync.Mutex              // guards what follows; not held over library calls
	boards  map[nvml.GPUID]board    // what is known of each GPU
	seen    map[nvml.GPUID]nvml.GPU // GPUs as they were listed last
	late    map[int]chan visit      // by index: GPUs that did not answer in time; full once they have
	running int                     // methods that may be in the library now
	closed  bool
}

// libraries are where the library lies below a driver's root, first found first.
var libraries = []string{"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"}

// Open loads the library from a driver's root directory, "" or "/" for the system's
// own search path, and opens a session. ErrDriverNotLoaded where either is missing.
func Open(root string) (nvml.Driver, error) {
	var options []lib.LibraryOption
	if root != "" && root != "/" {
		path, err := find(root)
		if err != nil {
			return nil, err
		}
		options = append(options, lib.WithLibraryPath(path))
	}
	return OpenLibrary(lib.New(options...), root)
}

func find(root string) (string, error) {
	for _, dir := range libraries {
		path := filepath.Join(root, dir, "libnvidia-ml.so.1")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("finding libnvidia-ml.so.1 below %s in %s: %w", root, strings.Join(libraries, ", "), nvml.ErrDriverNotLoaded)
}

// OpenLibrary is Open with a library that is there already. root is for what the
// library does not tell of GPUs.
func OpenLibrary(library lib.Interface, root string) (*Driver, error) {
	ret := library.Init()
	if ret == lib.ERROR_LIB_RM_VERSION_MISMATCH {
		return nil, check(ret, "opening the library, which is of another version than the loaded kernel driver: reload the driver or reboot")
	}
	if err := check(ret, "opening the library"); err != nil {
		return nil, err
	}
	return &Driver{lib: library, root: root, boards: map[nvml.GPUID]board{}, seen: map[nvml.GPUID]nvml.GPU{}, late: map[int]chan visit{}}, nil
}

// Close implements nvml.Driver. The library is given back when the last call that
// runs has returned: without it that call would end the process. Close does not
// wait for that, since a call may never return.
func (d *Driver) Close() error {
	d.mu.Lock()
	now := !d.closed && d.running == 0
	d.closed = true
	d.mu.Unlock()
	if !now {
		return nil
	}
	return d.shutdown()
}

func (d *Driver) shutdown() error {
	err := check(d.lib.Shutdown(), "closing the session")
	if errors.Is(err, nvml.ErrUninitialized) {
		return nil
	}
	return err
}

// begin stands at the start of each method that calls the library, end at its end.
func (d *Driver) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("the session is closed: %w", nvml.ErrUninitialized)
	}
	d.running++
	return nil
}

func (d *Driver) end() {
	d.mu.Lock()
	d.running--
	last := d.closed && d.running == 0
	d.mu.Unlock()
	if last {
		_ = d.shutdown() // nobody is left to be told
	}
}

// DriverVersion implements nvml.Driver.
func (d *Driver) DriverVersion() (string, error) {
	if err := d.begin(); err != nil {
		return "", fmt.Errorf("reading driver version: %w", err)
	}
	defer d.end()
	version, ret := d.lib.SystemGetDriverVersion()
	return version, check(ret, "reading driver version")
}

// GPUs implements nvml.Driver. A GPU that does not answer stays listed as it was, if
// this session has seen it before; else it cannot be told which one it is.
func (d *Driver) GPUs(skip func(nvml.GPUID, int) bool) ([]nvml.GPU, error) {
	if err := d.begin(); err != nil {
		return nil, fmt.Errorf("listing GPUs: %w", err)
	}
	defer d.end()
	listed := map[nvml.GPUID]nvml.GPU{}
	read := func(index int, id nvml.GPUID, device lib.Device) (nvml.GPU, error) {
		if skip != nil && skip(id, index) {
			return nvml.GPU{ID: id, Index: index}, nil
		}
		return d.facts(index, id, device)
	}
	passed, err := d.each(read, func(v visit) bool {
		listed[v.gpu.ID] = v.gpu
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("listing GPUs: %w", err)
	}
	passed = slices.DeleteFunc(passed, func(v visit) bool { return skip != nil && skip("", v.gpu.Index) })
	d.mu.Lock()
	defer d.mu.Unlock()
	answered := len(listed)
	if len(passed) > 0 {
		for id, gpu := range d.seen {
			if _, ok := listed[id]; !ok {
				listed[id] = gpu
			}
		}
	}
	d.seen = listed
	if len(listed) == answered+len(passed) {
		passed = nil // none is missing
	}
	gpus := slices.SortedFunc(maps.Values(listed), func(x, y nvml.GPU) int { return cmp.Compare(x.Index, y.Index) })
	if err := reasons(passed); err != nil {
		return gpus, fmt.Errorf("listing GPUs: %w", err)
	}
	return gpus, nil
}

// facts reads what does not change of a GPU.
func (d *Driver) facts(index int, id nvml.GPUID, device lib.Device) (nvml.GPU, error) {
	gpu := nvml.GPU{ID: id, Index: index}
	var err error
	read := func(what string, ret lib.Return) {
		if err == nil {
			err = check(ret, "reading %s of GPU %d", what, index)
		}
	}
	var ret lib.Return
	gpu.Minor, ret = device.GetMinorNumber()
	read("minor number", ret)
	gpu.Name, ret = device.GetName()
	read("name", ret)
	memory, ret := device.GetMemoryInfo()
	read("memory", ret)
	gpu.MemoryMiB = int(memory.Total >> 20)
	pci, ret := device.GetPciInfo()
	read("PCI address", ret)
	gpu.PCIBusID = text(pci.BusId[:])
	gpu.PCIDeviceID, gpu.PCISubsystem = pciID(pci.PciDeviceId), pciID(pci.PciSubSystemId)
	virtualization, ret := device.GetVirtualizationMode()
	if ret != lib.ERROR_NOT_SUPPORTED {
		read("virtualization", ret)
	}
	gpu.VGPU = virtualization == lib.GPU_VIRTUALIZATION_MODE_VGPU
	architecture, ret := device.GetArchitecture()
	read("generation", ret)
	gpu.Architecture = generation(architecture)
	switch _, _, ret := device.GetMigMode(); ret {
	case lib.ERROR_NOT_SUPPORTED, lib.ERROR_FUNCTION_NOT_FOUND:
	default:
		gpu.MIGCapable = true
		read("MIG mode", ret)
	}
	gpu.NUMANode = d.numaNode(gpu.PCIBusID)
	return gpu, err
}

// pciID writes a device and its vendor; empty where they are not known.
func pciID(id uint32) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("0x%08X", id)
}

// generation names an architecture; one that is not known keeps its number.
func generation(architecture lib.DeviceArchitecture) nvml.Architecture {
	switch architecture {
	case lib.DEVICE_ARCH_TURING:
		return "Turing"
	case lib.DEVICE_ARCH_AMPERE:
		return nvml.Ampere
	case lib.DEVICE_ARCH_ADA:
		return "Ada"
	case lib.DEVICE_ARCH_HOPPER:
		return nvml.Hopper
	case lib.DEVICE_ARCH_BLACKWELL:
		return nvml.Blackwell
	}
	return nvml.Architecture(fmt.Sprintf("architecture %d", architecture))
}

// numaNode reads the node of a GPU's PCI slot, -1 where it is not known. (The
// library's own call answers for the GPU's memory, another thing on some boards.)
func (d *Driver) numaNode(busID string) int {
	address := strings.ToLower(busID)
	if len(address) == len("00000000:07:00.0") {
		address = address[4:] // the kernel writes four digits of the domain
	}
	content, err := os.ReadFile(filepath.Join("/", d.root, "sys/bus/pci/devices", address, "numa_node"))
	if err != nil {
		return -1
	}
	node, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return -1
	}
	return node
}

// text reads a C string.
func text(chars []int8) string {
	var b strings.Builder
	for _, c := range chars {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}
