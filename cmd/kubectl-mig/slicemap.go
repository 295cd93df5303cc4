// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/dynamig/dynamig/pkg/pool"
)

// A slice map is a GPU drawn to scale, each memory slice as wide as the others: a
// row with the profiles, and one with the pods.
//
//	GPU 0 │2g.10gb  │1g.5│·········│3g.20gb            │
//	      │gpu-pod  │sma…│         │train-0            │

// signs of states that are not simply used, before the profile.
var signs = map[pool.SpanState]string{
	pool.SpanPreparing: "+", pool.SpanPublished: "+", pool.SpanAssumed: "+",
	pool.SpanIdle: "~", pool.SpanLeaving: "-", pool.SpanForeign: "!", pool.SpanStuck: "!",
}

// legend explains them, in order.
var legend = []struct {
	sign, means string
	states      []pool.SpanState
}{
	{"+", "being prepared", []pool.SpanState{pool.SpanPreparing, pool.SpanPublished, pool.SpanAssumed}},
	{"~", "idle: kept warm, free for others", []pool.SpanState{pool.SpanIdle}},
	{"-", "its pod has ended: free for others", []pool.SpanState{pool.SpanLeaving}},
	{"!", "foreign or stuck: takes slices without a pod", []pool.SpanState{pool.SpanForeign, pool.SpanStuck}},
}

// cell is a run of slices in a map: a span, or free.
type cell struct {
	start, size int
	span        *pool.SpanPicture // nil: free
}

// cellsOf divides a GPU into cells. What takes slices is drawn over what is idle.
func cellsOf(g *pool.GPUPicture) []cell {
	owner := make([]*pool.SpanPicture, g.MemorySlices)
	mark := func(takes bool) {
		for i := range g.Spans {
			s := &g.Spans[i]
			if s.State.Takes() != takes || s.Start+s.Size > len(owner) {
				continue
			}
			free := true
			for k := s.Start; k < s.Start+s.Size; k++ {
				free = free && owner[k] == nil
			}
			for k := s.Start; free && k < s.Start+s.Size; k++ {
				owner[k] = s
			}
		}
	}
	mark(true)
	mark(false)
	var cells []cell
	for i := 0; i < len(owner); {
		n := 1
		for i+n < len(owner) && owner[i+n] == owner[i] {
			n++
		}
		cells = append(cells, cell{i, n, owner[i]})
		i += n
	}
	return cells
}

// widestSlice keeps maps readable on very wide screens, in columns.
const widestSlice = 14

// columnsPerSlice is the scale of a map beside a label and a remark.
func columnsPerSlice(width, slices int) int {
	return max(2, min(widestSlice, (width-1)/max(1, slices)))
}

// drawMap draws a GPU in two lines, each slice so many columns wide.
func drawMap(g *pool.GPUPicture, scale int) (profiles, pods line) {
	for _, c := range cellsOf(g) {
		width := c.size*scale - 1
		border := dim
		profiles = profiles.add(border, "│")
		pods = pods.add(border, "│")
		st, top, bottom := c.labels(g)
		filler := " "
		if c.span == nil {
			filler = fillerOf(g)
		}
		if columns(top) > width {
			top = strings.TrimSuffix(top, "gb")
		}
		profiles = profiles.add(st, "%s", fill(top, width, filler))
		pods = pods.add(st, "%s", fill(squeeze(bottom, width), width, " "))
	}
	return profiles.add(dim, "│"), pods.add(dim, "│")
}

// fillerOf shows whether free slices can be had.
func fillerOf(g *pool.GPUPicture) string {
	if !g.Offered {
		return "╱"
	}
	return "·"
}

// fill writes text and fills the rest of the width.
func fill(t string, width int, filler string) string {
	if t != "" && filler != " " {
		t += " "
	}
	t = truncate(t, width)
	return t + strings.Repeat(filler, max(0, width-columns(t)))
}

// labels are the style and the two texts of a cell.
func (c cell) labels(g *pool.GPUPicture) (st style, top, bottom string) {
	if c.span == nil {
		return dim, "", ""
	}
	top = signs[c.span.State] + c.span.Profile
	switch c.span.State {
	case pool.SpanForeign:
		return red, top, "foreign"
	case pool.SpanStuck:
		return red, top, "stuck"
	case pool.SpanIdle:
		return dim, top, "idle"
	case pool.SpanLeaving:
		return dim, top, "leaving"
	}
	name := ownerName(c.span)
	return hueOf(name), top, name
}

// ownerName is the pod of a span, for a map.
func ownerName(s *pool.SpanPicture) string {
	switch {
	case s.Owner == nil:
		return "?"
	case s.Owner.Name == "":
		return string(s.Owner.UID)
	}
	return s.Owner.Name
}
