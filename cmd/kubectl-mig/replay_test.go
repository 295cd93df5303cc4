// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dynamig/dynamig/pkg/replay"
)

// jobs is a file with a small trace: on one A30, the 4g waits for the 2g.
func jobs(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "jobs.csv")
	text := "arrival,duration,profile,gpumem\n0,10,2g.12gb,\n1,5,4g.24gb,\n2,4,,5000\n10,2,,200000\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestReplayTable compares with a golden file, less what depends on the machine.
func TestReplayTable(t *testing.T) {
	trace := jobs(t)
	got := runWith(t, "replay", "--fleet", "1x1xA30-24GB", "--trace", trace, "--mode", "queue", "--policy", "ours,hami-2.10")
	if got.code != exitFine || got.err != "" {
		t.Fatalf("exit code %d, %s", got.code, got.err)
	}
	out := regexp.MustCompile(`(?m) +[0-9]+$`).ReplaceAllString(strings.NewReplacer("NS/DECISION", "", filepath.Dir(trace)+"/", "").Replace(got.out), "")
	out = regexp.MustCompile(`(?m) +$`).ReplaceAllString(out, "")
	want, err := os.ReadFile("testdata/replay.txt")
	if err != nil {
		t.Fatal(err)
	}
	if out != string(want) {
		t.Errorf("the table is\n%s\nwant\n%s", out, want)
	}
}

func TestReplayJSON(t *testing.T) {
	args := []string{"replay", "--fleet", "1x1xA30-24GB", "--trace", jobs(t), "-o", "json"}
	var one replay.Result
	if got := runWith(t, args...); json.Unmarshal([]byte(got.out), &one) != nil || one.Policy != replay.Ours || one.Accepted != 2 || one.Rejected != 2 {
		t.Errorf("one policy prints %s%s, want an object with two of four jobs accepted", got.out, got.err)
	}
	var several []replay.Result
	if got := runWith(t, append(args, "--policy", "first-fit", "--policy", "fgd")...); json.Unmarshal([]byte(got.out), &several) != nil || len(several) != 2 {
		t.Errorf("two policies print %s%s, want a list of two", got.out, got.err)
	}
}

// TestReplayAllButTheBound: where there is no bound the others are compared.
func TestReplayAllButTheBound(t *testing.T) {
	var results []replay.Result
	got := runWith(t, "replay", "--fleet", "1x1xA30-24GB", "--trace", jobs(t), "--policy", "all", "-o", "json")
	if err := json.Unmarshal([]byte(got.out), &results); err != nil || len(results) != len(replay.Policies())-1 {
		t.Errorf("%d results (%v), want %d", len(results), err, len(replay.Policies())-1)
	}
	if got.code != exitFine || !strings.HasPrefix(got.err, "note: policy repack: there is no exact bound for A30-24GB") {
		t.Errorf("exit code %d, %q; want a note on repack", got.code, got.err)
	}
}

func TestReplayMistakes(t *testing.T) {
	trace, fleet := jobs(t), "--fleet=1x1xA30-24GB"
	broken := filepath.Join(t.TempDir(), "broken.csv")
	if err := os.WriteFile(broken, []byte("arrival,gpumem\n0,5GB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--trace", trace}, exitUsage, "--fleet is missing; give for example"},
		{[]string{fleet}, exitUsage, "--trace is missing"},
		{[]string{fleet, "--trace", trace, "--mode", "lose"}, exitUsage, `--mode is "lose"; use loss or queue`},
		{[]string{fleet, "--trace", trace, "--policy", "best"}, exitUsage, `--policy "best" is not known; use ours, `},
		{[]string{fleet, "--trace", trace, "--warmup", "1"}, exitUsage, "--warmup is 1; use"},
		{[]string{fleet, "--trace", trace, "-o", "yaml"}, exitUsage, `--output is "yaml"; use table or json`},
		{[]string{"--fleet=12x8", "--trace", trace}, exitUsage, `parsing fleet "12x8": want nodes x GPUs`},
		{[]string{fleet, "--trace", "/nowhere.csv"}, exitError, "reading --trace: open /nowhere.csv"},
		{[]string{fleet, "--trace", trace, "--device-config", "/nowhere.yaml"}, exitError, "reading --device-config: open /nowhere.yaml"},
		{[]string{fleet, "--trace", trace, "--device-config", trace}, exitError, "jobs.csv:1"},
		{[]string{fleet, "--trace", broken}, exitError, `broken.csv:2:3: gpumem is "5GB"`},
		{[]string{fleet, "--trace", trace, "--policy", "repack"}, exitError, "there is no exact bound for A30-24GB"},
		{[]string{fleet, "--trace", "-"}, exitError, "reading trace standard input: it is empty"},
		{[]string{fleet, "--trace", trace, "--trace-format", "openb"}, exitError, `jobs.csv:1:1: there is no column "num_gpu"`},
	} {
		got := runWith(t, append([]string{"replay"}, tc.args...)...)
		if got.code != tc.code || !strings.Contains(got.err, tc.says) || got.out != "" {
			t.Errorf("replay %v = %d, %q; want %d, %q", tc.args, got.code, got.err, tc.code, tc.says)
		}
	}
}

// TestReplayWorkThatIsNotKnown: what was rejected cannot be counted as done.
func TestReplayWorkThatIsNotKnown(t *testing.T) {
	unknown := regexp.MustCompile(`ours +\d+ +[12] +- `)
	for _, tc := range []struct{ name, jobs, says string }{
		{"impossible", "0,10,800000\n", "1 of the rejected jobs asks for what not even the idle fleet could hold; the first is line 2 of "},
		{"impossible and other", "0,10,800000\n0,100,40000\n0,100,40000\n", "WORK is - where"},
		{"forever", "0,3600,8000\n12,600,20000\n30,,\n", "WORK is - where"},
	} {
		file := filepath.Join(t.TempDir(), "jobs.csv")
		if err := os.WriteFile(file, []byte("arrival,duration,gpumem\n"+tc.jobs), 0o600); err != nil {
			t.Fatal(err)
		}
		got := runWith(t, "replay", "--fleet", "1x1xA100-SXM4-40GB", "--trace", file)
		if got.code != exitFine || !strings.Contains(got.out, tc.says) || !unknown.MatchString(got.out) {
			t.Errorf("replay of %s jobs = %d, %q; want %q and WORK -:\n%s", tc.name, got.code, got.err, tc.says, got.out)
		}
	}
}

// TestReplayOtherFiles: what is no trace of ours may be one of another form.
func TestReplayOtherFiles(t *testing.T) {
	for header, says := range map[string]string{
		"name,num_gpu,gpu_milli\nx,1,1000\n": "use --trace-format openb",
		"arrival;duration;gpumem\n0;1;2\n":   "separate the columns by commas",
	} {
		file := filepath.Join(t.TempDir(), "jobs.csv")
		if err := os.WriteFile(file, []byte(header), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := runWith(t, "replay", "--fleet", "1x2xA100-SXM4-40GB", "--trace", file); got.code != exitError || !strings.Contains(got.err, says) {
			t.Errorf("replay = %d, %q; want %q", got.code, got.err, says)
		}
	}
}

// TestReplayDoubtsColumns: unknown ones are ignored, and said where they look like known ones.
func TestReplayDoubtsColumns(t *testing.T) {
	for _, tc := range []struct{ header, says string }{
		{"arrival,duration,gpumem,owner", ""},
		{"arrival,duration,gpumem,GPU_Cores", `the column "gpu_cores" is ignored; was "gpucores" meant?`},
		{"arrival,durations,nvidia.com/gpumem,x", `the column "durations" is ignored; was "duration" meant?`},
		{"arrival,duration,gpumem,count", `the column "count" is ignored; was "devices" meant?`},
		{"arrival,duration,gpumem,nvidia.com/gpu", `the column "nvidia.com/gpu" is ignored; was "devices" meant?`},
		{"arrival,duration,memory,x", "has none of the columns profile, gpumem, gpucores, so that every job asks for whole GPUs"},
	} {
		file := filepath.Join(t.TempDir(), "jobs.csv")
		if err := os.WriteFile(file, []byte(tc.header+"\n0,10,5000,1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		got := runWith(t, "replay", "--fleet", "1x1xA100-SXM4-40GB", "--trace", file) // as status prints the model
		if got.code != exitFine || !strings.Contains(got.err, tc.says) || tc.says == "" && got.err != "" || !strings.Contains(got.out, "1 job on 1 GPU (") {
			t.Errorf("replay with columns %s = %d, %q; want %q:\n%s", tc.header, got.code, got.err, tc.says, got.out)
		}
	}
}

// TestReplayProgress: a line that is rewritten, on a terminal only.
func TestReplayProgress(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, policy: "fgd", jobs: 1000, shown: -1}
	for _, n := range []int{0, 1, 9, 256, 512} {
		p.show(n)
	}
	p.wipe()
	want := "\rfgd: 0 of 1000 jobs (0%)\x1b[K\rfgd: 256 of 1000 jobs (25%)\x1b[K\rfgd: 512 of 1000 jobs (51%)\x1b[K\r\x1b[K"
	if out.String() != want {
		t.Errorf("progress is %q, want %q", out.String(), want)
	}
	if p := newProgress(&out, "fgd", 1000); p.out != nil {
		t.Error("progress goes to what is no terminal")
	}
}
