// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"bytes"
	"compress/gzip"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/dynamig/dynamig/pkg/geometry"
)

func TestParseFleet(t *testing.T) {
	f := fleet(t, "2x3xH100-80GB", "1x1xNVIDIA H100 PCIe", "4x2xA30-24GB")
	memory, compute := f.capacity()
	if f.GPUs() != 15 || len(f.nodes) != 7 || memory != 7*8+8*4 || compute != 7*7+8*4 || len(f.models) != 3 {
		t.Errorf("%d GPUs on %d nodes, %d memory and %d compute slices, %d models", f.GPUs(), len(f.nodes), memory, compute, len(f.models))
	}
	if f.Text != "2x3xH100-80GB + 1x1xNVIDIA H100 PCIe + 4x2xA30-24GB" {
		t.Errorf("the fleet is called %q", f.Text)
	}
	for spec, want := range map[string]string{
		"12x8":             "want nodes x GPUs of each x board",
		"0x8xH100-80GB":    "0 nodes; want 1 to",
		"999999x8xA30":     "999999 nodes; want 1 to",
		"1x65xH100-80GB":   "65 GPUs on a node; want 1 to 64",
		"1x8xH100":         `board "H100" is not known; the known ones are A100-40GB, A100-80GB,`,
		"1x8xH100-80GB x2": `board "H100-80GB x2" is not known`,
	} {
		if _, err := ParseFleet([]string{spec}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error is %v, want %q", spec, err, want)
		}
	}
	if _, err := ParseFleet(nil, nil); err == nil {
		t.Error("an empty fleet is accepted")
	}
}

// TestDeviceConfigNarrowsTheFleet as it does on a node.
func TestDeviceConfigNarrowsTheFleet(t *testing.T) {
	f, err := ParseFleet([]string{"1x1xH100-80GB", "1x1xA100-40GB", "1x1xA30-24GB", "2x1xA30-24GB"}, deviceConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []geometry.Rule{geometry.RuleTemplates, geometry.RuleAllowlist, geometry.RuleHardware} {
		if got := f.models[i].catalogue.Rule(); got != want {
			t.Errorf("%s follows rule %s, want %s", f.models[i].board.Key, got, want)
		}
	}
	if last := f.Notes[len(f.Notes)-1]; len(f.Notes) != 5 || !strings.Contains(last, "NVIDIA A30") {
		t.Errorf("notes are %q, want four on memory and one on the A30, which the file does not name", f.Notes)
	}
	if _, err := ReadTrace(strings.NewReader("arrival,gpumem\n0,10240\n"), "t", CSV, f); err != nil {
		t.Errorf("10240 MiB are a 1g.10gb by the file's word: %v", err)
	}
}

func TestReadTrace(t *testing.T) {
	f := fleet(t, "1x1xH100-80GB")
	text := "name,gpumem, Devices ,arrival,gpucores,duration,profile\n" +
		"later,9000,2,5.5,,10,\n" +
		"\n" +
		"forever,,,-1,,,1g.10gb+me\n" +
		"\"both, quoted\",9000,,5.5,50,0.25,\n" +
		"whole,,,1e3,100,,\n" +
		"cores,,,1e3,30,,\n"
	inf := math.Inf(1)
	want := []Job{
		{Arrival: -1, Duration: inf, Devices: 1, Want: geometry.Want{Profile: "1g.10gb+me"}, Line: 4, Column: 16},
		{Arrival: 5.5, Duration: 10, Devices: 2, Want: geometry.Want{MemoryMiB: 9000}, Line: 2, Column: 7},
		{Arrival: 5.5, Duration: 0.25, Devices: 1, Want: geometry.Want{MemoryMiB: 9000, Cores: 50}, Line: 5, Column: 16},
		{Arrival: 1000, Duration: inf, Devices: 1, Want: geometry.Want{Full: true}, Line: 6, Column: 7},
		{Arrival: 1000, Duration: inf, Devices: 1, Want: geometry.Want{Cores: 30}, Line: 7, Column: 7},
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte(text))
	z.Close()
	for name, data := range map[string]string{"plain": text, "gzip": packed.String(), "from Windows": "\ufeff" + strings.ReplaceAll(text, "\n", "\r\n")} {
		got, err := ReadTrace(strings.NewReader(data), "t.csv", CSV, f)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got.Jobs, want) {
			t.Errorf("%s: jobs are\n%+v, want\n%+v", name, got.Jobs, want)
		}
	}
}

func TestMistakesInTracesNameTheirPlace(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"", "t.csv: it is empty"},
		{"arrival,profile\n", "t.csv: it has no job"},
		{"time,profile\n1,1g\n", `t.csv:1:1: there is no column "arrival"`},
		{"arrival,gpumem,arrival\n", `t.csv:1:16: column "arrival" occurs twice`},
		{"arrival,gpumem\n1,10\nx,10\n", `t.csv:3:1: arrival is "x"; want seconds`},
		{"arrival,gpumem\n1,10\n,10\n", `t.csv:3:1: arrival is ""`},
		{"arrival,gpumem\nNaN,10\n", `t.csv:2:1: arrival is "NaN"`},
		{"arrival,gpumem\nInf,10\n", `t.csv:2:1: arrival is "Inf"`},
		{"arrival,gpumem,duration\n1,10,-2\n", `t.csv:2:6: duration is "-2"; want seconds from 0`},
		{"arrival,gpumem\n1,10GB\n", `t.csv:2:3: gpumem is "10GB"; want a whole number from 1`},
		{"arrival,gpumem\n1,0\n", `t.csv:2:3: gpumem is "0"`},
		{"arrival,gpucores\n1,101\n", `t.csv:2:3: gpucores is "101"; want a whole number from 0 to 100`},
		{"arrival,devices\n1,0\n", `t.csv:2:3: devices is "0"`},
		{"arrival,gpumem\n1,10,3\n", `t.csv:2:3: the line has 3 fields, and the header 2`},
		{"arrival,gpumem\n1\n", `t.csv:2:1: the line has 1 fields, and the header 2`},
		{"arrival,profile,gpumem\n1,1g.10gb,3\n", `t.csv:2:3: profile is "1g.10gb" beside gpumem`},
		{"arrival,gpumem\n1,1\"0\n", "t.csv:2:4: bare \" in non-quoted"},
		{"arrival,profile\n1,1g.10gb\n1,1g.18gb\n", `t.csv:3:3: the job asks for profile "1g.18gb", which no board of the fleet has; H100-80GB has 7g.80gb, `},
		{"\x1f\x8bnot gzip", "reading trace t.csv: "},
	} {
		_, err := ReadTrace(strings.NewReader(tc.text), "t.csv", CSV, fleet(t, "1x1xH100-80GB"))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: error is %v, want %q", tc.text, err, tc.want)
		}
	}
}

// TestUnknownMemory: an H100 with 94 GB, where the memory of 3g and larger is not
// known.
func TestUnknownMemory(t *testing.T) {
	read := func(row string, boards ...string) error {
		_, err := ReadTrace(strings.NewReader("arrival,gpumem,gpucores,profile\n"+row+"\n"), "t.csv", CSV, fleet(t, boards...))
		return err
	}
	if err := read("0,20000,,", "1x1xH100-94GB"); err != nil {
		t.Errorf("20000 MiB are a 1g.24gb or 2g.24gb: %v", err)
	}
	err := read("0,30000,,", "1x1xH100-80GB", "1x1xH100-94GB")
	if err == nil || !strings.HasPrefix(err.Error(), "t.csv:2:3: the job asks for 30000 MiB, and how much memory 3g.47gb of H100-94GB has is not known") {
		t.Errorf("30000 MiB may be a 3g.47gb: error is %v", err)
	}
	for _, row := range []string{"0,,40,", "0,,,3g.47gb", "0,,,"} {
		if err := read(row, "1x1xH100-94GB"); err != nil {
			t.Errorf("%q does not ask for memory: %v", row, err)
		}
	}
	if err := read("0,10,,", "1x1xB300-269GB"); err == nil || !strings.Contains(err.Error(), "1g.") {
		t.Errorf("of a B300 no memory is known: error is %v", err)
	}
}

func TestOpenb(t *testing.T) {
	text := "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n" +
		"a,1,1,0,0,,LS,Running,0,10,0\n" + // no GPU
		"b,1,1,1,142,,LS,Running,5,20,8\n" +
		"c,1,1,1,143,,LS,Running,6,20,6\n" +
		"d,1,1,1,571,,BE,Pending,7,20,\n" +
		"e,1,1,1,572,T4|P100,LS,Running,8,20,8\n" +
		"f,1,1,2,1000,,LS,Running,9,20,9\n"
	full := geometry.Want{Full: true}
	for _, tc := range []struct {
		format Format
		wants  []geometry.Want
	}{
		{OpenbCompute, []geometry.Want{{Cores: 14}, {Cores: 28}, {Cores: 57}, full, full}},
		{OpenbMemory, []geometry.Want{{MemoryMiB: 11582}, {MemoryMiB: 11663}, {MemoryMiB: 46571}, {MemoryMiB: 46652}, full}},
	} {
		got, err := ReadTrace(strings.NewReader(text), "t.csv", tc.format, fleet(t, "1x1xH100-80GB"))
		if err != nil {
			t.Fatal(err)
		}
		want := []Job{
			{Arrival: 5, Duration: 12, Devices: 1, Line: 3},
			{Arrival: 6, Duration: 14, Devices: 1, Line: 4},
			{Arrival: 7, Duration: 13, Devices: 1, Line: 5},
			{Arrival: 8, Duration: 12, Devices: 1, Line: 6},
			{Arrival: 9, Duration: 11, Devices: 2, Line: 7},
		}
		for i := range want {
			want[i].Want, want[i].Column = tc.wants[i], 9
		}
		if !reflect.DeepEqual(got.Jobs, want) {
			t.Errorf("jobs are\n%+v, want\n%+v", got.Jobs, want)
		}
	}
	for board, want := range map[string]string{"H100-94GB": "the memory of H100-94GB is not known", "A100-40GB": ""} {
		_, err := ReadTrace(strings.NewReader(text), "t.csv", OpenbMemory, fleet(t, "1x1x"+board))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: error is %v, want %q", board, err, want)
		}
	}
	if _, err := ReadTrace(strings.NewReader(text), "t.csv", OpenbMemory, fleet(t, "1x1xH100-80GB", "1x1xA30-24GB")); err == nil {
		t.Error("a share of memory is accepted for GPUs that differ")
	}
	for bad, want := range map[string]string{
		"x,1,1,1,0,,LS,Running,0,10,0\n":    `t.csv:2:9: gpu_milli is 0 with a GPU`,
		"x,1,1,1,2000,,LS,Running,0,10,0\n": `t.csv:2:9: gpu_milli is "2000"`,
		"x,1,1,1,500,,LS,Running,20,10,0\n": `scheduled_time is "0"; want seconds from 20`,
		"x,1,1,1,500,,LS,Running,2,1,3\n":   `deletion_time is "1"; want seconds from 3`,
	} {
		header, _, _ := strings.Cut(text, "\n")
		if _, err := ReadTrace(strings.NewReader(header+"\n"+bad), "t.csv", OpenbCompute, fleet(t, "1x1xH100-80GB")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error is %v, want %q", bad, err, want)
		}
	}
	if _, err := ReadTrace(strings.NewReader("arrival\n0\n"), "t.csv", OpenbCompute, fleet(t, "1x1xH100-80GB")); err == nil || !strings.Contains(err.Error(), `no column "num_gpu"`) {
		t.Errorf("another format is accepted as openb: %v", err)
	}
}

func FuzzReadTrace(f *testing.F) {
	for _, seed := range []string{
		"arrival,duration,devices,profile,gpumem,gpucores\n0,1,2,,9000,\n", "arrival\n\"\n", "\x1f\x8b\x08", "arrival,profile\n0,1g.10gb,\n",
		"num_gpu,gpu_milli,creation_time,deletion_time,scheduled_time\n1,500,0,1,\n",
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	h100 := fleet(f, "1x2xH100-80GB")
	f.Fuzz(func(t *testing.T, text string, openb bool) {
		format := CSV
		if openb {
			format = OpenbMemory
		}
		trace, err := ReadTrace(strings.NewReader(text), "t.csv", format, h100)
		if err != nil {
			return
		}
		for i, j := range trace.Jobs {
			if j.Devices < 1 || !(j.Duration >= 0) || math.IsInf(j.Arrival, 0) || i > 0 && j.Arrival < trace.Jobs[i-1].Arrival {
				t.Errorf("job %d is %+v", i, j)
			}
		}
	})
}
