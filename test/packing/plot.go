// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// panel is one plot of regrets, a row for each policy.
type panel struct {
	title string
	rows  []row
}

type row struct {
	policy string
	value  estimate
}

// Sizes of the plot in pixels.
const (
	labels = 92  // left of the first panel
	inner  = 200 // width of a panel
	gap    = 44
	line   = 26 // height of a row
	top    = 62
	bottom = 44
)

// style makes the plot readable on light and dark pages.
const style = `<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
.grid { stroke: #d0d7de } .whisker { stroke: #24292f; stroke-width: 1.5 }
.bar { fill: #8c959f } .ours { fill: #1f883d }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d }
  .whisker { stroke: #e6edf3 } .bar { fill: #656c76 } .ours { fill: #3fb950 }
}
</style>
`

// plot draws the panels side by side as SVG: bars from 0, with confidence intervals.
func plot(panels []panel) string {
	rows := len(panels[0].rows)
	width := labels + len(panels)*(inner+gap)
	height := top + rows*line + bottom
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="Points of utilisation lost to the bound, by policy and load">`+"\n%s",
		width, height, width, height, style)
	fmt.Fprintf(&b, `<text class="title" x="8" y="20">Utilisation lost against free repacking, in points (less is better)</text>`+"\n")
	for i, r := range panels[0].rows {
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labels-8, top+i*line+18, html.EscapeString(r.policy))
	}
	for i, p := range panels {
		p.draw(&b, labels+i*(inner+gap))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// most is what the panel must reach: the largest value, or the second largest where
// the largest is more than twice that and would hide all others.
func (p panel) most() float64 {
	var ends []float64
	for _, r := range p.rows {
		ends = append(ends, r.value.mean+r.value.half)
	}
	slices.Sort(ends)
	n := len(ends)
	if n > 1 && ends[n-1] > 2*ends[n-2] {
		return ends[n-2]
	}
	return ends[n-1]
}

// draw draws one panel from x on.
func (p panel) draw(b *strings.Builder, x int) {
	most := p.most()
	step := nice(most / 4)
	end := step * math.Ceil(most/step)
	at := func(v float64) float64 { return float64(x) + inner*v/end }
	low := top + len(p.rows)*line
	fmt.Fprintf(b, `<text class="title" x="%d" y="%d">%s</text>`+"\n", x, top-14, html.EscapeString(p.title))
	for v := 0.0; v <= end+step/2; v += step {
		fmt.Fprintf(b, `<line class="grid" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/><text class="small" x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n",
			at(v), top-4, at(v), low+4, at(v), low+20, math.Round(v*100)/100)
	}
	for i, r := range p.rows {
		class, y := "bar", top+i*line
		if i == 0 {
			class = "ours"
		}
		if r.value.mean > end { // cut off
			fmt.Fprintf(b, `<path class="%s" d="M%d %dH%dl8 %dl-8 %dH%dz"/>`, class, x, y+6, x+inner-8, (line-12)/2, (line-12)/2, x)
			fmt.Fprintf(b, `<text class="small" x="%d" y="%d">%.2f</text>`+"\n", x+inner+4, y+line/2+4, r.value.mean)
			continue
		}
		fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/>`, class, x, y+6, at(r.value.mean)-float64(x), line-12)
		fmt.Fprintf(b, `<line class="whisker" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`, at(max(0, r.value.mean-r.value.half)), y+line/2, at(r.value.mean+r.value.half), y+line/2)
		fmt.Fprintf(b, `<text class="small" x="%.1f" y="%d">%.2f</text>`+"\n", at(r.value.mean+r.value.half)+4, y+line/2+4, r.value.mean)
	}
}

// nice is the next of 1, 2, 5, 10, ... from v on.
func nice(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, f := range []float64{1, 2, 5} {
		if f*unit >= v*(1-1e-9) {
			return f * unit
		}
	}
	return 10 * unit
}
