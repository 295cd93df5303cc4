// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"hash/fnv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// style is the parameter of an ANSI SGR sequence; empty is plain.
type style string

// Styles. Terminals choose the shades, so that they suit light and dark ones.
const (
	plain style = ""
	bold  style = "1"
	dim   style = "2"
	red   style = "31"
	green style = "32"
	amber style = "33"
)

// hues tell pods apart; red and amber are for trouble. Bright cyan and green cannot be
// read on a light terminal.
var hues = []style{"36", "32", "34", "35", "94", "95"}

// hueOf gives a pod its colour, the same each time.
func hueOf(pod string) style {
	h := fnv.New32a()
	h.Write([]byte(pod))
	return hues[h.Sum32()%uint32(len(hues))]
}

// piece is text in one style.
type piece struct {
	text  string
	style style
}

// line is one line of output.
type line []piece

// text is a line in one style.
func text(st style, format string, args ...any) line {
	return line{{fmt.Sprintf(format, args...), st}}
}

func (l line) add(st style, format string, args ...any) line {
	return append(l, piece{fmt.Sprintf(format, args...), st})
}

// columns is the width of text: everything that we print is one column wide.
func columns(s string) int { return utf8.RuneCountInString(s) }

func (l line) columns() int {
	n := 0
	for _, p := range l {
		n += columns(p.text)
	}
	return n
}

// ascii stands in for the signs that are not ASCII.
var ascii = strings.NewReplacer(
	"…", "~", "│", "|",
	"·", ".", "╱", "/", "✓", "*", "✗", "x", "→", ">", "•", "-",
)

// print writes lines, cut to the width.
func (s *screen) print(lines ...line) error {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(s.render(l))
		b.WriteByte('\n')
	}
	_, err := s.out.Write([]byte(b.String()))
	return err
}

// printable is text without what steers a terminal: names, messages and annotations
// come from whoever may write them in the cluster (kubectl's CVE-2021-25743).
func printable(t string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return '?'
		}
		return r
	}, t)
}

// render is a line as it is written.
func (s *screen) render(l line) string {
	if l.columns() > s.width {
		l = l.cut(s.width)
	}
	var b strings.Builder
	for _, p := range l {
		t := printable(p.text)
		if !s.unicode {
			t = ascii.Replace(t)
		}
		if s.colour && p.style != plain && strings.TrimSpace(t) != "" {
			t = "\x1b[" + string(p.style) + "m" + t + "\x1b[0m"
		}
		b.WriteString(t)
	}
	return strings.TrimRight(b.String(), " ")
}

// cut is the line with an ellipsis in place of what is beyond a width.
func (l line) cut(width int) line {
	var out line
	left := width - 1
	for _, p := range l {
		runes := []rune(p.text)
		n := min(left, len(runes))
		out = append(out, piece{string(runes[:n]), p.style})
		if left -= n; n < len(runes) {
			break
		}
	}
	return out.add(plain, "…")
}

// truncate cuts text to a width, with an ellipsis in place of what is lost.
func truncate(t string, width int) string {
	if columns(t) <= width {
		return t
	}
	if width <= 0 {
		return ""
	}
	runes := []rune(t)
	return strings.TrimRight(string(runes[:width-1]), " ") + "…"
}

// squeeze cuts out the middle: names of pods differ at their ends.
func squeeze(t string, width int) string {
	n := columns(t)
	if n <= width || width < 3 {
		return truncate(t, width)
	}
	runes := []rune(t)
	tail := (width - 1) / 2
	return string(runes[:width-1-tail]) + "…" + string(runes[n-tail:])
}

// pad fills text up to a width, cut if it is longer.
func pad(t string, width int) string {
	t = truncate(t, width)
	return t + strings.Repeat(" ", max(0, width-columns(t)))
}

// wrap breaks text at spaces into lines of a width, indented after a mark: "  • ".
func (s *screen) wrap(mark string, st style, format string, args ...any) []line {
	indent := strings.Repeat(" ", columns(mark))
	var out []line
	current := mark
	empty := true
	for _, word := range strings.Fields(fmt.Sprintf(format, args...)) {
		if !empty && columns(current)+1+columns(word) > s.width {
			out = append(out, text(st, "%s", current))
			current, empty = indent, true
		}
		if !empty {
			current += " "
		}
		current += word
		empty = false
	}
	return append(out, text(st, "%s", current))
}

// flow joins parts into lines of the width, none of them broken.
func (s *screen) flow(st style, parts []string) []line {
	var out []line
	current := ""
	for _, p := range parts {
		if current != "" && columns(current)+3+columns(p) > s.width {
			out = append(out, text(st, "%s", current))
			current = ""
		}
		if current != "" {
			current += "   "
		}
		current += p
	}
	if current == "" {
		return out
	}
	return append(out, text(st, "%s", current))
}

// table lays cells out in columns. The last columns are dropped where the width does
// not hold them, if they are optional.
type table struct {
	heads    []string
	optional int // so many of the last columns may be dropped
	rows     [][]piece
}

func (t *table) add(cells ...piece) { t.rows = append(t.rows, cells) }

// lines draws the table.
func (t *table) lines(s *screen) []line {
	const gap = 2
	widths := make([]int, len(t.heads))
	for i, h := range t.heads {
		widths[i] = columns(h)
		for _, r := range t.rows {
			widths[i] = max(widths[i], columns(r[i].text))
		}
	}
	n, total := len(t.heads), 0
	for _, w := range widths {
		total += w + gap
	}
	for total-gap > s.width && n > len(t.heads)-t.optional {
		n--
		total -= widths[n] + gap
	}
	row := func(cells []piece) line {
		l := line{}
		for i := range n - 1 {
			l = l.add(cells[i].style, "%s", pad(cells[i].text, widths[i]+gap))
		}
		return append(l, cells[n-1])
	}
	heads := make([]piece, len(t.heads))
	for i, h := range t.heads {
		heads[i] = piece{h, bold}
	}
	out := []line{row(heads)}
	for _, r := range t.rows {
		out = append(out, row(r))
	}
	return out
}
