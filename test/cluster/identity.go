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
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// identity names one process for good: pids are used again, pairs of pid and
// start time are not, until the machine boots.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat, clock ticks since boot
}

var errGone = errors.New("the process has ended")

// identify returns the identity of the process that has this pid now, be it a
// zombie, or errGone.
func identify(pid int) (identity, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return identity{}, errGone
	}
	if err != nil {
		return identity{}, err
	}
	// The second field is the program's name in parentheses and may contain anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return identity{}, fmt.Errorf("reading /proc/%d/stat: %d fields after the name, want 20 or more", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return identity{}, fmt.Errorf("reading the start time in /proc/%d/stat: %w", pid, err)
	}
	return identity{PID: pid, Start: start}, nil
}

// open returns a pidfd, which keeps naming this process whatever becomes of its
// pid, or errGone.
func (id identity) open() (int, error) {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, errGone
	}
	if err != nil {
		return -1, fmt.Errorf("opening process %d: %w", id.PID, err)
	}
	// Checked after opening, so the descriptor cannot be somebody else's.
	if now, err := identify(id.PID); err != nil || now != id {
		unix.Close(fd)
		return -1, errGone
	}
	return fd, nil
}

// ended waits up to this long for the process to end: for its last thread, that
// is. State Z in /proc tells less: the first thread can be a zombie while others
// still hold memory and ports.
func ended(pidfd int, wait time.Duration) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(wait.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n > 0, err
}

func (id identity) alive() bool {
	fd, err := id.open()
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	over, err := ended(fd, 0)
	return err == nil && !over
}

// signal sends sig; a process that has ended is no error.
func (id identity) signal(sig unix.Signal) error {
	fd, err := id.open()
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %s to process %d: %w", sig, id.PID, err)
	}
	return nil
}

// wait returns nil when the process has ended. Process 1 of a pid namespace ends
// after all others in it.
func (id identity) wait(ctx context.Context) error {
	fd, err := id.open()
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		over, err := ended(fd, 100*time.Millisecond) // then look at ctx
		if err != nil {
			return fmt.Errorf("waiting for process %d: %w", id.PID, err)
		}
		if over {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for process %d to end: %w", id.PID, context.Cause(ctx))
		}
	}
}

// kill ends the process with SIGKILL and waits for its end.
func (id identity) kill(ctx context.Context) error {
	if err := id.signal(unix.SIGKILL); err != nil {
		return err
	}
	return id.wait(ctx)
}

// markVar is in the environment of every process that a cluster starts, and of
// their children: NAME for host processes, NAME/NODE for a node's. It finds those
// whose pid did not reach the disk because the starting process was killed.
const markVar = "DYNAMIG_TESTCLUSTER"

// marked returns the living processes with this mark or one below it, except the caller.
func marked(mark string) ([]identity, error) {
	pids, err := allPIDs()
	if err != nil {
		return nil, err
	}
	var found []identity
	for _, pid := range pids {
		if pid == os.Getpid() || !hasMark(pid, mark) {
			continue
		}
		if id, err := identify(pid); err == nil && hasMark(pid, mark) { // again: the pid may have changed hands
			found = append(found, id)
		}
	}
	return found, nil
}

func allPIDs() ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func hasMark(pid int, mark string) bool {
	environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // gone: no mark
	for v := range strings.SplitSeq(string(environ), "\x00") {
		if value, ok := strings.CutPrefix(v, markVar+"="); ok {
			return value == mark || strings.HasPrefix(value, mark+"/")
		}
	}
	return false
}

// killMarked kills everything with this mark, again and again until none is left,
// since a process may start another while it is looked for.
func killMarked(ctx context.Context, mark string) error {
	for {
		ids, err := marked(mark)
		if err != nil || len(ids) == 0 {
			return err
		}
		for _, id := range ids {
			if err := id.signal(unix.SIGKILL); err != nil {
				return err
			}
		}
		for _, id := range ids {
			if err := id.wait(ctx); err != nil {
				return err
			}
		}
	}
}
