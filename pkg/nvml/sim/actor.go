// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// What others do to a node: jobs, monitoring, hardware, administrators.

// Hold makes somebody use GPU instance h.GI, or the GPU itself where that is
// WholeGPU: a process where PID is set, else a handle that NVML does not show.
// Refused where the real thing could not start: on a lost GPU, for a process
// without a compute instance, or on the whole of a GPU in MIG mode.
func (n *Node) Hold(id nvml.GPUID, h Holder) error {
	return n.onGPU(id, func(_ *State, g *GPU) error {
		if err := g.checkHolder(h); err != nil {
			return fmt.Errorf("holding GPU instance %d of %s: %w", h.GI, id, err)
		}
		g.Holders = append(g.Holders, h)
		return nil
	})
}

func (g *GPU) checkHolder(h Holder) error {
	switch {
	case g.Lost:
		return nvml.ErrGPULost
	case h.PID < 0 || h.MemoryMiB < 0 || h.GI < WholeGPU:
		return fmt.Errorf("PID %d, memory %d MiB: expected no negative number: %w", h.PID, h.MemoryMiB, nvml.ErrInvalidArgument)
	case h.PID != 0 && slices.ContainsFunc(g.Holders, func(o Holder) bool { return o.PID == h.PID && o.GI == h.GI }):
		return fmt.Errorf("process %d holds it already: %w", h.PID, nvml.ErrInvalidArgument)
	case h.GI == WholeGPU && h.PID != 0 && g.Current:
		return fmt.Errorf("a GPU in MIG mode runs processes in instances only: %w", nvml.ErrNotSupported)
	case h.GI == WholeGPU:
		return nil
	}
	in, err := g.instance(h.GI)
	if err == nil && h.PID != 0 && in.CI == nvml.NoCI {
		return fmt.Errorf("GPU instance %d has no compute instance: %w", h.GI, nvml.ErrNotSupported)
	}
	return err
}

// Release ends one holder: the process of that PID, or with PID 0 one invisible
// handle. ErrNotFound when there is none.
func (n *Node) Release(id nvml.GPUID, gi, pid int) error {
	return n.onGPU(id, func(_ *State, g *GPU) error {
		i := slices.IndexFunc(g.Holders, func(h Holder) bool { return h.GI == gi && h.PID == pid })
		if i < 0 {
			return fmt.Errorf("releasing GPU instance %d of %s: PID %d holds nothing there: %w", gi, id, pid, nvml.ErrNotFound)
		}
		g.Holders = slices.Delete(g.Holders, i, i+1)
		return nil
	})
}

// keptEvents bounds the event log of a node.
const keptEvents = 1000

// XID records an XID error of GPU instance gi and its compute instance, or with
// WholeGPU of the GPU without an instance.
func (n *Node) XID(id nvml.GPUID, gi, xid int) error {
	return n.onGPU(id, func(s *State, g *GPU) error {
		ci := nvml.NoCI
		if gi != WholeGPU {
			in, err := g.instance(gi)
			if err != nil {
				return fmt.Errorf("recording XID %d on %s: %w", xid, id, err)
			}
			ci = in.CI
		}
		s.addEvent(Event{GPU: id, GI: gi, CI: ci, XID: xid})
		return nil
	})
}

func (s *State) addEvent(e Event) {
	s.LastEvent++
	e.Seq = s.LastEvent
	s.Events = append(s.Events, e)
	s.Events = s.Events[max(0, len(s.Events)-keptEvents):]
}

// EventsAfter returns the events with a Seq above seq, oldest first.
func (n *Node) EventsAfter(seq int) ([]Event, error) {
	s, err := n.Dump()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(s.Events, func(e Event) bool { return e.Seq <= seq }), nil
}

// LoseGPU lets a GPU fall off the bus, with XID 79: every call that names it
// gives ErrGPULost until ResetGPU or Reboot.
func (n *Node) LoseGPU(id nvml.GPUID) error {
	return n.onGPU(id, func(s *State, g *GPU) error {
		if !g.Lost {
			g.Lost = true
			s.addEvent(Event{GPU: id, GI: WholeGPU, CI: nvml.NoCI, XID: 79})
		}
		return nil
	})
}

// ResetGPU resets a GPU that nobody holds, ErrInUse otherwise; a lost one is
// reset whoever held it. Its instances are gone; a pending MIG mode comes into
// force on Ampere, MIG mode is off on later GPUs.
func (n *Node) ResetGPU(id nvml.GPUID) error {
	return n.onGPU(id, func(_ *State, g *GPU) error {
		if len(g.Holders) > 0 && !g.Lost {
			return fmt.Errorf("resetting %s: the GPU has %d client(s): %w", id, len(g.Holders), nvml.ErrInUse)
		}
		g.restart()
		return nil
	})
}

// Reboot restarts the node: sessions, holders, instances and events are gone,
// every GPU is there again, MIG mode is as after ResetGPU. Faults, latencies and
// the counters of calls and UUIDs stay.
func (n *Node) Reboot() error {
	return n.update(func(s *State) {
		s.Session++
		s.Events = nil
		for i := range s.GPUs {
			s.GPUs[i].restart()
		}
	})
}

// LoseSessions makes every open session give ErrUninitialized, as when the
// library is replaced under a running program. Instances stay.
func (n *Node) LoseSessions() error {
	return n.update(func(s *State) { s.Session++ })
}

// AddFault orders something to go wrong.
func (n *Node) AddFault(f Fault) error {
	if err := f.check(); err != nil {
		return err
	}
	return n.attempt(func(s *State) error {
		if f.GPU != "" {
			if _, err := s.gpu(f.GPU); err != nil {
				return fmt.Errorf("setting fault: %w", err)
			}
		}
		s.Faults = append(s.Faults, f)
		return nil
	})
}

// FailCall makes the nth coming call of that name fail with err, one of the
// sentinels of package nvml.
func (n *Node) FailCall(call string, nth int, err error) error {
	return n.AddFault(Fault{Call: call, Nth: nth, Code: CodeOf(err)})
}

// DelayCall makes the nth coming call of that name take longer.
func (n *Node) DelayCall(call string, nth int, delay time.Duration) error {
	return n.AddFault(Fault{Call: call, Nth: nth, DelayMillis: int(delay.Milliseconds())})
}

// HaltCall makes the nth coming call of that name wait until ClearFaults.
func (n *Node) HaltCall(call string, nth int) error {
	return n.AddFault(Fault{Call: call, Nth: nth, Halt: true})
}

// ClearFaults withdraws all faults, and ends the lingering of instances and the halt
// of calls.
func (n *Node) ClearFaults() error {
	return n.update(func(s *State) {
		s.Faults = nil
		s.Cleared++
		for i := range s.GPUs {
			g := &s.GPUs[i]
			g.Instances = slices.DeleteFunc(g.Instances, func(in Instance) bool { return in.Lingers != 0 })
		}
	})
}

// RealisticLatencies are of the shape that users of real GPUs report: about
// 1.5 s for GPU plus compute instance, 1 s to destroy. No benchmark by call is
// known. CallInstances counts per instance.
func RealisticLatencies() map[string]time.Duration {
	return map[string]time.Duration{
		CallOpen:                   10 * time.Millisecond,
		CallProfiles:               25 * time.Millisecond,
		CallInstances:              20 * time.Millisecond,
		CallCreateGPUInstance:      700 * time.Millisecond,
		CallCreateComputeInstance:  700 * time.Millisecond,
		CallDestroyComputeInstance: 300 * time.Millisecond,
		CallDestroyGPUInstance:     700 * time.Millisecond,
		CallSetMIGMode:             2 * time.Second,
	}
}

// SetLatencies replaces the latencies of all calls; nil makes every call instant.
// A latency is rounded down to milliseconds.
func (n *Node) SetLatencies(latencies map[string]time.Duration) error {
	millis, err := latencyMillis(latencies)
	if err != nil {
		return err
	}
	return n.update(func(s *State) { s.LatencyMillis = millis })
}

func latencyMillis(latencies map[string]time.Duration) (map[string]int, error) {
	millis := map[string]int{}
	for call, latency := range latencies {
		if !slices.Contains(CallNames(), call) || latency < 0 {
			return nil, fmt.Errorf("setting latency of call %q to %s: expected a time from 0 for one of %s",
				call, latency, strings.Join(CallNames(), ", "))
		}
		millis[call] = int(latency.Milliseconds())
	}
	return millis, nil
}

// SetProfileMemory makes the driver report another memory size for a profile of
// one GPU, as another driver version would. 0 restores the table's value.
func (n *Node) SetProfileMemory(id nvml.GPUID, profile nvml.ProfileID, memoryMiB int) error {
	return n.onGPU(id, func(s *State, g *GPU) error {
		if _, ok := s.Models[g.Model].profile(profile); !ok || memoryMiB < 0 {
			return fmt.Errorf("setting memory of profile %d on %s to %d MiB: expected a profile of the GPU and a size from 0: %w",
				profile, id, memoryMiB, nvml.ErrInvalidArgument)
		}
		if g.ProfileMemoryMiB == nil {
			g.ProfileMemoryMiB = map[nvml.ProfileID]int{}
		}
		if g.ProfileMemoryMiB[profile] = memoryMiB; memoryMiB == 0 {
			delete(g.ProfileMemoryMiB, profile)
		}
		return nil
	})
}
