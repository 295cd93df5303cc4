// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// The files that the kernel driver shows: /proc/driver/nvidia*, /proc/devices
// and the character devices below /dev, all below the node's root.

const capabilitiesDir = "proc/driver/nvidia/capabilities"

// The driver numbers its capability devices by one fixed enumeration:
// config 1, monitor 2, then for each GPU minor and GPU instance id the instance
// and its compute instances.
const (
	minorConfig  = 1
	minorMonitor = 2
	maxGPUs      = 32
	maxGIs       = 15
	maxCIs       = 8
	noCI         = -1
)

func capabilityMinor(gpu, gi, ci int) int {
	return minorMonitor + 1 + (gpu*maxGIs+gi)*(1+maxCIs) + 1 + ci
}

// capability is one capability of the driver: a file below proc and a device.
type capability struct {
	dir   string // relative to capabilitiesDir
	minor int
	mode  fs.FileMode
}

// capabilities returns those of all instances, by directory.
func capabilities(s *State) map[string]capability {
	all := map[string]capability{}
	add := func(gpu, gi, ci int, dir string) {
		all[dir] = capability{dir: dir, minor: capabilityMinor(gpu, gi, ci), mode: 0o444}
	}
	for _, g := range s.GPUs {
		for _, in := range g.Instances {
			dir := fmt.Sprintf("gpu%d/mig/gi%d", g.Minor, in.GI)
			add(g.Minor, in.GI, noCI, dir)
			if in.CI != nvml.NoCI {
				add(g.Minor, in.GI, in.CI, fmt.Sprintf("%s/ci%d", dir, in.CI))
			}
		}
	}
	return all
}

// applyTree brings the tree from the capabilities it had to those of s.
func (n *Node) applyTree(s *State, had map[string]capability) error {
	has := capabilities(s)
	for dir, c := range had {
		if _, stays := has[dir]; !stays {
			if err := n.removeCapability(c); err != nil {
				return err
			}
		}
	}
	for dir, c := range has {
		if _, there := had[dir]; !there {
			if err := n.makeCapability(s, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// repair makes the tree what the state says, whatever a process that died half
// way has left. Idempotent.
func (n *Node) repair() error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	s, _, err := n.read()
	if err != nil {
		return err
	}
	has := capabilities(s)
	stale, err := n.staleCapabilities(s, has)
	if err != nil {
		return err
	}
	if err := n.applyTree(s, stale); err != nil {
		return err
	}
	return n.makeStatic(s)
}

// staleCapabilities returns what lies in the tree without being in has, with
// their minors as their access files, or else the names of their devices, say.
func (n *Node) staleCapabilities(s *State, has map[string]capability) (map[string]capability, error) {
	stale := map[string]capability{}
	wanted := map[int]bool{minorConfig: true, minorMonitor: true}
	for _, c := range has {
		wanted[c.minor] = true
	}
	for _, g := range s.GPUs {
		dirs, err := filepath.Glob(n.path(capabilitiesDir, fmt.Sprintf("gpu%d/mig/gi*", g.Minor)))
		if err != nil {
			return nil, fmt.Errorf("repairing device tree: %w", err)
		}
		for _, dir := range dirs {
			rel := strings.TrimPrefix(dir, n.path(capabilitiesDir)+"/")
			if _, ok := has[rel]; !ok {
				stale[rel] = capability{dir: rel}
			}
			if _, ok := has[rel+"/ci0"]; !ok {
				stale[rel+"/ci0"] = capability{dir: rel + "/ci0"}
			}
		}
	}
	nodes, err := filepath.Glob(n.path("dev/nvidia-caps/nvidia-cap*"))
	if err != nil {
		return nil, fmt.Errorf("repairing device tree: %w", err)
	}
	for _, node := range nodes {
		minor := 0
		if _, err := fmt.Sscanf(filepath.Base(node), "nvidia-cap%d", &minor); err == nil && !wanted[minor] {
			stale["device "+node] = capability{minor: minor}
		}
	}
	return stale, nil
}

func (n *Node) removeCapability(c capability) error {
	if c.minor != 0 {
		err := os.Remove(n.path(capsDevice(c.minor)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing capability device: %w", err)
		}
	}
	if c.dir != "" {
		if err := os.RemoveAll(n.path(capabilitiesDir, c.dir)); err != nil {
			return fmt.Errorf("removing capability: %w", err)
		}
	}
	return nil
}

func (n *Node) makeCapability(s *State, c capability) error {
	text := fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: %d\nDeviceFileModify: 1\n", c.minor, c.mode)
	if err := n.makeFile(filepath.Join(capabilitiesDir, c.dir, "access"), text); err != nil {
		return err
	}
	return n.makeDevice(s, capsDevice(c.minor), s.Majors.Caps, c.minor, c.mode)
}

func capsDevice(minor int) string { return fmt.Sprintf("dev/nvidia-caps/nvidia-cap%d", minor) }

// makeStatic makes everything that does not depend on instances, where it is
// missing or wrong.
func (n *Node) makeStatic(s *State) error {
	files := map[string]string{
		"proc/devices":                       procDevices(s),
		"proc/driver/nvidia-caps/mig-minors": migMinors(),
		"proc/driver/nvidia/version": fmt.Sprintf("NVRM version: NVIDIA UNIX x86_64 Kernel Module  %s  (simulated)\n",
			s.DriverVersion),
	}
	for name, text := range files {
		if err := n.makeFile(name, text); err != nil {
			return err
		}
	}
	for _, c := range []capability{{"mig/config", minorConfig, 0o400}, {"mig/monitor", minorMonitor, 0o444}} {
		text := fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: %d\nDeviceFileModify: 1\n", c.minor, c.mode)
		if err := n.makeFile(filepath.Join(capabilitiesDir, c.dir), text); err != nil {
			return err
		}
		if err := n.makeDevice(s, capsDevice(c.minor), s.Majors.Caps, c.minor, c.mode); err != nil {
			return err
		}
	}
	devices := []struct {
		name         string
		major, minor int
	}{
		{"dev/nvidiactl", s.Majors.NVIDIA, 255},
		{"dev/nvidia-modeset", s.Majors.NVIDIA, 254},
		{"dev/nvidia-uvm", s.Majors.UVM, 0},
		{"dev/nvidia-uvm-tools", s.Majors.UVM, 1},
	}
	for _, d := range devices {
		if err := n.makeDevice(s, d.name, d.major, d.minor, 0o666); err != nil {
			return err
		}
	}
	for _, g := range s.GPUs {
		if err := n.makeGPU(s, g); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) makeGPU(s *State, g GPU) error {
	if g.Model != "" {
		dir := n.path(capabilitiesDir, fmt.Sprintf("gpu%d/mig", g.Minor))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making capability directory: %w", err)
		}
	}
	text := fmt.Sprintf("Model: \t\t %s\nGPU UUID: \t %s\nBus Location: \t %s\nDevice Minor: \t %d\n", g.Name, g.UUID, g.PCIBusID, g.Minor)
	if err := n.makeFile(fmt.Sprintf("proc/driver/nvidia/gpus/%s/information", strings.ToLower(g.PCIBusID[4:])), text); err != nil {
		return err
	}
	// The kernel's, not the driver's: where NUMA nodes are read on a real machine.
	if err := n.makeFile(fmt.Sprintf("sys/bus/pci/devices/%s/numa_node", strings.ToLower(g.PCIBusID[4:])), fmt.Sprintln(g.NUMANode)); err != nil {
		return err
	}
	return n.makeDevice(s, fmt.Sprintf("dev/nvidia%d", g.Minor), s.Majors.NVIDIA, g.Minor, 0o666)
}

func procDevices(s *State) string {
	return fmt.Sprintf("Character devices:\n  1 mem\n%3d nvidia\n%3d nvidia-modeset\n%3d nvidiactl\n%3d nvidia-caps\n%3d nvidia-uvm\n\nBlock devices:\n",
		s.Majors.NVIDIA, s.Majors.NVIDIA, s.Majors.NVIDIA, s.Majors.Caps, s.Majors.UVM)
}

// migMinors is the driver's fixed table of capability minors.
func migMinors() string {
	var b strings.Builder
	fmt.Fprintf(&b, "config %d\nmonitor %d\n", minorConfig, minorMonitor)
	for gpu := range maxGPUs {
		for gi := range maxGIs {
			fmt.Fprintf(&b, "gpu%d/gi%d/access %d\n", gpu, gi, capabilityMinor(gpu, gi, noCI))
			for ci := range maxCIs {
				fmt.Fprintf(&b, "gpu%d/gi%d/ci%d/access %d\n", gpu, gi, ci, capabilityMinor(gpu, gi, ci))
			}
		}
	}
	return b.String()
}

func (n *Node) path(elements ...string) string {
	return filepath.Join(append([]string{n.root}, elements...)...)
}

// makeFile writes a file where it is missing or differs.
func (n *Node) makeFile(name, text string) error {
	file := n.path(name)
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, []byte(text)) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("making %s: %w", name, err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return fmt.Errorf("making %s: %w", name, err)
	}
	return nil
}

// makeDevice makes a character device, or a plain file where the node has only
// those, unless it is there as it should be.
func (n *Node) makeDevice(s *State, name string, major, minor int, mode fs.FileMode) error {
	if s.PlainDevices {
		if err := n.makeFile(name, fmt.Sprintf("simulated character device %d:%d\n", major, minor)); err != nil {
			return err
		}
		return os.Chmod(n.path(name), mode)
	}
	file := n.path(name)
	number := unix.Mkdev(uint32(major), uint32(minor))
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err == nil && st.Mode == unix.S_IFCHR|uint32(mode) && st.Rdev == number {
		return nil
	}
	if err := os.RemoveAll(file); err != nil {
		return fmt.Errorf("making device: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("making device: %w", err)
	}
	if err := unix.Mknod(file, unix.S_IFCHR|uint32(mode), int(number)); err != nil {
		return fmt.Errorf("making device %s (%d:%d): %w", file, major, minor, err)
	}
	return os.Chmod(file, mode) // past the umask
}
