// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package steps

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// asProgram makes the test program one that changes files in a directory.
const asProgram = "DYNAMIG_STEPS_TEST"

func TestMain(m *testing.M) {
	Wrap()
	if dir := os.Getenv(asProgram); dir != "" {
		work(dir)
		return
	}
	os.Exit(m.Run())
}

// Durations of a program go on while its time of day jumps; so do those of this test.
func TestTheClockJumps(t *testing.T) {
	program := filepath.Join(t.TempDir(), "clock")
	if text, err := exec.Command("go", "build", "-o", program, "testdata/clock.go").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	cmd := exec.Command(program)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(cmd, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, hours := range []int{0, 6, -6, 0} {
		offset := time.Duration(hours) * time.Hour
		if err := p.SetClock(offset); err != nil {
			t.Fatal(err)
		}
		var day, since int64
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscan(out, &day, &since); err != nil {
			t.Fatal(err)
		}
		if off := time.Until(time.Unix(day, 0)) - offset; off.Abs() > time.Hour || since > 3600 {
			t.Errorf("%d hours on, the program's time is off by %s, and %d s after its start", hours, off, since)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
}

// work makes a, makes b under another name, removes a. The changes outside are
// not steps.
func work(dir string) {
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "in", "a"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "tmp"), nil, 0o600),
		os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "outside")),
		os.WriteFile(filepath.Join(dir, "tmp"), nil, 0o600),
		os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "in", "b")),
		os.Remove(filepath.Join(dir, "in", "a")),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func TestTheProgramDiesExactlyThere(t *testing.T) {
	for _, c := range []struct {
		at    int
		after bool
		files []string // left in the directory
		steps int
	}{
		{1, false, []string{"a"}, 1},
		{1, true, []string{"a", "b"}, 1},
		{2, false, []string{"a", "b"}, 2},
		{2, true, []string{"b"}, 2},
		{3, false, []string{"b"}, 2}, // lives on
		{0, false, []string{"b"}, 2},
	} {
		t.Run(fmt.Sprint(c.at, c.after), func(t *testing.T) {
			dir := t.TempDir()
			in := filepath.Join(dir, "in")
			if err := os.Mkdir(in, 0o700); err != nil {
				t.Fatal(err)
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), asProgram+"="+dir)
			p, err := Start(cmd, c.at, c.after, in)
			if err != nil {
				t.Fatal(err)
			}
			<-p.Done()
			if lived := p.Err() == nil; lived != (c.steps != c.at) {
				t.Errorf("the program ended with %v", p.Err())
			}
			if got := names(t, in); !slices.Equal(got, c.files) {
				t.Errorf("files are %v, want %v", got, c.files)
			}
			if got, want := p.Steps(), []string{"rename b", "remove a"}[:c.steps]; !slices.Equal(got, want) {
				t.Errorf("steps are %v, want %v", got, want)
			}
		})
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if path != dir {
			out = append(out, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
