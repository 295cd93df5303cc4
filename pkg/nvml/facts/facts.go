// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package facts records what the GPUs of a real node are, as JSON that the
// simulation plays back, so that hardware which was seen once can be tested with
// ever after.
//
//	real node -- nodeagent facts --> node.json -- simgpu create-node --facts --> simulated node
//
// It goes beyond the table of boards: profiles as this driver reports them, with
// both of their numbers and their engines; MIG mode; and, where it was asked for,
// what creating an instance at each placement gave. UUIDs, addresses and names of
// the node are left out.
//
// facts does not know Kubernetes, or how a driver gets at what it reports.
package facts

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// version changes whenever an older reader would misread a record.
const version = 1

// Node is a recorded node.
type Node struct {
	Version       int    `json:"version"`
	Source        Source `json:"source"`
	DriverVersion string `json:"driverVersion"`
	GPUs          []GPU  `json:"gpus"` // in the driver's order

	// MIGMinors is the beginning of /proc/driver/nvidia-caps/mig-minors, "gpu0/gi0/access 3".
	MIGMinors []string `json:"migMinors,omitempty"`
}

// Source says where a record comes from.
type Source struct {
	Tool       string `json:"tool"`
	Date       string `json:"date"`       // 2006-01-02
	Confidence string `json:"confidence"` // Verified or Simulated
}

// Confidence of a record.
const (
	Verified  = "verified"  // reported by a driver of real GPUs
	Simulated = "simulated" // by a simulation, which proves nothing of hardware
)

// GPU is a recorded GPU.
type GPU struct {
	Product      string    `json:"product"`
	PCIDeviceID  string    `json:"pciDeviceID,omitempty"`
	PCISubsystem string    `json:"pciSubsystem,omitempty"`
	Architecture string    `json:"architecture"`
	MemoryMiB    int       `json:"memoryMiB"`
	NUMANode     int       `json:"numaNode"` // -1: not known
	VGPU         bool      `json:"vgpu,omitempty"`
	MIGCapable   bool      `json:"migCapable"`
	MIG          Mode      `json:"mig"`
	XIDEvents    bool      `json:"xidEvents"`          // the driver reports XID errors
	Profiles     []Profile `json:"profiles,omitempty"` // by ascending id

	// Exercise is what creating an instance at each placement gave, where that was
	// allowed.
	Exercise []Trial `json:"exercise,omitempty"`
}

// Mode is the MIG mode at the time of the record.
type Mode struct {
	Current bool `json:"current"`
	Pending bool `json:"pending"`
}

// Profile is a GPU instance profile as reported.
type Profile struct {
	ID            int          `json:"id"`   // reported
	Enum          int          `json:"enum"` // GPU_INSTANCE_PROFILE_*
	Name          string       `json:"name"`
	MemoryMiB     int          `json:"memoryMiB"`
	SMs           int          `json:"sms"`
	ComputeSlices int          `json:"computeSlices"`
	Size          int          `json:"size"`   // memory slices
	Starts        []int        `json:"starts"` // memory slices
	Max           int          `json:"max"`    // as reported
	Engines       nvml.Engines `json:"engines"`

	// Compute is what an instance of it offers, where there was one to be asked.
	Compute []ComputeProfile `json:"compute,omitempty"`
}

// ComputeProfile is a compute instance profile as reported.
type ComputeProfile struct {
	ID            int `json:"id"`   // reported
	Enum          int `json:"enum"` // COMPUTE_INSTANCE_PROFILE_*
	ComputeSlices int `json:"computeSlices"`
	SMs           int `json:"sms"`
	Max           int `json:"max"`
}

// Trial is one instance that was created and destroyed again.
type Trial struct {
	ID            int    `json:"id"` // reported, of the profile
	Start         int    `json:"start"`
	GI            int    `json:"gi"` // -1 when it could not be created
	CI            int    `json:"ci"`
	CreateMillis  int64  `json:"createMillis"`
	DestroyMillis int64  `json:"destroyMillis"`
	Error         string `json:"error,omitempty"`
}

// GPUInstanceAt is the id that an instance had at a placement, where that was tried.
func (g *GPU) GPUInstanceAt(profile, start int) (gi int, ok bool) {
	for _, t := range g.Exercise {
		if t.ID == profile && t.Start == start && t.GI >= 0 {
			return t.GI, true
		}
	}
	return 0, false
}

// Record reads a node. It changes nothing. GPUs that do not answer are left out, and
// the error says why; without any GPU there is no record. What an instance on a GPU
// does not say is in the error, too, and the GPU is recorded without it.
func Record(d nvml.Driver, source Source) (Node, error) {
	node := Node{Version: version, Source: source}
	var err error
	if node.DriverVersion, err = d.DriverVersion(); err != nil {
		return Node{}, err
	}
	gpus, err := d.GPUs(nil)
	for _, gpu := range gpus {
		g, failure := record(d, gpu)
		if failure != nil {
			err = errors.Join(err, fmt.Errorf("leaving GPU %d out: %w", gpu.Index, failure))
			continue
		}
		if failure := g.askInstances(d, gpu.ID); failure != nil {
			err = errors.Join(err, fmt.Errorf("asking the instances of GPU %d: %w", gpu.Index, failure))
		}
		node.GPUs = append(node.GPUs, g)
	}
	if len(node.GPUs) == 0 && err != nil {
		return Node{}, err
	}
	return node, err
}

func record(d nvml.Driver, gpu nvml.GPU) (GPU, error) {
	g := GPU{
		Product: gpu.Name, PCIDeviceID: gpu.PCIDeviceID, PCISubsystem: gpu.PCISubsystem, Architecture: string(gpu.Architecture), MemoryMiB: gpu.MemoryMiB,
		NUMANode: gpu.NUMANode, VGPU: gpu.VGPU, MIGCapable: gpu.MIGCapable,
	}
	events, err := d.Events(gpu.ID)
	if err == nil {
		err = events.Close()
		g.XIDEvents = true
	}
	if err != nil && !errors.Is(err, nvml.ErrNotSupported) {
		return GPU{}, err
	}
	if !gpu.MIGCapable {
		return g, nil
	}
	mode, err := d.MIGMode(gpu.ID)
	if err != nil {
		return GPU{}, err
	}
	g.MIG = Mode(mode)
	profiles, err := d.Profiles(gpu.ID)
	if err != nil {
		return GPU{}, err
	}
	for _, p := range profiles {
		g.Profiles = append(g.Profiles, Profile{
			ID: int(p.ID), Enum: p.Enum, Name: p.Name, MemoryMiB: p.MemoryMiB, SMs: p.SMs, ComputeSlices: p.ComputeSlices,
			Size: p.Size, Starts: slices.Clone(p.Starts), Max: p.Max, Engines: p.Engines,
		})
	}
	return g, nil
}

// askInstances records what the instances that are there offer. The error joins those
// that do not say.
func (g *GPU) askInstances(d nvml.Driver, id nvml.GPUID) error {
	if !g.MIG.Current {
		return nil
	}
	instances, err := d.Instances(id)
	for _, in := range instances {
		err = errors.Join(err, g.askCompute(d, in))
	}
	return err
}

// askCompute records what an instance offers, unless one of its profile was asked
// before. One that is gone by now, or a driver without the call, is no error.
func (g *GPU) askCompute(d nvml.Driver, in nvml.Instance) error {
	i := slices.IndexFunc(g.Profiles, func(p Profile) bool { return p.ID == int(in.Profile) })
	if i < 0 || len(g.Profiles[i].Compute) > 0 {
		return nil
	}
	offered, err := d.ComputeProfiles(in.GPU, in.GI)
	if errors.Is(err, nvml.ErrNotFound) || errors.Is(err, nvml.ErrNotSupported) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range offered {
		g.Profiles[i].Compute = append(g.Profiles[i].Compute, ComputeProfile(c))
	}
	return nil
}

// Encode writes a record for people and programs.
func Encode(node Node) ([]byte, error) {
	text, err := json.MarshalIndent(node, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encoding facts: %w", err)
	}
	return append(text, '\n'), nil
}

// Decode reads a record and checks it strictly.
func Decode(text []byte) (Node, error) {
	var node Node
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&node); err != nil {
		return Node{}, fmt.Errorf("decoding facts: %w", err)
	}
	if node.Version != version {
		return Node{}, fmt.Errorf("decoding facts: version is %d: this program reads version %d; record the node again", node.Version, version)
	}
	for i := range node.GPUs {
		if err := node.GPUs[i].check(); err != nil {
			return Node{}, fmt.Errorf("decoding facts: gpus[%d]: %w", i, err)
		}
	}
	return node, nil
}

func (g *GPU) check() error {
	if g.Product == "" || g.MemoryMiB <= 0 {
		return fmt.Errorf("product is %q and memoryMiB %d: expected a name and a size", g.Product, g.MemoryMiB)
	}
	if g.MIGCapable != (len(g.Profiles) > 0) {
		return fmt.Errorf("migCapable is %t with %d profiles: expected profiles if and only if it is capable", g.MIGCapable, len(g.Profiles))
	}
	seen := map[int]bool{}
	for _, p := range g.Profiles {
		if p.Name == "" || p.MemoryMiB <= 0 || p.ComputeSlices < 1 || p.Size < 1 || p.Max < 1 || p.Enum < 0 || len(p.Starts) == 0 ||
			!slices.IsSorted(p.Starts) || p.Starts[0] < 0 || seen[p.ID] {
			return fmt.Errorf("profile %d (%q): expected a name, memory, slices, max and ascending starts from 0, and each id once", p.ID, p.Name)
		}
		seen[p.ID] = true
	}
	return nil
}
