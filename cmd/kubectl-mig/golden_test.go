// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	time.Local = time.UTC // steps are shown in local time
	os.Exit(m.Run())
}

// look is one kind of screen.
type look struct {
	name            string
	width           int
	colour, unicode bool
}

var looks = []look{
	{"60 columns", 60, false, true}, {"100 columns", 100, false, true}, {"160 columns", 160, false, true},
	{"60 columns, colour", 60, true, true}, {"100 columns, colour", 100, true, true}, {"160 columns, colour", 160, true, true},
	{"60 columns, ASCII", 60, false, false}, {"100 columns, ASCII", 100, false, false}, {"160 columns, ASCII", 160, false, false},
}

// runOn executes a command line on a screen of a kind.
func runOn(t *testing.T, l look, args ...string) ran {
	t.Helper()
	var out, err bytes.Buffer
	s := newScreen(strings.NewReader(""), &out, &err, func(name string) string {
		if name == "COLUMNS" {
			return fmt.Sprint(l.width)
		}
		return ""
	})
	s.colour, s.unicode = l.colour, l.unicode
	code := run(t.Context(), s, args)
	return ran{code, out.String(), err.String()}
}

// TestGolden keeps what each command prints, on screens of each kind.
func TestGolden(t *testing.T) {
	for _, tc := range []struct {
		name, fixture, args string
		code                int
		programs            bool // the output is for programs: it does not depend on the screen
	}{
		{"status", "cluster.yaml", "status", exitFine, false},
		{"status-node", "cluster.yaml", "status node10", exitFine, false},
		{"status-full", "full.yaml", "status", exitFine, false},
		{"status-shares", "shares.yaml", "status", exitFine, false},
		{"status-shares-table", "shares.yaml", "status -o table", exitFine, false},
		{"status-shares-wide", "shares.yaml", "status -o wide", exitFine, true},
		{"explain-share", "shares.yaml", "explain pod shared-1", exitFine, false},
		{"what-if-shares", "shares.yaml", "what-if -f testdata/small.yaml", exitFine, false},
		{"status-free", "cluster.yaml", "status --free=3g.40gb", exitFine, false},
		{"status-model", "cluster.yaml", "status --model a100 -l zone=a", exitFine, false},
		{"status-none", "cluster.yaml", "status --model b200", exitFine, false},
		{"status-table", "cluster.yaml", "status -o table", exitFine, false},
		{"status-wide", "cluster.yaml", "status -o wide", exitFine, true},
		{"status-json", "cluster.yaml", "status node2 -o json", exitFine, true},
		{"status-yaml", "cluster.yaml", "status node2 -o yaml", exitFine, true},
		{"explain-running", "cluster.yaml", "explain pod gpu-pod", exitFine, false},
		{"explain-oversize", "cluster.yaml", "explain pod notebook-alice", exitFine, false},
		{"explain-preparing", "cluster.yaml", "explain pod trainer-1", exitWaiting, false},
		{"explain-too-big", "cluster.yaml", "explain pod too-big", exitWaiting, false},
		{"explain-wrong", "cluster.yaml", "explain pod/no-count", exitWaiting, false},
		{"explain-waiting", "full.yaml", "explain pod wants-10g", exitWaiting, false},
		{"explain-whole", "full.yaml", "explain pod wants-all", exitWaiting, false},
		{"explain-fits", "full.yaml", "explain pod wants-5g", exitWaiting, false},
		{"explain-other-scheduler", "full.yaml", "explain pod other-scheduler", exitWaiting, false},
		{"explain-json", "full.yaml", "explain pod wants-10g -o json", exitWaiting, true},
		{"what-if-deployment", "cluster.yaml", "what-if -f testdata/deployment.yaml", exitFine, false},
		{"what-if-many", "cluster.yaml", "what-if -f testdata/deployment.yaml --replicas 60", exitWaiting, false},
		{"what-if-pod", "full.yaml", "what-if -f testdata/pod.yaml", exitWaiting, false},
		{"what-if-table", "cluster.yaml", "what-if -f testdata/deployment.yaml --replicas 60 -o table", exitWaiting, false},
		{"what-if-wide", "cluster.yaml", "what-if -f testdata/pod.yaml --replicas 2 -o wide", exitFine, true},
		{"what-if-json", "cluster.yaml", "what-if -f testdata/pod.yaml -o json", exitFine, true},
		{"history", "cluster.yaml", "history", exitFine, false},
		{"history-pod", "cluster.yaml", "history pod gpu-pod", exitFine, false},
		{"history-gone", "cluster.yaml", "history pod gone", exitFine, false},
		{"history-node", "cluster.yaml", "history node node2", exitFine, false},
		{"export", "cluster.yaml", "export node1", exitFine, true},
		{"export-none", "cluster.yaml", "export nowhere", exitError, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, kubeconfig := serve(t, tc.fixture)
			args := append(strings.Fields(tc.args), "--kubeconfig="+kubeconfig)
			var got strings.Builder
			for _, l := range looks {
				r := runOn(t, l, args...)
				if r.code != tc.code {
					t.Fatalf("kubectl mig %s = %d, want %d: %s%s", tc.args, r.code, tc.code, r.out, r.err)
				}
				fits(t, l, tc.programs, r.out)
				fmt.Fprintf(&got, "=== %s\n%s%s", l.name, r.out, r.err)
				if tc.programs {
					break
				}
			}
			compare(t, tc.name, got.String())
		})
	}
}

// fits checks that nothing is wider than the screen or of a kind it cannot show.
func fits(t *testing.T, l look, programs bool, out string) {
	t.Helper()
	for line := range strings.Lines(out) {
		bare := line
		for strings.Contains(bare, "\x1b[") {
			before, rest, _ := strings.Cut(bare, "\x1b[")
			_, after, _ := strings.Cut(rest, "m")
			bare = before + after
			if !l.colour {
				t.Errorf("%s: colour in %q", l.name, line)
			}
		}
		if n := columns(strings.TrimSuffix(bare, "\n")); n > l.width && !programs {
			t.Errorf("%s: %d columns in %q", l.name, n, line)
		}
		if !l.unicode && strings.ContainsFunc(bare, func(r rune) bool { return r > 126 }) {
			t.Errorf("%s: not ASCII: %q", l.name, line)
		}
	}
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; go test -update writes it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), go test -update writes it:\n%s", file, diff)
	}
}

// documentation shows golden output, below a comment that names it.
const documentation = "../../docs/kubectl-mig.md"

// TestDocumentationShowsWhatIsPrinted: -update writes it.
func TestDocumentationShowsWhatIsPrinted(t *testing.T) {
	old, err := os.ReadFile(documentation)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^<!-- golden: ([a-z-]+), ([^>]+) -->\n```\n(.*?)```$")
	found := 0
	want := block.ReplaceAllFunc(old, func(match []byte) []byte {
		found++
		m := block.FindSubmatch(match)
		text, err := os.ReadFile(filepath.Join("testdata", "golden", string(m[1])+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		_, after, ok := strings.Cut(string(text), "=== "+string(m[2])+"\n")
		if !ok {
			t.Fatalf("%s has no %q", m[1], m[2])
		}
		shown, _, _ := strings.Cut(after, "\n=== ")
		return fmt.Appendf(nil, "<!-- golden: %s, %s -->\n```\n%s\n```", m[1], m[2], strings.TrimRight(shown, "\n"))
	})
	if found < 4 {
		t.Errorf("%d pieces of output were found: the test does not see them", found)
	}
	if *update {
		if err := os.WriteFile(documentation, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(old)); diff != "" {
		t.Errorf("%s (-golden +documentation), go test -update writes it:\n%s", documentation, diff)
	}
}
