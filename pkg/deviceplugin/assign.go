// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxSteps bounds the search; a pod that needs more has some dozen containers
// with init containers made to defeat it.
const maxSteps = 100_000

// demand is one container's part in an assignment.
type demand struct {
	container string
	slots     []string // sorted
	devices   []string // keys, in annotation order
}

// check returns an error unless there is one device for each slot.
func (d demand) check() error {
	if len(d.slots) != len(d.devices) {
		return fmt.Errorf("container %s holds %d slots (%s), its allocation names %d devices (%s); delete the pod",
			d.container, len(d.slots), strings.Join(d.slots, " "), len(d.devices), strings.Join(d.devices, " "))
	}
	seen := map[string]bool{}
	for _, key := range d.devices {
		if seen[key] {
			return fmt.Errorf("container %s is to get device %s twice; delete the pod", d.container, key)
		}
		seen[key] = true
	}
	return nil
}

// assign gives each slot of the demands a device, so that each container's slots
// stand for exactly its devices. Slots that are bound keep their device. Of the
// rest, the lowest slot takes the first device that is possible, in the order of
// the smallest container that holds the slot; equal input gives an equal answer.
//
// More than one demand comes from plain init containers: kubelet gives their slots
// to later containers of the pod in random order, and a slot cannot change its
// device between them. Looking at one container at a time would bind an init
// container's two slots so that the two app containers, one slot each, no longer
// have their own device.
func assign(demands []demand, bound map[string]string) (map[string]string, error) {
	a := assignment{holders: map[string][]demand{}, used: map[string]map[string]bool{}, given: map[string]string{}}
	for _, d := range slices.SortedFunc(slices.Values(demands), smallest) {
		if err := d.check(); err != nil {
			return nil, err
		}
		a.used[d.container] = map[string]bool{}
		for _, slot := range d.slots {
			a.holders[slot] = append(a.holders[slot], d)
		}
	}
	var open []string
	for _, slot := range sortSlots(slices.Collect(maps.Keys(a.holders))) {
		device, isBound := bound[slot]
		switch {
		case !isBound:
			open = append(open, slot)
		case !a.give(slot, device):
			return nil, fmt.Errorf("container %s holds slot %s, which is bound to device %s, which is not one of its own; delete the pod",
				a.holders[slot][0].container, slot, device)
		}
	}
	if !a.fill(open) {
		return nil, fmt.Errorf("container %s: %w", demands[0].container, errNoAssignment)
	}
	return a.given, nil
}

func smallest(a, b demand) int {
	return cmp.Or(cmp.Compare(len(a.devices), len(b.devices)), cmp.Compare(a.container, b.container))
}

// assignment is a partial one, and what is needed to extend it.
type assignment struct {
	holders map[string][]demand        // by slot, smallest first
	used    map[string]map[string]bool // by container: its devices that have a slot
	given   map[string]string          // device by slot
	steps   int
}

// fill assigns the slots, in their order, with backtracking.
func (a *assignment) fill(slots []string) bool {
	if len(slots) == 0 {
		return true
	}
	for _, device := range a.holders[slots[0]][0].devices {
		if a.steps++; a.steps > maxSteps {
			return false
		}
		if !a.give(slots[0], device) {
			continue
		}
		if a.fill(slots[1:]) {
			return true
		}
		a.take(slots[0])
	}
	return false
}

// give assigns a device to a slot, if all containers that hold the slot have it to give.
func (a *assignment) give(slot, device string) bool {
	for _, d := range a.holders[slot] {
		if a.used[d.container][device] || !slices.Contains(d.devices, device) {
			return false
		}
	}
	for _, d := range a.holders[slot] {
		a.used[d.container][device] = true
	}
	a.given[slot] = device
	return true
}

// take is the inverse of give.
func (a *assignment) take(slot string) {
	for _, d := range a.holders[slot] {
		delete(a.used[d.container], a.given[slot])
	}
	delete(a.given, slot)
}
