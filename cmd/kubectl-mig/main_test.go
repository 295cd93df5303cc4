// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

// ran is what one command line did.
type ran struct {
	code     int
	out, err string
}

// runWith executes a command line on a screen without colour.
func runWith(t *testing.T, args ...string) ran {
	t.Helper()
	var out, err bytes.Buffer
	s := newScreen(strings.NewReader(""), &out, &err, func(string) string { return "" })
	code := run(t.Context(), s, args)
	return ran{code, out.String(), err.String()}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want int
		says string // on stderr
	}{
		{"help is fine", []string{"--help"}, exitFine, ""},
		{"no command shows help", nil, exitFine, ""},
		{"version is fine", []string{"version"}, exitFine, ""},
		{"an unknown flag is wrong usage", []string{"version", "--nonsense"}, exitUsage, "unknown flag: --nonsense"},
		{"an unknown command is wrong usage", []string{"nonsense"}, exitUsage, `unknown command "nonsense"`},
		{"a command is suggested", []string{"stauts"}, exitUsage, `error: unknown command "stauts"; did you mean status?`},
		{"a file is a flag", []string{"what-if", "pod.yaml"}, exitUsage, `"pod.yaml" is one; name a file with -f, such as: kubectl mig what-if -f pod.yaml`},
		{"a number is no word", []string{"what-if", "--replicas", "x"}, exitUsage, `error: --replicas is "x"; use a whole number`},
		{"an argument too many is wrong usage", []string{"version", "again"}, exitUsage, "again"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := runWith(t, tc.args...)
			if got.code != tc.want || !strings.Contains(got.err, tc.says) {
				t.Errorf("kubectl mig %v = %d, %q; want %d, %q", tc.args, got.code, got.err, tc.want, tc.says)
			}
		})
	}
}
