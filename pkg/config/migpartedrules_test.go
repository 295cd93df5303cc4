// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// What mig-parted's own reader asks of a file (its api/spec/v1 and pkg/types, go-nvlib's
// names of profiles; read at 0.15):
//
//	R1  version is "v1"; beside it there is mig-configs and nothing else
//	R2  there is a configuration, and each has an item
//	R3  an item has devices and mig-enabled, may have device-filter and mig-devices, and nothing else
//	R4  devices is "all" or a list of whole numbers; mig-enabled is true or false
//	R5  device-filter is a string or a list of strings, each a number of 32 bits, or two with a colon
//	R6  mig-devices is there where mig-enabled is true, and is empty where it is false
//	R7  its keys are profiles, [<c>c.]<g>g.<gb>gb with attributes after one + or -; its
//	    values are whole numbers, none below 0, not all of them 0
//
// R5 is stricter than its reader, which takes any text and then finds no GPU.
const rules = 7

// breaks says which of the rules a file breaks; empty for none.
func breaks(text string) string {
	var top map[string]any
	if err := yaml.Unmarshal([]byte(text), &top); err != nil {
		return err.Error()
	}
	if !only(top, "version", "mig-configs") || top["version"] != "v1" {
		return "R1"
	}
	configs, _ := top["mig-configs"].(map[string]any)
	if len(configs) == 0 {
		return "R2"
	}
	for _, list := range configs {
		items, _ := list.([]any)
		if len(items) == 0 {
			return "R2"
		}
		for _, item := range items {
			fields, _ := item.(map[string]any)
			if rule := itemBreaks(fields); rule != "" {
				return rule
			}
		}
	}
	return ""
}

func itemBreaks(fields map[string]any) string {
	_, hasDevices := fields["devices"]
	_, hasEnabled := fields["mig-enabled"]
	enabled, isBool := fields["mig-enabled"].(bool)
	layout, isMapping := fields["mig-devices"].(map[string]any)
	switch {
	case !hasDevices || !hasEnabled || !only(fields, "devices", "mig-enabled", "device-filter", "mig-devices"):
		return "R3"
	case !isBool || fields["devices"] != "all" && !every[int](fields["devices"], func(int) bool { return true }):
		return "R4"
	case fields["device-filter"] != nil && !isFilter(fields["device-filter"]) && !every(fields["device-filter"], func(s string) bool { return isFilter(s) }):
		return "R5"
	case enabled && !isMapping || !enabled && len(layout) > 0:
		return "R6"
	case !isLayout(layout):
		return "R7"
	}
	return ""
}

func only(m map[string]any, keys ...string) bool {
	for key := range m {
		if !slices.Contains(keys, key) {
			return false
		}
	}
	return true
}

// every reports whether v is a list whose items are all of a type and good.
func every[T any](v any, good func(T) bool) bool {
	list, ok := v.([]any)
	for _, item := range list {
		x, is := item.(T)
		ok = ok && is && good(x)
	}
	return ok
}

func isFilter(v any) bool {
	text, ok := v.(string)
	parts := strings.Split(text, ":")
	for _, p := range parts {
		_, err := strconv.ParseUint(p, 0, 32)
		ok = ok && err == nil
	}
	return ok && len(parts) <= 2
}

// profileOfMIGParted allows dots inside an attribute, and no digit at its begin.
var profileOfMIGParted = regexp.MustCompile(`^(\d+c\.)?\d+g\.\d+gb([+-][a-zA-Z]([a-zA-Z0-9.]*[a-zA-Z0-9])?(,[a-zA-Z]([a-zA-Z0-9.]*[a-zA-Z0-9])?)*)?$`)

func isLayout(layout map[string]any) bool {
	sum := 0
	for profile, count := range layout {
		n, ok := count.(int)
		if !ok || n < 0 || !profileOfMIGParted.MatchString(profile) {
			return false
		}
		sum += n
	}
	return len(layout) == 0 || sum > 0
}

// TestRulesOfMIGParted: the rules find what breaks them, one by one, and our own reader
// refuses that, too.
func TestRulesOfMIGParted(t *testing.T) {
	const good = `{version: v1, mig-configs: {a: [{device-filter: "0x20B010DE:0x144E10DE", devices: [0], mig-enabled: true, mig-devices: {1c.3g.20gb: 2, 1g.5gb+me.all: 1}}]}}`
	if rule := breaks(good); rule != "" {
		t.Fatalf("%s breaks %s", good, rule)
	}
	migParted(t, good)
	seen := map[string]bool{}
	for _, tt := range []struct{ rule, old, new string }{
		{"R1", "version: v1", "version: v2"},
		{"R1", "version: v1", "version: v1, hooks: {}"},
		{"R2", "[{device-filter", "[], b: [{device-filter"},
		{"R3", "devices: [0], ", ""},
		{"R3", "mig-enabled: true, ", ""},
		{"R3", "devices: [0]", "devices: [0], Devices: [1]"},
		{"R4", "[0]", "some"},
		{"R4", "[0]", "['0']"},
		{"R4", "[0]", "0"},
		{"R4", "true", "'true'"},
		{"R5", `"0x20B010DE:0x144E10DE"`, "A100-SXM4-40GB"},
		{"R5", `"0x20B010DE:0x144E10DE"`, `["0x20B010DE", "0x120B010DE"]`},
		{"R5", `"0x20B010DE:0x144E10DE"`, `"0x20B010DE:0x144E10DE:0x1"`},
		{"R6", "mig-enabled: true", "mig-enabled: false"},
		{"R6", ", mig-devices: {1c.3g.20gb: 2, 1g.5gb+me.all: 1}", ""},
		{"R7", "1c.3g.20gb: 2, 1g.5gb+me.all: 1", "1g.5gb: 0"},
		{"R7", "1c.3g.20gb: 2", "1c.3g.20gb: -1"},
		{"R7", "1c.3g.20gb: 2", "3g20gb: 2"},
		{"R7", "1c.3g.20gb: 2", "1c.3g.20gb: two"},
		{"R7", "+me.all", "+me-all"},
		{"R7", "+me.all", "+"},
	} {
		text := strings.Replace(good, tt.old, tt.new, 1)
		if text == good {
			t.Errorf("%s is not in the file", tt.old)
		}
		if rule := breaks(text); rule != tt.rule {
			t.Errorf("%s breaks %q, want %s", text, rule, tt.rule)
		}
		if _, err := ParseMIGParted("f", []byte(text)); err == nil {
			t.Errorf("%s is read, although it breaks %s", text, tt.rule)
		}
		seen[tt.rule] = true
	}
	if len(seen) != rules {
		t.Errorf("rules %v are broken, want all %d", seen, rules)
	}
	if rule := breaks(string(read(t, "mig-parted.yaml"))); rule != "" {
		t.Errorf("testdata/mig-parted.yaml breaks %s", rule)
	}
}

// TestExportOfEveryBoard: what is exported of a GPU that is full keeps mig-parted's
// rules, names each GPU once, and read back it is the layout of the model's catalogue.
func TestExportOfEveryBoard(t *testing.T) {
	for _, b := range boards.All() {
		for _, product := range b.Products {
			profiles, grid := hardware(t, product)
			for _, p := range profiles {
				status := &v1alpha1.GPUNodeStatus{Models: []v1alpha1.GPUModel{{Model: product, Grid: grid, Profiles: profiles}}}
				for index := range int32(3) { // the last is empty
					gpu := v1alpha1.GPU{Index: index, Model: product, Mode: v1alpha1.GPUMode{Current: v1alpha1.ModeMIG}}
					for n := range p.Max {
						if index < 2 {
							gpu.Instances = append(gpu.Instances, v1alpha1.Instance{ProfileID: p.ID, Start: n, UUID: fmt.Sprint("MIG-", n)})
						}
					}
					status.GPUs = append(status.GPUs, gpu)
				}
				text, err := EncodeMIGParted("current", status)
				if err != nil {
					t.Fatal(err)
				}
				if rule := breaks(string(text)); rule != "" {
					t.Errorf("%s, %s: the export breaks %s:\n%s", product, p.Name, rule, text)
				}
				items := migParted(t, string(text)).Configs["current"]
				for index := range int32(3) {
					about := 0
					for i := range items {
						if items[i].selects(GPUName{Index: index}) {
							about++
						}
					}
					if about != 1 {
						t.Errorf("%s, %s: %d items are about GPU %d:\n%s", product, p.Name, about, index, text)
					}
				}
				e := NodeEntry{MIGConfig: "current", CutsFile: "f", Cuts: items}
				d, remarks := DefaultDevice().Cut(&e, product, []GPUName{{Index: 0}, {Index: 1}})
				m, sentences := resolve(t, d, product)
				want := fmt.Sprintf("Templates: %dx%s(%d)", p.Max, p.Name, p.MemoryMiB)
				if got := described(m); got != want || len(remarks)+len(sentences) > 0 {
					t.Errorf("%s: read back the export is %s, want %s; %q %q", product, got, want, remarks, sentences)
				}
			}
		}
	}
}
