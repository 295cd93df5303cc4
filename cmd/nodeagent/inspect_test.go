// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nodecheck"
	"github.com/dynamig/dynamig/pkg/nvml/facts"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// simNode makes a simulated node and returns its root.
func simNode(t *testing.T, spec sim.Spec) string {
	t.Helper()
	root := t.TempDir()
	spec.PlainDevices = true
	if err := sim.Create(root, spec); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestFactsAreRecordedAndPlayedBack(t *testing.T) {
	record := func(root string, more ...string) facts.Node {
		t.Helper()
		var out bytes.Buffer
		if err := runFacts(context.Background(), append([]string{"--driver=sim", "--sim-root=" + root}, more...), &out, os.Stderr); err != nil {
			t.Fatal(err)
		}
		node, err := facts.Decode(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		return node
	}
	first := record(simNode(t, sim.Spec{GPUs: []sim.GPUSpec{{Board: "A100-40GB", MIG: true}, {Board: "H100-80GB"}}}))
	if first.Source.Confidence != facts.Simulated || len(first.MIGMinors) != migMinorLines || first.MIGMinors[2] != "gpu0/gi0/access 3" {
		t.Errorf("source is %+v and minors %v; want a simulated source and the driver's table", first.Source, first.MIGMinors)
	}
	root := simNode(t, sim.FromFacts(first))
	if diff := cmp.Diff(first, record(root)); diff != "" {
		t.Errorf("facts of the copy (-first +copy):\n%s", diff)
	}
	if got := len(record(root, "--exercise=0").GPUs[0].Exercise); got != 25 {
		t.Errorf("--exercise tried %d placements; want 25", got)
	}
}

func TestCheckOfAGoodNode(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"kubelet/device-plugins/kubelet.sock", "kubelet/pod-resources/kubelet.sock", "etc/containerd/config.toml"} {
		path := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("version = 3\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{
		"--driver=sim", "--sim-root=" + simNode(t, sim.Spec{GPUs: []sim.GPUSpec{{Board: "H100-80GB"}}}), "--proc-dir=" + t.TempDir(),
		"--kubelet-dir=" + dir + "/kubelet", "--etc-dir=" + dir + "/etc", "--cdi-dir=" + dir + "/cdi", "-o=json",
	}
	var out bytes.Buffer
	err := runCheck(context.Background(), args, &out, os.Stderr)
	var findings []nodecheck.Finding
	if err := json.Unmarshal(out.Bytes(), &findings); err != nil {
		t.Fatalf("output is no JSON: %v", err)
	}
	for _, f := range findings {
		if f.Level == nodecheck.Problem && f.Subject != "user" {
			t.Errorf("finding %+v; want no problem", f)
		}
	}
	if root := os.Getuid() == 0; root != (err == nil) {
		t.Errorf("runCheck as user %d = %v", os.Getuid(), err)
	}
	out.Reset()
	err = runCheck(context.Background(), append(args, "-o=text"), &out, os.Stderr)
	if says := strings.HasSuffix(out.String(), "\nThis node can do dynamic MIG.\n"); says != (err == nil) {
		t.Errorf("runCheck = %v; output:\n%s", err, out.String())
	}
}

func TestCheckOfAnEmptyMachine(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	err := runCheck(context.Background(), []string{
		"--driver-root=" + dir, "--kubelet-dir=" + dir, "--etc-dir=" + dir, "--cdi-dir=" + dir,
	}, &out, os.Stderr)
	if !errors.Is(err, errProblems) {
		t.Errorf("runCheck = %v; want %v", err, errProblems)
	}
	for _, line := range []string{"Problem  driver", "Problem  kubelet", "OK       CDI", "Note     runtime", "Note     cluster"} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("no line %q in:\n%s", line, out.String())
		}
	}
}

// A GPU that fails is named, and the others are recorded all the same.
func TestFactsOfANodeWithALostGPU(t *testing.T) {
	root := simNode(t, sim.Spec{GPUs: []sim.GPUSpec{{Board: "A30-24GB"}, {Board: "A30-24GB"}}})
	node, err := sim.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	state, err := node.Dump()
	if err == nil {
		err = node.LoseGPU(state.GPUs[0].UUID)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(root))
	var out bytes.Buffer
	err = runFacts(t.Context(), []string{"--driver=sim", "--sim-root=" + filepath.Base(root)}, &out, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "leaving GPU 0 out") {
		t.Errorf("facts = %v; want an error that names GPU 0", err)
	}
	got, err := facts.Decode(out.Bytes())
	if err != nil || len(got.GPUs) != 1 {
		t.Errorf("%d GPUs were recorded, %v; want one", len(got.GPUs), err)
	}
	if len(got.MIGMinors) == 0 {
		t.Error("the table of minors was not found below a relative --sim-root")
	}
}

// TestHelpSaysWhatACommandIs: what it does, and what its exit status means.
func TestHelpSaysWhatACommandIs(t *testing.T) {
	for name, command := range subcommands {
		var out bytes.Buffer
		err := command(t.Context(), []string{"--help"}, io.Discard, &out)
		if !errors.Is(err, flag.ErrHelp) || !strings.HasPrefix(out.String(), "Usage: nodeagent "+name) || !strings.Contains(out.String(), "exit status") || !strings.Contains(out.String(), "-driver-root") {
			t.Errorf("nodeagent %s --help = %v:\n%s", name, err, out.String())
		}
	}
}

// TestCheckReadsConfigurationFiles: with the agent's own sentences, of all files at
// once, on a machine without GPUs.
func TestCheckReadsConfigurationFiles(t *testing.T) {
	t.Chdir(t.TempDir())
	for file, text := range map[string]string{
		"device.yaml": "nvidia:\n  defaultCores: 10\n",
		"bad.yaml":    "nvidia:\n  defaultCores: 101\n",
		"node.json":   `{"nodeconfig": [{"default": true, "migconfig": "all-disable"}]}`,
		"good.json":   `{"nodeconfig": [{"default": true, "migconfig": "all-disabled"}]}`,
		"empty.json":  `{"nodeconfig": []}`,
		"mig.yaml":    "version: v1\nmig-configs:\n  all-disabled:\n  - {devices: all, mig-enabled: false}\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := runCheck(t.Context(), []string{"--config-only"}, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "give --device-config") {
		t.Errorf("without a file runCheck = %v; want an error that says what to give", err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want error
		says []string
	}{
		{"good ones", []string{"--device-config=device.yaml", "--node-config=good.json", "--mig-parted-config=mig.yaml"}, nil,
			[]string{"OK  configuration  device.yaml has no mistake.", "OK  configuration  mig.yaml has no mistake.", "These configuration files are good."}},
		{"no node selected", []string{"--node-config=empty.json"}, nil, []string{
			"OK    configuration  empty.json has no mistake.\n",
			"Note  configuration  empty.json selects no node, so that none offers GPUs; add an entry to nodeconfig.\n"}},
		{"mistakes in two files", []string{"--device-config=bad.yaml", "--node-config=node.json", "--mig-parted-config=mig.yaml"}, errConfig, []string{
			"Problem  configuration  bad.yaml:2: nvidia.defaultCores is 101; write a whole number from 0 to 100\n",
			`Problem  configuration  node.json:1: nodeconfig[0].migconfig is "all-disable"; mig.yaml has no such configuration; did you mean all-disabled?` + "\n"}},
		{"no such file", []string{"--node-config=none.json"}, errConfig, []string{"Problem  configuration  reading configuration: open none.json: no such file or directory\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := runCheck(t.Context(), append(tt.args, "--config-only"), &out, io.Discard)
			if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
				t.Errorf("runCheck = %v; want %v", err, tt.want)
			}
			for _, line := range tt.says {
				if !strings.Contains(out.String(), line) {
					t.Errorf("no line %q in:\n%s", line, out.String())
				}
			}
		})
	}
}
