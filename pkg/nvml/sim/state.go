// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// stateVersion changes whenever an older reader would misread state.json.
const stateVersion = 1

// WholeGPU stands for a GPU instance id where the whole GPU is meant.
const WholeGPU = nvml.WholeGPU

// State is everything a simulated node remembers, as it stands in state.json.
// Dump returns a copy; only the methods of Node and Driver change it.
type State struct {
	Version       int              `json:"version"`
	DriverVersion string           `json:"driverVersion"`
	Session       int              `json:"session"` // grows when the driver is loaded again; older sessions are lost
	Seed          string           `json:"seed"`    // of all UUIDs
	UUIDs         int              `json:"uuids"`   // MIG UUIDs given out so far
	PlainDevices  bool             `json:"plainDevices,omitempty"`
	Majors        Majors           `json:"majors"`
	Models        map[string]Model `json:"models"`
	GPUs          []GPU            `json:"gpus"`
	Calls         int              `json:"calls"`       // counted calls of all sessions so far
	CallsByName   map[string]int   `json:"callsByName"` // the same, by method of nvml.Driver
	LatencyMillis map[string]int   `json:"latencyMillis,omitempty"`
	Faults        []Fault          `json:"faults,omitempty"`
	Cleared       int              `json:"cleared,omitempty"` // times that faults were
	Events        []Event          `json:"events,omitempty"`
	LastEvent     int              `json:"lastEvent,omitempty"` // Seq of the newest event ever
}

// Majors are the device numbers of the node's character devices.
type Majors struct {
	NVIDIA int `json:"nvidia"` // nvidiactl, nvidia-modeset, nvidiaN
	Caps   int `json:"caps"`   // nvidia-caps/nvidia-capN
	UVM    int `json:"uvm"`    // nvidia-uvm, nvidia-uvm-tools
}

// Model is what a type of GPU allows. It is copied from the board table when the
// node is created, so that an open node depends on nothing but its state.
type Model struct {
	MemorySlices  int       `json:"memorySlices"`
	ComputeSlices int       `json:"computeSlices"`
	Profiles      []Profile `json:"profiles"` // by ascending ID
}

// Profile is a GPU instance profile as the hardware has it.
type Profile struct {
	ID            nvml.ProfileID `json:"id"`
	Enum          int            `json:"enum"` // GPU_INSTANCE_PROFILE_*
	Name          string         `json:"name"`
	MemoryMiB     int            `json:"memoryMiB"`
	SMs           int            `json:"sms,omitempty"` // 0: not known
	ComputeSlices int            `json:"computeSlices"`
	Size          int            `json:"size"` // memory slices
	Starts        []int          `json:"starts"`
	Max           int            `json:"max"`         // enforced
	ReportedMax   int            `json:"reportedMax"` // what NVML says, which is wrong on the A30
	Engines       nvml.Engines   `json:"engines"`     // all 0: not known
}

// GPU is one simulated GPU.
type GPU struct {
	UUID             nvml.GPUID             `json:"uuid"`
	Index            int                    `json:"index"`
	Minor            int                    `json:"minor"`
	Name             string                 `json:"name"`
	Architecture     nvml.Architecture      `json:"architecture"`
	PCIBusID         string                 `json:"pciBusID"`
	PCIDeviceID      string                 `json:"pciDeviceID,omitempty"`
	PCISubsystem     string                 `json:"pciSubsystem,omitempty"`
	VGPU             bool                   `json:"vgpu,omitempty"`
	MemoryMiB        int                    `json:"memoryMiB"`
	NUMANode         int                    `json:"numaNode"`
	Model            string                 `json:"model,omitempty"` // key of State.Models, empty when not MIG capable
	Current          bool                   `json:"migCurrent"`
	Pending          bool                   `json:"migPending"`
	Lost             bool                   `json:"lost,omitempty"`
	ProfileMemoryMiB map[nvml.ProfileID]int `json:"profileMemoryMiB,omitempty"` // what this driver reports instead of the table
	Instances        []Instance             `json:"instances,omitempty"`        // by Start
	Holders          []Holder               `json:"holders,omitempty"`
}

// Instance is one GPU instance.
type Instance struct {
	Profile nvml.ProfileID `json:"profile"`
	Name    string         `json:"name"` // of the profile
	Start   int            `json:"start"`
	Size    int            `json:"size"` // memory slices
	GI      int            `json:"gi"`
	CI      int            `json:"ci"`             // nvml.NoCI when there is none
	UUID    string         `json:"uuid,omitempty"` // of the compute instance

	// Lingers is set on an instance whose destruction was reported as done: it
	// stays listed, and its span taken, for that many more calls of Instances,
	// for ever when negative.
	Lingers int `json:"lingers,omitempty"`
}

// Holder is somebody who uses an instance or a GPU, so that it cannot be
// destroyed, reset or change its mode.
type Holder struct {
	GI        int `json:"gi"`  // WholeGPU: a handle on the GPU itself
	PID       int `json:"pid"` // 0: a handle that NVML does not show, such as DCGM's
	MemoryMiB int `json:"memoryMiB,omitempty"`
}

// Event is one XID error as the driver reports it.
type Event struct {
	Seq int        `json:"seq"` // from 1, never reused
	GPU nvml.GPUID `json:"gpu"`
	GI  int        `json:"gi"` // WholeGPU: not tied to an instance
	CI  int        `json:"ci"` // nvml.NoCI with WholeGPU
	XID int        `json:"xid"`
}

// gpu returns the GPU of that UUID.
func (s *State) gpu(id nvml.GPUID) (*GPU, error) {
	for i := range s.GPUs {
		if s.GPUs[i].UUID == id {
			return &s.GPUs[i], nil
		}
	}
	return nil, fmt.Errorf("this node has no GPU %q: %w", id, nvml.ErrNotFound)
}

// instance returns GPU instance gi.
func (g *GPU) instance(gi int) (*Instance, error) {
	i := slices.IndexFunc(g.Instances, func(in Instance) bool { return in.GI == gi })
	if i < 0 {
		return nil, fmt.Errorf("GPU instance %d does not exist: %w", gi, nvml.ErrNotFound)
	}
	return &g.Instances[i], nil
}

// live converts an instance to the interface's form.
func (g *GPU) live(in Instance) nvml.Instance {
	return nvml.Instance{GPU: g.UUID, Profile: in.Profile, Start: in.Start, GI: in.GI, CI: in.CI, UUID: in.UUID}
}

// profile returns the profile of that reported id.
func (m Model) profile(id nvml.ProfileID) (Profile, bool) {
	i := slices.IndexFunc(m.Profiles, func(p Profile) bool { return p.ID == id })
	if i < 0 {
		return Profile{}, false
	}
	return m.Profiles[i], true
}

// decodeState is strict: an unknown field or version means that another program
// wrote the file, and guessing would corrupt it.
func decodeState(text []byte) (*State, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	s := &State{}
	if err := dec.Decode(s); err != nil {
		return nil, fmt.Errorf("decoding state.json: %w", err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("decoding state.json: version %d: this program reads version %d: create the node again", s.Version, stateVersion)
	}
	if s.CallsByName == nil {
		s.CallsByName = map[string]int{}
	}
	return s, nil
}

func encodeState(s *State) ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding state.json: %w", err)
	}
	return append(text, '\n'), nil
}
