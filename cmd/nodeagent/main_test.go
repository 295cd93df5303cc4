// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/native"
)

func TestBadFlagsGiveOneSentenceWithARemedy(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	cases := []struct {
		name string
		args []string
		want []string // parts of the message
	}{
		{"no node name", []string{"--driver=sim", "--sim-root=/x"}, []string{"--node-name", "NODE_NAME"}},
		{"native driver without a driver", []string{"--node-name=n", "--driver-root=" + t.TempDir(), "--state-dir=" + t.TempDir()}, nativeRefusal()},
		{"unknown driver", []string{"--node-name=n", "--driver=x"}, []string{"--driver=x", "choose one"}},
		{"sim without root", []string{"--node-name=n", "--driver=sim"}, []string{"--sim-root"}},
		{"an argument", []string{"--node-name=n", "--driver=sim", "--sim-root=/x", "y"}, []string{`"y"`, "one of check, facts only"}},
		{"a command misspelt", []string{"chekc"}, []string{`"chekc"`, "did you mean nodeagent check [flags]?"}},
		{"a command behind flags", []string{"--node-name=n", "facts"}, []string{`"facts"`, "did you mean nodeagent facts [flags]?"}},
		{"no API server", []string{"--node-name=n", "--driver=sim", "--sim-root=/x", "--state-dir=" + t.TempDir()}, []string{"give --kubeconfig"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(context.Background(), c.args, &out, &out)
			if err == nil {
				t.Fatal("run = nil, want an error")
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
					t.Errorf("run = %q, want one line with %q", err, part)
				}
			}
		})
	}
}

func TestVersionNeedsNothing(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	var out bytes.Buffer
	if err := run(context.Background(), []string{"--version"}, &out, &out); err != nil || !strings.HasPrefix(out.String(), "nodeagent ") || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("--version = %v, prints %q; want one line that names the program", err, out.String())
	}
}

// nativeRefusal is what a machine without a GPU is told.
func nativeRefusal() []string {
	if native.Built {
		return []string{"give --kubeconfig"} // the driver is looked for later, and again and again
	}
	return []string{"--driver=native", "CGO_ENABLED=1", "use --driver=sim"}
}

func TestNodeNameComesFromTheEnvironment(t *testing.T) {
	t.Setenv("NODE_NAME", "from-env")
	o, err := parse([]string{"--driver=sim", "--sim-root=/x", "--v=2"}, os.Stderr)
	if err != nil || o.nodeName != "from-env" {
		t.Errorf("parse = %q, %v; want node name from-env", o.nodeName, err)
	}
}

func TestTwoAgentsCannotShareAStateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); err == nil || !strings.Contains(err.Error(), "another nodeagent") {
		t.Errorf("second lock = %v, want an error that names another nodeagent", err)
	}
	unlock()
	again, err := lock(dir)
	if err != nil {
		t.Fatalf("lock after unlock = %v", err)
	}
	again()
}

func TestDeviceNodesBecomeEdits(t *testing.T) {
	got := edits([]nvml.DeviceNode{{Path: "/dev/nvidia0", HostPath: "/sim/dev/nvidia0", Major: 195, Minor: 3, FileMode: 0o666}})
	want := []cdi.DeviceNode{{Path: "/dev/nvidia0", HostPath: "/sim/dev/nvidia0", Major: 195, Minor: 3, FileMode: 0o666, Permissions: "rw"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("edits (-want +got):\n%s", diff)
	}
}

func TestDriverFileFollowsTheLoadedDriver(t *testing.T) {
	version, node, fails := "1", "/dev/one", error(nil)
	dir := t.TempDir()
	f := &driverFile{
		dir: cdi.Dir{Path: dir}, version: func() string { return version },
		edits: func() (cdi.Edits, error) { return cdi.Edits{DeviceNodes: []cdi.DeviceNode{{Path: node}}}, fails },
	}
	if err := f.write(); err != nil {
		t.Fatal(err)
	}
	look := func(want string) {
		t.Helper()
		f.renew(context.Background())
		text, err := os.ReadFile(filepath.Join(dir, "dynamig.io-driver.json"))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("the file has %s, %v; want %s", text, err, want)
		}
	}
	node = "/dev/two"
	look("/dev/one") // the same driver
	version = ""
	look("/dev/one") // none
	version, fails = "2", errors.New("not yet")
	look("/dev/one")
	fails = nil
	look("/dev/two")
}

// What the driver lacks right after a boot is waited for, and said.
func TestDriverFileIsWrittenOnceThatIsPossible(t *testing.T) {
	fails := errors.New("no /dev/nvidiactl")
	f := &driverFile{
		dir: cdi.Dir{Path: t.TempDir()}, version: func() string { return "1" },
		edits: func() (cdi.Edits, error) { return cdi.Edits{DeviceNodes: []cdi.DeviceNode{{Path: "/dev/one"}}}, fails },
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if f.first(ended, nil, func(error) {}) {
		t.Error("the file is said to be written")
	}
	var told []error
	tick := make(chan time.Time, 1)
	ok := f.first(t.Context(), tick, func(err error) {
		if told = append(told, err); len(told) == 2 {
			fails = nil
		}
		tick <- time.Time{}
	})
	if !ok || len(told) != 3 || told[0] == nil || told[1] == nil || told[2] != nil || f.written != "1" {
		t.Errorf("first = %t, told %v, written for driver %q; want two failures, and success", ok, told, f.written)
	}
}
