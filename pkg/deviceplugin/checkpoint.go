// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// holding is that a container has these slots.
type holding struct {
	PodUID    types.UID
	Container string
	Slots     []string // sorted
}

// checkpoint is what kubelet's checkpoint says about one resource. Kubelet writes
// it, by rename, before it starts a container; pods that have ended stay in it
// until the next pod is admitted.
type checkpoint struct {
	holdings []holding // all containers, plain init containers included; in no order
	offered  []string  // device IDs that were healthy when it was written
}

// checkpointFile is the part of kubelet's format that is read here
// (devicemanager/checkpoint/checkpoint.go). It has no version. The checksum is
// over Go's dump of kubelet's own types and cannot be verified elsewhere.
type checkpointFile struct {
	Data *struct {
		PodDeviceEntries []struct {
			PodUID        types.UID
			ContainerName string
			ResourceName  string
			DeviceIDs     map[string][]string // by NUMA node
		}
		RegisteredDevices map[string][]string // by resource
	}
}

// readCheckpoint reads kubelet's checkpoint. A missing one is empty: kubelet has
// not admitted a pod with devices yet.
func readCheckpoint(path, resource string) (checkpoint, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return checkpoint{}, nil
	}
	var file checkpointFile
	if err == nil {
		err = json.Unmarshal(text, &file)
	}
	if err == nil && file.Data == nil {
		err = errors.New("it has no Data")
	}
	if err != nil {
		return checkpoint{}, fmt.Errorf("reading kubelet's checkpoint %s: %w", path, err)
	}
	c := checkpoint{offered: file.Data.RegisteredDevices[resource]}
	for _, entry := range file.Data.PodDeviceEntries {
		if entry.ResourceName != resource {
			continue
		}
		h := holding{PodUID: entry.PodUID, Container: entry.ContainerName}
		for _, ids := range entry.DeviceIDs {
			h.Slots = append(h.Slots, ids...)
		}
		h.Slots = slices.Compact(sortSlots(h.Slots)) // an ID on two NUMA nodes is there twice
		c.holdings = append(c.holdings, h)
	}
	return c, nil
}

// of lists the holdings of exactly these slots.
func (c checkpoint) of(slots []string) []holding {
	var found []holding
	for _, h := range c.holdings {
		if slices.Equal(h.Slots, slots) {
			found = append(found, h)
		}
	}
	return found
}

// connected lists a pod's containers that share a slot with h, or with one that
// does, and so on; h is among them.
func (c checkpoint) connected(h holding) []holding {
	group := []holding{h}
	for i := 0; i < len(group); i++ {
		for _, other := range c.holdings {
			known := func(g holding) bool { return g.Container == other.Container }
			if other.PodUID == h.PodUID && !slices.ContainsFunc(group, known) && overlap(group[i].Slots, other.Slots) {
				group = append(group, other)
			}
		}
	}
	return group
}

// holders are the pods that hold each slot.
func (c checkpoint) holders() map[string][]types.UID {
	pods := map[string][]types.UID{}
	for _, h := range c.holdings {
		for _, slot := range h.Slots {
			pods[slot] = append(pods[slot], h.PodUID)
		}
	}
	return pods
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// usedSlots is the table to begin with where the state file is missing: slots
// that kubelet has given away are still offered, as not bound, and no new slot gets
// a number that kubelet or a runtime may remember.
func (p *Plugin) usedSlots() (*table, error) {
	c, err := readCheckpoint(p.checkpointPath(), p.config.Resource)
	if err != nil {
		return nil, err
	}
	seen, err := p.config.CDI.Slots()
	if err != nil {
		return nil, err
	}
	t := &table{Slots: map[string]use{}}
	for slot := range c.holders() {
		seen = append(seen, slot)
		if _, ours := slotNumber(slot); ours {
			t.Slots[slot] = use{}
		}
	}
	for _, slot := range append(seen, c.offered...) {
		if number, ours := slotNumber(slot); ours {
			t.Next = max(t.Next, number+1)
		}
	}
	return t, nil
}
