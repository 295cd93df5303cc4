// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package hamicore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnv(t *testing.T) {
	h := Home{
		PodUID: "u", Container: "c", Limits: []Limit{{8000, 30}, {4000, 0}},
		Oversubscribed: true, LogLevel: "1", CorePolicy: "disable", Priority: "0",
	}
	got, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"CUDA_DEVICE_MEMORY_LIMIT_0=8000m", "CUDA_DEVICE_SM_LIMIT_0=30",
		"CUDA_DEVICE_MEMORY_LIMIT_1=4000m", "CUDA_DEVICE_SM_LIMIT_1=100",
		"CUDA_DEVICE_MEMORY_LIMIT=4000m", "CUDA_DEVICE_SM_LIMIT=30",
		"CUDA_DEVICE_MEMORY_SHARED_CACHE=/usr/local/vgpu/u.cache",
		"CUDA_OVERSUBSCRIBE=true", "LIBCUDA_LOG_LEVEL=1", "GPU_CORE_UTILIZATION_POLICY=disable", "CUDA_TASK_PRIORITY=0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
}

// TestPartialHome (I1): number 0 of a container with only the second device must
// not have the first one's limit.
func TestPartialHome(t *testing.T) {
	got, err := (&Home{Limits: []Limit{{40000, 0}, {20000, 30}}, Partial: true}).Env()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		for _, want := range []string{fmt.Sprintf("CUDA_DEVICE_MEMORY_LIMIT_%d=20000m", i), fmt.Sprintf("CUDA_DEVICE_SM_LIMIT_%d=30", i)} {
			if !slices.Contains(got, want) {
				t.Errorf("variables %q, want %s", got, want)
			}
		}
	}
}

// TestNothingIsUnlimited (I1): the library reads 0 and nothing as no limit.
func TestNothingIsUnlimited(t *testing.T) {
	for name, limits := range map[string][]Limit{
		"no device": nil, "no memory": {{0, 10}}, "less than no memory": {{8000, 1}, {-1, 1}}, "more than the library knows": make([]Limit, 17),
	} {
		if env, err := (&Home{Limits: limits}).Env(); err == nil {
			t.Errorf("%s: %v, want an error", name, env)
		}
	}
	for cores, want := range map[int32]string{-5: "100", 0: "100", 1: "1", 99: "99", 100: "100", 101: "100"} {
		env, err := (&Home{Limits: []Limit{{1, cores}}}).Env()
		if err != nil || !slices.Contains(env, "CUDA_DEVICE_SM_LIMIT_0="+want) || !slices.Contains(env, "CUDA_DEVICE_SM_LIMIT="+want) {
			t.Errorf("%d%% of the cores: %v, %v; want %s", cores, env, err, want)
		}
	}
}

// elfFile is the head of an ELF file.
func elfFile(machine, kind uint16) []byte {
	head := make([]byte, 64)
	copy(head, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(head[16:], kind)
	binary.LittleEndian.PutUint16(head[18:], machine)
	binary.LittleEndian.PutUint32(head[20:], 1)
	binary.LittleEndian.PutUint16(head[52:], 64) // e_ehsize
	binary.LittleEndian.PutUint16(head[58:], 64) // e_shentsize
	return head
}

// ownMachine is the ELF machine of this architecture, as the test program has it.
func ownMachine(t *testing.T) uint16 {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint16(text[18:])
}

const dynamic, executable = 3, 2 // ET_DYN, ET_EXEC

// cutOff is the head of an ELF file with one segment, most of which is missing.
func cutOff(machine uint16) []byte {
	head := append(elfFile(machine, dynamic), make([]byte, 56)...)
	binary.LittleEndian.PutUint64(head[32:], 64) // e_phoff
	binary.LittleEndian.PutUint16(head[54:], 56) // e_phentsize
	binary.LittleEndian.PutUint16(head[56:], 1)  // e_phnum
	binary.LittleEndian.PutUint32(head[64:], 1)  // p_type: PT_LOAD
	binary.LittleEndian.PutUint64(head[96:], 4096)
	return head
}

// TestOnlyAUsableLibrary (I1): what the dynamic linker would not load is not
// offered, and nothing starts with it.
func TestOnlyAUsableLibrary(t *testing.T) {
	mine := ownMachine(t)
	for _, tc := range []struct {
		name, file string
		text       []byte
		mode       os.FileMode
		want       string
	}{
		{"a library", "libvgpu.so", elfFile(mine, dynamic), 0o644, ""},
		{"with HAMi's version", "libvgpu.so.v2.10.0", elfFile(mine, dynamic), 0o644, ""},
		{"missing", "libother.so", elfFile(mine, dynamic), 0o644, "has no libvgpu.so; install HAMi-core there, or name another directory with --hami-core-dir"},
		{"empty", "libvgpu.so", nil, 0o644, "is no readable ELF library"},
		{"cut off", "libvgpu.so", cutOff(mine), 0o644, "ends after 120 bytes, in the middle of what is to be loaded"},
		{"a script", "libvgpu.so", []byte("#!/bin/sh\nexit 0\n and some more text to be long enough for a header"), 0o644, "is no readable ELF library"},
		{"of another architecture", "libvgpu.so", elfFile(21, dynamic), 0o644, "for EM_PPC64"},
		{"a program", "libvgpu.so", elfFile(mine, executable), 0o644, "is ET_EXEC"},
		{"readable for the owner only", "libvgpu.so", elfFile(mine, dynamic), 0o600, "run chmod a+r on it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Dir{Path: t.TempDir(), Lock: t.TempDir()}
			if err := os.WriteFile(filepath.Join(d.Path, tc.file), tc.text, tc.mode); err != nil {
				t.Fatal(err)
			}
			_, made := d.Make(&Home{PodUID: "u", Container: "c"})
			for name, err := range map[string]error{"Check": d.Check(), "Make": made} {
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("%s = %v, want %q", name, err, tc.want)
				}
			}
		})
	}
	if err := (Dir{Path: filepath.Join(t.TempDir(), "none")}).Check(); err == nil || !strings.Contains(err.Error(), "--hami-core-dir") {
		t.Errorf("no directory: %v", err)
	}
}

// TestNewestLibrary: versions are numbers, and only files with one count.
func TestNewestLibrary(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		files      []string
	}{
		{"numbers, not text", "libvgpu.so.v2.10.0", []string{"libvgpu.so.v2.9.0", "libvgpu.so.v2.10.0", "libvgpu.so.v2.2.14"}},
		{"more numbers are newer", "libvgpu.so.2.10.1", []string{"libvgpu.so.2.10", "libvgpu.so.2.10.1"}},
		{"a release is newer than what came before it", "libvgpu.so.v2.10.0", []string{"libvgpu.so.v2.10.0-rc2", "libvgpu.so.v2.10.0", "libvgpu.so.v2.10.0-rc1"}},
		{"a copy under way or kept is none", "libvgpu.so.v2.9.0", []string{"libvgpu.so.v2.9.0", "libvgpu.so.v2.10.0.tmp", "libvgpu.so.bak", "libvgpu.so.9~"}},
		{"a directory is none", "libvgpu.so.v2.9.0", []string{"libvgpu.so.v2.9.0", "libvgpu.so/", "libvgpu.so.v3.0.0/"}},
		{"the plain name wins", "libvgpu.so", []string{"libvgpu.so.v2.9.0", "libvgpu.so"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Dir{Path: t.TempDir()}
			for _, name := range tc.files {
				file := filepath.Join(d.Path, name)
				write := func() error { return os.WriteFile(file, nil, 0o644) }
				if strings.HasSuffix(name, "/") {
					write = func() error { return os.Mkdir(file, 0o755) }
				}
				if err := write(); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := d.library(); err != nil || got != filepath.Join(d.Path, tc.want) {
				t.Errorf("library = %s, %v; want %s", got, err, tc.want)
			}
		})
	}
}

// TestDirectories (I2): each home has its own, which ends with its pod.
func TestDirectories(t *testing.T) {
	d := Dir{Path: t.TempDir(), Lock: filepath.Join(t.TempDir(), "lock")}
	if err := os.WriteFile(filepath.Join(d.Path, "libvgpu.so.1"), elfFile(ownMachine(t), dynamic), 0o644); err != nil {
		t.Fatal(err)
	}
	hosts := map[string]bool{}
	for _, h := range []Home{{PodUID: "a", Container: "c"}, {PodUID: "a", Container: "d"}, {PodUID: "b", Container: "c", NoPreload: true}} {
		mounts, err := d.Make(&h)
		if err != nil {
			t.Fatal(err)
		}
		again, err := d.Make(&h)
		if err != nil || cmp.Diff(mounts, again) != "" {
			t.Errorf("repeated: %v, %v; want %v", again, err, mounts)
		}
		want := []Mount{
			{filepath.Join(d.Path, "containers", h.PodUID+"_"+h.Container), "/usr/local/vgpu", false},
			{filepath.Join(d.Path, "libvgpu.so.1"), "/usr/local/vgpu/libvgpu.so", true},
			{d.Lock, "/tmp/vgpulock", false},
		}
		if !h.NoPreload {
			want = append(want, Mount{filepath.Join(d.Path, "ld.so.preload"), "/etc/ld.so.preload", true})
		}
		if diff := cmp.Diff(want, mounts); diff != "" {
			t.Errorf("mounts (-want +got):\n%s", diff)
		}
		if hosts[mounts[0].HostPath] {
			t.Errorf("%s has two homes", mounts[0].HostPath)
		}
		hosts[mounts[0].HostPath] = true
		if info, err := os.Stat(mounts[0].HostPath); err != nil || info.Mode().Perm() != 0o777 {
			t.Errorf("%v, %v; want a directory that anybody can write", info, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(d.Path, "ld.so.preload")); err != nil || string(text) != "/usr/local/vgpu/libvgpu.so\n" {
		t.Errorf("ld.so.preload: %q, %v", text, err)
	}
	if info, err := os.Stat(d.Lock); err != nil || info.Mode().Perm() != 0o733 {
		t.Errorf("%v, %v; want a directory in which anybody can make a lock and nobody can look for others' files", info, err)
	}
	for _, name := range []string{"keep", ".ended-z_c"} { // the second was not removed in time
		if err := os.MkdirAll(filepath.Join(d.Path, "containers", name, "files"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	list := func() (names []string) {
		entries, err := os.ReadDir(filepath.Join(d.Path, "containers"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for _, step := range []struct {
		do   func() error
		want []string
	}{
		{func() error { return d.Sweep(func(uid string) bool { return uid == "a" }) }, []string{"a_c", "a_d", "keep"}},
		{func() error { return d.Sweep(func(string) bool { return false }) }, []string{"keep"}},
		{func() error { return d.Sweep(func(string) bool { return false }) }, []string{"keep"}},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, list()); diff != "" {
			t.Errorf("directories (-want +got):\n%s", diff)
		}
	}
}

// TestContainersStartInParallel on a host that has had none yet.
func TestContainersStartInParallel(t *testing.T) {
	for range 20 {
		d := Dir{Path: t.TempDir(), Lock: filepath.Join(t.TempDir(), "lock")}
		if err := os.WriteFile(filepath.Join(d.Path, "libvgpu.so"), elfFile(ownMachine(t), dynamic), 0o644); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 16 {
			all.Go(func() {
				if _, err := d.Make(&Home{PodUID: "u" + strconv.Itoa(i), Container: "c"}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if left, err := filepath.Glob(filepath.Join(d.Path, "ld.so.preload?*")); err != nil || len(left) > 0 {
			t.Errorf("left over: %v, %v", left, err)
		}
	}
}

// TestLinksAreNotFollowed: what somebody else puts in the place of the lock's
// directory is not made writable and not given to containers.
func TestLinksAreNotFollowed(t *testing.T) {
	target := t.TempDir()
	if err := os.Chmod(target, 0o700); err != nil {
		t.Fatal(err)
	}
	d := Dir{Path: t.TempDir(), Lock: filepath.Join(t.TempDir(), "lock")}
	if err := errors.Join(os.WriteFile(filepath.Join(d.Path, "libvgpu.so"), elfFile(ownMachine(t), dynamic), 0o644), os.Symlink(target, d.Lock)); err != nil {
		t.Fatal(err)
	}
	if mounts, err := d.Make(&Home{PodUID: "u", Container: "c"}); err == nil || !strings.Contains(err.Error(), "it is no directory but L") {
		t.Errorf("Make = %v, %v; want an error", mounts, err)
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the link's target is %v, %v; want it as it was", info, err)
	}
}

func TestAnotherPreloadFileIsNotOverwritten(t *testing.T) {
	d := Dir{Path: t.TempDir(), Lock: t.TempDir()}
	for name, text := range map[string]string{"libvgpu.so": string(elfFile(ownMachine(t), dynamic)), "ld.so.preload": "/opt/other.so\n"} {
		if err := os.WriteFile(filepath.Join(d.Path, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Make(&Home{PodUID: "u", Container: "c"}); err == nil || !strings.Contains(err.Error(), "correct or remove it") {
		t.Errorf("Make = %v", err)
	}
}
