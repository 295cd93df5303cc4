// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// DeviceNumber identifies a character device, whatever its path.
type DeviceNumber struct {
	Major, Minor int64
}

// Openers returns a function that lists the processes that hold one of some
// character devices open, by looking through proc, a mounted proc file system
// that shows all processes of the node. The calling process does not count.
//
// Only descriptors whose link begins with /dev/ are examined: to examine others
// could block on a dead network file system. One pass costs a readlink for each
// open file of the node, some ten milliseconds.
func Openers(proc string) func([]DeviceNumber) ([]int, error) {
	return func(devices []DeviceNumber) ([]int, error) {
		return processes(proc, func(process string) (bool, error) { return holdsOpen(filepath.Join(process, "fd"), devices) })
	}
}

// ProcessesOf returns a function that lists the processes of a pod's containers, from
// a proc file system as that of Openers. What names the pod is their control group:
// kubelet calls it after the pod's UID, as it is with the driver cgroupfs, with _ for
// each - with systemd's (k8s.io/kubernetes pkg/kubelet/cm: GetPodContainerName,
// escapeSystemdCgroupName). With cgroupsPerQOS: false kubelet makes none, and none
// of a pod's processes is found. One pass costs a small file for each process.
func ProcessesOf(proc string) func(types.UID) ([]int, error) {
	return func(pod types.UID) ([]int, error) {
		plain := "pod" + string(pod)
		escaped := strings.ReplaceAll(plain, "-", "_")
		return processes(proc, func(process string) (bool, error) {
			text, err := os.ReadFile(filepath.Join(process, "cgroup"))
			if gone(err) {
				return false, nil
			}
			return strings.Contains(string(text), plain) || strings.Contains(string(text), escaped), err
		})
	}
}

// processes lists the processes of proc but the calling one that are of a kind, by
// their directories.
func processes(proc string, is func(process string) (bool, error)) ([]int, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		found, err := is(filepath.Join(proc, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("looking at process %d: %w", pid, err)
		}
		if found {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// holdsOpen reports whether a directory of descriptors has one of the devices. A
// process that ends meanwhile holds nothing.
func holdsOpen(dir string, devices []DeviceNumber) (bool, error) {
	descriptors, err := os.ReadDir(dir)
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, d := range descriptors {
		path := filepath.Join(dir, d.Name())
		target, err := os.Readlink(path)
		if gone(err) || err == nil && !strings.HasPrefix(target, "/dev/") {
			continue
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Stat(path, &st)
		}
		if gone(err) {
			continue
		}
		if err != nil {
			return false, err
		}
		number := DeviceNumber{Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev))}
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && slices.Contains(devices, number) {
			return true, nil
		}
	}
	return false, nil
}

// gone reports whether a process or its descriptor has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
