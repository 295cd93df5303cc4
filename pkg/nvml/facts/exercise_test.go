// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package facts_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/facts"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// silent leaves GPU 0 out of listings, as a driver does with one that does not answer.
type silent struct{ nvml.Driver }

func (d silent) GPUs(skip func(nvml.GPUID, int) bool) ([]nvml.GPU, error) {
	gpus, err := d.Driver.GPUs(skip)
	return gpus[1:], errors.Join(err, errors.New("GPU 0: it is silent"))
}

func TestExerciseTakesTheGPUWithTheIndex(t *testing.T) {
	root := t.TempDir()
	spec := sim.GPUSpec{Board: "A30-24GB", MIG: true}
	if err := sim.Create(root, sim.Spec{Seed: t.Name(), PlainDevices: true, GPUs: []sim.GPUSpec{spec, spec, spec}}); err != nil {
		t.Fatal(err)
	}
	session, err := sim.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	d := silent{session}
	node, err := facts.Record(d, facts.Source{})
	if err == nil || !strings.Contains(err.Error(), "GPU 0: it is silent") {
		t.Fatalf("Record = %v; want an error that names GPU 0", err)
	}
	if err := facts.Exercise(d, &node, 1); err != nil {
		t.Fatal(err)
	}
	if len(node.GPUs) != 2 || len(node.GPUs[0].Exercise) == 0 || len(node.GPUs[1].Exercise) != 0 {
		t.Errorf("of %d GPUs that answer, GPU 1 was not the one that was exercised", len(node.GPUs))
	}
	for _, index := range []int{0, 3, -1} {
		if err := facts.Exercise(d, &node, index); err == nil || !strings.Contains(err.Error(), "GPU 0: it is silent") {
			t.Errorf("exercising GPU %d = %v; want an error that says why it is not there", index, err)
		}
	}
}

// mute is a driver whose instances do not say what they offer.
type mute struct {
	nvml.Driver
	why error
}

func (d mute) ComputeProfiles(nvml.GPUID, int) ([]nvml.ComputeProfile, error) { return nil, d.why }

// An instance that does not say what it offers costs that part of the record only, and
// is not taken for one that the driver refused.
func TestInstanceThatDoesNotSayWhatItOffers(t *testing.T) {
	for _, tt := range []struct {
		why  error
		says bool
	}{
		{nvml.ErrNotFound, false},
		{nvml.ErrNotSupported, false},
		{nvml.ErrUnknown, true},
	} {
		t.Run(tt.why.Error(), func(t *testing.T) {
			root := t.TempDir()
			spec := sim.GPUSpec{Board: "A30-24GB", MIG: true}
			if err := sim.Create(root, sim.Spec{Seed: t.Name(), PlainDevices: true, GPUs: []sim.GPUSpec{spec, spec}}); err != nil {
				t.Fatal(err)
			}
			session, err := sim.Open(root)
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			gpus, err := session.GPUs(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := session.CreateGPUInstance(gpus[0].ID, 14, 0); err != nil {
				t.Fatal(err)
			}
			d := mute{session, tt.why}
			node, err := facts.Record(d, facts.Source{})
			if len(node.GPUs) != 2 || len(node.GPUs[0].Profiles) == 0 {
				t.Fatalf("%d GPUs were recorded, want both with their profiles: %v", len(node.GPUs), err)
			}
			if said := err != nil && strings.Contains(err.Error(), "asking the instances of GPU 0"); said != tt.says {
				t.Errorf("Record = %v; names GPU 0: %t, want %t", err, said, tt.says)
			}
			err = facts.Exercise(d, &node, 1)
			if said := errors.Is(err, tt.why); said != tt.says {
				t.Errorf("Exercise = %v; want an error: %t", err, tt.says)
			}
			trials := node.GPUs[1].Exercise
			places := 0
			for _, p := range node.GPUs[1].Profiles {
				places += len(p.Starts)
			}
			if len(trials) != places {
				t.Errorf("%d trials, want one for each of %d placements", len(trials), places)
			}
			for _, trial := range trials {
				if trial.Error != "" || trial.CI < 0 {
					t.Errorf("profile %d at %d counts as refused: %q", trial.ID, trial.Start, trial.Error)
				}
			}
		})
	}
}
