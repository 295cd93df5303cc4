// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/dynamig/dynamig/pkg/pool"
)

// A slice map is a GPU drawn to scale, each memory slice as wide as the others: a
// row with the profiles, and one with the pods.
//
//	GPU 0 │2g.10gb  │1g.5│·········│3g.20gb            │
//	      │gpu-pod  │sma…│         │train-0            │
//
// A GPU in mode hami-core is drawn likewise, its software shares by their memory.

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

// cell is a part of a map: a span, a share, or free.
type cell struct {
	columns     int // with its left border
	style       style
	top, bottom string
	filler      string // of what top leaves
}

// cellsOf divides a GPU into cells, each memory slice so many columns wide. What
// takes slices is drawn over what is idle.
func cellsOf(g *pool.GPUPicture, scale int) []cell {
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
		c := freeCell(g.Offered)
		if owner[i] != nil {
			c = spanCell(owner[i])
		}
		c.columns = n * scale
		cells = append(cells, c)
		i += n
	}
	return cells
}

// sharesOf divides a GPU in mode hami-core by memory: each share as wide as its part
// of it, what is left at the end.
func sharesOf(sh *pool.SharesPicture, width int) []cell {
	var cells []cell
	used, at := int64(0), 0
	for i := range sh.Held {
		held := &sh.Held[i]
		used += held.MemoryMiB
		end := max(at+2, int(used*int64(width)/max(1, sh.MemoryMiB)))
		c := cell{columns: end - at, style: hueOf(held.Owner.Name), bottom: held.Owner.Name, filler: " "}
		c.top = signs[held.State] + fmt.Sprintf("%dMi", held.MemoryMiB)
		if held.Cores > 0 {
			c.top += fmt.Sprintf(" %d%%", held.Cores)
		}
		cells = append(cells, c)
		at = end
	}
	if at < width {
		c := freeCell(sh.FreeCount > 0)
		c.columns = width - at
		cells = append(cells, c)
	}
	return cells
}

// widestSlice keeps maps readable on very wide screens, in columns; a GPU that is
// not cut is drawn as wide as one of eight slices.
const (
	widestSlice = 14
	plainSlices = 8
)

// columnsPerSlice is the scale of a map of a width.
func columnsPerSlice(width, slices int) int {
	return max(2, min(widestSlice, (width-1)/max(1, slices)))
}

// drawMap draws a GPU in two lines.
func drawMap(g *pool.GPUPicture, width int) (profiles, pods line) {
	var cells []cell
	if g.Shares != nil {
		cells = sharesOf(g.Shares, plainSlices*columnsPerSlice(width, plainSlices))
	} else {
		cells = cellsOf(g, columnsPerSlice(width, g.MemorySlices))
	}
	for _, c := range cells {
		room := c.columns - 1
		profiles = profiles.add(dim, "│").add(c.style, "%s", fill(shorter(c.top, room), room, c.filler))
		pods = pods.add(dim, "│").add(c.style, "%s", fill(squeeze(c.bottom, room), room, " "))
	}
	return profiles.add(dim, "│"), pods.add(dim, "│")
}

// shorter leaves out what a label can do without where there is little room: the
// cores of a share, and units.
func shorter(label string, width int) string {
	if columns(label) > width {
		label, _, _ = strings.Cut(label, " ")
	}
	if columns(label) > width {
		label = strings.TrimSuffix(strings.TrimSuffix(label, "gb"), "Mi")
	}
	return label
}

// fill writes text and fills the rest of the width.
func fill(t string, width int, filler string) string {
	if t != "" && filler != " " {
		t += " "
	}
	t = truncate(t, width)
	return t + strings.Repeat(filler, max(0, width-columns(t)))
}

// freeCell shows whether what is free can be had.
func freeCell(offered bool) cell {
	if offered {
		return cell{style: dim, filler: "·"}
	}
	return cell{style: dim, filler: "╱"}
}

// spanCell labels a span.
func spanCell(s *pool.SpanPicture) cell {
	c := cell{style: red, top: signs[s.State] + s.Profile, filler: " "}
	switch s.State {
	case pool.SpanForeign:
		c.bottom = "foreign"
	case pool.SpanStuck:
		c.bottom = "stuck"
	case pool.SpanIdle:
		c.style, c.bottom = dim, "idle"
	case pool.SpanLeaving:
		c.style, c.bottom = dim, "leaving"
	default:
		c.bottom = ownerName(s)
		c.style = hueOf(c.bottom)
	}
	return c
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
