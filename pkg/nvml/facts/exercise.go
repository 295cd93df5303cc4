// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Exercise creates and destroys an instance at each placement of GPU index, and
// adds to its record what that gave. The GPU must be in MIG mode, have no instance
// and no process. It stops at the first instance that cannot be destroyed. Instances
// that do not say what they offer are in the error, and it goes on.
func Exercise(d nvml.Driver, node *Node, index int) error {
	gpus, err := d.GPUs(nil)
	if len(gpus) == 0 && err != nil {
		return err
	}
	// A GPU that does not answer is in no list: the place in one is not the index.
	at := slices.IndexFunc(gpus, func(gpu nvml.GPU) bool { return gpu.Index == index })
	if at < 0 || len(gpus) != len(node.GPUs) {
		return errors.Join(fmt.Errorf("exercising GPU %d: it is not among the %d GPUs that answer; name one of them", index, len(gpus)), err)
	}
	id, g := gpus[at].ID, &node.GPUs[at]
	if err := idle(d, id); err != nil {
		return fmt.Errorf("exercising GPU %d: %w", index, err)
	}
	var silent error
	for _, p := range g.Profiles {
		for _, start := range p.Starts {
			t, asked, left := g.try(d, id, p.ID, start)
			g.Exercise = append(g.Exercise, t)
			silent = errors.Join(silent, asked)
			if left != nil {
				return fmt.Errorf("exercising GPU %d: %w", index, errors.Join(silent, left))
			}
		}
	}
	if silent != nil {
		return fmt.Errorf("exercising GPU %d: %w", index, silent)
	}
	return nil
}

// idle refuses a GPU that anybody uses.
func idle(d nvml.Driver, id nvml.GPUID) error {
	mode, err := d.MIGMode(id)
	if err != nil {
		return err
	}
	if !mode.Current {
		return errors.New("MIG mode is off; turn it on first")
	}
	instances, err := d.Instances(id)
	if err != nil {
		return err
	}
	processes, err := d.Processes(id, nvml.WholeGPU)
	if err != nil {
		return err
	}
	if len(instances)+len(processes) > 0 {
		return fmt.Errorf("it has %d instances and %d processes; choose an empty GPU", len(instances), len(processes))
	}
	return nil
}

// try creates and destroys one instance, and records what it offers meanwhile. What
// the driver refuses is in the trial; asked is why the instance does not say what it
// offers, and left why something is left behind.
func (g *GPU) try(d nvml.Driver, id nvml.GPUID, profile, start int) (t Trial, asked, left error) {
	t = Trial{ID: profile, Start: start, GI: -1, CI: nvml.NoCI}
	began := time.Now()
	gi, err := d.CreateGPUInstance(id, nvml.ProfileID(profile), start)
	if err != nil {
		t.Error = err.Error()
		return t, nil, nil
	}
	t.GI = gi.GI
	whole, err := d.CreateComputeInstance(id, gi.GI)
	t.CreateMillis = time.Since(began).Milliseconds()
	asked = g.askCompute(d, gi)
	began = time.Now()
	if err != nil {
		t.Error = err.Error()
	} else {
		t.CI = whole.CI
		if err := d.DestroyComputeInstance(id, gi.GI, whole.CI); err != nil {
			t.Error = err.Error()
			return t, asked, err
		}
	}
	left = d.DestroyGPUInstance(id, gi.GI)
	t.DestroyMillis = time.Since(began).Milliseconds()
	if left != nil {
		t.Error = left.Error()
	}
	return t, asked, left
}
