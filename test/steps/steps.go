// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package steps runs a program and kills it exactly before or after it changes a
// file, without the program's help: the kernel stops each call that renames or
// removes something, and asks here.
//
//	program --rename(a, b)--> kernel --asks--> Process: is b below one of our
//	                                           directories, and its turn?
//	   no:                it goes on
//	   yes, before:       SIGKILL, nothing was renamed
//	   yes, after:        a is renamed to b, then SIGKILL, the program never learns
//
// Words: a step is one such call below the directories; steps are counted from 1
// since Start or Arm. A file that is written under another name and then renamed is one step.
//
// SetClock lets the program's time of day jump in the same way: it is told another
// one when it asks.
//
// It needs Linux 5.9 and the right to install a seccomp filter (any process that
// gives up new privileges has it). steps does not know what the program is.
package steps

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process is a program that runs. Safe for parallel use.
type Process struct {
	cmd      *exec.Cmd
	listener int
	dirs     []string
	clock    clock
	watching sync.WaitGroup
	done     chan struct{} // closed when the program has ended
	err      error         // how it ended; valid after done

	mu    sync.Mutex // guards what follows
	at    int
	after bool
	names []string // of the steps
}

// Start starts cmd, whose changes below dirs are steps, and kills it at step at,
// before or after it; 0 is never. Wrap must have been called in this program. The
// caller has set everything but ExtraFiles.
func Start(cmd *exec.Cmd, at int, after bool, dirs ...string) (*Process, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "handover")
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	program := cmd.Path
	cmd.Env = append(cmd.Env, wrapped+"="+program)
	cmd.Path, cmd.ExtraFiles = "/proc/self/exe", []*os.File{theirs}
	err = errors.Join(cmd.Start(), theirs.Close())
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Args[0], err)
	}
	p := &Process{cmd: cmd, dirs: dirs, clock: clock{program: program}, at: at, after: after, done: make(chan struct{})}
	if p.listener, err = receive(pair[0]); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", cmd.Args[0], err), cmd.Process.Kill(), cmd.Wait())
	}
	p.watching.Go(p.watch)
	go func() {
		err := cmd.Wait()
		p.watching.Wait() // the kernel tells it that nobody is left to ask
		p.err = err
		close(p.done)
	}()
	return p, nil
}

// receive takes the listener from the process that became the program.
func receive(socket int) (int, error) {
	text, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, text, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("receiving the listener: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) == 0 {
		return 0, errors.Join(errors.New("receiving the listener: there is none; does this program call Wrap, and may it install a filter?"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, fmt.Errorf("receiving the listener: %w", err)
	}
	return fds[0], nil
}

// Arm begins to count anew.
func (p *Process) Arm(at int, after bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.after, p.names = at, after, nil
}

// Steps names the steps so far, such as "rename journal.json".
func (p *Process) Steps() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.names...)
}

// Done is closed when the program has ended, by itself or killed.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how it has ended; nil is exit status 0.
func (p *Process) Err() error { return p.err }

// Signal sends a signal to the program.
func (p *Process) Signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// PID of the program.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// notification is struct seccomp_notif of linux/seccomp.h.
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32
	allow uint32
}

// watch answers the kernel until the program has ended.
func (p *Process) watch() {
	defer unix.Close(p.listener)
	defer p.clock.close()
	for {
		fds := []unix.PollFd{{Fd: int32(p.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 {
				return // POLLHUP
			}
			continue
		}
		var n notification
		if p.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)) != 0 {
			continue // who asked is dead
		}
		switch clock := n.nr == unix.SYS_CLOCK_GETTIME; {
		case clock && p.clock.tell(&n):
			p.answer(response{id: n.id})
		case !clock && p.stops(&n):
			_ = p.cmd.Process.Kill()
		default:
			p.answer(response{id: n.id, allow: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
		}
	}
}

// answer lets a call return; who made it may be dead by now.
func (p *Process) answer(r response) { p.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)) }

func (p *Process) ioctl(request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(p.listener), request, uintptr(arg))
	return errno
}

// stops reports whether the program dies at this call, after doing what it asked
// for where that is wanted.
func (p *Process) stops(n *notification) bool {
	rename := n.nr != unix.SYS_UNLINKAT
	from := text(n.pid, n.args[1])
	to := from
	if rename {
		to = text(n.pid, n.args[3])
	}
	if !p.ours(to) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	name := "remove " + filepath.Base(to)
	if rename {
		name = "rename " + filepath.Base(to)
	}
	p.names = append(p.names, name)
	if len(p.names) != p.at {
		return false
	}
	switch {
	case p.after && rename:
		_ = unix.Rename(from, to)
	case p.after:
		_ = unix.Unlink(to)
	}
	return true
}

func (p *Process) ours(path string) bool {
	for _, dir := range p.dirs {
		if strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

// text reads a string of another process; empty when that is not possible.
func text(pid uint32, address uint64) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return ""
	}
	defer f.Close()
	buffer := make([]byte, unix.PathMax)
	n, _ := f.ReadAt(buffer, int64(address)) // a short read ends at the end of a page
	end := bytes.IndexByte(buffer[:n], 0)
	return string(buffer[:max(0, end)])
}
