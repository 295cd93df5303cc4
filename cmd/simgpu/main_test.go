// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// shell runs simgpu on one node.
type shell struct {
	*testing.T
	root string
}

func (sh shell) run(line string) (string, error) {
	cmd := newCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append([]string{"--root", sh.root}, strings.Fields(line)...))
	err := cmd.ExecuteContext(context.Background())
	return out.String(), err
}

func (sh shell) must(line string) string {
	sh.Helper()
	out, err := sh.run(line)
	if err != nil {
		sh.Fatalf("simgpu %s: %v", line, err)
	}
	return out
}

// fails demands an error of one line that says want.
func (sh shell) fails(line, want string) {
	sh.Helper()
	if _, err := sh.run(line); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		sh.Errorf("simgpu %s: error %v; want one line that says %q", line, err, want)
	}
}

func (sh shell) state() sim.State {
	sh.Helper()
	var s sim.State
	if err := json.Unmarshal([]byte(sh.must("list -o json")), &s); err != nil {
		sh.Fatal(err)
	}
	return s
}

func newShell(t *testing.T, gpus string) shell {
	t.Helper()
	sh := shell{t, t.TempDir()}
	sh.must("create-node --seed test " + gpus)
	return sh
}

// The life of a node, as somebody at a terminal sees it.
func TestStory(t *testing.T) {
	sh := newShell(t, "--gpu A100-SXM4-40GB,mig=on --gpu H100-80GB,numa=1 --gpu none,product=T4,memory=15360")
	if out := sh.must("create --gpu 0 --profile 3g.20gb --start 4"); !strings.HasPrefix(out, "GPU instance 1 MIG-") {
		t.Errorf("create printed %q", out)
	}
	sh.must("create --gpu 0 --profile 19 --start 0 --gi-only")
	sh.fails("create --gpu 0 --profile 4g.20gb --start 0", "overlap GPU instance 7")
	sh.fails("create --gpu 1 --profile 1g.10gb --start 0", "MIG mode is off")
	sh.must("hold --gpu 0 --gi 1 --pid 4711 --memory 300")
	sh.must("hold --gpu 0 --gi 1")
	sh.fails("destroy --gpu 0 --gi 1", "in use")
	sh.must("mode --gpu 1 on")
	if out := sh.must("mode --gpu 0 on"); out != "" {
		t.Errorf("setting the mode that is in force printed %q", out)
	}

	uuids := map[string]string{}
	for _, g := range sh.state().GPUs {
		uuids[string(g.UUID)] = fmt.Sprintf("GPU-%d", g.Index)
		for _, in := range g.Instances {
			uuids[in.UUID] = "MIG-uuid"
		}
	}
	got := sh.must("list")
	for uuid, short := range uuids {
		if uuid != "" {
			got = strings.ReplaceAll(got, uuid, short)
		}
	}
	want := `GPU  NAME                   MIG  GI  CI  PROFILE  ID  PLACEMENT  HELD BY           UUID
0    NVIDIA A100-SXM4-40GB  on                                                     GPU-0
0                                7   -   1g.5gb   19  0:1                          -
0                                1   0   3g.20gb  9   4:4        pid 4711, handle  MIG-uuid
1    NVIDIA H100 80GB HBM3  on                                                     GPU-1
2    T4                     -                                                      GPU-2
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}

	sh.must("release --gpu 0 --gi 1 --pid 4711")
	sh.must("release --gpu 0 --gi 1")
	sh.fails("release --gpu 0 --gi 1", "holds nothing")
	sh.must("destroy --gpu 0 --gi 1")
	sh.fails("destroy --gpu 0 --gi 1", "no GPU instance 1")
	sh.must("destroy --gpu 0")
	if left := sh.state().GPUs[0].Instances; len(left) != 0 {
		t.Errorf("instances after destroy: %v", left)
	}
}

func TestMemoryThatIsNotKnownCanBeGiven(t *testing.T) {
	const gpu = "H100-94GB,memory=95830,profile-memory=9:47488,profile-memory=5:47488,profile-memory=0:95000"
	sh := newShell(t, "--gpu "+gpu)
	if out := sh.must("profiles --gpu 0"); !strings.Contains(out, "7g.94gb     0   95000") {
		t.Errorf("profiles printed\n%s\nwant 95000 MiB for 7g.94gb", out)
	}
}

func TestHardware(t *testing.T) {
	sh := newShell(t, "--gpu A100-40GB --gpu H100-80GB --mig on")
	if out := sh.must("mode --gpu 0 off"); !strings.Contains(out, "pending") {
		t.Errorf("mode printed %q; want that it is pending", out)
	}
	if out := sh.must("list"); !strings.Contains(out, "on, off pending") {
		t.Errorf("list printed\n%s\nwant a pending mode", out)
	}
	sh.must("reset --gpu 0")
	sh.must("create --gpu 1 --profile 1g.10gb+me --start 6")
	sh.must("xid --gpu 1 --gi 13 --xid 31")
	sh.must("lose --gpu 1")
	sh.fails("create --gpu 1 --profile 1g.10gb --start 0", "GPU is lost")
	if out := sh.must("list"); !strings.Contains(out, "lost") {
		t.Errorf("list printed\n%s\nwant a lost GPU", out)
	}
	s := sh.state()
	if len(s.Events) != 2 || s.Events[0].GI != 13 || s.Events[1].XID != 79 {
		t.Errorf("events %+v; want XID 31 of instance 13 and XID 79", s.Events)
	}
	sh.must("memory --gpu 0 --profile 1g.5gb --mib 4000")
	if out := sh.must("profiles --gpu 0"); !strings.Contains(out, "1g.5gb     19  4000") {
		t.Errorf("profiles printed\n%s\nwant 4000 MiB for 1g.5gb", out)
	}
	sh.must("reboot")
	for i, g := range sh.state().GPUs {
		if g.Lost || g.Current || len(g.Instances) != 0 {
			t.Errorf("GPU %d after reboot: %+v", i, g)
		}
	}
	session := sh.state().Session
	sh.must("drop-sessions")
	if got := sh.state().Session; got != session+1 {
		t.Errorf("session %d after drop-sessions; want %d", got, session+1)
	}
}

func TestFaultsAndLatencies(t *testing.T) {
	sh := newShell(t, "--gpu A30,mig=on --latency realistic")
	sh.must("latency none MIGMode=5ms MIGMode=7ms")
	if diff := cmp.Diff(map[string]int{"MIGMode": 7}, sh.state().LatencyMillis); diff != "" {
		t.Errorf("latencies (-want +got):\n%s", diff)
	}
	sh.must("fault --call CreateGPUInstance --gpu 0 --nth 2 --code IN_USE --late")
	sh.must("fault --crash after --delay 2s")
	want := []sim.Fault{
		{Call: "CreateGPUInstance", GPU: sh.state().GPUs[0].UUID, Nth: 2, Times: 1, Code: "IN_USE", Late: true},
		{Nth: 1, Times: 1, DelayMillis: 2000, Crash: "after"},
	}
	if diff := cmp.Diff(want, sh.state().Faults); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	if out := sh.must("faults"); !strings.Contains(out, "IN_USE, after its work") || !strings.Contains(out, "2s later, crash after") {
		t.Errorf("faults printed\n%s", out)
	}
	sh.must("latency none")
	sh.must("create --gpu 0 --profile 1g.6gb --start 0") // simgpu is not hit
	sh.must("faults --clear")
	if left := sh.state().Faults; len(left) != 0 {
		t.Errorf("faults left: %v", left)
	}
}

func TestHoldWaitHasTheDeviceOpen(t *testing.T) {
	sh := newShell(t, "--gpu A100-40GB,mig=on")
	sh.must("create --gpu 0 --profile 1g.5gb --start 0")
	ctx, interrupt := context.WithCancel(context.Background())
	defer interrupt()
	cmd := newCommand()
	said := writeFunc(func(text []byte) {
		defer interrupt() // and it ends
		want := filepath.Join(sh.root, "dev/nvidia-caps/nvidia-cap66")
		if !strings.Contains(string(text), want) || !hasOpen(t, want) {
			t.Errorf("%q: nobody has %s open", text, want)
		}
	})
	cmd.SetOut(said)
	cmd.SetArgs([]string{"--root", sh.root, "hold", "--gpu", "0", "--gi", "7", "--wait"})
	if err := cmd.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	if left := sh.state().GPUs[0].Holders; len(left) != 0 {
		t.Errorf("holders after the interrupt: %v", left)
	}
}

type writeFunc func([]byte)

func (f writeFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// hasOpen looks through this process's open files.
func hasOpen(t *testing.T, path string) bool {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == path {
			return true
		}
	}
	return false
}

func TestMistakesAreOneSentence(t *testing.T) {
	sh := newShell(t, "--gpu A100-40GB,mig=on")
	for line, want := range map[string]string{
		"create --gpu 9 --profile 1g.5gb --start 0":    `no GPU "9"`,
		"create --gpu 0 --profile 1g.10gb+x --start 0": `no profile "1g.10gb+x": it has 7g.40gb`,
		"create --gpu 0 --profile 1g.5gb":              `"start" not set`,
		"hold --gpu 0":                                 "gi whole-gpu",
		"fault --call GPUs":                            "code delay halt crash linger",
		"fault --code BUSY":                            `code "BUSY" is none of`,
		"latency slow":                                 `"slow"`,
		"latency Create=1s":                            "CreateGPUInstance",
		"mode --gpu 0 maybe":                           `"maybe"`,
		"list -o yaml":                                 `"yaml"`,
		"create-node --gpu A100-40GB":                  "state.json",
		"create-node --gpu A100-40GB,mig=yes":          `"yes" is neither on nor off`,
		"create-node --gpu A100-40GB,numa=":            "numa=",
		"create-node --gpu A100-40GB,slots=4":          `"slots" is none of`,
		"create-node --gpu A100-40GB,count=0":          "count 0",
		"create-node --gpu A100-40GB,profile-memory=9": `"9": expected ID:MiB`,
		"nonsense": `"nonsense"`,
	} {
		sh.fails(line, want)
	}
	if _, err := (shell{t, ""}).run("list"); err == nil || !strings.Contains(err.Error(), "--root") {
		t.Errorf("without --root: error %v", err)
	}
	if _, err := (shell{t, t.TempDir()}).run("list"); err == nil || !strings.Contains(err.Error(), "create the node first") {
		t.Errorf("on an empty directory: error %v", err)
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	for _, cmd := range newCommand().Commands() {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("command %s has the short help %q", cmd.Name(), cmd.Short)
		}
	}
}

func TestBoardsListsThem(t *testing.T) {
	out := shell{t, ""}.must("boards")
	for _, want := range []string{"A100-40GB", "4x12", "NVIDIA A100-SXM4-40GB"} {
		if !strings.Contains(out, want) {
			t.Errorf("boards printed\n%s\nwithout %q", out, want)
		}
	}
}
