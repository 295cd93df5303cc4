// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"sync"

	"github.com/dynamig/dynamig/pkg/nvml"
)

var errDead = errors.New("the process is dead")

// power lets an agent die at a step. A step is a driver call that changes
// something, or a write of the journal. From then on nothing has an effect.
type power struct {
	mu    sync.Mutex // guards what follows
	steps int
	dieAt int  // number of the step, from 1; 0 = never
	after bool // the step is done, but nobody learns of it
	dead  bool
	names []string
}

// step does f, unless the process is dead or dies. The lock is not held over f,
// which may take (fake) time.
func (p *power) step(name string, f func() error) error {
	p.mu.Lock()
	if p.dead {
		p.mu.Unlock()
		return errDead
	}
	p.steps++
	p.names = append(p.names, name)
	p.dead = p.steps == p.dieAt
	dies, after := p.dead, p.after
	p.mu.Unlock()
	if !dies {
		return f()
	}
	if after {
		_ = f()
	}
	return errDead
}

// look does f, which changes nothing, unless the process is dead.
func (p *power) look(f func() error) error {
	p.mu.Lock()
	dead := p.dead
	p.mu.Unlock()
	if dead {
		return errDead
	}
	return f()
}

// powered is a driver that needs power.
type powered struct {
	nvml.Driver
	power *power
}

func (d *powered) Instances(id nvml.GPUID) (out []nvml.Instance, err error) {
	err = d.power.look(func() error {
		out, err = d.Driver.Instances(id)
		return err
	})
	return out, err
}

func (d *powered) SetMIGMode(id nvml.GPUID, on bool) error {
	return d.power.step("SetMIGMode", func() error { return d.Driver.SetMIGMode(id, on) })
}

func (d *powered) CreateGPUInstance(id nvml.GPUID, profile nvml.ProfileID, start int) (out nvml.Instance, err error) {
	err = d.power.step("CreateGPUInstance", func() error {
		out, err = d.Driver.CreateGPUInstance(id, profile, start)
		return err
	})
	return out, err
}

func (d *powered) CreateComputeInstance(id nvml.GPUID, gi int) (out nvml.Instance, err error) {
	err = d.power.step("CreateComputeInstance", func() error {
		out, err = d.Driver.CreateComputeInstance(id, gi)
		return err
	})
	return out, err
}

func (d *powered) DestroyComputeInstance(id nvml.GPUID, gi, ci int) error {
	return d.power.step("DestroyComputeInstance", func() error { return d.Driver.DestroyComputeInstance(id, gi, ci) })
}

func (d *powered) DestroyGPUInstance(id nvml.GPUID, gi int) error {
	return d.power.step("DestroyGPUInstance", func() error { return d.Driver.DestroyGPUInstance(id, gi) })
}
