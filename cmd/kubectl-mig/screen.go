// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/term"
)

// screen is where a command reads and writes, and what can be shown there.
type screen struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string

	terminal bool // out is one
	width    int  // columns
	given    bool // the width is known, by the terminal or by COLUMNS
	colour   bool
	unicode  bool // else ASCII only
}

// widthElsewhere is the width of what is no terminal and where COLUMNS is not set.
const widthElsewhere = 120

// narrowest is the least width that is drawn for.
const narrowest = 40

// newScreen looks at the terminal and at the environment: COLUMNS, NO_COLOR, TERM,
// and the locale by LC_ALL, LC_CTYPE or LANG.
func newScreen(in io.Reader, out, err io.Writer, env func(string) string) *screen {
	s := &screen{in: in, out: out, err: err, env: env, unicode: speaksUTF8(env)}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.terminal = true
		s.colour = env("NO_COLOR") == "" && env("TERM") != "dumb"
	}
	s.measure()
	return s
}

// unlimited is the screen without a right edge, for output that may be read by
// programs.
func (s *screen) unlimited() *screen {
	wide := *s
	wide.width = 1 << 20
	return &wide
}

// measure takes the width anew: a terminal may have been resized.
func (s *screen) measure() {
	s.width, s.given = widthElsewhere, false
	if f, ok := s.out.(*os.File); ok && s.terminal {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			s.width, s.given = w, true
		}
	}
	if w, err := strconv.Atoi(s.env("COLUMNS")); err == nil && w > 0 {
		s.width, s.given = w, true
	}
	s.width = max(s.width, narrowest)
}

// speaksUTF8 reads the locale as POSIX ranks it. Without any, as in many
// containers, nobody has said no.
func speaksUTF8(env func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToUpper(env(name)); v != "" {
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return true
}
