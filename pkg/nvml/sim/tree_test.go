// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// I7, read through the code that the agent uses on real hardware.
func TestDevicesOfAnInstance(t *testing.T) {
	d := node(t, a100, a100)
	id := gpuAt(t, d.Node, 1)
	in := whole(t, d, id, p3g, 0)
	caps := nvml.Capabilities{Root: d.Root()}
	got, err := caps.InstanceNodes(1, in.GI, in.CI)
	must(t, err)
	s := dump(t, d.Node)
	wanted := []struct {
		path         string
		major, minor int
		mode         fs.FileMode
	}{
		{"/dev/nvidia1", s.Majors.NVIDIA, 1, 0o666},
		{"/dev/nvidia-caps/nvidia-cap156", s.Majors.Caps, 156, 0o444}, // GPU 1, GI 2
		{"/dev/nvidia-caps/nvidia-cap157", s.Majors.Caps, 157, 0o444}, // and CI 0
	}
	var want []nvml.DeviceNode
	for _, w := range wanted {
		want = append(want, nvml.DeviceNode{Path: w.path, HostPath: d.Root() + w.path, Major: int64(w.major), Minor: int64(w.minor), FileMode: w.mode})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("InstanceNodes (-want +got):\n%s", diff)
	}
	control, err := caps.ControlNodes()
	must(t, err)
	if len(control) != 4 {
		t.Errorf("ControlNodes() = %+v; want 4", control)
	}
	for _, n := range append(got, control...) {
		checkDevice(t, s.PlainDevices, n)
	}
	must(t, d.DestroyComputeInstance(id, in.GI, in.CI))
	_, err = caps.InstanceNodes(1, in.GI, in.CI)
	wantErr(t, err, nvml.ErrNotFound)
	checkTree(t, d.Node)
}

// checkDevice demands that the file on this machine is the device.
func checkDevice(t *testing.T, plain bool, n nvml.DeviceNode) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(n.HostPath, &st))
	format, number := uint32(unix.S_IFCHR), unix.Mkdev(uint32(n.Major), uint32(n.Minor))
	if plain {
		format, number = unix.S_IFREG, 0
	}
	if st.Mode != format|uint32(n.FileMode) || st.Rdev != number {
		t.Errorf("%s has mode %o and device %x; want %o and %x", n.HostPath, st.Mode, st.Rdev, format|uint32(n.FileMode), number)
	}
	if !plain {
		if _, err := os.Open(n.HostPath); !errors.Is(err, syscall.ENXIO) {
			t.Errorf("opening %s: %v; want %v, since no driver is behind it", n.HostPath, err, syscall.ENXIO)
		}
	}
}

func TestPlainDevices(t *testing.T) {
	d := nodeOf(t, Spec{PlainDevices: true, GPUs: []GPUSpec{{Board: a30, MIG: true}}})
	id := gpuAt(t, d.Node, 0)
	in := whole(t, d, id, 14, 3)
	nodes, err := nvml.Capabilities{Root: d.Root()}.InstanceNodes(0, in.GI, in.CI)
	must(t, err)
	if !dump(t, d.Node).PlainDevices {
		t.Error("the state does not say that devices are plain files")
	}
	for _, n := range nodes {
		checkDevice(t, true, n)
	}
	checkTree(t, d.Node)
}

func TestCapabilityMinorsAreThoseOfTheDriver(t *testing.T) {
	lines := strings.Split(migMinors(), "\n")
	for _, want := range []string{"config 1", "monitor 2", "gpu0/gi0/access 3", "gpu0/gi0/ci0/access 4", "gpu0/gi2/access 21", "gpu0/gi2/ci0/access 22", "gpu1/gi0/access 138"} {
		found := false
		for _, line := range lines {
			found = found || line == want
		}
		if !found {
			t.Errorf("mig-minors lacks %q", want)
		}
	}
	if want := 2 + 32*15*9 + 1; len(lines) != want {
		t.Errorf("mig-minors has %d lines; want %d", len(lines), want)
	}
}

func TestOpenMendsTheTree(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	in := whole(t, d, id, p1g, 0)
	gone := whole(t, d, id, p1g, 1)
	caps := func(gi int) string { return d.path(capabilitiesDir, fmt.Sprintf("gpu0/mig/gi%d", gi)) }

	// As if a process had died between state and tree, in both directions.
	must(t, os.RemoveAll(caps(in.GI)))
	must(t, os.Remove(d.path(capsDevice(capabilityMinor(0, in.GI, 0)))))
	must(t, os.Remove(d.path("dev/nvidia0")))
	s := dump(t, d.Node)
	s.GPUs[0].Instances = s.GPUs[0].Instances[:1]
	text, err := encodeState(&s)
	must(t, err)
	must(t, d.write(text))
	if _, err := os.Stat(caps(gone.GI)); err != nil {
		t.Fatalf("the stale capability is not there to be removed: %v", err)
	}

	checkTree(t, open(t, d.Root()).Node)
}

func TestRebootAndResetClearTheTree(t *testing.T) {
	d := node(t, a100, a100)
	first, second := gpuAt(t, d.Node, 0), gpuAt(t, d.Node, 1)
	whole(t, d, first, p1g, 0)
	whole(t, d, second, p1g, 0)
	must(t, d.ResetGPU(first))
	checkTree(t, d.Node)
	must(t, d.Reboot())
	checkTree(t, d.Node)
}

// checkTree compares proc and dev with what the state asks for, computed anew
// from the driver's rule for minors.
func checkTree(t *testing.T, n *Node) {
	t.Helper()
	s := dump(t, n)
	wantFiles := map[string]bool{"mig/config": true, "mig/monitor": true}
	wantCaps := map[string]bool{"nvidia-cap1": true, "nvidia-cap2": true}
	for _, g := range s.GPUs {
		for _, in := range g.Instances {
			dir := fmt.Sprintf("gpu%d/mig/gi%d", g.Minor, in.GI)
			minor := 3 + g.Minor*135 + in.GI*9
			wantFiles[dir+"/access"] = true
			wantCaps[fmt.Sprintf("nvidia-cap%d", minor)] = true
			if in.CI != nvml.NoCI {
				wantFiles[dir+"/ci0/access"] = true
				wantCaps[fmt.Sprintf("nvidia-cap%d", minor+1)] = true
			}
		}
	}
	if diff := cmp.Diff(wantFiles, filesBelow(t, n.path(capabilitiesDir))); diff != "" {
		t.Errorf("capability files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantCaps, filesBelow(t, n.path("dev/nvidia-caps"))); diff != "" {
		t.Errorf("capability devices (-want +got):\n%s", diff)
	}
	for _, g := range s.GPUs {
		if _, err := os.Stat(n.path(fmt.Sprintf("dev/nvidia%d", g.Minor))); err != nil {
			t.Errorf("device of GPU %d: %v", g.Index, err)
		}
	}
}

func filesBelow(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			files[rel] = true
		}
		return err
	}))
	return files
}
