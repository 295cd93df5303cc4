// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

// TestNothingFromTheClusterSteersTheTerminal: our own colours do, and nothing else.
func TestNothingFromTheClusterSteersTheTerminal(t *testing.T) {
	const hostile = "a\x1b[2J\x1b]0;title\x07b\rc\nd\te\u009b31mf\u202eg\x7fh"
	const harmless = "a?[2J?]0;title?b?c?d?e?31mf?g?h"
	for _, ascii := range []bool{false, true} {
		var out, notes strings.Builder
		s := newScreen(strings.NewReader(""), &out, &notes, func(string) string { return "" })
		s.unicode = !ascii
		if err := s.print(text(plain, "%s", hostile)); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != harmless+"\n" {
			t.Errorf("printed %q, want %q", got, harmless)
		}
		s.colour = true
		if got, want := s.render(text(red, "%s", hostile)), "\x1b[31m"+harmless+"\x1b[0m"; got != want {
			t.Errorf("rendered %q, want %q", got, want)
		}
	}
}
