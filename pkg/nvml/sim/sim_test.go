// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/nvmltest"
)

// The three grids, one board each, and one whose mode changes at once.
const (
	a100 = "A100-40GB"
	a30  = "A30-24GB"
	rtx  = "RTX-PRO-6000-96GB"
	h100 = "H100-80GB"
)

// Reported ids of profiles of a seven-slice GPU.
const (
	p1g   nvml.ProfileID = 19
	p1gMe nvml.ProfileID = 20
	p1g2m nvml.ProfileID = 15
	p2g   nvml.ProfileID = 14
	p3g   nvml.ProfileID = 9
	p4g   nvml.ProfileID = 5
	p7g   nvml.ProfileID = 0
)

func TestMain(m *testing.M) {
	if job := os.Getenv(envChild); job != "" {
		os.Exit(child(job))
	}
	os.Exit(m.Run())
}

// node makes a node of these boards with MIG on and opens it.
func node(t *testing.T, boards ...string) *Driver {
	t.Helper()
	spec := Spec{Seed: t.Name()}
	for _, b := range boards {
		spec.GPUs = append(spec.GPUs, GPUSpec{Board: b, MIG: true})
	}
	return nodeOf(t, spec)
}

func nodeOf(t *testing.T, spec Spec, options ...Option) *Driver {
	t.Helper()
	root := t.TempDir()
	must(t, Create(root, spec))
	return open(t, root, options...)
}

func open(t *testing.T, root string, options ...Option) *Driver {
	t.Helper()
	d, err := Open(root, options...)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// gpuAt returns the id of GPU index.
func gpuAt(t *testing.T, n *Node, index int) nvml.GPUID {
	t.Helper()
	return dump(t, n).GPUs[index].UUID
}

func dump(t *testing.T, n *Node) State {
	t.Helper()
	s, err := n.Dump()
	must(t, err)
	return s
}

// whole creates a whole instance.
func whole(t *testing.T, d *Driver, id nvml.GPUID, p nvml.ProfileID, start int) nvml.Instance {
	t.Helper()
	gi, err := d.CreateGPUInstance(id, p, start)
	must(t, err)
	in, err := d.CreateComputeInstance(id, gi.GI)
	must(t, err)
	return in
}

func listed(t *testing.T, d *Driver, id nvml.GPUID) []nvml.Instance {
	t.Helper()
	instances, err := d.Instances(id)
	must(t, err)
	return instances
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v; want %v", err, want)
	}
}

func TestContract(t *testing.T) {
	for _, board := range []string{a100, a30, rtx, h100} {
		t.Run(board, func(t *testing.T) {
			nvmltest.Contract(t, func(t *testing.T) nvml.Driver {
				return holding{nodeOf(t, Spec{GPUs: []GPUSpec{
					{Board: board},
					{Product: "Tesla T4", MemoryMiB: 15360, NUMANode: -1},
					{Board: board, MIG: true, NUMANode: 1},
				}})}
			})
		})
	}
}

// holding lets the contract make clients.
type holding struct{ *Driver }

func (h holding) HoldInstance(id nvml.GPUID, gi int) (func() error, error) {
	err := h.Hold(id, Holder{GI: gi})
	return func() error { return h.Release(id, gi, 0) }, err
}

func TestCreateRefuses(t *testing.T) {
	one := func(g GPUSpec) Spec { return Spec{GPUs: []GPUSpec{g}} }
	cases := []struct {
		name string
		spec Spec
		want string
	}{
		{"no GPUs", Spec{}, "0 GPUs"},
		{"more GPUs than the driver has capabilities for", Spec{GPUs: make([]GPUSpec, 33)}, "33 GPUs"},
		{"an unknown board", one(GPUSpec{Board: "H900"}), "GPU 0 (H900)"},
		{"memory of a profile that the board does not have", one(GPUSpec{Board: a100, ProfileMemoryMiB: map[nvml.ProfileID]int{99: 1}}), "profile 99"},
		{"a GPU without MIG and without a name", one(GPUSpec{MemoryMiB: 16000}), "needs Product"},
		{"MIG mode on a GPU without MIG", one(GPUSpec{Product: "Tesla T4", MemoryMiB: 16000, MIG: true}), "cannot do MIG"},
		{"a latency of a call that there is not", Spec{GPUs: []GPUSpec{{Board: a100}}, Latencies: map[string]time.Duration{"Create": 1}}, `"Create"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			err := Create(root, c.spec)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Create: error %v; want one that says %q", err, c.want)
			}
			if entries, _ := os.ReadDir(root); len(entries) != 0 {
				t.Errorf("Create left %v", entries)
			}
		})
	}
}

func TestUnknownMemoryMustBeGiven(t *testing.T) {
	board, _, err := boardNamed(a100)
	must(t, err)
	board.MemoryMiB = 0
	board.Profiles = slices.Clone(board.Profiles)
	board.Profiles[0].MemoryMiB = 0 // 7g, by ascending id
	cases := []struct {
		name string
		spec GPUSpec
		want string
	}{
		{"neither is given", GPUSpec{}, "give MemoryMiB"},
		{"the total is given", GPUSpec{MemoryMiB: 40000}, "memory of profile 7g.40gb (0) is not known"},
		{"both are given", GPUSpec{MemoryMiB: 40000, ProfileMemoryMiB: map[nvml.ProfileID]int{p7g: 39000}}, ""},
	}
	for _, c := range cases {
		s := State{Models: map[string]Model{}}
		g := GPU{MemoryMiB: c.spec.MemoryMiB, ProfileMemoryMiB: c.spec.ProfileMemoryMiB}
		err := s.addMIGGPU(g, c.spec, board)
		if c.want == "" {
			must(t, err)
		} else if err == nil || !strings.Contains(err.Error(), c.want) || len(s.GPUs) != 0 {
			t.Errorf("%s: error %v, GPUs %v; want no GPU and an error that says %q", c.name, err, s.GPUs, c.want)
		}
	}
}

func TestCreateRefusesASecondNode(t *testing.T) {
	d := node(t, a100)
	if err := Create(d.Root(), Spec{GPUs: []GPUSpec{{Board: a30}}}); err == nil || !strings.Contains(err.Error(), "state.json") {
		t.Errorf("Create over a node: error %v; want one that names state.json", err)
	}
	if got := dump(t, d.Node).GPUs[0].Model; got != a100 {
		t.Errorf("the node now has %s", got)
	}
}

func TestOpenRefusesWhatIsNoNode(t *testing.T) {
	root := t.TempDir()
	if _, err := Open(root); err == nil || !strings.Contains(err.Error(), "create the node first") {
		t.Errorf("Open of an empty directory: error %v", err)
	}
	must(t, os.WriteFile(root+"/state.json", []byte(`{"version":2}`), 0o644))
	if _, err := Open(root); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("Open of another version: error %v", err)
	}
	must(t, os.WriteFile(root+"/state.json", []byte(`{"version":1,"extra":1}`), 0o644))
	if _, err := Open(root); err == nil || !strings.Contains(err.Error(), "extra") {
		t.Errorf("Open of a state with an unknown field: error %v", err)
	}
}

func TestFactsComeFromBoardAndSpec(t *testing.T) {
	d := nodeOf(t, Spec{DriverVersion: "570.1", GPUs: []GPUSpec{
		{Board: "A100-PCIE-40GB", NUMANode: 1},
		{Board: a30, Product: "NVIDIA A30X", MemoryMiB: 20000},
	}})
	version, err := d.DriverVersion()
	must(t, err)
	if version != "570.1" {
		t.Errorf("DriverVersion() = %q", version)
	}
	got, err := d.GPUs(nil)
	must(t, err)
	want := []nvml.GPU{
		{Index: 0, Minor: 0, Name: "NVIDIA A100-PCIE-40GB", Architecture: nvml.Ampere, PCIBusID: "00000000:07:00.0", PCIDeviceID: "0x20B010DE", MemoryMiB: 40960, NUMANode: 1, MIGCapable: true},
		{Index: 1, Minor: 1, Name: "NVIDIA A30X", Architecture: nvml.Ampere, PCIBusID: "00000000:08:00.0", PCIDeviceID: "0x20B710DE", MemoryMiB: 20000, MIGCapable: true},
	}
	for i := range want {
		want[i].ID = got[i].ID
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("GPUs() (-want +got):\n%s", diff)
	}
}

func TestEveryBoardWithKnownMemoryCanBeSimulated(t *testing.T) {
	for _, b := range boards.All() {
		spec := GPUSpec{Board: b.Key, MemoryMiB: 1 << 17, ProfileMemoryMiB: map[nvml.ProfileID]int{}, MIG: true}
		for _, p := range b.Profiles {
			spec.ProfileMemoryMiB[nvml.ProfileID(p.ID)] = 1000 * p.Size
		}
		d := nodeOf(t, Spec{GPUs: []GPUSpec{spec}})
		profiles, err := d.Profiles(gpuAt(t, d.Node, 0))
		must(t, err)
		if len(profiles) != len(b.Profiles) {
			t.Errorf("%s has %d profiles; want %d", b.Key, len(profiles), len(b.Profiles))
		}
	}
}

func TestSeedFixesUUIDs(t *testing.T) {
	uuids := func(seed string) (all []string) {
		d := nodeOf(t, Spec{Seed: seed, GPUs: []GPUSpec{{Board: a100, MIG: true}}})
		id := gpuAt(t, d.Node, 0)
		return []string{string(id), whole(t, d, id, p1g, 0).UUID, whole(t, d, id, p1g, 1).UUID}
	}
	if diff := cmp.Diff(uuids("x"), uuids("x")); diff != "" {
		t.Errorf("UUIDs with one seed differ:\n%s", diff)
	}
	if first, second := uuids(""), uuids(""); first[0] == second[0] || first[1] == second[1] {
		t.Errorf("UUIDs without a seed are equal: %v, %v", first, second)
	}
}

func TestA30ReportsACountThatItDoesNotAllow(t *testing.T) {
	d := node(t, a30)
	id := gpuAt(t, d.Node, 0)
	profiles, err := d.Profiles(id)
	must(t, err)
	const p2gA30 = 5
	for _, p := range profiles {
		if p.ID == p2gA30 && p.Max <= len(p.Starts) {
			t.Errorf("A30 reports Max %d of %s with starts %v; want more than fit", p.Max, p.Name, p.Starts)
		}
	}
}

func TestProfileMemoryDependsOnTheDriver(t *testing.T) {
	d := node(t, a100)
	id := gpuAt(t, d.Node, 0)
	memory := func() int {
		profiles, err := d.Profiles(id)
		must(t, err)
		for _, p := range profiles {
			if p.ID == p2g {
				return p.MemoryMiB
			}
		}
		return 0
	}
	must(t, d.SetProfileMemory(id, p2g, 9856))
	if got := memory(); got != 9856 {
		t.Errorf("memory of 2g = %d; want 9856", got)
	}
	must(t, d.SetProfileMemory(id, p2g, 0))
	if got := memory(); got != 9984 {
		t.Errorf("memory of 2g = %d; want the table's 9984", got)
	}
	wantErr(t, d.SetProfileMemory(id, 99, 1), nvml.ErrInvalidArgument)
}

// The cost of one cheap call on a full node of eight GPUs: lock, read, decode,
// encode, rename.
func BenchmarkInstances(b *testing.B) {
	root := b.TempDir()
	spec := Spec{}
	for range 8 {
		spec.GPUs = append(spec.GPUs, GPUSpec{Board: a100, MIG: true})
	}
	if err := Create(root, spec); err != nil {
		b.Fatal(err)
	}
	d, err := Open(root)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := fill(d); err != nil {
		b.Fatal(err)
	}
	gpus, err := d.GPUs(nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := d.Instances(gpus[0].ID); err != nil {
			b.Fatal(err)
		}
	}
}
