// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo && !gpu

package native

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// driverRoot is a root file system with a driver's libraries and devices. It skips
// where devices cannot be made.
func driverRoot(t *testing.T, version string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range []string{
		"usr/lib/x86_64-linux-gnu/libcuda.so." + version, "usr/lib/x86_64-linux-gnu/libnvidia-ml.so." + version, "usr/bin/nvidia-smi",
	} {
		path := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, nil, 0o755))
	}
	must(t, os.Mkdir(filepath.Join(root, "dev"), 0o755))
	for name, number := range map[string]uint64{
		"nvidiactl": unix.Mkdev(195, 255), "nvidia-uvm": unix.Mkdev(510, 0), "nvidia-uvm-tools": unix.Mkdev(510, 1),
	} {
		if err := unix.Mknod(filepath.Join(root, "dev", name), unix.S_IFCHR|0o666, int(number)); err != nil {
			t.Skipf("devices cannot be made here: %v", err)
		}
	}
	return root
}

func TestDriverEditsHaveTheDriversFiles(t *testing.T) {
	const version = "580.95.05" // the simulated driver's
	root := driverRoot(t, version)
	edits, err := driverEdits(node(t, sim.GPUSpec{Board: "A100-40GB"}), root, "/opt/hook")
	must(t, err)
	var devices, mounts []string
	for _, n := range edits.DeviceNodes {
		devices = append(devices, n.Path)
		if n.HostPath != root+n.Path || n.Major == 0 {
			t.Errorf("device node %+v; want its number, and the host's path below %s", n, root)
		}
	}
	for _, m := range edits.Mounts {
		mounts = append(mounts, m.ContainerPath)
	}
	slices.Sort(devices)
	if want := []string{"/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"}; !slices.Equal(devices, want) {
		t.Errorf("devices %v; want %v", devices, want)
	}
	for _, want := range []string{"/usr/lib/x86_64-linux-gnu/libcuda.so." + version, "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so." + version, "/usr/bin/nvidia-smi"} {
		if !slices.Contains(mounts, want) {
			t.Errorf("mounts %v; want %s among them", mounts, want)
		}
	}
	if !slices.ContainsFunc(edits.Hooks, func(h cdi.Hook) bool { return h.Path == "/opt/hook" && slices.Contains(h.Args, "update-ldcache") }) {
		t.Errorf("hooks %+v; want /opt/hook update-ldcache among them", edits.Hooks)
	}
	// A runtime takes them.
	must(t, cdi.Dir{Path: t.TempDir()}.WriteDriver(edits))
}

func TestDriverThatLacksSomethingIsAnError(t *testing.T) {
	for remove, want := range map[string]string{
		"dev/nvidiactl": "nvidia-modprobe", "usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05": "reading the driver's files",
	} {
		root := driverRoot(t, "580.95.05")
		must(t, os.Remove(filepath.Join(root, remove)))
		_, err := driverEdits(node(t, sim.GPUSpec{Board: "A100-40GB"}), root, "/opt/hook")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: error %v; want one that says %q", remove, err, want)
		}
	}
	if _, err := DriverEdits(t.TempDir(), ""); err == nil {
		t.Error("DriverEdits of an empty root = nil")
	}
}
