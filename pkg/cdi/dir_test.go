// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

// instance are the edits for one MIG instance: parent, GPU instance, compute instance.
func instance() Edits {
	return Edits{DeviceNodes: []DeviceNode{
		{Path: "/dev/nvidia0", Major: 195, Permissions: "rw"},
		{Path: "/dev/nvidia-caps/nvidia-cap21", Major: 508, Minor: 21, FileMode: 0o444, Permissions: "r"},
		{Path: "/dev/nvidia-caps/nvidia-cap22", HostPath: "/sim/dev/cap22", Major: 508, Minor: 22, FileMode: 0o444},
	}}
}

func read(t *testing.T, d Dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.Path, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWriteSlotHasTheRuntimesFormat(t *testing.T) {
	d := Dir{Path: filepath.Join(t.TempDir(), "cdi")}
	if err := d.WriteSlot("s0007", "pod-a", instance()); err != nil {
		t.Fatal(err)
	}
	want := `{"cdiVersion":"0.6.0","kind":"dynamig.io/slot","annotations":{"dynamig.io/owner":"pod-a"},` +
		`"devices":[{"name":"s0007","containerEdits":{"deviceNodes":[` +
		`{"path":"/dev/nvidia0","type":"c","major":195,"permissions":"rw"},` +
		`{"path":"/dev/nvidia-caps/nvidia-cap21","type":"c","major":508,"minor":21,"fileMode":292,"permissions":"r"},` +
		`{"path":"/dev/nvidia-caps/nvidia-cap22","hostPath":"/sim/dev/cap22","type":"c","major":508,"minor":22,"fileMode":292}` +
		`]}}],"containerEdits":{}}`
	if diff := cmp.Diff(want, read(t, d, "dynamig.io-slot_s0007.json")); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
}

func TestWriteDriverHidesGPUsFromTheLegacyHook(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	err := d.WriteDriver(Edits{
		DeviceNodes: []DeviceNode{{Path: "/dev/nvidiactl"}},
		Env:         []string{"NVIDIA_VISIBLE_DEVICES=all", "A=b"},
		Mounts:      []Mount{{HostPath: "/usr/lib/libcuda.so.1", ContainerPath: "/usr/lib/libcuda.so.1", Options: []string{"ro", "bind"}}},
		Hooks:       []Hook{{Name: "createContainer", Path: "/usr/bin/nvidia-cdi-hook", Args: []string{"nvidia-cdi-hook", "update-ldcache"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cdiVersion":"0.3.0","kind":"dynamig.io/driver","devices":[{"name":"all","containerEdits":{` +
		`"env":["A=b","NVIDIA_VISIBLE_DEVICES=void"],"deviceNodes":[{"path":"/dev/nvidiactl"}],` +
		`"hooks":[{"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook","args":["nvidia-cdi-hook","update-ldcache"]}],` +
		`"mounts":[{"hostPath":"/usr/lib/libcuda.so.1","containerPath":"/usr/lib/libcuda.so.1","options":["ro","bind"]}]}}],` +
		`"containerEdits":{}}`
	if diff := cmp.Diff(want, read(t, d, driverFile)); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
}

func TestWriteDriverNeedsNoEdits(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	if err := d.WriteDriver(Edits{}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, d, driverFile); !strings.Contains(got, `"NVIDIA_VISIBLE_DEVICES=void"`) {
		t.Errorf("file lacks the variable: %s", got)
	}
}

// Files must pass the check that runtimes make of version against content.
func TestFilesHaveALegalVersion(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	if err := d.WriteSlot("s0", "pod-a", instance()); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteDriver(instance()); err != nil { // hostPath needs 0.5.0
		t.Fatal(err)
	}
	for _, name := range []string{slotFile("s0"), driverFile} {
		var spec specs.Spec
		if err := json.Unmarshal([]byte(read(t, d, name)), &spec); err != nil {
			t.Fatal(err)
		}
		if err := specs.ValidateVersion(&spec); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOwnerLivesInTheFile(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	if owner, found, err := d.ReadOwner("s0001"); owner != "" || found || err != nil {
		t.Errorf("ReadOwner without a file = %q, %v, %v", owner, found, err)
	}
	for _, owner := range []string{"pod-a", "pod-b"} {
		if err := d.WriteSlot("s0001", owner, instance()); err != nil {
			t.Fatal(err)
		}
		if got, found, err := d.ReadOwner("s0001"); got != owner || !found || err != nil {
			t.Errorf("ReadOwner = %q, %v, %v; want %q", got, found, err, owner)
		}
	}
	for range 2 {
		if err := d.RemoveSlot("s0001"); err != nil {
			t.Errorf("RemoveSlot is not idempotent: %v", err)
		}
	}
	if _, found, _ := d.ReadOwner("s0001"); found {
		t.Error("the file is still there after RemoveSlot")
	}
}

func TestReadOwnerRefusesWhatItCannotRead(t *testing.T) {
	for name, text := range map[string]string{
		"a torn file":           `{"cdiVersion":"0.6.0","ki`,
		"a file without owner":  `{"cdiVersion":"0.6.0","kind":"dynamig.io/slot"}`,
		"a file of another use": `[]`,
	} {
		t.Run(name, func(t *testing.T) {
			d := Dir{Path: t.TempDir()}
			if err := os.WriteFile(d.join(slotFile("s0001")), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if owner, found, err := d.ReadOwner("s0001"); owner != "" || !found || err == nil {
				t.Errorf("ReadOwner = %q, %v, %v; want an error and found", owner, found, err)
			}
		})
	}
}

func TestSameContentIsNotWrittenAgain(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	stat := func(name string) os.FileInfo {
		fi, err := os.Stat(d.join(name))
		if err != nil {
			t.Fatal(err)
		}
		return fi
	}
	write := func(owner string) {
		t.Helper()
		if err := d.WriteSlot("s0001", owner, instance()); err != nil {
			t.Fatal(err)
		}
	}
	write("pod-a")
	before := stat(slotFile("s0001"))
	write("pod-a")
	if after := stat(slotFile("s0001")); !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("equal content replaced the file")
	}
	write("pod-b")
	if after := stat(slotFile("s0001")); os.SameFile(before, after) && before.ModTime().Equal(after.ModTime()) {
		t.Error("new content was written into the file that readers may hold")
	}
}

func TestSlotsListsOnlyOurs(t *testing.T) {
	d := Dir{Path: filepath.Join(t.TempDir(), "missing")}
	if got, err := d.Slots(); len(got) != 0 || err != nil {
		t.Errorf("Slots of a missing directory = %v, %v", got, err)
	}
	for _, slot := range []string{"s0010", "s0002"} {
		if err := d.WriteSlot(slot, "pod-a", instance()); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.WriteDriver(Edits{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nvidia.yaml", ".dynamig.io-123.tmp", "dynamig.io-slot_s0003.yaml"} {
		if err := os.WriteFile(d.join(name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.Slots()
	if diff := cmp.Diff([]string{"s0002", "s0010"}, got); diff != "" || err != nil {
		t.Errorf("Slots (-want +got): %v\n%s", err, diff)
	}
}

// A reader that looks all the time never finds half a file, and no name in the
// directory but a whole file's ends in .json or .yaml.
func TestReadersSeeWholeFilesOnly(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	const writes = 300
	done := make(chan error, 1)
	go func() {
		for i := range writes {
			owner := strings.Repeat("x", 1+i%50)
			if err := d.WriteSlot("s0001", owner, instance()); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if left, _ := filepath.Glob(d.join("*")); len(left) != 1 {
				t.Errorf("files left over: %v", left)
			}
			if left, _ := filepath.Glob(d.join(".*.tmp")); len(left) != 0 {
				t.Errorf("files left over: %v", left)
			}
			return
		default:
		}
		names, err := filepath.Glob(d.join("*.*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if ext := filepath.Ext(name); ext == suffix && filepath.Base(name) != slotFile("s0001") {
				t.Fatalf("a runtime would read the unfinished %s", name)
			}
		}
		if _, _, err := d.ReadOwner("s0001"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadValuesAreNamed(t *testing.T) {
	node := func(n DeviceNode) Edits { return Edits{DeviceNodes: []DeviceNode{n}} }
	for name, tc := range map[string]struct {
		slot, owner string
		edits       Edits
		want        string
	}{
		"a slot that is a path":      {"../x", "o", instance(), "slot ../x: this is no valid CDI device name"},
		"a slot that is empty":       {"", "o", instance(), "no valid CDI device name"},
		"a slot of 64 characters":    {strings.Repeat("a", 64), "o", instance(), "no valid CDI device name"},
		"no owner":                   {"s1", "", instance(), "the owner is empty"},
		"no edits":                   {"s1", "o", Edits{}, "the edits are empty"},
		"a relative device path":     {"s1", "o", node(DeviceNode{Path: "dev/x"}), `"dev/x": the path must be absolute`},
		"a relative host path":       {"s1", "o", node(DeviceNode{Path: "/dev/x", HostPath: "y"}), `host path "y"`},
		"a negative minor":           {"s1", "o", node(DeviceNode{Path: "/dev/x", Major: 1, Minor: -1}), "minor -1"},
		"unknown permissions":        {"s1", "o", node(DeviceNode{Path: "/dev/x", Permissions: "rx"}), `permissions "rx"`},
		"a variable without name":    {"s1", "o", Edits{Env: []string{"=x"}}, `env "=x"`},
		"a variable without a value": {"s1", "o", Edits{Env: []string{"X"}}, `env "X"`},
		"a relative mount":           {"s1", "o", Edits{Mounts: []Mount{{HostPath: "/a", ContainerPath: "b"}}}, `mount of "/a" at "b"`},
		"a hook without a name":      {"s1", "o", Edits{Hooks: []Hook{{Path: "/x"}}}, `hook "" runs "/x"`},
	} {
		t.Run(name, func(t *testing.T) {
			d := Dir{Path: t.TempDir()}
			err := d.WriteSlot(tc.slot, tc.owner, tc.edits)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("WriteSlot = %v, want an error with %q", err, tc.want)
			}
			if left, _ := os.ReadDir(d.Path); len(left) != 0 {
				t.Errorf("a refused write left %v", left)
			}
		})
	}
}

func TestNamesThatAllocatePromises(t *testing.T) {
	if got := SlotDevice("s0003"); got != "dynamig.io/slot=s0003" {
		t.Errorf("SlotDevice = %s", got)
	}
	if DriverDevice != "dynamig.io/driver=all" {
		t.Errorf("DriverDevice = %s", DriverDevice)
	}
}
