// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package nvml

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Names under which the driver registers its character devices in /proc/devices.
// Drivers before 550 call the first one nvidia-frontend.
const (
	majorNVIDIA   = "nvidia"
	majorFrontend = "nvidia-frontend"
	majorCaps     = "nvidia-caps"
	majorUVM      = "nvidia-uvm"
)

// maxMinor is the largest minor number of a Linux device (20 bits).
const maxMinor = 1<<20 - 1

// gpuFileMode is the mode of /dev/nvidiaN and the control nodes where nothing
// else is configured: access to an instance is guarded by its capabilities.
const gpuFileMode os.FileMode = 0o666

// DeviceNode is one character device that a container needs, as plain values
// for a CDI spec or a kubelet DeviceSpec.
type DeviceNode struct {
	Path     string      // in the container, such as "/dev/nvidia-caps/nvidia-cap21"
	HostPath string      // on the host when the root is not "/", else empty: same as Path
	Major    int64       // device number
	Minor    int64       // device number
	FileMode os.FileMode // permission bits only
}

// Capabilities reads which device nodes give a container access to a MIG
// instance, from the files that the kernel driver keeps below Root/proc. The
// same code runs on real hardware (Root "/" or empty) and on a simulated node.
//
// Device numbers always come from /proc, so a node below /dev need not exist:
// the container runtime makes it. Safe for parallel use; nothing is cached,
// because the majors change when the driver is loaded again.
type Capabilities struct {
	Root string
}

// InstanceNodes returns the three nodes that compute instance ci of GPU instance
// gi needs, in the order GPU, GPU instance, compute instance. gpuMinor is the N
// of /dev/nvidiaN. ErrNotFound when there is no such instance now,
// ErrDriverNotLoaded when the kernel has no NVIDIA devices.
func (c Capabilities) InstanceNodes(gpuMinor, gi, ci int) ([]DeviceNode, error) {
	devices, err := c.readDevices()
	if err != nil {
		return nil, err
	}
	gpuMajor, err := devices.major(majorNVIDIA, majorFrontend)
	if err != nil {
		return nil, err
	}
	capsMajor, err := devices.major(majorCaps)
	if err != nil {
		return nil, err
	}
	dir := fmt.Sprintf("/proc/driver/nvidia/capabilities/gpu%d/mig/gi%d", gpuMinor, gi)
	giNode, err := c.capabilityNode(capsMajor, dir+"/access")
	if err != nil {
		return nil, err
	}
	ciNode, err := c.capabilityNode(capsMajor, fmt.Sprintf("%s/ci%d/access", dir, ci))
	if err != nil {
		return nil, err
	}
	gpu := c.node(fmt.Sprintf("/dev/nvidia%d", gpuMinor), gpuMajor, int64(gpuMinor), gpuFileMode)
	return []DeviceNode{gpu, giNode, ciNode}, nil
}

// GPUNode returns the node of a whole GPU, for a container that gets all of it
// or a software share.
func (c Capabilities) GPUNode(gpuMinor int) (DeviceNode, error) {
	devices, err := c.readDevices()
	if err != nil {
		return DeviceNode{}, err
	}
	major, err := devices.major(majorNVIDIA, majorFrontend)
	if err != nil {
		return DeviceNode{}, err
	}
	return c.node(fmt.Sprintf("/dev/nvidia%d", gpuMinor), major, int64(gpuMinor), gpuFileMode), nil
}

// controlNodes are the nodes that every container with a GPU needs. The minors
// are fixed in the driver (nv-linux.h: NV_CONTROL_DEVICE_MINOR 255, modeset 254).
var controlNodes = []struct {
	path   string
	minor  int64
	majors []string
}{
	{"/dev/nvidiactl", 255, []string{majorNVIDIA, majorFrontend}},
	{"/dev/nvidia-modeset", 254, []string{majorNVIDIA, majorFrontend}},
	{"/dev/nvidia-uvm", 0, []string{majorUVM}},
	{"/dev/nvidia-uvm-tools", 1, []string{majorUVM}},
}

// ControlNodes returns the control nodes that exist below Root/dev, for the
// edits that all containers share. A node whose file is absent is left out:
// nvidia-modeset, for one, is optional.
func (c Capabilities) ControlNodes() ([]DeviceNode, error) {
	devices, err := c.readDevices()
	if err != nil {
		return nil, err
	}
	var nodes []DeviceNode
	for _, control := range controlNodes {
		st, err := os.Stat(c.host(control.path))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading control node: %w", err)
		}
		major, err := devices.major(control.majors...)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, c.node(control.path, major, control.minor, st.Mode().Perm()))
	}
	return nodes, nil
}

// capabilityNode reads one access file and returns the node it names.
func (c Capabilities) capabilityNode(major int64, file string) (DeviceNode, error) {
	file = c.host(file)
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return DeviceNode{}, fmt.Errorf("reading capability %s: the instance does not exist: %w", file, ErrNotFound)
	}
	if err != nil {
		return DeviceNode{}, fmt.Errorf("reading capability: %w", err)
	}
	minor, mode, err := parseAccess(file, string(text))
	if err != nil {
		return DeviceNode{}, err
	}
	return c.node(fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor), major, minor, mode), nil
}

func (c Capabilities) node(path string, major, minor int64, mode os.FileMode) DeviceNode {
	n := DeviceNode{Path: path, Major: major, Minor: minor, FileMode: mode}
	if host := c.host(path); host != path {
		n.HostPath = host
	}
	return n
}

// host returns where an absolute path of the node lies on this machine. Root is
// taken as absolute.
func (c Capabilities) host(path string) string {
	return filepath.Join("/", c.Root, path)
}

// charDevices is the character device half of /proc/devices.
type charDevices struct {
	file   string
	majors map[string][]int64 // by name, each number once, in order of the file
}

func (c Capabilities) readDevices() (charDevices, error) {
	file := c.host("/proc/devices")
	text, err := os.ReadFile(file)
	if err != nil {
		return charDevices{}, fmt.Errorf("reading device numbers: %w", err)
	}
	return parseDevices(file, string(text))
}

// major returns the number registered under one of the names, the first that
// the file has. ErrDriverNotLoaded when it has none.
func (d charDevices) major(names ...string) (int64, error) {
	for _, name := range names {
		switch majors := d.majors[name]; len(majors) {
		case 0:
		case 1:
			return majors[0], nil
		default:
			return 0, fmt.Errorf("reading %s: character device %q has several majors %v: expected one", d.file, name, majors)
		}
	}
	return 0, fmt.Errorf("reading %s: no character device %q: load the NVIDIA kernel modules: %w", d.file, names[0], ErrDriverNotLoaded)
}

// parseDevices reads /proc/devices: a "Character devices:" section, a "Block
// devices:" section, and in each lines of a number and a name.
func parseDevices(file, text string) (charDevices, error) {
	devices := charDevices{file: file, majors: map[string][]int64{}}
	section := ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			continue
		case line == "Character devices:" || line == "Block devices:":
			section = line
			continue
		case section == "":
			return charDevices{}, parseError(file, i, line, `a section "Character devices:" or "Block devices:"`)
		}
		number, name, _ := strings.Cut(line, " ")
		major, err := strconv.ParseInt(number, 10, 32)
		name = strings.TrimSpace(name)
		if err != nil || major < 0 || name == "" {
			return charDevices{}, parseError(file, i, line, "a major number and a name")
		}
		if section == "Character devices:" && !slices.Contains(devices.majors[name], major) {
			devices.majors[name] = append(devices.majors[name], major)
		}
	}
	return devices, nil
}

// parseAccess reads a capability file: "Key: number" lines, of which
// DeviceFileMinor and DeviceFileMode must be there once each. Keys that a newer
// driver may add are passed over; anything that is no such line is an error.
func parseAccess(file, text string) (minor int64, mode os.FileMode, err error) {
	limits := map[string]int64{"DeviceFileMinor": maxMinor, "DeviceFileMode": 0o777, "DeviceFileModify": 1}
	values := map[string]int64{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, number, found := strings.Cut(line, ":")
		value, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if !found || err != nil {
			return 0, 0, parseError(file, i, line, `"Key: number"`)
		}
		if limit, known := limits[key]; known && (value < 0 || value > limit) {
			return 0, 0, parseError(file, i, line, fmt.Sprintf("a value from 0 to %d", limit))
		}
		if _, twice := values[key]; twice {
			return 0, 0, parseError(file, i, line, "each key once")
		}
		values[key] = value
	}
	for _, key := range []string{"DeviceFileMinor", "DeviceFileMode"} {
		if _, ok := values[key]; !ok {
			return 0, 0, fmt.Errorf("reading %s: no line %q: is this a capability file of the NVIDIA driver?", file, key+":")
		}
	}
	return values["DeviceFileMinor"], os.FileMode(values["DeviceFileMode"]), nil
}

func parseError(file string, index int, line, want string) error {
	return fmt.Errorf("reading %s, line %d: %q: expected %s", file, index+1, line, want)
}
