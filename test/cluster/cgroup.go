// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup tree: the only one with version 2, one per
// controller or so with version 1.
type hierarchy struct {
	root string // mount point
	v2   bool
}

// hierarchies returns the cgroup trees of this machine. With both versions mounted
// (the kernel's hybrid form) it returns all.
func hierarchies() ([]hierarchy, error) {
	mounts, err := mountsOf("self")
	if err != nil {
		return nil, err
	}
	var all []hierarchy
	for _, m := range mounts {
		if m.fsType != "cgroup" && m.fsType != "cgroup2" {
			continue
		}
		h := hierarchy{root: m.point, v2: m.fsType == "cgroup2"}
		if !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("looking for cgroups: no hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")
	}
	return all, nil
}

// makeCgroup makes the cgroup at path in every hierarchy that a kubelet uses, ready
// to be its root, which it must find there: it only makes what is below. In the
// hybrid form the controllers are with version 1, and version 2 is left alone.
func makeCgroup(path string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	hybrid := slices.ContainsFunc(all, func(h hierarchy) bool { return !h.v2 })
	for _, h := range all {
		if h.v2 && hybrid {
			continue
		}
		if err := h.make(path); err != nil {
			return fmt.Errorf("making cgroup %s in %s: %w", path, h.root, err)
		}
	}
	return nil
}

func (h hierarchy) make(path string) error {
	dir := h.root
	for _, elem := range strings.Split(path, "/") {
		parent := dir
		dir = filepath.Join(dir, elem)
		if err := h.delegate(parent); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := inheritCPUSet(parent, dir); err != nil {
			return err
		}
	}
	return h.delegate(dir)
}

// delegate gives all controllers of a version 2 cgroup to its children, if they do
// not have them. For the root of the tree that outlasts the cluster.
func (h hierarchy) delegate(dir string) error {
	if !h.v2 {
		return nil
	}
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(controllers)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s holds processes, so its controller %s cannot be given to cgroups below "+
				"(usual in a container): move them into a cgroup of their own, or run on the host", dir, c)
		}
		if err != nil {
			return fmt.Errorf("enabling controller %s below %s: %w", c, dir, err)
		}
	}
	return nil
}

// inheritCPUSet fills the two files that a new version 1 cpuset has empty, and
// that must not be empty once a process is put there.
func inheritCPUSet(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || len(bytes.TrimSpace(value)) > 0 {
			continue
		}
		if err != nil {
			return err
		}
		if value, err = os.ReadFile(filepath.Join(parent, name)); err != nil {
			return err
		}
		if len(bytes.TrimSpace(value)) == 0 {
			continue // version 2, where empty means: as the parent
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// cgroupsAt returns the directories that exist for this path, one per hierarchy.
func cgroupsAt(path string) ([]string, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, h := range all {
		if dir := filepath.Join(h.root, path); isDir(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// removeCgroup removes the cgroup at path and all below it from every hierarchy.
// Their processes must have been killed; the kernel may need a moment to notice.
func removeCgroup(ctx context.Context, path string) error {
	dirs, err := cgroupsAt(path)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := poll(ctx, func() error { return removeTree(dir) }); err != nil {
			return fmt.Errorf("removing cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// removeTree removes directories bottom-up. A cgroup's files go with it and cannot
// be removed one by one, hence not os.RemoveAll.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
