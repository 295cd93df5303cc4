// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Environment of a child process of these tests: its job, and the node's root.
const (
	envChild     = "SIM_TEST_CHILD"
	envChildRoot = "SIM_TEST_ROOT"
)

func childCommand(t *testing.T, job, root string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envChild+"="+job, envChildRoot+"="+root)
	return cmd
}

// child is the whole life of a child process. The job "fill" creates 1g
// instances wherever it can, on all GPUs, and prints how many it made.
func child(job string) int {
	d, err := Open(os.Getenv(envChildRoot))
	if err != nil || job != "fill" {
		fmt.Println(job, err)
		return 1
	}
	made, err := fill(d)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("made", made)
	return 0
}

func fill(d *Driver) (made int, err error) {
	gpus, err := d.GPUs(nil)
	if err != nil {
		return 0, err
	}
	for _, g := range gpus {
		for start := range 7 {
			gi, err := d.CreateGPUInstance(g.ID, p1g, start)
			if errors.Is(err, nvml.ErrInsufficientResources) {
				continue
			}
			if err != nil {
				return made, err
			}
			if _, err := d.CreateComputeInstance(g.ID, gi.GI); err != nil {
				return made, err
			}
			made++
		}
	}
	return made, nil
}

func TestTwoSessionsSeeOneNode(t *testing.T) {
	first := node(t, a100)
	second := open(t, first.Root())
	id := gpuAt(t, first.Node, 0)
	in := whole(t, first, id, p4g, 0)
	if diff := cmp.Diff([]nvml.Instance{in}, listed(t, second, id)); diff != "" {
		t.Errorf("the other session lists (-want +got):\n%s", diff)
	}
	_, err := second.CreateGPUInstance(id, p3g, 0)
	wantErr(t, err, nvml.ErrInsufficientResources)
	must(t, first.Close())
	must(t, second.DestroyComputeInstance(id, in.GI, in.CI))
	if got := listed(t, open(t, first.Root()), id); len(got) != 1 || got[0].CI != nvml.NoCI {
		t.Errorf("a later session lists %v; want the GPU instance alone", got)
	}
}

// Several processes compete for the same placements: each goes to exactly one,
// and no call is lost.
func TestProcessesShareANode(t *testing.T) {
	const processes, gpus = 3, 2
	d := node(t, a100, a100)
	before := dump(t, d.Node).Calls
	var commands []*exec.Cmd
	var outputs [processes]strings.Builder
	for i := range processes {
		cmd := childCommand(t, "fill", d.Root())
		cmd.Stdout, cmd.Stderr = &outputs[i], &outputs[i]
		must(t, cmd.Start())
		commands = append(commands, cmd)
	}
	total := 0
	for i, cmd := range commands {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("process %d: %v:\n%s", i, err, outputs[i].String())
		}
		made := 0
		if _, err := fmt.Sscanf(outputs[i].String(), "made %d", &made); err != nil {
			t.Fatalf("process %d printed %q", i, outputs[i].String())
		}
		total += made
	}
	if want := 7 * gpus; total != want {
		t.Errorf("the processes made %d instances; want %d", total, want)
	}
	// Open, GPUs and every creation of a GPU instance by each, and one compute instance for each made.
	if got, want := dump(t, d.Node).Calls-before, processes*(2+7*gpus)+total; got != want {
		t.Errorf("%d calls were counted; want %d", got, want)
	}
	checkTree(t, d.Node)
}

func TestParallelWorkOnSeveralGPUs(t *testing.T) {
	d := node(t, a100, a100, h100, h100)
	admin := open(t, d.Root(), Uncounted())
	var workers sync.WaitGroup
	for i := range 4 {
		id := gpuAt(t, d.Node, i)
		session := []*Driver{d, admin}[i%2]
		workers.Go(func() {
			for range 3 {
				for start := range 7 {
					gi, err := session.CreateGPUInstance(id, p1g, start)
					if err == nil {
						_, err = session.CreateComputeInstance(id, gi.GI)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
				instances, err := session.Instances(id)
				if err != nil || len(instances) != 7 {
					t.Errorf("instances %v, %v; want 7", instances, err)
				}
				for _, in := range instances {
					if err := errors.Join(session.DestroyComputeInstance(id, in.GI, in.CI), session.DestroyGPUInstance(id, in.GI)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	workers.Go(func() {
		for range 20 {
			if err := d.XID(gpuAt(t, d.Node, 0), WholeGPU, 13); err != nil {
				t.Error(err)
			}
		}
	})
	workers.Wait()
	if got := len(dump(t, d.Node).Events); got != 20 {
		t.Errorf("%d events; want 20", got)
	}
	checkTree(t, d.Node)
}

// Random operations against a model that is a plain list of who has which memory
// slice, with its own idea of every rule.
func TestRandomOperationsAgainstASetModel(t *testing.T) {
	for _, board := range []string{a100, a30, rtx} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("%s/%d", board, seed), func(t *testing.T) {
				d := node(t, board)
				w := &walker{T: t, d: d, id: gpuAt(t, d.Node, 0), rand: rand.New(rand.NewPCG(seed, 0)), uuids: map[string]bool{}}
				var err error
				w.profiles, err = d.Profiles(w.id)
				must(t, err)
				for range 120 {
					w.step()
					if t.Failed() {
						t.Fatalf("stopped; the model has %+v", w.have)
					}
				}
				checkTree(t, d.Node)
			})
		}
	}
}

// walker is the naive model: what is there, in any order.
type walker struct {
	*testing.T
	d        *Driver
	id       nvml.GPUID
	rand     *rand.Rand
	profiles []nvml.Profile
	have     []*piece
	uuids    map[string]bool
}

type piece struct {
	nvml.Instance
	name  string
	size  int
	holds int
}

func (w *walker) step() {
	w.Helper()
	switch w.rand.IntN(7) {
	case 0, 1:
		w.create()
	case 2, 3:
		w.compute()
	case 4:
		w.destroyCI()
	case 5:
		w.destroyGI()
	case 6:
		w.hold()
	}
	var want []nvml.Instance
	for _, p := range w.have {
		want = append(want, p.Instance)
	}
	slices.SortFunc(want, func(a, b nvml.Instance) int { return a.Start - b.Start })
	got := listed(w.T, w.d, w.id)
	if len(want)+len(got) > 0 {
		if diff := cmp.Diff(want, got); diff != "" {
			w.Errorf("instances (-want +got):\n%s", diff)
		}
	}
}

func (w *walker) create() {
	p := w.profiles[w.rand.IntN(len(w.profiles))]
	start := w.rand.IntN(14) - 1
	want := w.judge(p, start)
	got, err := w.d.CreateGPUInstance(w.id, p.ID, start)
	if !errors.Is(err, want) {
		w.Errorf("creating %s at %d: error %v; want %v", p.Name, start, err, want)
	}
	if err == nil {
		w.have = append(w.have, &piece{Instance: got, name: p.Name, size: p.Size})
	}
}

// judge says what a creation must answer, slice by slice.
func (w *walker) judge(p nvml.Profile, start int) error {
	if !slices.Contains(p.Starts, start) {
		return nvml.ErrInvalidArgument
	}
	owner := map[int]bool{}
	same, me, all, notNone := 0, 0, 0, 0
	for _, h := range w.have {
		for s := h.Start; s < h.Start+h.size; s++ {
			owner[s] = true
		}
		if h.name == p.Name {
			same++
		}
		switch {
		case strings.HasSuffix(h.name, "+me"):
			me++
			notNone++
		case strings.HasSuffix(h.name, "+me.all"):
			all++
			notNone++
		case !strings.HasSuffix(h.name, "-me"):
			notNone++
		}
	}
	for s := start; s < start+p.Size; s++ {
		if owner[s] {
			return nvml.ErrInsufficientResources
		}
	}
	switch {
	case same >= p.Max,
		strings.HasSuffix(p.Name, "+me") && me > 0,
		strings.HasSuffix(p.Name, "+me.all") && notNone > 0,
		!strings.HasSuffix(p.Name, "-me") && all > 0:
		return nvml.ErrInsufficientResources
	}
	return nil
}

// any returns one of the pieces, or nil with a GPU instance id that is free.
func (w *walker) any() (*piece, int) {
	if len(w.have) > 0 && w.rand.IntN(8) > 0 {
		p := w.have[w.rand.IntN(len(w.have))]
		return p, p.GI
	}
	gi := 0
	for slices.ContainsFunc(w.have, func(p *piece) bool { return p.GI == gi }) {
		gi++
	}
	return nil, gi
}

func (w *walker) compute() {
	p, gi := w.any()
	var want error
	switch {
	case p == nil:
		want = nvml.ErrNotFound
	case p.CI != nvml.NoCI:
		want = nvml.ErrInsufficientResources
	}
	got, err := w.d.CreateComputeInstance(w.id, gi)
	if !errors.Is(err, want) {
		w.Errorf("creating compute instance in %d: error %v; want %v", gi, err, want)
	}
	if err == nil {
		if w.uuids[got.UUID] {
			w.Errorf("UUID %s came back", got.UUID)
		}
		w.uuids[got.UUID] = true
		p.CI, p.UUID = got.CI, got.UUID
	}
}

func (w *walker) destroyCI() {
	p, gi := w.any()
	var want error
	switch {
	case p == nil || p.CI == nvml.NoCI:
		want = nvml.ErrNotFound
	case p.holds > 0:
		want = nvml.ErrInUse
	}
	err := w.d.DestroyComputeInstance(w.id, gi, 0)
	if !errors.Is(err, want) {
		w.Errorf("destroying compute instance of %d: error %v; want %v", gi, err, want)
	}
	if err == nil {
		p.CI, p.UUID = nvml.NoCI, ""
	}
}

func (w *walker) destroyGI() {
	p, gi := w.any()
	var want error
	switch {
	case p == nil:
		want = nvml.ErrNotFound
	case p.CI != nvml.NoCI || p.holds > 0:
		want = nvml.ErrInUse
	}
	err := w.d.DestroyGPUInstance(w.id, gi)
	if !errors.Is(err, want) {
		w.Errorf("destroying GPU instance %d: error %v; want %v", gi, err, want)
	}
	if err == nil {
		w.have = slices.DeleteFunc(w.have, func(o *piece) bool { return o == p })
	}
}

// hold adds a holder or, every other time there is one, takes it away.
func (w *walker) hold() {
	p, gi := w.any()
	if p != nil && p.holds > 0 {
		must(w.T, w.d.Release(w.id, gi, 0))
		p.holds--
		return
	}
	var want error
	if p == nil {
		want = nvml.ErrNotFound
	}
	err := w.d.Hold(w.id, Holder{GI: gi})
	if !errors.Is(err, want) {
		w.Errorf("holding GPU instance %d: error %v; want %v", gi, err, want)
	}
	if err == nil {
		p.holds++
	}
}
