// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// table has a row for each GPU.
func (st *fleetStatus) table(wide bool) *table {
	t := &table{heads: []string{"NODE", "GPU", "MODEL", "MODE", "HEALTH", "USED", "IDLE", "FREE", "LARGEST"}, optional: 2}
	if wide {
		t.heads = append(t.heads, "FRAG", "STRANDED", "TEMPLATE", "UUID", "PODS")
		t.optional = 0
	}
	for i := range st.Nodes {
		n := &st.Nodes[i]
		for k := range n.GPUs {
			t.add(row(n, &n.GPUs[k], wide)...)
		}
	}
	return t
}

func row(n *nodeStatus, g *pool.GPUPicture, wide bool) []piece {
	used, idle := devicesOf(g)
	var pods []string
	for i := range g.Spans {
		if sp := &g.Spans[i]; sp.State.Owned() && !slices.Contains(pods, ownerName(sp)) {
			pods = append(pods, ownerName(sp))
		}
	}
	free, largest := fmt.Sprintf("%d/%d", g.FreeSlices, g.MemorySlices), cmp.Or(g.LargestFree, "-")
	if sh := g.Shares; sh != nil {
		free = fmt.Sprintf("%d/%dMi", sh.FreeMemoryMiB, sh.MemoryMiB)
		if wide {
			free += fmt.Sprintf(",%d/%d%%", sh.FreeCores, sh.Cores)
		}
		for i := range sh.Held {
			if name := sh.Held[i].Owner.Name; !slices.Contains(pods, name) {
				pods = append(pods, name)
			}
		}
	}
	health := piece{string(g.Health), plain}
	if g.Health != v1alpha1.Healthy {
		health.style = red
	}
	if n.word != "" {
		health = piece{n.word, red}
	}
	cells := []piece{
		{n.Name, plain}, {fmt.Sprint(g.Index), plain}, {shortModel(g.Model), plain}, {modesOf([]pool.GPUPicture{*g}), plain}, health,
		{fmt.Sprint(used), plain}, {fmt.Sprint(idle), plain}, {free, plain},
		{largest, plain},
	}
	if !wide {
		return cells
	}
	template := "-"
	if g.Template != nil {
		template = fmt.Sprintf("%d of %d", *g.Template+1, g.Templates)
	}
	return append(cells, piece{fmt.Sprintf("%.1f", g.Fragmentation), plain}, piece{fmt.Sprint(g.Stranded), plain},
		piece{template, plain}, piece{g.UUID, plain}, piece{cmp.Or(strings.Join(pods, ","), "-"), plain})
}
