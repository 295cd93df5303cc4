// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package whatif is an nvml.Driver over another one, on which nothing is changed:
// each change is said, and from then on pretended.
//
//	agent --Create--> Driver --says--> "create 2g.10gb at 0 of GPU 0"
//	agent --Instances--> Driver --asks--> the real one; adds and hides
//
// It does not know whether the hardware would have agreed.
package whatif

import (
	"fmt"
	"slices"
	"sync"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Changes are those that were pretended, over all sessions. Safe for parallel use.
type Changes struct {
	Say func(change string) // is told each; one at a time

	mu      sync.Mutex // guards what follows
	next    int        // number of the next pretended GPU instance
	on      map[nvml.GPUID]bool
	created map[nvml.GPUID][]nvml.Instance
	gone    map[nvml.GPUID]map[int]bool // GPU instances of the hardware
	undone  map[nvml.GPUID]map[int]bool // of these, whose compute instance is gone
}

// firstGI is above all numbers that hardware gives.
const firstGI = 1000

// Over makes a session one on which changes are pretended.
func (c *Changes) Over(d nvml.Driver) nvml.Driver {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.on == nil {
		c.on, c.created = map[nvml.GPUID]bool{}, map[nvml.GPUID][]nvml.Instance{}
		c.gone, c.undone = map[nvml.GPUID]map[int]bool{}, map[nvml.GPUID]map[int]bool{}
		c.next = firstGI
	}
	return &driver{Driver: d, changes: c}
}

type driver struct {
	nvml.Driver
	changes *Changes
}

// MIGMode implements nvml.Driver.
func (d *driver) MIGMode(id nvml.GPUID) (nvml.MIGMode, error) {
	mode, err := d.Driver.MIGMode(id)
	d.changes.mu.Lock()
	defer d.changes.mu.Unlock()
	if on, ok := d.changes.on[id]; ok && err == nil {
		mode = nvml.MIGMode{Current: on, Pending: on}
	}
	return mode, err
}

// SetMIGMode implements nvml.Driver.
func (d *driver) SetMIGMode(id nvml.GPUID, on bool) error {
	d.changes.mu.Lock()
	defer d.changes.mu.Unlock()
	d.changes.on[id] = on
	d.changes.Say(fmt.Sprintf("turn MIG mode %s on %s", map[bool]string{true: "on", false: "off"}[on], id))
	return nil
}

// Instances implements nvml.Driver.
func (d *driver) Instances(id nvml.GPUID) ([]nvml.Instance, error) {
	real, err := d.Driver.Instances(id)
	if err != nil {
		return nil, err
	}
	c := d.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []nvml.Instance
	for _, in := range real {
		if c.gone[id][in.GI] {
			continue
		}
		if c.undone[id][in.GI] {
			in.CI, in.UUID = nvml.NoCI, ""
		}
		out = append(out, in)
	}
	out = append(out, c.created[id]...)
	slices.SortFunc(out, func(a, b nvml.Instance) int { return a.Start - b.Start })
	return out, nil
}

// CreateGPUInstance implements nvml.Driver.
func (d *driver) CreateGPUInstance(id nvml.GPUID, profile nvml.ProfileID, start int) (nvml.Instance, error) {
	name := fmt.Sprintf("profile %d", profile)
	profiles, err := d.Driver.Profiles(id)
	if err != nil {
		return nvml.Instance{}, err
	}
	for _, p := range profiles {
		if p.ID == profile {
			name = p.Name
		}
	}
	c := d.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	in := nvml.Instance{GPU: id, Profile: profile, Start: start, GI: c.next, CI: nvml.NoCI}
	c.next++
	c.created[id] = append(c.created[id], in)
	c.Say(fmt.Sprintf("create %s at %d on %s", name, start, id))
	return in, nil
}

// CreateComputeInstance implements nvml.Driver.
func (d *driver) CreateComputeInstance(id nvml.GPUID, gi int) (nvml.Instance, error) {
	c := d.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.created[id] {
		if in := &c.created[id][i]; in.GI == gi {
			in.CI, in.UUID = 0, fmt.Sprintf("MIG-of-%d", gi)
			return *in, nil
		}
	}
	return nvml.Instance{}, fmt.Errorf("completing GPU instance %d of %s, which the hardware has, is not pretended: %w", gi, id, nvml.ErrNotSupported)
}

// DestroyComputeInstance implements nvml.Driver.
func (d *driver) DestroyComputeInstance(id nvml.GPUID, gi, _ int) error {
	c := d.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.undone[id] == nil {
		c.undone[id] = map[int]bool{}
	}
	c.undone[id][gi] = true
	return nil
}

// DestroyGPUInstance implements nvml.Driver.
func (d *driver) DestroyGPUInstance(id nvml.GPUID, gi int) error {
	c := d.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone[id] == nil {
		c.gone[id] = map[int]bool{}
	}
	c.gone[id][gi] = true
	c.created[id] = slices.DeleteFunc(c.created[id], func(in nvml.Instance) bool { return in.GI == gi })
	c.Say(fmt.Sprintf("destroy GPU instance %d on %s", gi, id))
	return nil
}
