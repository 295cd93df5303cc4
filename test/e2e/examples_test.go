// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/config"
)

// elsewhere are the examples that other tests run.
var elsewhere = map[string]string{
	"gpu-pod.yaml":    "TestPodOfTheDocumentation",
	"share-pod.yaml":  "TestOnePool",
	"either-pod.yaml": "TestOnePool",
	"hami-pod.yaml":   "TestHAMiDefaults",
	"mig-parted.yaml": "TestNodeAsMIGPartedHasIt",
}

// TestExamples: every example is run, and what its header lets one expect comes.
func TestExamples(t *testing.T) {
	files, err := os.ReadDir("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	wants := map[string]string{"profile-pod.yaml": "3g.20gb", "whole-pod.yaml": "7g.40gb", "percent-pod.yaml": "3g.20gb", "small-pod.yaml": "1g.5gb"}
	for _, f := range files {
		want, here := wants[f.Name()]
		switch {
		case elsewhere[f.Name()] != "":
			continue
		case f.Name() == "nodeconfig.yaml":
			nodeconfigExample(t)
			continue
		case !here:
			t.Errorf("no test runs examples/%s", f.Name())
			continue
		}
		pod := example(t, f.Name())
		pod.Spec.NodeSelector = map[string]string{v1.LabelHostname: "node1"}
		pod = runs(t, pod)
		if got := profiles(t, pod); !slices.Equal(got, []string{want}) {
			t.Errorf("%s got %v, want %s", f.Name(), got, want)
		}
		told := event(t, pod.Name, "Prepared")
		text, err := os.ReadFile("../../examples/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if f.Name() != "small-pod.yaml" && (!strings.Contains(told, "Prepared 1 MIG instance in ") || !strings.Contains(told, want+" on GPU ") ||
			!strings.Contains(string(text), want+" on GPU 0")) {
			t.Errorf("%s: event Prepared says %q, which its header does not", f.Name(), told)
		}
		remove(t, pod.Name)
	}
}

// nodeconfigExample: the file means what its header says.
func nodeconfigExample(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("../../examples/nodeconfig.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n, err := config.ParseNode("nodeconfig.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		node   string
		labels map[string]string
		modes  string // of GPUs 0 and 1; - for one that is left alone
	}{
		{"node3", nil, "mig hami-core"},
		{"node4", map[string]string{"gpu": "a100"}, "- mig"},
		{"node5", nil, "hami-core hami-core"},
	} {
		e, ok := n.For(tc.node, tc.labels)
		if !ok {
			t.Fatalf("no entry for %s", tc.node)
		}
		var modes []string
		for i := range int32(2) {
			mode, why := e.ModeOf(config.GPUName{Index: i})
			if why != "" {
				mode = "-"
			}
			modes = append(modes, mode)
		}
		if got := strings.Join(modes, " "); got != tc.modes {
			t.Errorf("%s: modes %s, want %s", tc.node, got, tc.modes)
		}
	}
}
