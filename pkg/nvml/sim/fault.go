// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Names of the calls that are counted and can fail: Open and the methods of
// nvml.Driver without Close.
const (
	CallOpen                   = "Open"
	CallDriverVersion          = "DriverVersion"
	CallGPUs                   = "GPUs"
	CallProfiles               = "Profiles"
	CallMIGMode                = "MIGMode"
	CallSetMIGMode             = "SetMIGMode"
	CallInstances              = "Instances"
	CallCreateGPUInstance      = "CreateGPUInstance"
	CallCreateComputeInstance  = "CreateComputeInstance"
	CallDestroyComputeInstance = "DestroyComputeInstance"
	CallDestroyGPUInstance     = "DestroyGPUInstance"
	CallProcesses              = "Processes"
	CallComputeProfiles        = "ComputeProfiles"
	CallEvents                 = "Events" // the asking; Events.Wait is not counted
)

// CallNames lists them.
func CallNames() []string {
	return []string{CallOpen, CallDriverVersion, CallGPUs, CallProfiles, CallMIGMode, CallSetMIGMode, CallInstances,
		CallCreateGPUInstance, CallCreateComputeInstance, CallDestroyComputeInstance, CallDestroyGPUInstance, CallProcesses, CallComputeProfiles, CallEvents}
}

// codes maps NVML's names of return codes to the interface's errors.
var codes = []struct {
	name string
	err  error
}{
	{"UNINITIALIZED", nvml.ErrUninitialized},
	{"INVALID_ARGUMENT", nvml.ErrInvalidArgument},
	{"NOT_SUPPORTED", nvml.ErrNotSupported},
	{"NO_PERMISSION", nvml.ErrNoPermission},
	{"NOT_FOUND", nvml.ErrNotFound},
	{"DRIVER_NOT_LOADED", nvml.ErrDriverNotLoaded},
	{"TIMEOUT", nvml.ErrTimeout},
	{"GPU_IS_LOST", nvml.ErrGPULost},
	{"RESET_REQUIRED", nvml.ErrResetRequired},
	{"IN_USE", nvml.ErrInUse},
	{"INSUFFICIENT_RESOURCES", nvml.ErrInsufficientResources},
	{"INVALID_STATE", nvml.ErrInvalidState},
	{"UNKNOWN", nvml.ErrUnknown},
}

// CodeNames lists the return codes that a fault can have.
func CodeNames() []string {
	var names []string
	for _, c := range codes {
		names = append(names, c.name)
	}
	return names
}

// CodeOf returns the name of the return code that err stands for.
func CodeOf(err error) string {
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return "UNKNOWN"
}

// errorOf returns the error of a return code's name.
func errorOf(code string) error {
	for _, c := range codes {
		if c.name == code {
			return c.err
		}
	}
	return nvml.ErrUnknown
}

// Moments of a call at which a process can die.
const (
	CrashBefore = "before" // the call is counted and changes nothing
	CrashAfter  = "after"  // the call has done its work, the caller does not learn of it
)

// Fault is something that goes wrong in a coming call. A fault is used up by
// the calls it hits; it outlives the process that set it, and reboots.
type Fault struct {
	Call  string     `json:"call,omitempty"` // name of the call, empty: any
	GPU   nvml.GPUID `json:"gpu,omitempty"`  // empty: any, also calls that name no GPU
	Nth   int        `json:"nth"`            // 1: the next matching call; counts down
	Times int        `json:"times"`          // calls that it hits from then on, -1: all; counts down

	Code        string `json:"code,omitempty"`        // the call fails with this return code
	Late        bool   `json:"late,omitempty"`        // with Code: after doing its work, as seen during resets
	DelayMillis int    `json:"delayMillis,omitempty"` // the call takes that much longer
	Halt        bool   `json:"halt,omitempty"`        // the call waits until faults are cleared
	Crash       string `json:"crash,omitempty"`       // CrashBefore or CrashAfter: the calling process dies with ExitCrash
	Linger      int    `json:"linger,omitempty"`      // DestroyGPUInstance: see Instance.Lingers
}

// check says what is wrong with a fault, and fills in the defaults.
func (f *Fault) check() error {
	if f.Nth == 0 {
		f.Nth = 1
	}
	if f.Times == 0 {
		f.Times = 1
	}
	switch {
	case f.Call != "" && !slices.Contains(CallNames(), f.Call):
		return fmt.Errorf("setting fault: call %q is none of %s", f.Call, strings.Join(CallNames(), ", "))
	case f.Nth < 1 || f.Times < -1:
		return fmt.Errorf("setting fault: nth is %d and times is %d: expected nth from 1, times from 1 or -1", f.Nth, f.Times)
	case f.Code != "" && !slices.Contains(CodeNames(), f.Code):
		return fmt.Errorf("setting fault: code %q is none of %s", f.Code, strings.Join(CodeNames(), ", "))
	case f.Crash != "" && f.Crash != CrashBefore && f.Crash != CrashAfter:
		return fmt.Errorf("setting fault: crash %q is neither %s nor %s", f.Crash, CrashBefore, CrashAfter)
	case f.DelayMillis < 0 || f.Late && f.Code == "" || f.Linger != 0 && f.Call != CallDestroyGPUInstance:
		return fmt.Errorf("setting fault: expected a delay from 0, late with a code only, linger with %s only", CallDestroyGPUInstance)
	case f.Code == "" && f.DelayMillis == 0 && !f.Halt && f.Crash == "" && f.Linger == 0:
		return errors.New("setting fault: expected one of code, delay, halt, crash and linger")
	}
	return nil
}

// takeFaults returns what the coming call suffers, and counts down.
func (s *State) takeFaults(call string, gpu nvml.GPUID) Fault {
	var sum Fault
	kept := s.Faults[:0]
	for _, f := range s.Faults {
		if (f.Call == "" || f.Call == call) && (f.GPU == "" || f.GPU == gpu) {
			if f.Nth > 1 {
				f.Nth--
			} else {
				sum.add(f)
				f.Times = max(f.Times-1, -1)
			}
		}
		if f.Times != 0 {
			kept = append(kept, f)
		}
	}
	s.Faults = kept
	return sum
}

// add joins a fault to those that hit the same call: the first code, crash and
// linger win, delays add up.
func (f *Fault) add(other Fault) {
	if f.Code == "" {
		f.Code, f.Late = other.Code, other.Late
	}
	if f.Crash == "" {
		f.Crash = other.Crash
	}
	if f.Linger == 0 {
		f.Linger = other.Linger
	}
	f.DelayMillis += other.DelayMillis
	f.Halt = f.Halt || other.Halt
}

// crashPoint is a call at which this process dies, by the node's counters.
type crashPoint struct {
	moment string // CrashBefore or CrashAfter
	call   string // empty: the number counts all calls
	number int    // State.CallsByName[call] or State.Calls when it dies
}

// parseCrashPoint reads "before:12" or "after:CreateGPUInstance:2".
func parseCrashPoint(text string) (crashPoint, error) {
	parts := strings.Split(text, ":")
	p := crashPoint{moment: parts[0]}
	if len(parts) == 3 {
		p.call = parts[1]
	}
	n, err := strconv.Atoi(parts[len(parts)-1])
	known := p.call == "" || slices.Contains(CallNames(), p.call)
	if err != nil || n < 1 || len(parts) > 3 || !known || p.moment != CrashBefore && p.moment != CrashAfter {
		return crashPoint{}, fmt.Errorf(`reading crash point %q: expected "before:N" or "after:N", or a call's name before N`, text)
	}
	p.number = n
	return p, nil
}

// hits says at which moment of this call, already counted, the process dies.
func (p crashPoint) hits(s *State, call string) string {
	if p.number > 0 && (p.call == "" && s.Calls == p.number || p.call == call && s.CallsByName[call] == p.number) {
		return p.moment
	}
	return ""
}
