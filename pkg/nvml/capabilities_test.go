// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package nvml

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	procDevices = "Character devices:\n  1 mem\n  4 /dev/vc/0\n  4 tty\n195 nvidia\n195 nvidiactl\n508 nvidia-caps\n510 nvidia-uvm\n\nBlock devices:\n  8 sd\n 65 sd\n"
	giAccess    = "DeviceFileMinor: 21\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
	ciAccess    = "DeviceFileMinor: 22\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
)

// fakeRoot is a node with one 3g instance (GI 2, CI 0) on GPU 0.
func fakeRoot(t *testing.T, overwrite map[string]string) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"proc/devices": procDevices,
		"proc/driver/nvidia/capabilities/gpu0/mig/gi2/access":     giAccess,
		"proc/driver/nvidia/capabilities/gpu0/mig/gi2/ci0/access": ciAccess,
		"dev/nvidiactl":  "",
		"dev/nvidia-uvm": "",
	}
	for name, text := range overwrite {
		files[name] = text
	}
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestInstanceNodesAreGPUThenGIThenCI(t *testing.T) {
	root := fakeRoot(t, nil)
	want := []DeviceNode{
		{Path: "/dev/nvidia0", HostPath: root + "/dev/nvidia0", Major: 195, Minor: 0, FileMode: 0o666},
		{Path: "/dev/nvidia-caps/nvidia-cap21", HostPath: root + "/dev/nvidia-caps/nvidia-cap21", Major: 508, Minor: 21, FileMode: 0o444},
		{Path: "/dev/nvidia-caps/nvidia-cap22", HostPath: root + "/dev/nvidia-caps/nvidia-cap22", Major: 508, Minor: 22, FileMode: 0o444},
	}
	got, err := Capabilities{Root: root}.InstanceNodes(0, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("InstanceNodes(0, 2, 0) (-want +got):\n%s", diff)
	}
}

func TestGPUNodeOfAnOlderDriverIsNamedFrontend(t *testing.T) {
	root := fakeRoot(t, map[string]string{"proc/devices": "Character devices:\n195 nvidia-frontend\n"})
	want := DeviceNode{Path: "/dev/nvidia3", HostPath: root + "/dev/nvidia3", Major: 195, Minor: 3, FileMode: 0o666}
	got, err := Capabilities{Root: root}.GPUNode(3)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("GPUNode(3) (-want +got):\n%s", diff)
	}
}

func TestControlNodesAreThoseThatExist(t *testing.T) {
	root := fakeRoot(t, nil)
	want := []DeviceNode{
		{Path: "/dev/nvidiactl", HostPath: root + "/dev/nvidiactl", Major: 195, Minor: 255, FileMode: 0o644},
		{Path: "/dev/nvidia-uvm", HostPath: root + "/dev/nvidia-uvm", Major: 510, Minor: 0, FileMode: 0o644},
	}
	got, err := Capabilities{Root: root}.ControlNodes()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ControlNodes() (-want +got):\n%s", diff)
	}
}

func TestHostPathIsEmptyAtTheRealRoot(t *testing.T) {
	for _, root := range []string{"", "/"} {
		if got := (Capabilities{Root: root}).node("/dev/nvidia0", 195, 0, 0o666).HostPath; got != "" {
			t.Errorf("HostPath with root %q = %q; want none", root, got)
		}
	}
}

func TestInstanceNodesRefuse(t *testing.T) {
	const gi = "proc/driver/nvidia/capabilities/gpu0/mig/gi2/access"
	cases := []struct {
		name      string
		overwrite map[string]string
		gi, ci    int
		want      string // part of the message
		is        error  // nil: any
	}{
		{name: "a GPU instance that is gone", gi: 3, want: "gi3/access", is: ErrNotFound},
		{name: "a compute instance that is gone", gi: 2, ci: 1, want: "ci1/access", is: ErrNotFound},
		{name: "no driver", overwrite: map[string]string{"proc/devices": "Character devices:\n  1 mem\n"}, gi: 2, want: `"nvidia"`, is: ErrDriverNotLoaded},
		{name: "no capability support", overwrite: map[string]string{"proc/devices": "Character devices:\n195 nvidia\n"}, gi: 2, want: `"nvidia-caps"`, is: ErrDriverNotLoaded},
		{name: "caps only as block device", overwrite: map[string]string{"proc/devices": "Character devices:\n195 nvidia\n\nBlock devices:\n508 nvidia-caps\n"}, gi: 2, want: `"nvidia-caps"`, is: ErrDriverNotLoaded},
		{name: "two majors for one name", overwrite: map[string]string{"proc/devices": procDevices[:len("Character devices:\n")] + "195 nvidia\n507 nvidia-caps\n508 nvidia-caps\n"}, gi: 2, want: "[507 508]"},
		{name: "a device line without a name", overwrite: map[string]string{"proc/devices": "Character devices:\n195\n"}, gi: 2, want: "proc/devices, line 2"},
		{name: "a device line before any section", overwrite: map[string]string{"proc/devices": "195 nvidia\n"}, gi: 2, want: "proc/devices, line 1"},
		{name: "a minor that is no number", overwrite: map[string]string{gi: "DeviceFileMinor: x\nDeviceFileMode: 292\n"}, gi: 2, want: "gi2/access, line 1"},
		{name: "a negative minor", overwrite: map[string]string{gi: "DeviceFileMinor: -1\nDeviceFileMode: 292\n"}, gi: 2, want: "gi2/access, line 1"},
		{name: "a minor beyond 20 bits", overwrite: map[string]string{gi: "DeviceFileMode: 292\nDeviceFileMinor: 1048576\n"}, gi: 2, want: "gi2/access, line 2"},
		{name: "a mode with more than permission bits", overwrite: map[string]string{gi: "DeviceFileMinor: 1\nDeviceFileMode: 512\n"}, gi: 2, want: "gi2/access, line 2"},
		{name: "a key twice", overwrite: map[string]string{gi: "DeviceFileMinor: 1\nDeviceFileMinor: 2\nDeviceFileMode: 292\n"}, gi: 2, want: "gi2/access, line 2"},
		{name: "no minor", overwrite: map[string]string{gi: "DeviceFileMode: 292\n"}, gi: 2, want: "DeviceFileMinor"},
		{name: "an empty file", overwrite: map[string]string{gi: ""}, gi: 2, want: "DeviceFileMinor"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := Capabilities{Root: fakeRoot(t, c.overwrite)}.InstanceNodes(0, c.gi, c.ci)
			if err == nil {
				t.Fatalf("InstanceNodes = %v; want an error that names %q", got, c.want)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not name %q", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %q is not %q", err, c.is)
			}
		})
	}
}

func FuzzParseAccess(f *testing.F) {
	for _, seed := range []string{giAccess, ciAccess, "", "DeviceFileMinor: 3", "DeviceFileMinor: 99999999999999999999\n", "DeviceFileMode: 256\r\nDeviceFileMinor: 1\r\n", "Later: 7\nDeviceFileMinor: 1\nDeviceFileMode: 292\n", ":\n::\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		minor, mode, err := parseAccess("access", text)
		if err != nil {
			return
		}
		if minor < 0 || minor > maxMinor || mode&^0o777 != 0 {
			t.Errorf("parseAccess(%q) = minor %d, mode %o; out of range", text, minor, mode)
		}
	})
}

func FuzzParseDevices(f *testing.F) {
	for _, seed := range []string{procDevices, "", "Block devices:\n", "Character devices:\n-1 nvidia\n", "Character devices:\n195 nvidia\n196 nvidia\n", "195 nvidia", "Character devices:\n 99999999999 nvidia\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		devices, err := parseDevices("devices", text)
		if err != nil {
			return
		}
		if major, err := devices.major(majorNVIDIA); err == nil && (major < 0 || !strings.Contains(text, "nvidia")) {
			t.Errorf("parseDevices(%q) found major %d", text, major)
		}
	})
}
