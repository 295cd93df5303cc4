// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package steps

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wrapped is set in the environment of a process that is to become another
// program under a filter.
const wrapped = "DYNAMIG_STEPS_PROGRAM"

// handover is the descriptor by which that process gives its listener away.
const handover = 3

// Wrap must be called first in main or TestMain of a program that uses Start: Start
// runs that program once more, and Wrap makes that copy the program that was to be
// started.
func Wrap() {
	program := os.Getenv(wrapped)
	if program == "" {
		return
	}
	fmt.Fprintf(os.Stderr, "becoming %s: %v\n", program, become(program))
	os.Exit(1)
}

// become installs the filter and executes the program. It returns only an error.
func become(program string) error {
	runtime.LockOSThread() // the filter is the thread's, and the thread's that executes survives
	listener, err := install()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(handover, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("handing the listener over: %w", err)
	}
	if err := errors.Join(unix.Close(handover), unix.Close(listener), os.Unsetenv(wrapped)); err != nil {
		return err
	}
	return syscall.Exec(program, os.Args, os.Environ())
}

// install filters the calls that change what a name in a directory stands for, and
// those that ask for the time of day. (Go's os package has no other calls than these
// for Rename and Remove.)
func install() (listener int, err error) {
	jump := func(equal uint32, yes, no uint8) unix.SockFilter { // so many instructions on
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: equal, Jt: yes, Jf: no}
	}
	load := func(offset uint32) unix.SockFilter { // of struct seccomp_data
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	program := []unix.SockFilter{
		load(0), // the call's number
		jump(unix.SYS_RENAMEAT, 6, 0),
		jump(unix.SYS_RENAMEAT2, 5, 0),
		jump(unix.SYS_UNLINKAT, 4, 0),
		jump(unix.SYS_CLOCK_GETTIME, 0, 2),
		load(16), // its first argument
		jump(unix.CLOCK_REALTIME, 1, 0),
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("giving up privileges: %w", err)
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&f)))
	if errno != 0 {
		return 0, fmt.Errorf("installing the filter: %w", errno)
	}
	return int(fd), nil
}
