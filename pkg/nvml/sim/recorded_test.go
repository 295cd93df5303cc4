// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/facts"
	"github.com/dynamig/dynamig/pkg/nvml/nvmltest"
)

var simulated = facts.Source{Tool: "test", Date: "2026-01-02", Confidence: facts.Simulated}

// record goes through the file's form, as a real record does.
func record(t *testing.T, d nvml.Driver) facts.Node {
	t.Helper()
	node, err := facts.Record(d, simulated)
	must(t, err)
	text, err := facts.Encode(node)
	must(t, err)
	node, err = facts.Decode(text)
	must(t, err)
	return node
}

func TestFactsOfANodeMakeANodeOfTheSameFacts(t *testing.T) {
	first := nodeOf(t, Spec{DriverVersion: "999.1", GPUs: []GPUSpec{
		{Board: a100, MIG: true, NUMANode: 1}, {Board: a30}, {Board: rtx, MIG: true}, {Board: h100},
		{Board: a100, ProfileMemoryMiB: map[nvml.ProfileID]int{p1g: 4711}},
		{Product: "Tesla T4", MemoryMiB: 15360, NUMANode: -1},
		{Product: "GRID A100-10C", MemoryMiB: 10240, VGPU: true},
	}})
	must(t, ignoreReset(first.SetMIGMode(gpuAt(t, first.Node, 1), true))) // pending on an Ampere
	want := record(t, first)
	want.GPUs[0].PCISubsystem = "0x134F10DE" // which no board of the table has
	second := nodeOf(t, FromFacts(want))
	if diff := cmp.Diff(want, record(t, second)); diff != "" {
		t.Errorf("facts of the node that was made from facts (-want +got):\n%s", diff)
	}
	if g := dump(t, second.Node).GPUs[1]; g.Current || !g.Pending {
		t.Errorf("MIG mode of the A30 is %t, pending %t; want off and on", g.Current, g.Pending)
	}
}

func ignoreReset(err error) error {
	if err != nil && strings.Contains(err.Error(), nvml.ErrResetRequired.Error()) {
		return nil
	}
	return err
}

func TestRecordedNodeObeysTheContract(t *testing.T) {
	spec := FromFacts(record(t, node(t, a30, a30)))
	nvmltest.Contract(t, func(t *testing.T) nvml.Driver { return holding{nodeOf(t, spec)} })
}

func TestExerciseRecordsEveryPlacement(t *testing.T) {
	d := node(t, a100)
	want := record(t, d)
	must(t, facts.Exercise(d, &want, 0))
	if got := len(want.GPUs[0].Exercise); got != 25 {
		t.Errorf("%d placements were tried; want 25", got)
	}
	for _, trial := range want.GPUs[0].Exercise {
		if trial.GI < 0 || trial.CI != 0 || trial.Error != "" {
			t.Errorf("trial %+v; want an instance", trial)
		}
	}
	for _, p := range want.GPUs[0].Profiles {
		if len(p.Compute) == 0 {
			t.Errorf("what %s offers was not recorded", p.Name)
		}
	}
	if got := listed(t, d, gpuAt(t, d.Node, 0)); len(got) != 0 {
		t.Errorf("left instances: %v", got)
	}
	nodeOf(t, FromFacts(want)) // the numbers agree with the simulation's
	want.GPUs[0].Exercise[0].GI = 12
	if err := Create(t.TempDir(), FromFacts(want)); err == nil || !strings.Contains(err.Error(), "id 12") {
		t.Errorf("Create with another numbering: %v; want an error that names id 12", err)
	}
}

func TestOfferIsRecordedOfInstancesThatAreThere(t *testing.T) {
	d := node(t, a30)
	whole(t, d, gpuAt(t, d.Node, 0), 5, 2) // 2g.12gb
	before := dump(t, d.Node).GPUs[0].Instances
	for _, p := range record(t, d).GPUs[0].Profiles {
		if asked := len(p.Compute) > 0; asked != (p.ID == 5) {
			t.Errorf("%s: offer %+v; want one of 2g.12gb only", p.Name, p.Compute)
		}
	}
	if diff := cmp.Diff(before, dump(t, d.Node).GPUs[0].Instances); diff != "" {
		t.Errorf("recording changed the instances (-before +after):\n%s", diff)
	}
}

func TestExerciseRefusesAGPUInUse(t *testing.T) {
	d := nodeOf(t, Spec{GPUs: []GPUSpec{{Board: a100}, {Board: a100, MIG: true}}})
	facts0 := record(t, d)
	whole(t, d, gpuAt(t, d.Node, 1), p1g, 0)
	for index, want := range map[int]string{0: "MIG mode is off", 1: "it has 1 instances", 2: "not among the 2 GPUs that answer"} {
		if err := facts.Exercise(d, &facts0, index); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Exercise(%d) = %v; want an error that says %q", index, err, want)
		}
	}
}

func TestFactsAreCheckedStrictly(t *testing.T) {
	text, err := facts.Encode(record(t, node(t, a30)))
	must(t, err)
	for name, change := range map[string][2]string{
		"an unknown field":         {`"driverVersion"`, `"driver"`},
		"another version":          {`"version": 1`, `"version": 2`},
		"no profiles":              {`"migCapable": true`, `"migCapable": false`},
		"a profile without a name": {`"name": "2g.12gb"`, `"name": ""`},
		"an id twice":              {`"id": 6,`, `"id": 5,`},
		"no product":               {`"product": "NVIDIA A30"`, `"product": ""`},
	} {
		wrong := strings.Replace(string(text), change[0], change[1], 1)
		if wrong == string(text) {
			t.Fatalf("%s: %s is not in the file", name, change[0])
		}
		if _, err := facts.Decode([]byte(wrong)); err == nil || !strings.HasPrefix(err.Error(), "decoding facts: ") {
			t.Errorf("Decode with %s: error %v; want one", name, err)
		}
	}
}

// A file that is not one of ours is an error, never a panic, also when it is made
// into a node.
func FuzzFacts(f *testing.F) {
	f.Add([]byte(`{"version":1,"driverVersion":"1","gpus":[{"product":"x","memoryMiB":1,"numaNode":0,"migCapable":true,"profiles":[
		{"id":19,"enum":0,"name":"1g","memoryMiB":1,"computeSlices":1,"size":1,"starts":[0,1],"max":2}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		node, err := facts.Decode(text)
		if err != nil {
			return
		}
		if _, err := newState(FromFacts(node)); err != nil {
			return
		}
		again, err := facts.Encode(node)
		must(t, err)
		if _, err := facts.Decode(again); err != nil {
			t.Errorf("decoding what was encoded: %v", err)
		}
	})
}
