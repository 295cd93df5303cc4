// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// node parses a file that must be good.
func node(t testing.TB, text string) *Node {
	t.Helper()
	n, err := ParseNode("f", []byte(text))
	if err != nil {
		t.Fatalf("ParseNode: %v", err)
	}
	return n
}

func TestParseNodeReadsTheDocumentedFile(t *testing.T) {
	want := &Node{File: "f", Entries: []NodeEntry{{Line: 1, Name: "MIG-NODE-A", OperatingMode: "mig"}}}
	if diff := cmp.Diff(want, node(t, string(read(t, "documented.json")))); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

const everyNodeKey = `{"nodeconfig": [
  {"name": "a", "operatingmode": "hami-core", "devicememoryscaling": 1.8, "devicecorescaling": 1,
   "devicesplitcount": 10, "preconfigureddevicememory": 4096, "libcudaloglevel": "1", "enablenumatopology": false,
   "migstrategy": "none", "filterdevices": {"uuid": ["GPU-1"], "index": [3]}, "enablegetpreferredallocation": true},
  {"Name": "b", "operatingMode": "mig", "FilterDevices": null, "devicesplitcount": 0},
  {"nodeSelector": {"nvidia.com/gpu.product": "A100", "Zone": ""}, "operatingmode": "mig",
   "gpus": [{"uuid": "GPU-2", "operatingmode": "hami-core"},
            {"index": 0, "operatingmode": "hami-core"}]},
  {"default": true, "operatingmode": ""}
]}`

func TestParseNodeReadsEveryKey(t *testing.T) {
	off := false
	want := &Node{File: "f", Entries: []NodeEntry{{
		Line: 2, Name: "a", OperatingMode: "hami-core", DeviceMemoryScaling: 1.8, DeviceCoreScaling: 1,
		DeviceSplitCount: 10, PreConfiguredDeviceMemoryMiB: 4096, LibCUDALogLevel: "1", EnableNUMATopology: &off,
		MIGStrategy: "none", FilterDevices: FilterDevices{UUIDs: []string{"GPU-1"}, Indexes: []int32{3}},
		EnableGetPreferredAllocation: true,
	}, {
		Line: 5, Name: "b", OperatingMode: "mig",
	}, {
		Line: 6, NodeSelector: map[string]string{"nvidia.com/gpu.product": "A100", "Zone": ""}, OperatingMode: "mig",
		GPUs: []GPUEntry{
			{UUID: "GPU-2", Index: -1, OperatingMode: "hami-core"},
			{Index: 0, OperatingMode: "hami-core"},
		},
	}, {
		Line: 9, Default: true, OperatingMode: "hami-core",
	}}}
	if diff := cmp.Diff(want, node(t, everyNodeKey)); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestParseNodeReadsYAMLAndConfigMaps(t *testing.T) {
	manifest := "kind: ConfigMap\ndata:\n  config.json: |\n    {\"nodeconfig\": [\n      {\"name\": \"a\", \"operatingmode\": \"mig\"}]}\n"
	want := &Node{File: "f", Entries: []NodeEntry{{Line: 5, Name: "a", OperatingMode: "mig"}}}
	if diff := cmp.Diff(want, node(t, manifest)); diff != "" {
		t.Errorf("ConfigMap: want (-), got (+):\n%s", diff)
	}
	want.Entries[0].Line = 2
	if diff := cmp.Diff(want, node(t, "nodeconfig:\n- {name: a, operatingmode: mig}\n")); diff != "" {
		t.Errorf("YAML: want (-), got (+):\n%s", diff)
	}
	if diff := cmp.Diff(&Node{File: "f"}, node(t, "{\n\t\"nodeconfig\":\t[]\n}\n")); diff != "" {
		t.Errorf("JSON with tabs: want (-), got (+):\n%s", diff)
	}
}

func TestParseNodeSaysWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"the file is empty", "", []string{
			`1: is empty; write {"nodeconfig": []} where no node is to be configured`}},
		{"it is JSON that lacks a comma", "{\"nodeconfig\": [\n{\"name\": \"a\"\n \"default\": true}]}\n", []string{
			"3: is not valid JSON: invalid character '\"' after object key:value pair"}},
		{"it is JSON cut off", "{\"nodeconfig\": [\n{\"name\": \"a\"", []string{
			"2: is not valid JSON: unexpected end of JSON input"}},
		{"it is neither JSON nor YAML", "nodeconfig: [\n", []string{
			"1: is not valid YAML: did not find expected node content"}},
		{"nodeconfig is missing", "{}", []string{
			"1: nodeconfig is missing; write a list of entries, each for a node"}},
		{"nodeconfig is misspelt", `{"nodeconfigs": []}`, []string{
			"1: nodeconfigs is unknown; did you mean nodeconfig?",
			"1: nodeconfig is missing; write a list of entries, each for a node"}},
		{"nodeconfig is a mapping", `{"nodeconfig": {}}`, []string{
			"1: nodeconfig is a mapping; write a list"}},
		{"an entry selects no node", "{\"nodeconfig\": [\n{\"operatingmode\": \"mig\"},\n{\"name\": \"\", \"default\": false}]}", []string{
			"2: nodeconfig[0] selects no node; add name, nodeSelector or default: true",
			"3: nodeconfig[1] selects no node; add name, nodeSelector or default: true"}},
		{"an entry selects in three ways", `{"nodeconfig": [{"name": "a", "nodeSelector": {"b": "c"}, "default": true}]}`, []string{
			"1: nodeconfig[0] has name, nodeSelector and default; keep one"}},
		{"selectors are wrong", "nodeconfig:\n- nodeSelector: {}\n- nodeSelector: gpu\n- nodeSelector: {gpu: true,\n    gpu: \"a\"}\n", []string{
			"2: nodeconfig[0].nodeSelector has 0 labels; write 1 to 32",
			`3: nodeconfig[1].nodeSelector is "gpu"; write a mapping of labels`,
			"4: nodeconfig[2].nodeSelector.gpu is true; write a string, in quotes where it reads as something else",
			"5: nodeconfig[2].nodeSelector.gpu is set twice; remove one"}},
		{"a node has two entries, and so has the rest", "nodeconfig:\n- name: a\n- default: true\n- name: b\n- name: a\n- default: true\n", []string{
			`5: nodeconfig[3] is a second entry for node "a", after nodeconfig[0]; keep one`,
			"6: nodeconfig[4] is a second default, after nodeconfig[1]; keep one"}},
		{"filters name no GPU", `{"nodeconfig": [{"name": "a", "filterdevices": {"uuid": ["MIG-1", ""], "index": [-1, "0"], "uid": []}}]}`, []string{
			`1: nodeconfig[0].filterdevices.uuid[0] is "MIG-1"; write the UUID of a GPU as nvidia-smi -L prints it, GPU-...`,
			"1: nodeconfig[0].filterdevices.uuid[1] is empty; write a string or remove it",
			"1: nodeconfig[0].filterdevices.index[0] is -1; write a whole number of 0 or more",
			`1: nodeconfig[0].filterdevices.index[1] is "0"; write a whole number of 0 or more`,
			"1: nodeconfig[0].filterdevices.uid is unknown; did you mean uuid?"}},
		{"modes of GPUs are wrong", "nodeconfig:\n- name: a\n  gpus:\n  - {uuid: GPU-1, index: 1, operatingmode: mig}\n  - {operatingmode: mig}\n  - {index: 0}\n  - {index: 2, operatingmode: \"\"}\n  - {uuid: GPU-3, operatingmode: whole}\n  - 7\n", []string{
			"4: nodeconfig[0].gpus[0] has uuid and index; keep one",
			"5: nodeconfig[0].gpus[1] names no GPU; add uuid or index",
			"6: nodeconfig[0].gpus[2].operatingmode is missing; use mig or hami-core",
			"7: nodeconfig[0].gpus[3].operatingmode is missing; use mig or hami-core",
			`8: nodeconfig[0].gpus[4].operatingmode is "whole"; use mig or hami-core`,
			"9: nodeconfig[0].gpus[5] is 7; write a mapping with the keys index, operatingmode and uuid"}},
		{"modes of GPUs contradict", "nodeconfig:\n- name: a\n  filterdevices: {uuid: [GPU-1], index: [2]}\n  gpus:\n  - {index: 0, operatingmode: mig}\n  - {uuid: GPU-1, operatingmode: mig}\n  - {index: 2, operatingmode: mig}\n  - {index: 0, operatingmode: hami-core}\n", []string{
			"6: nodeconfig[0].gpus[1] sets the mode of a GPU that filterdevices excludes; remove one of the two",
			"7: nodeconfig[0].gpus[2] sets the mode of a GPU that filterdevices excludes; remove one of the two",
			"8: nodeconfig[0].gpus[3] names the same GPU as gpus[0]; keep one"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := ParseNode("f", []byte(tt.text))
			if n != nil {
				t.Errorf("got a Node of a file with problems: %+v", n)
			}
			if diff := cmp.Diff(tt.want, lines(err)); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		})
	}
}

func TestNodeForPrefersTheNameThenTheFirstSelectorThenTheDefault(t *testing.T) {
	n := node(t, `{"nodeconfig": [
		{"default": true},
		{"nodeSelector": {"gpu": "a100"}},
		{"nodeSelector": {"gpu": "a100", "zone": "1"}},
		{"name": "n1"},
		{"nodeSelector": {"zone": "1"}}]}`)
	for _, tt := range []struct {
		name, node string
		labels     map[string]string
		line       int
	}{
		{"a name wins over a selector", "n1", map[string]string{"gpu": "a100"}, 5},
		{"the first selector wins over a longer one", "n2", map[string]string{"gpu": "a100", "zone": "1"}, 3},
		{"all labels of a selector must be there", "n2", map[string]string{"zone": "1", "x": "y"}, 6},
		{"a label must have the value", "n2", map[string]string{"zone": "2"}, 2},
		{"the default takes the rest", "n2", nil, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if e, ok := n.For(tt.node, tt.labels); !ok || e.Line != tt.line {
				t.Errorf("For(%s, %v) = line %d, %t; want line %d", tt.node, tt.labels, e.Line, ok, tt.line)
			}
		})
	}
}

func TestNodeForFindsNothingWithoutADefault(t *testing.T) {
	n := node(t, `{"nodeconfig": [{"name": "n1"}, {"nodeSelector": {"gpu": ""}}]}`)
	for _, name := range []string{"", "n", "N1"} {
		if e, ok := n.For(name, map[string]string{"zone": "1"}); ok {
			t.Errorf("For(%q) = %+v, want nothing", name, e)
		}
	}
}

func TestModeOfAGPU(t *testing.T) {
	n := node(t, `{"nodeconfig": [{"name": "a", "operatingmode": "mig", "filterdevices": {"uuid": ["GPU-1"], "index": [5]},
		"gpus": [{"index": 2, "operatingmode": "hami-core"}, {"uuid": "GPU-3", "operatingmode": "hami-core"},
		         {"uuid": "GPU-2", "operatingmode": "mig"}]}]}`)
	e, _ := n.For("a", nil)
	for _, tt := range []struct {
		name, uuid string
		index      int32
		mode       string
		managed    bool
	}{
		{"no entry of its own", "GPU-9", 9, "mig", true},
		{"by index", "GPU-9", 2, "hami-core", true},
		{"by UUID", "GPU-3", 9, "hami-core", true},
		{"by UUID before by index", "GPU-2", 2, "mig", true},
		{"excluded by UUID", "GPU-1", 9, "", false},
		{"excluded by index", "GPU-9", 5, "", false},
		{"excluded by index, with a mode by UUID", "GPU-3", 5, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if mode, why := e.ModeOf(GPUName{UUID: tt.uuid, Index: tt.index}); mode != tt.mode || (why == "") != tt.managed {
				t.Errorf("ModeOf(%s, %d) = %q, %q; want %q, managed: %t", tt.uuid, tt.index, mode, why, tt.mode, tt.managed)
			}
		})
	}
}

func TestModeOfAGPUIgnoresTheIndexOfAnEntryByUUID(t *testing.T) {
	e := NodeEntry{OperatingMode: "mig", GPUs: []GPUEntry{{UUID: "GPU-1", OperatingMode: "hami-core"}}}
	if mode, why := e.ModeOf(GPUName{UUID: "GPU-2"}); mode != "mig" || why != "" {
		t.Errorf("ModeOf(GPU-2, 0) = %q, %q; want mig", mode, why)
	}
}

func FuzzParseNode(f *testing.F) {
	f.Add(read(f, "documented.json"))
	f.Add([]byte(everyNodeKey))
	f.Add([]byte(`{"nodeconfig": [{"name": "a", "migconfig": "all-balanced"}]}`))
	for _, seed := range []string{
		"", "null", "[]", "{", "{}", "kind: ConfigMap\ndata: {config.json: '{}'}", "nodeconfig: [&a [*a]]",
		"nodeconfig: &a [{nodeSelector: *a}]", "nodeconfig: [{gpus: [{index: 1e9}]}]", "nodeconfig: [{? {a: b} : c}]",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := ParseNode("f", data)
		if (n == nil) != (err != nil) {
			t.Fatalf("ParseNode = %v, %v; want one of the two", n, err)
		}
		if err != nil {
			return
		}
		for _, e := range n.Entries {
			if e.OperatingMode != "mig" && e.OperatingMode != "hami-core" && (e.OperatingMode != "" || e.MIGConfig == "") {
				t.Errorf("entry of line %d has mode %q", e.Line, e.OperatingMode)
			}
			if got, ok := n.For(e.Name, e.NodeSelector); !ok {
				t.Errorf("no entry is for the node of line %d, got %+v", e.Line, got)
			}
		}
		if _, err := json.Marshal(n); err != nil {
			t.Errorf("a Node cannot be printed: %v", err)
		}
	})
}
