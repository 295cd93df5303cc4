// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// EnvCrashAt names an environment variable that Open reads: the call at which
// the process dies, as "before:12" or "after:12" by State.Calls, or as
// "after:CreateGPUInstance:2" by State.CallsByName. The counters only grow and
// outlive the process, so a restarted process does not die again.
const EnvCrashAt = "DYNAMIG_SIM_CRASH_AT"

// ExitCrash is the exit status of a process that a crash point ended.
const ExitCrash = 137

// Driver is one session with the simulated driver. It implements nvml.Driver
// and, through Node, plays everybody else. Safe for parallel use.
type Driver struct {
	*Node
	session  int // State.Session at Open
	counted  bool
	crash    crashPoint
	sleep    func(time.Duration)
	exit     func(code int)
	closed   atomic.Bool
	crashTxt string
}

// Option changes how Open works.
type Option func(*Driver)

// Uncounted makes a session of somebody else, such as an administrator's
// nvidia-smi: it obeys all rules and latencies, but its calls are not counted
// and no fault hits them.
func Uncounted() Option { return func(d *Driver) { d.counted = false } }

// CrashAt ends the process at a call; the form is that of EnvCrashAt.
func CrashAt(point string) Option { return func(d *Driver) { d.crashTxt = point } }

// WithSleep replaces time.Sleep for latencies and delays.
func WithSleep(sleep func(time.Duration)) Option { return func(d *Driver) { d.sleep = sleep } }

// WithExit replaces os.Exit for crashes. Should exit return, the session stays
// dead: the interrupted call and every later one give ErrUninitialized.
func WithExit(exit func(code int)) Option { return func(d *Driver) { d.exit = exit } }

// WithFsync makes each change of the state durable before it counts as done. It
// is needed only where the machine itself may lose power.
func WithFsync() Option { return func(d *Driver) { d.Node.fsync = true } }

// Open opens a session on the node that Create made below root. It first mends
// what a process that died half way has left of the device tree.
func Open(root string, options ...Option) (*Driver, error) {
	n, err := Load(root)
	if err != nil {
		return nil, err
	}
	d := &Driver{Node: n, counted: true, sleep: time.Sleep, exit: os.Exit, crashTxt: os.Getenv(EnvCrashAt)}
	for _, option := range options {
		option(d)
	}
	if d.crashTxt != "" {
		if d.crash, err = parseCrashPoint(d.crashTxt); err != nil {
			return nil, err
		}
	}
	if err := n.repair(); err != nil {
		return nil, err
	}
	s, err := n.Dump()
	if err != nil {
		return nil, err
	}
	d.session = s.Session
	if err := d.call(CallOpen, "", func(*State, *GPU, Fault) error { return nil }); err != nil {
		return nil, fmt.Errorf("opening session: %w", err)
	}
	return d, nil
}

// operation is the work of one call, on the state and, where the call names one,
// the GPU. It must change nothing when it fails.
type operation func(*State, *GPU, Fault) error

// call runs one driver call: number it, suffer what was ordered for it, work.
// A call that takes time does so without the node's lock, between the counting
// and the work; a fast one is a single transaction.
func (d *Driver) call(name string, id nvml.GPUID, op operation) error {
	if d.closed.Load() {
		return fmt.Errorf("the session is closed: %w", nvml.ErrUninitialized)
	}
	var (
		suffers Fault
		delay   time.Duration
		cleared int
		worked  bool
		result  error
	)
	err := d.update(func(s *State) {
		suffers, delay = d.count(s, name, id)
		cleared = s.Cleared
		if delay == 0 && !suffers.Halt && suffers.Crash != CrashBefore {
			worked, result = true, d.work(s, id, op, suffers)
		}
	})
	if err != nil {
		return err
	}
	if suffers.Crash == CrashBefore {
		return d.die()
	}
	if !worked {
		d.sleep(delay)
		if suffers.Halt {
			if err := d.halt(cleared); err != nil {
				return err
			}
		}
		if err := d.update(func(s *State) { result = d.work(s, id, op, suffers) }); err != nil {
			return err
		}
	}
	if suffers.Crash == CrashAfter {
		return d.die()
	}
	return result
}

// haltCheck is how often a halted call looks whether it may go on.
const haltCheck = 20 * time.Millisecond

// halt returns when faults were cleared more often than that.
func (d *Driver) halt(cleared int) error {
	for {
		s, err := d.Dump()
		if err != nil || s.Cleared > cleared {
			return err
		}
		d.sleep(haltCheck)
	}
}

// count numbers the call and returns what it suffers and how long it takes.
func (d *Driver) count(s *State, name string, id nvml.GPUID) (Fault, time.Duration) {
	var suffers Fault
	if d.counted {
		s.Calls++
		s.CallsByName[name]++
		suffers = s.takeFaults(name, id)
		if moment := d.crash.hits(s, name); moment != "" {
			suffers.Crash = moment
		}
	}
	return suffers, s.latency(name, id) + time.Duration(suffers.DelayMillis)*time.Millisecond
}

// work checks that session and GPU are there and runs op between the early and
// the late failure.
func (d *Driver) work(s *State, id nvml.GPUID, op operation, suffers Fault) error {
	if s.Session != d.session {
		return fmt.Errorf("the driver was loaded again: open a new session: %w", nvml.ErrUninitialized)
	}
	if suffers.Code != "" && !suffers.Late {
		return suffers.failure()
	}
	var g *GPU
	if id != "" {
		var err error
		if g, err = s.gpu(id); err != nil {
			return err
		}
		if g.Lost {
			return fmt.Errorf("GPU %d has fallen off the bus: %w", g.Index, nvml.ErrGPULost)
		}
	}
	err := op(s, g, suffers)
	if err == nil && suffers.Code != "" {
		return suffers.failure()
	}
	return err
}

func (f Fault) failure() error {
	return fmt.Errorf("a fault was set for this call: %w", errorOf(f.Code))
}

// die ends the process as a crash does. It returns only where WithExit's
// function does.
func (d *Driver) die() error {
	d.closed.Store(true)
	d.exit(ExitCrash)
	return fmt.Errorf("the process has crashed: %w", nvml.ErrUninitialized)
}

// latency is how long a call takes on this node; a listing walks handles and so
// takes its time per instance.
func (s *State) latency(name string, id nvml.GPUID) time.Duration {
	each := time.Duration(s.LatencyMillis[name]) * time.Millisecond
	if name != CallInstances {
		return each
	}
	g, err := s.gpu(id)
	if err != nil {
		return 0
	}
	return each * time.Duration(len(g.Instances))
}
