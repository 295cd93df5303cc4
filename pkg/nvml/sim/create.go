// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/facts"
)

// Spec describes a simulated node.
type Spec struct {
	DriverVersion string // empty: a recent one
	GPUs          []GPUSpec
	Latencies     map[string]time.Duration // by call name; nil: every call is instant
	Seed          string                   // makes all UUIDs foreseeable; empty: random

	// PlainDevices makes plain files instead of character devices. It is implied
	// where the process may not make devices.
	PlainDevices bool
}

// GPUSpec describes one GPU of a simulated node.
type GPUSpec struct {
	// Board is a key or product name of package boards; "NVIDIA " may be left out. Empty makes a GPU that
	// cannot do MIG; it needs Product and MemoryMiB.
	Board   string
	Product string // NVML product name; empty: the board's own

	// Facts makes a GPU as it was recorded on a real node, instead of Board, Product
	// and memory.
	Facts *facts.GPU

	VGPU     bool // a vGPU of a virtual machine; it cannot do MIG
	MIG      bool // MIG mode is on from the start
	NUMANode int  // -1: not known

	// MemoryMiB is the total memory; 0 takes the board's. Some boards' memory is
	// not known: then it must be given.
	MemoryMiB int

	// ProfileMemoryMiB is what the driver reports for profiles instead of the
	// board's table, for another driver version or where the table has none.
	ProfileMemoryMiB map[nvml.ProfileID]int
}

const defaultDriverVersion = "580.95.05"

// Create makes a simulated node below root: its state, its files below proc and
// its devices below dev. The directory must not hold a node yet.
func Create(root string, spec Spec) error {
	if err := create(root, spec); err != nil {
		return fmt.Errorf("creating simulated node in %s: %w", root, err)
	}
	return nil
}

func create(root string, spec Spec) error {
	s, err := newState(spec)
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return err
	}
	n := &Node{root: abs}
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(n.stateFile()); !errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is a state.json: remove the directory first")
	}
	if !s.PlainDevices {
		if s.PlainDevices, err = n.mayNotMakeDevices(); err != nil {
			return err
		}
	}
	if s.Majors, err = freeMajors(); err != nil {
		return err
	}
	if err := n.makeStatic(s); err != nil {
		return err
	}
	text, err := encodeState(s)
	if err != nil {
		return err
	}
	return n.write(text)
}

// newState builds the state of a fresh node.
func newState(spec Spec) (*State, error) {
	if len(spec.GPUs) == 0 || len(spec.GPUs) > maxGPUs {
		return nil, fmt.Errorf("%d GPUs: expected 1 to %d", len(spec.GPUs), maxGPUs)
	}
	s := &State{
		Version:       stateVersion,
		DriverVersion: cmp.Or(spec.DriverVersion, defaultDriverVersion),
		Seed:          cmp.Or(spec.Seed, newSeed()),
		PlainDevices:  spec.PlainDevices,
		Models:        map[string]Model{},
		CallsByName:   map[string]int{},
	}
	var err error
	if s.LatencyMillis, err = latencyMillis(spec.Latencies); err != nil {
		return nil, err
	}
	for i, gs := range spec.GPUs {
		if err := s.addGPU(i, gs); err != nil {
			return nil, fmt.Errorf("GPU %d (%s): %w", i, cmp.Or(gs.Board, gs.Product), err)
		}
	}
	return s, nil
}

func (s *State) addGPU(index int, spec GPUSpec) error {
	g := GPU{
		UUID:             nvml.GPUID("GPU-" + uuid(s.Seed, "gpu", index)),
		Index:            index,
		Minor:            index,
		Name:             spec.Product,
		PCIBusID:         fmt.Sprintf("00000000:%02X:00.0", 0x07+index),
		MemoryMiB:        spec.MemoryMiB,
		NUMANode:         spec.NUMANode,
		ProfileMemoryMiB: spec.ProfileMemoryMiB,
		VGPU:             spec.VGPU,
	}
	if spec.Facts != nil {
		return s.addRecordedGPU(g, spec)
	}
	if spec.Board == "" {
		return s.addPlainGPU(g, spec)
	}
	if spec.VGPU {
		return errors.New("a vGPU cannot do MIG: give Product and MemoryMiB instead of a board")
	}
	board, product, err := boardNamed(spec.Board)
	if err != nil {
		return err
	}
	g.Name = cmp.Or(spec.Product, product)
	return s.addMIGGPU(g, spec, board)
}

// addMIGGPU adds a GPU of a board. What is not known of the board must be given.
func (s *State) addMIGGPU(g GPU, spec GPUSpec, board boards.Board) error {
	model, err := modelOf(board)
	if err != nil {
		return err
	}
	g.Model, g.Architecture = board.Key, nvml.Architecture(board.Architecture)
	if len(board.PCI) > 0 {
		g.PCIDeviceID = "0x" + board.PCI[0] + "10DE"
	}
	g.MemoryMiB = cmp.Or(spec.MemoryMiB, board.MemoryMiB)
	g.Current, g.Pending = spec.MIG, spec.MIG
	if g.MemoryMiB <= 0 {
		return errors.New("its total memory is not known: give MemoryMiB")
	}
	for _, p := range model.Profiles {
		if g.reported(p).MemoryMiB <= 0 {
			return fmt.Errorf("memory of profile %s (%d) is not known: give it in ProfileMemoryMiB", p.Name, p.ID)
		}
	}
	for id := range spec.ProfileMemoryMiB {
		if _, ok := model.profile(id); !ok {
			return fmt.Errorf("ProfileMemoryMiB names profile %d, which the board does not have", id)
		}
	}
	s.Models[board.Key] = model
	s.GPUs = append(s.GPUs, g)
	return nil
}

// addPlainGPU adds a GPU without MIG.
func (s *State) addPlainGPU(g GPU, spec GPUSpec) error {
	if spec.Product == "" || spec.MemoryMiB <= 0 || spec.MIG || len(spec.ProfileMemoryMiB) > 0 {
		return errors.New("a GPU without a board cannot do MIG and needs Product and MemoryMiB")
	}
	s.GPUs = append(s.GPUs, g)
	return nil
}

// boardNamed finds a board by key or product name, with or without the maker, and
// returns the product that was meant.
func boardNamed(name string) (boards.Board, string, error) {
	for _, product := range []string{name, "NVIDIA " + name} {
		board, ok := boards.Named(product)
		switch {
		case !ok:
			continue
		case slices.Contains(board.Products, product) || len(board.Products) == 0:
			return board, product, nil
		}
		return board, board.Products[0], nil
	}
	return boards.Board{}, "", errors.New("no such board: take a key or a product name of package boards")
}

// modelOf copies what the simulation needs of a board, and makes sure that it
// knows how the driver numbers each placement.
func modelOf(board boards.Board) (Model, error) {
	var m Model
	for _, p := range board.Profiles {
		m.ComputeSlices = max(m.ComputeSlices, p.ComputeSlices)
		for _, start := range p.Starts {
			m.MemorySlices = max(m.MemorySlices, start+p.Size)
		}
		m.Profiles = append(m.Profiles, Profile{
			ID:            nvml.ProfileID(p.ID),
			Enum:          p.Enum,
			Name:          p.Name,
			MemoryMiB:     p.MemoryMiB,
			SMs:           p.SMs,
			ComputeSlices: p.ComputeSlices,
			Size:          p.Size,
			Starts:        slices.Clone(p.Starts),
			Max:           p.Max,
			ReportedMax:   p.Max,
		})
	}
	slices.SortFunc(m.Profiles, func(a, b Profile) int { return cmp.Compare(a.ID, b.ID) })
	for i, p := range m.Profiles {
		for _, start := range p.Starts {
			if _, err := m.instanceID(p.Size, start); err != nil {
				return Model{}, err
			}
		}
		if board.Key == boardA30 && p.Size > 1 && p.Max > 1 {
			m.Profiles[i].ReportedMax = m.MemorySlices
		}
	}
	return m, nil
}

// boardA30 reports too large an InstanceCount for some profiles. Which and how
// much is not documented; the simulation reports 4 for 2g.
const boardA30 = "A30-24GB"

// mayNotMakeDevices tries whether this process may make character devices here.
// (Not with number 0:0, which anybody may make.)
func (n *Node) mayNotMakeDevices() (bool, error) {
	probe := n.path("probe")
	err := unix.Mknod(probe, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(preferredMajors[1]), 0)))
	if errors.Is(err, unix.EPERM) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("probing for the right to make devices: %w", err)
	}
	return false, os.Remove(probe)
}

// Preferred majors. The first is that of the real driver; the others are dynamic
// there as well.
var preferredMajors = [...]int{195, 508, 510}

// freeMajors picks device numbers that no driver of this machine has, so that a
// simulated node never opens a real device, the preferred ones where possible.
func freeMajors() (Majors, error) {
	text, err := os.ReadFile("/proc/devices")
	if err != nil {
		return Majors{}, fmt.Errorf("reading the machine's devices: %w", err)
	}
	taken := map[int]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 {
			if major, err := strconv.Atoi(fields[0]); err == nil {
				taken[major] = true
			}
		}
	}
	var picked [len(preferredMajors)]int
	for i, major := range preferredMajors {
		for taken[major] {
			major--
		}
		taken[major] = true
		picked[i] = major
	}
	return Majors{NVIDIA: picked[0], Caps: picked[1], UVM: picked[2]}, nil
}
