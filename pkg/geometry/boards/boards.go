// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package boards lists the GPU boards whose MIG geometry is known, for simulation,
// replay and tests. A real node never reads it: there NVML is asked.
//
// boards.json has three grids (profiles with placements) and the boards on them
// (names, memory, multiprocessors). Each board carries two words of confidence, in
// "placements" and "mem": "verified" was seen in the output of real hardware,
// "inferred" follows from boards of the same family, "unknown" is left at 0. What
// was seen depends on the driver's version, too.
//
// boards does not know NVML, Kubernetes, or what is done with a board.
package boards

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// Profile is a profile with the number that NVML's calls take for it.
type Profile struct {
	geometry.Profile
	Enum int // NVML_GPU_INSTANCE_PROFILE_*, not the reported id
}

// Board is one GPU board.
type Board struct {
	Key          string    // our name of it, such as "A100-40GB"
	Products     []string  // NVML product names; none where a name is another board's
	PCI          []string  // PCI device ids, four hexadecimal digits; boards may share one
	Architecture string    // Ampere, Hopper or Blackwell
	Grid         string    // "7x8", "4x4" or "4x12": compute x memory slices
	MemoryMiB    int       // of the whole GPU; 0 when unknown
	Profiles     []Profile // by ascending ID
	Placements   string    // how sure the placements are, in a few words
	Mem          string    // how sure the memory sizes are, in a few words
}

// Model builds the board's model. It is named by the first product name, or by the
// key where there is none.
func (b Board) Model() (*geometry.Model, error) {
	name := b.Key
	if len(b.Products) > 0 {
		name = b.Products[0]
	}
	profiles := make([]geometry.Profile, 0, len(b.Profiles))
	for _, p := range b.Profiles {
		profiles = append(profiles, p.Profile)
	}
	return geometry.NewModel(name, profiles)
}

// All lists the boards by ascending key. The list is shared: do not change it.
func All() []Board { return all() }

// Named finds a board by its key or by an NVML product name, both exact.
func Named(name string) (Board, bool) {
	for _, b := range all() {
		if b.Key == name || slices.Contains(b.Products, name) {
			return b, true
		}
	}
	return Board{}, false
}

//go:embed boards.json
var boardsJSON []byte

// all decodes the file once. It is part of the program and tested, so that it
// cannot be wrong at run time.
var all = sync.OnceValue(func() []Board {
	boards, err := decode(boardsJSON)
	if err != nil {
		panic(err)
	}
	return boards
})

// file is the form of boards.json. Profile keys such as "1g+me" join a grid's
// profiles with a board's names, memory and SMs.
type file struct {
	Grids  map[string]gridEntry  `json:"grids"`
	Boards map[string]boardEntry `json:"boards"`
}

type gridEntry struct {
	MemorySlices  int                     `json:"memory_slices"`
	ComputeSlices int                     `json:"compute_slices"`
	Profiles      map[string]profileEntry `json:"profiles"`
}

type profileEntry struct {
	Enum   int   `json:"enum"`
	ID     int   `json:"id"`     // reported
	Slices int   `json:"slices"` // compute
	Size   int   `json:"size"`   // memory slices
	Starts []int `json:"starts"` // memory slices
	Max    int   `json:"max"`
}

type boardEntry struct {
	Architecture string            `json:"architecture"`
	Products     []string          `json:"products"`
	PCI          []string          `json:"pci"`
	Grid         string            `json:"grid"`
	Names        map[string]string `json:"names"`
	TotalMiB     int               `json:"total_mib"`
	MemMiB       map[string]int    `json:"mem_mib"`
	SM           map[string]int    `json:"sm"`
	Placements   string            `json:"placements"`
	Mem          string            `json:"mem"`
}

// decode reads and checks the file.
func decode(data []byte) ([]Board, error) {
	var f file
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("decoding boards.json: %w", err)
	}
	var boards []Board
	for _, key := range slices.Sorted(maps.Keys(f.Boards)) {
		b, err := f.board(key)
		if err != nil {
			return nil, fmt.Errorf("decoding boards.json: board %s: %w", key, err)
		}
		boards = append(boards, b)
	}
	return boards, nil
}

// board joins an entry with its grid.
func (f *file) board(key string) (Board, error) {
	e := f.Boards[key]
	b := Board{
		Key: key, Products: e.Products, PCI: e.PCI, Architecture: e.Architecture, Grid: e.Grid,
		MemoryMiB: e.TotalMiB, Placements: e.Placements, Mem: e.Mem,
	}
	grid, ok := f.Grids[e.Grid]
	if !ok {
		return b, fmt.Errorf("grid %q is not in the file", e.Grid)
	}
	for _, values := range []map[string]int{e.MemMiB, e.SM} {
		for profile := range values {
			if _, ok := e.Names[profile]; !ok {
				return b, fmt.Errorf("profile %q has a value and no name", profile)
			}
		}
	}
	for profile, name := range e.Names {
		p, ok := grid.Profiles[profile]
		if !ok {
			return b, fmt.Errorf("profile %q is not in grid %s", profile, e.Grid)
		}
		b.Profiles = append(b.Profiles, Profile{Enum: p.Enum, Profile: geometry.Profile{
			ID: geometry.ProfileID(p.ID), Name: name,
			MemoryMiB: variant(e.MemMiB, profile), SMs: variant(e.SM, profile),
			ComputeSlices: p.Slices, Size: p.Size, Max: p.Max, Starts: p.Starts,
		}})
	}
	slices.SortFunc(b.Profiles, func(a, b Profile) int { return int(a.ID - b.ID) })
	m, err := b.Model()
	if err != nil {
		return b, err
	}
	if want := (geometry.Grid{MemorySlices: grid.MemorySlices, ComputeSlices: grid.ComputeSlices}); m.Grid() != want {
		return b, fmt.Errorf("its profiles span %v, and its grid is %v", m.Grid(), want)
	}
	return b, nil
}

// variant is the profile's own value, or that of the plain profile that it is a
// variant of ("1g" for "1g+me"), or 0.
func variant(values map[string]int, profile string) int {
	if v, ok := values[profile]; ok {
		return v
	}
	if i := strings.IndexAny(profile, "+-"); i >= 0 {
		return values[profile[:i]]
	}
	return 0
}
