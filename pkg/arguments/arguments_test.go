// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package arguments

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

func TestArgsAreReadStrictly(t *testing.T) {
	defaults := DynamicMIG{Oversize: OversizeAllow, MixLearning: Enabled, AllocationWrite: WriteAnnotation}
	cases := []struct {
		name string
		text string
		want DynamicMIG
		err  string
	}{
		{name: "absent", want: defaults},
		{name: "empty", text: "{}", want: defaults},
		{
			name: "all set",
			text: "oversize: Never\nstrictMemory: true\nnodeSchedulerPolicy: binpack\ngpuSchedulerPolicy: spread\nmixLearning: Disabled\nallocationWrite: Binding\n" +
				"mix: [{profile: 1g.10gb+me, weight: 0.5}, {gpumem: 8000, gpucores: 30, weight: 2}, {gpumem-percentage: 50, weight: 1}, {weight: 1}]",
			want: DynamicMIG{
				Oversize: OversizeNever, StrictMemory: true, NodeSchedulerPolicy: geometry.Binpack, GPUSchedulerPolicy: geometry.Spread, MixLearning: Disabled,
				AllocationWrite: WriteBinding,
				Mix:             []Expected{{Profile: "1g.10gb+me", Weight: 0.5}, {Memory: 8000, Cores: 30, Weight: 2}, {Percentage: 50, Weight: 1}, {Weight: 1}},
			},
		},
		{name: "an unknown policy", text: "gpuSchedulerPolicy: mutex", err: `gpuSchedulerPolicy is "mutex"; use binpack or spread, or leave it out`},
		{name: "an unknown way to write", text: "allocationWrite: Twice", err: `allocationWrite is "Twice"; use Annotation or Binding`},
		{name: "an unknown switch", text: "mixLearning: On", err: "mixLearning"},
		{name: "a weight of nothing", text: "mix: [{gpumem: 8000}]", err: "mix[0].weight is 0; use a number above 0"},
		{name: "an impossible share", text: "mix: [{gpumem-percentage: 101, weight: 1}]", err: "mix[0] has an amount below 0 or a share above 100"},
		{name: "a profile and an amount", text: "mix: [{weight: 1}, {profile: 1g.5gb, gpumem: 1, weight: 1}]", err: "mix[1] has a profile and amounts"},
		{name: "an unknown field", text: "overSized: Never", err: `unknown field "overSized"`},
		{name: "an unknown value", text: "oversize: Sometimes", err: `oversize is "Sometimes"; use Allow or Never`},
		{name: "an empty value is the default", text: "oversize: \"\"\nallocationWrite: \"\"", want: defaults},
		{name: "a wrong type", text: "strictMemory: 3", err: "strictMemory"},
		{name: "a field twice", text: "oversize: Never\noversize: Allow", err: "oversize"},
		{name: "a list", text: "- oversize", err: "decoding DynamicMIGArgs"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := Decode([]byte(c.text))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error is %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("args (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeviceConfigNamesResourcesAndDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "device-config.yaml")
	for _, tc := range []struct{ name, text, want string }{
		{"missing", "", "deviceConfig: open " + file},
		{"a mistake", "nvidia:\n  defaultCores: 101\n", file + ":2: nvidia.defaultCores is 101"},
		{"good", "nvidia:\n  resourceCountName: example.com/vgpu\n  defaultCores: 20\n  memoryFactor: 1024\n", ""},
	} {
		if tc.text != "" {
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o, err := DynamicMIG{DeviceConfig: file}.Options(os.ReadFile)
		if got := fmt.Sprint(err); tc.want != "" && !strings.Contains(got, tc.want) || tc.want == "" && err != nil {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if tc.want == "" && (o.Names.Count != "example.com/vgpu" || o.Names.Memory != v1alpha1.ResourceMemory || o.Defaults != v1alpha1.RequestDefaults{Cores: 20, MemoryFactor: 1024}) {
			t.Errorf("options are %+v", o)
		}
	}
}
