// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// read returns a file of testdata.
func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// device parses a file that must be good.
func device(t testing.TB, file string, data []byte) *Device {
	t.Helper()
	d, err := ParseDevice(file, data)
	if err != nil {
		t.Fatalf("ParseDevice(%s): %v", file, err)
	}
	return d
}

func TestParseDeviceReadsTheDocumentedFile(t *testing.T) {
	want := DefaultDevice()
	want.File = "documented.yaml"
	want.KnownMigGeometries = []Geometries{{
		Models: []string{"A30"}, Line: 15,
		AllowedGeometries: [][]GeometryEntry{
			{{Name: "1g.6gb", Memory: 6144, Count: 4}},
			{{Name: "2g.12gb", Memory: 12288, Count: 2}},
			{{Name: "4g.24gb", Memory: 24576, Count: 1}},
		},
	}, {
		Models: []string{"A100-SXM4-40GB", "A100-40GB-PCIe", "A100-PCIE-40GB"}, Line: 20,
		AllowedGeometries: [][]GeometryEntry{
			{{Name: "1g.5gb", Memory: 5120, Count: 7}},
			{{Name: "2g.10gb", Memory: 10240, Count: 3}, {Name: "1g.5gb", Memory: 5120, Count: 1}},
			{{Name: "3g.20gb", Memory: 20480, Count: 2}},
			{{Name: "7g.40gb", Memory: 40960, Count: 1}},
		},
	}, {
		Models: []string{"A100-SXM4-80GB", "A100-80GB-PCIe", "A100-PCIE-80GB"}, Line: 27,
		AllowedGeometries: [][]GeometryEntry{
			{{Name: "1g.10gb", Memory: 10240, Count: 7}},
			{{Name: "2g.20gb", Memory: 20480, Count: 3}, {Name: "1g.10gb", Memory: 10240, Count: 1}},
			{{Name: "3g.40gb", Memory: 40960, Count: 2}},
			{{Name: "7g.79gb", Memory: 80896, Count: 1}},
		},
	}}
	got := device(t, "documented.yaml", read(t, "documented.yaml"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

const everyKey = `
mthreads: {resourceCountName: mthreads.com/vgpu}
nvidia:
  resourceCountName: example.com/gpu
  resourceMemoryName: example.com/mem
  resourceMemoryPercentageName: example.com/mem-percent
  resourceCoreName: example.com/cores
  resourcePriorityName: example.com/priority
  overwriteEnv: true
  defaultMemory: 4096
  defaultCores: 30
  defaultGPUNum: 0
  memoryFactor: 1024
  disableCoreLimit: true
  gpuCorePolicy: force
  libCudaLogLevel: 4
  runtimeClassName: nvidia
  preConfiguredDeviceMemory: 122880
  deviceSplitCount: 5
  deviceMemoryScaling: 1.5
  deviceCoreScaling: 2
  enableNumaTopology: true
  knownMigGeometries:
  migProfileAllowlist:
  - models: &pcie [ "A30" ]
    profiles: [ 1g.6gb, "1g.6gb+me" ]
  - {models: *pcie, profiles: [ 4g.24gb ]}
vnpus:
- chipName: 910A
`

func TestParseDeviceReadsEveryKeyAndIgnoresOtherVendors(t *testing.T) {
	want := &Device{
		File:                         "f",
		ResourceCountName:            "example.com/gpu",
		ResourceMemoryName:           "example.com/mem",
		ResourceMemoryPercentageName: "example.com/mem-percent",
		ResourceCoreName:             "example.com/cores",
		ResourcePriorityName:         "example.com/priority",
		OverwriteEnv:                 true,
		DefaultMemoryMiB:             4096,
		DefaultCores:                 30,
		DefaultGPUNum:                0,
		MemoryFactor:                 1024,
		DisableCoreLimit:             true,
		GPUCorePolicy:                CorePolicyForce,
		LibCUDALogLevel:              "4",
		RuntimeClassName:             "nvidia",
		PreConfiguredDeviceMemoryMiB: 122880,
		DeviceSplitCount:             5,
		DeviceMemoryScaling:          1.5,
		DeviceCoreScaling:            2,
		EnableNUMATopology:           true,
		MigProfileAllowlist: []Allowlist{
			{Models: []string{"A30"}, Profiles: []string{"1g.6gb", "1g.6gb+me"}, Line: 25},
			{Models: []string{"A30"}, Profiles: []string{"4g.24gb"}, Line: 27},
		},
	}
	if diff := cmp.Diff(want, device(t, "f", []byte(everyKey))); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestParseDeviceTakesDefaultsForWhatIsAbsent(t *testing.T) {
	for name, text := range map[string]string{
		"the block is empty":         "nvidia:\n",
		"the block is an empty map":  "nvidia: {}\n",
		"a value is empty":           "nvidia:\n  defaultMemory:\n  gpuCorePolicy: \"\"\n",
		"other vendors stand beside": "hygon: {}\nnvidia:\nmetax: {}\n",
	} {
		t.Run(name, func(t *testing.T) {
			want := DefaultDevice()
			want.File = "f"
			if diff := cmp.Diff(want, device(t, "f", []byte(text))); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		})
	}
}

func TestParseDeviceAcceptsEachShapeOfTheFile(t *testing.T) {
	block := "defaultMemory: 8\nknownMigGeometries:\n- models: [ A30 ]\n" +
		"  allowedGeometries: [[{name: 4g.24gb, memory: 24000, count: 1}]]\n"
	text := "nvidia:\n" + indent(block)
	manifest := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  device-config.yaml: |\n" + indent(indent(text))
	quoted, err := json.Marshal(map[string]any{"kind": "ConfigMap", "data": map[string]string{"device-config.yaml": text}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, text string
		line       int
	}{
		{"the value of the ConfigMap", text, 4},
		{"the block alone", block, 3},
		{"the ConfigMap as YAML", manifest, 9},
		{"the ConfigMap as JSON, where all is on one line", string(quoted), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := DefaultDevice()
			want.File = "f"
			want.DefaultMemoryMiB = 8
			want.KnownMigGeometries = []Geometries{{
				Models: []string{"A30"}, Line: tt.line,
				AllowedGeometries: [][]GeometryEntry{{{Name: "4g.24gb", Memory: 24000, Count: 1}}},
			}}
			if diff := cmp.Diff(want, device(t, "f", []byte(tt.text))); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
			broken := strings.Replace(tt.text, "[ A30 ]", "7", 1)
			_, err := ParseDevice("f", []byte(broken))
			if want := fmt.Sprintf("f:%d: ", tt.line); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("with a broken list of models: error %v, want one that begins with %q", err, want)
			}
		})
	}
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n  ") + "\n"
}

// lines strips the common start of each problem, which is "f:".
func lines(err error) []string {
	if err == nil {
		return nil
	}
	var out []string
	for _, l := range strings.Split(err.Error(), "\n") {
		out = append(out, strings.TrimPrefix(l, "f:"))
	}
	return out
}

func TestParseDeviceSaysWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"the file is empty", "# nothing\n", []string{
			"1: has no nvidia block; put the settings of NVIDIA GPUs under nvidia:"}},
		{"there is no nvidia block", "hygon:\n  x: 1\n", []string{
			"1: has no nvidia block; put the settings of NVIDIA GPUs under nvidia:"}},
		{"the top is a list", "- nvidia\n", []string{
			"1: has no nvidia block; put the settings of NVIDIA GPUs under nvidia:"}},
		{"the block is a word", "nvidia: yes\n", []string{
			`1: nvidia is "yes"; write a mapping with the keys ` + keysOf((&deviceReader{decoder: &decoder{}, out: DefaultDevice()}).keys())}},
		{"it is not YAML", "nvidia:\n  a: b: c\n", []string{
			"2: is not valid YAML: mapping values are not allowed in this context"}},
		{"there are two documents", "nvidia: {}\n---\nnvidia: {}\n", []string{
			"2: a second document begins; keep one"}},
		{"a key is misspelt", "nvidia:\n  defaultMemory: 1\n\n\n\n\n  knownMigGeometry: []\n", []string{
			"7: nvidia.knownMigGeometry is unknown; did you mean knownMigGeometries?"}},
		{"a key has the wrong case", "nvidia: {defaultGpuNum: 1}", []string{
			"1: nvidia.defaultGpuNum is unknown; did you mean defaultGPUNum?"}},
		{"a key is set twice", "nvidia:\n  defaultCores: 1\n  defaultCores: 2\n", []string{
			"3: nvidia.defaultCores is set twice, first in line 2; remove one"}},
		{"a key is not a word", "nvidia:\n  [a]: 1\n", []string{
			"2: nvidia has a key that is a list; write a word"}},
		{"a merge key is used", "nvidia:\n  <<: {defaultCores: 1}\n", []string{
			"2: nvidia.\"<<\" is a merge key, which is not supported; write the keys out"}},
		{"two resources have one name", "nvidia:\n  resourceMemoryName: a.b/c\n  resourceCoreName: a.b/c\n", []string{
			`3: nvidia.resourceCoreName is "a.b/c", as is resourceMemoryName; each resource needs a name of its own`}},
		{"a resource has the default name of another", "nvidia:\n  resourceCountName: nvidia.com/gpumem\n", []string{
			`2: nvidia.resourceMemoryName is "nvidia.com/gpumem", as is resourceCountName; each resource needs a name of its own`}},
		{"an entry of geometries is incomplete", "nvidia:\n  knownMigGeometries:\n  - model: [A30]\n    allowedGeometries: []\n  - models: []\n    allowedGeometries: [[]]\n  - 7\n", []string{
			"3: nvidia.knownMigGeometries[0].model is unknown; did you mean models?",
			"3: nvidia.knownMigGeometries[0].models is missing; list NVML product names, such as [ \"A100-SXM4-40GB\" ]",
			"4: nvidia.knownMigGeometries[0].allowedGeometries is an empty list; write at least one item or remove it",
			"5: nvidia.knownMigGeometries[1].models is an empty list; write at least one item or remove it",
			"6: nvidia.knownMigGeometries[1].allowedGeometries[0] is an empty list; write at least one item or remove it",
			"7: nvidia.knownMigGeometries[2] is 7; write a mapping with the keys allowedGeometries and models"}},
		{"layouts are not nested twice", "nvidia:\n  knownMigGeometries:\n  - models: A30\n    allowedGeometries:\n    - {name: 1g.6gb, memory: 6144, count: 4}\n", []string{
			`3: nvidia.knownMigGeometries[0].models is "A30"; write a list`,
			"5: nvidia.knownMigGeometries[0].allowedGeometries[0] is a mapping; write a list"}},
		{"a line of a layout is wrong", "nvidia:\n  knownMigGeometries:\n  - models: [A30]\n    allowedGeometries:\n    - - {name: 1g6gb, memory: 0, count: 0, core: 101}\n      - {names: 1g.6gb}\n      - {name: , memory: 5Gi, count: 65, profile: 3}\n", []string{
			`5: nvidia.knownMigGeometries[0].allowedGeometries[0][0].name is "1g6gb"; write a MIG profile, such as 1g.10gb or 1g.10gb+me`,
			"5: nvidia.knownMigGeometries[0].allowedGeometries[0][0].memory is 0; write a whole number of 1 or more",
			"5: nvidia.knownMigGeometries[0].allowedGeometries[0][0].count is 0; write a whole number from 1 to 64",
			"5: nvidia.knownMigGeometries[0].allowedGeometries[0][0].core is 101; write a whole number from 0 to 100",
			"6: nvidia.knownMigGeometries[0].allowedGeometries[0][1].names is unknown; did you mean name?",
			"6: nvidia.knownMigGeometries[0].allowedGeometries[0][1].name is missing; write a MIG profile, such as 1g.10gb",
			"6: nvidia.knownMigGeometries[0].allowedGeometries[0][1].memory is missing; write the MiB of one instance",
			"6: nvidia.knownMigGeometries[0].allowedGeometries[0][1].count is missing; write the number of instances",
			`7: nvidia.knownMigGeometries[0].allowedGeometries[0][2].memory is "5Gi"; write a whole number of 1 or more`,
			"7: nvidia.knownMigGeometries[0].allowedGeometries[0][2].count is 65; write a whole number from 1 to 64",
			"7: nvidia.knownMigGeometries[0].allowedGeometries[0][2].profile is unknown; the known keys are core, count, memory and name",
			"7: nvidia.knownMigGeometries[0].allowedGeometries[0][2].name is missing; write a MIG profile, such as 1g.10gb"}},
		{"a list is too long", "nvidia:\n  migProfileAllowlist:\n  - models: [" + strings.Repeat("A,", maxModels) + " A]\n    profiles: [1g.6gb]\n", []string{
			"3: nvidia.migProfileAllowlist[0].models has 65 items; at most 64 are possible"}},
		{"an item is empty, or long", "nvidia:\n  migProfileAllowlist:\n  - models: [~]\n    profiles: ['', " + strings.Repeat("x", 65) + "]\n", []string{
			"3: nvidia.migProfileAllowlist[0].models[0] is empty; write a string, in quotes where it reads as something else",
			"4: nvidia.migProfileAllowlist[0].profiles[0] is empty; write a string or remove it",
			"4: nvidia.migProfileAllowlist[0].profiles[1] is \"" + strings.Repeat("x", 64) + "...\"; write a MIG profile, such as 1g.10gb or 1g.10gb+me"}},
		{"a key is long", "nvidia:\n  ? " + strings.Repeat("y", 81) + "\n  : 1\n", []string{
			"2: nvidia.\"" + strings.Repeat("y", 64) + "...\" is unknown; the known keys are " + keysOf((&deviceReader{decoder: &decoder{}, out: DefaultDevice()}).keys())}},
		{"the second document is broken", "nvidia: {}\n---\na: b: c\n", []string{
			"3: is not valid YAML: mapping values are not allowed in this context"}},
		{"an allowlist is wrong", "nvidia:\n  migProfileAllowlist:\n  - models: [A30, '']\n    profiles: [1g, 2g.12gb+x]\n  - {}\n", []string{
			"3: nvidia.migProfileAllowlist[0].models[1] is empty; write a string or remove it",
			`4: nvidia.migProfileAllowlist[0].profiles[0] is "1g"; write a MIG profile, such as 1g.10gb or 1g.10gb+me`,
			`4: nvidia.migProfileAllowlist[0].profiles[1] is "2g.12gb+x"; write a MIG profile, such as 1g.10gb or 1g.10gb+me`,
			"5: nvidia.migProfileAllowlist[1].models is missing; list NVML product names, such as [ \"A100-SXM4-40GB\" ]",
			"5: nvidia.migProfileAllowlist[1].profiles is missing; list MIG profiles, such as [ \"1g.10gb\" ]"}},
		{"a ConfigMap has another key", "kind: ConfigMap\ndata: {x: y}\n", []string{
			"1: ConfigMap has no text at data.device-config.yaml"}},
		{"the YAML in a ConfigMap is broken", "kind: ConfigMap\ndata:\n  device-config.yaml: |\n    nvidia:\n      a: b: c\n", []string{
			"5: is not valid YAML: mapping values are not allowed in this context"}},
		{"the file is too large", strings.Repeat("#", maxBytes+1), []string{
			"1: has 1048577 bytes; at most 1048576 are read, as a ConfigMap holds no more"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := ParseDevice("f", []byte(tt.text))
			if d != nil {
				t.Errorf("got a Device of a file with problems: %+v", d)
			}
			if diff := cmp.Diff(tt.want, lines(err)); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		})
	}
}

func TestParseDeviceBoundsTheNumberOfProblems(t *testing.T) {
	// Aliases make a large list of a small file.
	text := "nvidia:\n  knownMigGeometries:\n  - &a {models: [A], allowedGeometries: [[" +
		strings.TrimSuffix(strings.Repeat("{name: x},", maxEntries), ",") + "]]}\n" + strings.Repeat("  - *a\n", maxLists-1)
	_, err := ParseDevice("f", []byte(text))
	got := lines(err)
	if len(got) != maxProblems+1 {
		t.Fatalf("got %d problems, want %d and a last line", len(got), maxProblems)
	}
	if want := fmt.Sprintf("%d more problems; correct these first", 3*maxEntries*maxLists-maxProblems); strings.TrimSpace(got[maxProblems]) != want {
		t.Errorf("the last line is %q, want %q", got[maxProblems], want)
	}
}

func TestDeviceWithTakesTheValuesOfTheNodeFirst(t *testing.T) {
	d := DefaultDevice()
	d.EnableNUMATopology = true
	if diff := cmp.Diff(d, d.With(NodeEntry{Name: "n"})); diff != "" {
		t.Errorf("with an entry that sets nothing: want (-), got (+):\n%s", diff)
	}
	off := false
	want := DefaultDevice()
	want.DeviceMemoryScaling, want.DeviceCoreScaling = 1.5, 2
	want.DeviceSplitCount, want.PreConfiguredDeviceMemoryMiB, want.LibCUDALogLevel = 4, 4096, "0"
	got := d.With(NodeEntry{
		DeviceMemoryScaling: 1.5, DeviceCoreScaling: 2, DeviceSplitCount: 4,
		PreConfiguredDeviceMemoryMiB: 4096, LibCUDALogLevel: "0", EnableNUMATopology: &off,
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if !d.EnableNUMATopology || d.DeviceSplitCount != 10 {
		t.Errorf("With changed its receiver: %+v", d)
	}
}
