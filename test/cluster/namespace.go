// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// within calls f on a thread that is in the mount and pid namespaces of process
// pid: files are those of the namespace, and what f starts lives in it, as a child
// of this process and with a pid that the host knows. (nsenter would put a second
// process in between, and killing that one would miss its child.)
func within(pid int, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread stands for the whole process in /proc and cannot be
			// ended, so it must not change sides. While we hold it, the next
			// goroutine gets another.
			defer runtime.UnlockOSThread()
			result <- within(pid, f)
			return
		}
		// Never unlocked: the thread ends with the goroutine, and with it the last
		// hold on the namespaces.
		if err := enter(pid); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// enter moves the calling thread into the namespaces of process pid.
func enter(pid int) error {
	// Threads share root and working directory, and a thread that shares them may
	// not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("separating a thread: %w", err)
	}
	fds := make(map[string]int)
	for _, kind := range []string{"pid", "mnt"} { // both opened before /proc changes
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening the %s namespace of process %d: %w", kind, pid, err)
		}
		defer unix.Close(fd)
		fds[kind] = fd
	}
	if err := unix.Setns(fds["pid"], unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("entering the pid namespace of process %d: %w", pid, err)
	}
	if err := unix.Setns(fds["mnt"], unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("entering the mount namespace of process %d: %w", pid, err)
	}
	return nil
}

// privateDirs are the fixed paths that a kubelet, a containerd, CNI and CDI use.
var privateDirs = []string{
	"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/run/containerd", "/var/run/netns",
	"/etc/cni", "/etc/cdi", "/var/run/cdi", "/var/log/pods", "/var/log/containers",
}

// tunables are the kernel settings that a kubelet wants, and sets where they are
// different. A test cluster has no business changing how the machine treats a
// kernel panic, so each node sees files with the wanted values in their place.
var tunables = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// furnish turns the fresh namespaces of process pid into a node's: its own /proc,
// and dirs bound over from below root. Nothing of it reaches the host's mounts.
func furnish(pid int, root string, dirs []string) error {
	return within(pid, func() error {
		// Private first, to cut the tie to the host; then shared again among the
		// node's own namespaces, because kubelet hands out propagated mounts.
		for _, how := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
			if err := unix.Mount("", "/", "", unix.MS_REC|how, ""); err != nil {
				return fmt.Errorf("setting mount propagation: %w", err)
			}
		}
		// A mounted /proc shows the pid namespace of the process that mounts it, and
		// this process is not in the node's, only its children are.
		if out, err := exec.Command("mount", "-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc").CombinedOutput(); err != nil {
			return fmt.Errorf("mounting /proc: %w: %s", err, out)
		}
		for name, value := range tunables {
			file := filepath.Join(root, "tunables", name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(value+"\n"), 0o644)); err != nil {
				return fmt.Errorf("writing kernel setting %s: %w", name, err)
			}
			if err := bind(file, "/proc/sys/"+name); err != nil {
				return err
			}
		}
		for _, dir := range dirs {
			source := filepath.Join(root, dir)
			if err := errors.Join(os.MkdirAll(source, 0o755), os.MkdirAll(dir, 0o755)); err != nil {
				return fmt.Errorf("making a node's %s: %w", dir, err)
			}
			if err := bind(source, dir); err != nil {
				return err
			}
		}
		return nil
	})
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", source, target, err)
	}
	return nil
}
