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
