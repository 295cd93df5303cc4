// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Limits of a fleet. The second is that of a GPUNode.
const (
	maxNodes       = 100_000
	maxGPUsPerNode = 64
)

// Fleet is GPUs on nodes, all of them free. Immutable.
type Fleet struct {
	Text string // as given: "12x8xH100-80GB + 4x4xA30-24GB"
	// Notes are sentences on parts of the device configuration that do not fit the
	// hardware.
	Notes []string

	nodes  []*pool.Node
	gpus   []gpu // of all nodes, one node after the other
	first  []int // by node: position of its first GPU in gpus; one more at the end
	models []*model
}

// gpu is one GPU of a fleet.
type gpu struct {
	node  int
	model int // position in Fleet.models
}

// model is one type of GPU in a fleet.
type model struct {
	board     boards.Board
	catalogue *geometry.Catalogue
	gpus      int
}

// slices are the model's memory slices.
func (m *model) slices() int { return m.catalogue.Model().MemorySlices() }

// GPUs is the number of GPUs in the fleet.
func (f *Fleet) GPUs() int { return len(f.gpus) }

// fleetText is nodes x GPUs of each x board.
var fleetText = regexp.MustCompile(`^([0-9]{1,6})x([0-9]{1,3})x(.+)$`)

// ParseFleet reads specifications such as "12x8xH100-80GB": nodes, GPUs of each,
// and a board of pkg/geometry/boards by its key or NVML product name, which may be
// without "NVIDIA ", as kubectl mig status prints it. The device
// configuration narrows what the GPUs offer, as on a real node; nil is none.
func ParseFleet(specs []string, device *config.Device) (*Fleet, error) {
	if len(specs) == 0 {
		return nil, errors.New("parsing fleet: it is empty; give for example 12x8xH100-80GB")
	}
	if device == nil {
		device = config.DefaultDevice()
	}
	b := fleetBuilder{fleet: &Fleet{Text: strings.Join(specs, " + ")}, device: device, known: map[string]int{}}
	for _, spec := range specs {
		if err := b.add(spec); err != nil {
			return nil, fmt.Errorf("parsing fleet %q: %w", spec, err)
		}
	}
	b.fleet.first = append(b.fleet.first, len(b.fleet.gpus))
	return b.fleet, nil
}

type fleetBuilder struct {
	fleet      *Fleet
	device     *config.Device
	catalogues pool.Catalogues
	known      map[string]int // position in Fleet.models, by product name
}

// add appends the nodes of one specification.
func (b *fleetBuilder) add(spec string) error {
	parts := fleetText.FindStringSubmatch(spec)
	if parts == nil {
		return errors.New("want nodes x GPUs of each x board, for example 12x8xH100-80GB")
	}
	nodes, _ := strconv.Atoi(parts[1]) // digits, and few
	gpus, _ := strconv.Atoi(parts[2])
	switch {
	case nodes < 1 || len(b.fleet.nodes)+nodes > maxNodes:
		return fmt.Errorf("%d nodes; want 1 to %d in all", nodes, maxNodes)
	case gpus < 1 || gpus > maxGPUsPerNode:
		return fmt.Errorf("%d GPUs on a node; want 1 to %d", gpus, maxGPUsPerNode)
	}
	product := parts[3]
	board, ok := boards.Named(product)
	if !ok {
		product = "NVIDIA " + product
		board, ok = boards.Named(product)
	}
	if !ok {
		return fmt.Errorf("board %q is not known; the known ones are %s, and NVML's product names", parts[3], strings.Join(keys(), ", "))
	}
	if product == board.Key && len(board.Products) > 0 {
		product = board.Products[0]
	}
	model, err := board.Model()
	if err != nil {
		return err
	}
	report := b.report(v1alpha1.ModelOf(product, model), board.MemoryMiB, gpus)
	// All nodes of a specification are alike but for names, which decisions do
	// not see: one reading of the report does for all.
	for range nodes {
		node, err := b.node(report)
		if err != nil {
			return err
		}
		b.take(node, board, product)
	}
	return nil
}

func keys() []string {
	var names []string
	for _, board := range boards.All() {
		names = append(names, board.Key)
	}
	return names
}

// report is the GPUNode that an agent on such a node would publish.
func (b *fleetBuilder) report(hardware v1alpha1.GPUModel, memoryMiB, gpus int) *v1alpha1.GPUNode {
	found, mismatches := b.device.Catalogue(hardware.Model, hardware.Profiles, hardware.Grid)
	if _, again := b.known[hardware.Model]; !again {
		b.fleet.Notes = slices.Concat(b.fleet.Notes, mismatches.Dropped, mismatches.Remarks)
	}
	report := &v1alpha1.GPUNode{}
	report.Status.Models = []v1alpha1.GPUModel{found}
	for i := range gpus {
		report.Status.GPUs = append(report.Status.GPUs, v1alpha1.GPU{
			UUID: fmt.Sprintf("GPU-%d", i), Index: int32(i), Model: hardware.Model, MemoryMiB: int64(memoryMiB),
			Mode:   v1alpha1.GPUMode{Wanted: v1alpha1.ModeMIG, Current: v1alpha1.ModeMIG},
			Health: v1alpha1.Healthy,
		})
	}
	return report
}

// node reads the report as the scheduler would.
func (b *fleetBuilder) node(report *v1alpha1.GPUNode) (*pool.Node, error) {
	report.Name = fmt.Sprintf("node%d", len(b.fleet.nodes))
	return pool.NodeOf(report, &b.catalogues)
}

// take appends a node.
func (b *fleetBuilder) take(node *pool.Node, board boards.Board, product string) {
	f := b.fleet
	i, ok := b.known[product]
	if !ok {
		i = len(f.models)
		b.known[product] = i
		f.models = append(f.models, &model{board: board, catalogue: node.GPUs[0].Catalogue})
	}
	f.first = append(f.first, len(f.gpus))
	for range node.GPUs {
		f.gpus = append(f.gpus, gpu{node: len(f.nodes), model: i})
		f.models[i].gpus++
	}
	f.nodes = append(f.nodes, node)
}

// capacity is the fleet's size in both kinds of slices.
func (f *Fleet) capacity() (memory, compute int) {
	for _, m := range f.models {
		memory += m.gpus * m.slices()
		compute += m.gpus * m.catalogue.Model().ComputeSlices()
	}
	return memory, compute
}

// memoryMiB is the memory of each GPU, where all have the same.
func (f *Fleet) memoryMiB() (int, error) {
	for _, m := range f.models {
		switch {
		case m.board.MemoryMiB == 0:
			return 0, fmt.Errorf("the memory of %s is not known; map by compute instead", m.board.Key)
		case m.board.MemoryMiB != f.models[0].board.MemoryMiB:
			return 0, fmt.Errorf("%s and %s differ in memory, so that a share of a GPU is no amount of memory; map by compute instead",
				f.models[0].board.Key, m.board.Key)
		}
	}
	return cmp.Or(f.models[0].board.MemoryMiB), nil
}
