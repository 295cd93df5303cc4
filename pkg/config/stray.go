// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"slices"
)

// Stray says, a sentence each, what the entry names that is not among these GPUs, which
// are all of the node's that answer, and which of them it leaves alone without naming
// them.
func (e *NodeEntry) Stray(gpus []GPUName) []string {
	var out []string
	for _, n := range e.namings() {
		if !slices.ContainsFunc(gpus, n.is) {
			out = append(out, fmt.Sprintf("%s names GPU %s, which is not among the %d GPUs of the node that answer.",
				n.where, cmp.Or(n.uuid, fmt.Sprint(n.index)), len(gpus)))
		}
	}
	for _, g := range gpus {
		if _, why := e.ModeOf(g); why != "" && !e.Excludes(g.UUID, g.Index) {
			out = append(out, fmt.Sprintf("GPU %d is left alone: %s.", g.Index, why))
		}
	}
	return out
}

// naming is where the configuration names a GPU.
type naming struct {
	where string
	uuid  string // empty when the GPU is named by index
	index int32
}

func (n naming) is(g GPUName) bool {
	return n.uuid == g.UUID && n.uuid != "" || n.uuid == "" && n.index == g.Index
}

// namings lists the GPUs that the entry names for this node: an entry for many nodes
// may name GPUs of others, but devices of mig-parted's configuration are meant of each.
func (e *NodeEntry) namings() []naming {
	var out []naming
	if e.Name != "" {
		where := fmt.Sprintf("nodeconfig (line %d): filterdevices", e.Line)
		for _, uuid := range e.FilterDevices.UUIDs {
			out = append(out, naming{where: where, uuid: uuid})
		}
		for _, index := range e.FilterDevices.Indexes {
			out = append(out, naming{where: where, index: index})
		}
		for _, g := range e.GPUs {
			out = append(out, naming{fmt.Sprintf("nodeconfig (line %d): gpus", e.Line), g.UUID, g.Index})
		}
	}
	for _, item := range e.Cuts {
		for _, index := range item.Devices {
			out = append(out, naming{where: fmt.Sprintf("mig-configs.%s (%s:%d): devices", e.MIGConfig, e.CutsFile, item.Line), index: index})
		}
	}
	return out
}
