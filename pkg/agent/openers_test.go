// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// numbers of devices that every machine has (Linux, Documentation/admin-guide/devices.txt).
var (
	devNull = DeviceNumber{Major: 1, Minor: 3}
	devZero = DeviceNumber{Major: 1, Minor: 5}
	devFull = DeviceNumber{Major: 1, Minor: 7}
)

// fakeProc makes a directory as proc shows it: open files by process.
func fakeProc(t *testing.T, open map[int][]string) string {
	t.Helper()
	proc := t.TempDir()
	for pid, files := range open {
		dir := filepath.Join(proc, fmt.Sprint(pid), "fd")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i, file := range files {
			if err := os.Symlink(file, filepath.Join(dir, fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(proc, "uptime"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return proc
}

func TestOpenersAreFoundByDeviceNumber(t *testing.T) {
	proc := fakeProc(t, map[int][]string{
		4711:        {"socket:[1]", "/dev/null"},
		4712:        {"/dev/zero", "/dev/gone", "/etc/hostname", "pipe:[2]"},
		4713:        {},
		os.Getpid(): {"/dev/null"},
	})
	cases := []struct {
		name    string
		devices []DeviceNumber
		want    []int
	}{
		{"one of them", []DeviceNumber{devNull}, []int{4711}},
		{"both", []DeviceNumber{devNull, devZero}, []int{4711, 4712}},
		{"nobody", []DeviceNumber{devFull}, nil},
		{"no device", nil, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := Openers(proc)(c.devices)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("Openers(%v) (-want +got):\n%s", c.devices, diff)
			}
		})
	}
}

func TestProcessesOfAPodAreFoundByTheirControlGroup(t *testing.T) {
	const uid = "0a1b2c3d-4e5f-6789-abcd-ef0123456789"
	proc := fakeProc(t, map[int][]string{1: {}, 2: {}, 3: {}, 4: {}, 5: {}, 6: {}})
	for pid, group := range map[int]string{
		1: "0::/init.scope",
		2: "4:memory:/kubepods/besteffort/pod" + uid + "/5f3b\n1:name=systemd:/kubepods/besteffort/pod" + uid + "/5f3b",
		3: "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b2c3d_4e5f_6789_abcd_ef0123456789.slice/cri-containerd-5f3b.scope",
		4: "0::/../../kubepods-pod0a1b2c3d_4e5f_6789_abcd_ef0123456789.slice/crio-5f3b.scope/nested", // from within another namespace
		5: "0::/kubepods/besteffort/pod9a1b2c3d-4e5f-6789-abcd-ef0123456789/5f3b",
	} {
		if err := os.WriteFile(filepath.Join(proc, fmt.Sprint(pid), "cgroup"), []byte(group+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ProcessesOf(proc)(uid)
	if diff := cmp.Diff([]int{2, 3, 4}, got); diff != "" || err != nil {
		t.Errorf("ProcessesOf(%s) = %v (-want +got):\n%s", uid, err, diff)
	}
	if _, err := ProcessesOf(filepath.Join(proc, "none"))(uid); err == nil {
		t.Error("ProcessesOf = nil where proc cannot be read, want an error: nothing was proven")
	}
}

func TestOpenersFailWhereProcIsNotReadable(t *testing.T) {
	if _, err := Openers(filepath.Join(t.TempDir(), "none"))(nil); err == nil {
		t.Error("Openers = nil, want an error: nothing was proven")
	}
}
