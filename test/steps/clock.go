// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package steps

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// clock is what a program is told of the time of day. The kernel answers that in
// memory which it shares with the program (the vDSO), without a call that could be
// stopped. A Go program keeps in a variable where to ask there; once it is zeroed the
// program makes system calls.
type clock struct {
	program string

	mu     sync.Mutex // guards what follows
	offset time.Duration
	memory *os.File // the program's; nil while it has the true time
}

// goClock is where Go's runtime keeps the address of the vDSO's clock.
const goClock = "runtime.vdsoClockgettimeSym"

// SetClock makes the program's time of day differ by offset from the true one, from
// now on. Its monotonic clock goes on as before. The program must be Go's, with its
// symbols and at a fixed address, as go build makes it.
func (p *Process) SetClock(offset time.Duration) error {
	c := &p.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.memory == nil {
		memory, err := takeClock(c.program, p.PID())
		if err != nil {
			return fmt.Errorf("setting the clock of %s: %w", c.program, err)
		}
		c.memory = memory
	}
	c.offset = offset
	return nil
}

// takeClock makes a process ask the kernel for the time, and returns its memory.
func takeClock(program string, pid int) (memory *os.File, err error) {
	file, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	symbols, err := file.Symbols()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == goClock })
	if i < 0 || file.Type != elf.ET_EXEC {
		return nil, fmt.Errorf("it has no symbol %s at a fixed address; build it without -ldflags=-s and -buildmode=pie", goClock)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		memory, err = zero(program, pid, symbols[i])
		if !errors.Is(err, errTooEarly) || time.Now().After(deadline) {
			return memory, err
		}
	}
}

var errTooEarly = errors.New("it has not begun to run")

// zero zeroes a variable of a process that has set it, and returns its memory.
func zero(program string, pid int, variable elf.Symbol) (memory *os.File, err error) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	if exe, err := os.Readlink(proc + "exe"); err != nil || exe != program {
		return nil, errors.Join(errTooEarly, err)
	}
	if memory, err = os.OpenFile(proc+"mem", os.O_RDWR, 0); err != nil {
		return nil, err
	}
	value, zeroes := make([]byte, variable.Size), make([]byte, variable.Size)
	_, err = memory.ReadAt(value, int64(variable.Value))
	if err == nil && bytes.Equal(value, zeroes) {
		err = errTooEarly
	}
	if err == nil {
		_, err = memory.WriteAt(zeroes, int64(variable.Value))
	}
	if err != nil {
		return nil, errors.Join(err, memory.Close())
	}
	return memory, nil
}

// tell answers a call that asks for the time of day, and reports whether it could.
func (c *clock) tell(n *notification) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.memory == nil {
		return false
	}
	now := unix.NsecToTimespec(time.Now().Add(c.offset).UnixNano())
	answer := binary.NativeEndian.AppendUint64(nil, uint64(now.Sec))
	answer = binary.NativeEndian.AppendUint64(answer, uint64(now.Nsec))
	_, err := c.memory.WriteAt(answer, int64(n.args[1]))
	return err == nil
}

// close gives the program's memory back.
func (c *clock) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.memory != nil {
		_ = c.memory.Close()
		c.memory = nil
	}
}
