// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLocate: commands that only look find the cluster that there is.
func TestLocate(t *testing.T) {
	for _, tc := range []struct {
		name     string
		clusters string
		args     string // command and flags
		want     string // directory, or what the error says
	}{
		{"the only one", ".build/demo", "status", ".build/demo"},
		{"the only one, of this program", ".build/cluster/dev", "kubeconfig", ".build/cluster/dev"},
		{"none", "", "status", ".build/cluster/dev"},
		{"several", ".build/demo .build/e2e", "status", "name one with -dir: .build/demo, .build/e2e"},
		{"a name", ".build/demo", "status -name x", ".build/cluster/x"},
		{"a directory", ".build/demo .build/e2e", "status -dir .build/e2e", ".build/e2e"},
		{"what changes something takes no guess", ".build/demo", "down", ".build/cluster/dev"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for dir := range strings.FieldsSeq(tc.clusters) {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "cluster.json"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			o := options{}
			flags := flag.NewFlagSet("testcluster", flag.ContinueOnError)
			flags.SetOutput(&bytes.Buffer{})
			flags.StringVar(&o.Name, "name", "dev", "")
			flags.StringVar(&o.Dir, "dir", "", "")
			command, rest, _ := strings.Cut(tc.args, " ")
			if err := flags.Parse(strings.Fields(rest)); err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := o.locate(command, flags); err != nil {
				got = err.Error()
			} else {
				got = o.Dir
			}
			if !strings.HasSuffix(got, tc.want) {
				t.Errorf("testcluster %s is about %q, want %q", tc.args, got, tc.want)
			}
		})
	}
}
