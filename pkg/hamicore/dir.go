// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package hamicore

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// Places in the container.
const (
	containerDir  = "/usr/local/vgpu"
	preloadTarget = "/etc/ld.so.preload"
	lockTarget    = "/tmp/vgpulock"
	library       = "libvgpu.so"
)

// Dir is where HAMi-core is on the host. The host and whoever uses Dir must see it
// under the same paths. Safe for parallel use.
type Dir struct {
	Path string // has the library
	Lock string // directory of the lock that all containers of the node share
}

// Mount is a file or directory of the host that a container gets.
type Mount struct {
	HostPath, ContainerPath string
	ReadOnly                bool
}

// machines are the ELF machines of the architectures that the agent is built for.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// Check says in one sentence why no container could use the library, with the
// remedy; nil when it can be used.
func (d Dir) Check() error {
	if _, err := d.usable(); err != nil {
		return err
	}
	if _, err := d.preloadThere(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// usable is the library, of which it is known that a container can load it: the
// dynamic linker says nothing that ends a program when it cannot preload one.
func (d Dir) usable() (string, error) {
	file, err := d.library()
	if err != nil {
		return "", err
	}
	f, err := elf.Open(file)
	if err != nil {
		return "", fmt.Errorf("%s is no readable ELF library (%w); install HAMi-core's libvgpu.so for %s there", file, err, runtime.GOARCH)
	}
	defer func() { _ = f.Close() }() // read only
	if f.Machine != machines[runtime.GOARCH] || f.Type != elf.ET_DYN {
		return "", fmt.Errorf("%s is %s for %s; install HAMi-core's libvgpu.so for %s there", file, f.Type, f.Machine, runtime.GOARCH)
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	for _, part := range f.Progs {
		if part.Filesz > uint64(info.Size()) || part.Off > uint64(info.Size())-part.Filesz {
			return "", fmt.Errorf("%s ends after %d bytes, in the middle of what is to be loaded; copy HAMi-core's libvgpu.so there again", file, info.Size())
		}
	}
	if info.Mode().Perm()&0o444 != 0o444 {
		return "", fmt.Errorf("%s has mode %v, so that not every container can load it; run chmod a+r on it", file, info.Mode().Perm())
	}
	return file, nil
}

// versioned is HAMi's name of the library; what follows the numbers is of a build
// before them, as in v2.10.0-rc1.
var versioned = regexp.MustCompile(`^libvgpu\.so\.v?([0-9]+(?:\.[0-9]+)*)(-[0-9A-Za-z.-]+)?$`)

// library is the newest libvgpu.so of the directory: plain, or HAMi's
// libvgpu.so.VERSION. Directories and names of other forms, such as copies that
// are under way or kept, are none.
func (d Dir) library() (string, error) {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return "", fmt.Errorf("reading HAMi-core's directory: %w; install libvgpu.so there, or name another with --hami-core-dir", err)
	}
	var newest string
	for _, e := range entries {
		if e.Name() != library && !versioned.MatchString(e.Name()) {
			continue
		}
		file := filepath.Join(d.Path, e.Name())
		if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if e.Name() == library {
			return file, nil
		}
		if newest == "" || compareVersions(e.Name(), newest) > 0 {
			newest = e.Name()
		}
	}
	if newest == "" {
		return "", fmt.Errorf("%s has no %s; install HAMi-core there, or name another directory with --hami-core-dir", d.Path, library)
	}
	return filepath.Join(d.Path, newest), nil
}

// compareVersions orders two versioned names: by their numbers, then builds before
// the release itself, then as text.
func compareVersions(a, b string) int {
	x, y := versioned.FindStringSubmatch(a), versioned.FindStringSubmatch(b)
	number := func(s, t string) int { // of any length
		s, t = strings.TrimLeft(s, "0"), strings.TrimLeft(t, "0")
		return cmp.Or(cmp.Compare(len(s), len(t)), cmp.Compare(s, t))
	}
	if c := slices.CompareFunc(strings.Split(x[1], "."), strings.Split(y[1], "."), number); c != 0 {
		return c
	}
	if (x[2] == "") != (y[2] == "") {
		return cmp.Compare(len(y[2]), len(x[2]))
	}
	return cmp.Compare(a, b)
}

// Make makes what a home's containers need on the host and returns the mounts. It
// may be repeated; what is there is kept. A library that cannot be used is an error.
func (d Dir) Make(h *Home) ([]Mount, error) {
	file, err := d.usable()
	if err != nil {
		return nil, err
	}
	cache := d.cache(h.PodUID, h.Container)
	if err := openTo(cache, cacheMode); err != nil {
		return nil, err
	}
	if err := openTo(d.Lock, lockMode); err != nil {
		return nil, err
	}
	// The directory first: the library is mounted into it.
	mounts := []Mount{
		{HostPath: cache, ContainerPath: containerDir},
		{HostPath: file, ContainerPath: containerDir + "/" + library, ReadOnly: true},
		{HostPath: d.Lock, ContainerPath: lockTarget},
	}
	if h.NoPreload {
		return mounts, nil
	}
	preload, err := d.preload()
	if err != nil {
		return nil, err
	}
	return append(mounts, Mount{HostPath: preload, ContainerPath: preloadTarget, ReadOnly: true}), nil
}

// What a container's user, whoever that is, may do: anything in its own directory; in
// that of the lock make and remove a file that it knows the name of, which is all that
// HAMi-core does there, and not list it. No sticky bit: HAMi-core up to early 2026
// (src/utils.c: O_EXCL, remove) waits for ever for a lock that a process of another user
// has left and that it may not remove. So any container with a share can hold the lock,
// or fill the disk under the directory (docs/wire.md section 6).
const (
	cacheMode fs.FileMode = 0o777
	lockMode  fs.FileMode = 0o733
)

// openTo makes a directory with a mode. What else is there, such as a link that
// somebody has put there, is not followed.
func openTo(dir string, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("making %s: %w; make it writable for the agent", dir, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("it is no directory but %v; remove it", info.Mode().Type())
	case info.Mode().Perm() == mode:
		return nil
	}
	return os.Chmod(dir, mode) // past the umask
}

// preload is the file that makes the dynamic linker load the library; it is written
// where it is missing.
func (d Dir) preload() (string, error) {
	file, err := d.preloadThere()
	if !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	if err := d.writePreload(file); err != nil {
		return "", fmt.Errorf("writing %s: %w; make %s writable for the agent", file, err, d.Path)
	}
	return file, nil
}

// writePreload writes the file whole, under a name of its own first: containers
// start in parallel.
func (d Dir) writePreload(file string) (err error) {
	f, err := os.CreateTemp(d.Path, "ld.so.preload.*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.WriteString(preloadText + "\n")
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// preloadText is what the file says.
const preloadText = containerDir + "/" + library

// preloadThere is the file's name; the error says that it says something else, or
// is fs.ErrNotExist.
func (d Dir) preloadThere() (string, error) {
	file := filepath.Join(d.Path, "ld.so.preload")
	text, err := os.ReadFile(file)
	if err == nil && strings.TrimSpace(string(text)) != preloadText {
		err = fmt.Errorf("%s says %q, want %q; correct or remove it", file, text, preloadText)
	}
	return file, err
}

// cache is a home's directory, named as HAMi names it.
func (d Dir) cache(podUID, container string) string {
	return filepath.Join(d.Path, "containers", podUID+"_"+container)
}

// endedPrefix is that of directories that are being removed.
const endedPrefix = ".ended-"

// Sweep removes the directories of pods that are not alive; idempotent. Names that
// are not of the form that Make gives are left alone. All are renamed before the first
// is removed, which may take long: a container can leave any number of files. What an
// earlier sweep has not finished is removed, too.
func (d Dir) Sweep(alive func(podUID string) bool) error {
	homes := filepath.Join(d.Path, "containers")
	entries, err := os.ReadDir(homes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	var ended []string
	for _, e := range entries {
		name := e.Name()
		owner, _, ok := strings.Cut(name, "_")
		switch {
		case !e.IsDir() || !ok:
		case strings.HasPrefix(name, endedPrefix):
			ended = append(ended, name)
		case !alive(owner):
			if err := os.Rename(filepath.Join(homes, name), filepath.Join(homes, endedPrefix+name)); err != nil {
				errs = append(errs, err)
				continue
			}
			ended = append(ended, endedPrefix+name)
		}
	}
	for _, name := range ended {
		errs = append(errs, os.RemoveAll(filepath.Join(homes, name)))
	}
	return errors.Join(errs...)
}
