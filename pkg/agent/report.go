// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// findings are everything that the report is made of. Equal findings give an equal
// status (I6).
type findings struct {
	nodeUID   types.UID
	inventory *inventory // nil until the GPUs have been listed
	states    []state    // of inventory.gpus
	owners    []ownerView
	trouble   string // why the GPUs cannot be listed
	invalid   string // what is wrong with the newest configuration
	lost      string // why there was no journal
	good      bool   // some configuration was good

	configured bool   // the configuration has an entry for this node
	driverFile string // why no container can be given what it needs of the driver
}

// find collects the findings of this moment.
func (a *Agent) find() findings {
	f := findings{owners: a.owners.view()}
	a.mu.Lock()
	settings := a.settings
	f.driverFile = a.driverFile
	f.inventory, f.trouble, f.invalid, f.good = a.inventory, a.trouble, a.invalid, settings != nil
	a.mu.Unlock()
	_, f.configured = a.entry(settings)
	a.journal.read(func(c *content) { f.nodeUID, f.lost = c.Node.UID, c.Lost })
	if f.inventory != nil {
		for _, gpu := range f.inventory.gpus {
			f.states = append(f.states, gpu.worker.view())
		}
	}
	return f
}

// status is the report, but for the conditions' times.
func (f *findings) status() v1alpha1.GPUNodeStatus {
	s := v1alpha1.GPUNodeStatus{NodeUID: f.nodeUID, Pods: f.pods()}
	if inv := f.inventory; inv != nil {
		s.DriverVersion, s.ConfigGeneration = inv.driverVersion, inv.generation
		for i := range inv.gpus {
			if inv.catalogues[inv.gpus[i].Name] != nil || inv.gpus[i].wanted == v1alpha1.ModeHAMiCore && f.states[i].model != nil {
				s.GPUs = append(s.GPUs, f.gpu(&inv.gpus[i], &f.states[i]))
			}
		}
		s.Models = slices.Clone(inv.models)
	}
	s.Conditions = f.conditions()
	s.Summary = f.summary()
	return s
}

func (f *findings) gpu(gpu *managedGPU, view *state) v1alpha1.GPU {
	out := v1alpha1.GPU{
		UUID: string(gpu.ID), Index: int32(gpu.Index), Model: gpu.Name, MemoryMiB: int64(gpu.MemoryMiB),
		Mode:   v1alpha1.GPUMode{Wanted: gpu.wanted, Current: currentMode(view), Pending: f.pending(gpu, view)},
		Health: v1alpha1.Healthy, NUMA: int32(gpu.NUMANode), Instances: view.instances,
	}
	if view.unhealthy != "" {
		out.Health = v1alpha1.Unhealthy
	}
	ok, why := f.inventory.offers(gpu, view)
	if !ok {
		out.Reason = why
	}
	if ok && gpu.wanted == v1alpha1.ModeHAMiCore {
		out.Shares = gpu.shares
	}
	return out
}

func currentMode(view *state) string {
	if view.mode.Current {
		return v1alpha1.ModeMIG
	}
	return v1alpha1.ModeHAMiCore
}

// pending reports whether a change of mode waits for a reset, or for the GPU to be
// idle.
func (f *findings) pending(gpu *managedGPU, view *state) bool {
	return view.mode.Current != view.mode.Pending || (gpu.wanted == v1alpha1.ModeMIG) != view.mode.Current
}

// pods lists those that are not simply at rest: instances name the others.
func (f *findings) pods() []v1alpha1.PodPreparation {
	var out []v1alpha1.PodPreparation
	for _, o := range f.owners {
		if o.phase != "" && o.phase != v1alpha1.PodPrepared {
			out = append(out, v1alpha1.PodPreparation{UID: o.uid, Phase: o.phase, Reason: v1alpha1.Shorten(o.reason, v1alpha1.MaxReason)})
		}
	}
	return out
}

// summary is what the printer columns show.
func (f *findings) summary() v1alpha1.Summary {
	s := v1alpha1.Summary{Mode: "-", GPUs: "-", Instances: "-", FreeMemorySlices: "-", LargestFreeProfile: "-", Health: f.health()}
	inv := f.inventory
	if inv == nil || len(inv.gpus) == 0 {
		return s
	}
	var modes, models []string
	free, total := 0, 0
	var largest geometry.Profile
	for i := range inv.gpus {
		gpu, view := &inv.gpus[i], &f.states[i]
		modes = append(modes, currentMode(view))
		models = append(models, strings.TrimPrefix(gpu.Name, "NVIDIA "))
		catalogue := inv.catalogues[gpu.Name]
		if catalogue == nil || gpu.wanted != v1alpha1.ModeMIG {
			continue
		}
		total += catalogue.Model().MemorySlices()
		if ok, _ := inv.offers(gpu, view); !ok {
			continue
		}
		occupied := f.occupancy(gpu, view, catalogue.Model())
		free += catalogue.Model().FreeSlices(occupied)
		if p, ok := catalogue.LargestFree(occupied); ok {
			largest = larger(largest, p)
		}
	}
	s.Mode = countEach(modes, func(mode string, n, kinds int) string {
		if kinds == 1 {
			return mode
		}
		return fmt.Sprintf("%s %d", mode, n)
	})
	s.GPUs = countEach(models, func(model string, n, _ int) string { return fmt.Sprintf("%dx %s", n, model) })
	s.Instances = f.instances()
	if total > 0 {
		s.FreeMemorySlices = fmt.Sprintf("%d/%d", free, total)
	}
	if largest.Name != "" {
		s.LargestFreeProfile = largest.Name
	}
	return s
}

// larger compares by memory slices, then compute slices, then memory; of equal
// ones the first.
func larger(a, b geometry.Profile) geometry.Profile {
	if cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(b.ComputeSlices, a.ComputeSlices), cmp.Compare(b.MemoryMiB, a.MemoryMiB)) > 0 {
		return b
	}
	return a
}

// occupancy is what the scheduler sees as taken: placements of live pods, foreign
// and stuck instances.
func (f *findings) occupancy(gpu *managedGPU, view *state, model *geometry.Model) geometry.Occupancy {
	o := blockedBy(view, model)
	for _, owner := range f.owners {
		for _, span := range owner.spans {
			if span.GPU == string(gpu.ID) {
				o = occupy(model, o, span)
			}
		}
	}
	return o
}

// blockedBy is what foreign and stuck instances take.
func blockedBy(view *state, model *geometry.Model) geometry.Occupancy {
	var o geometry.Occupancy
	for _, in := range view.instances {
		if in.State == v1alpha1.InstanceForeign || in.State == v1alpha1.InstanceStuck {
			size := 1
			if p, ok := view.model.Profile(geometry.ProfileID(in.ProfileID)); ok {
				size = p.Size
			}
			o = model.Block(o, geometry.Placement{Start: int(in.Start), Size: size})
		}
	}
	return o
}

// instances counts by state: "3 used, 1 idle".
func (f *findings) instances() string {
	counts := map[v1alpha1.InstanceState]int{}
	for _, view := range f.states {
		for _, in := range view.instances {
			counts[in.State]++
		}
	}
	text := fmt.Sprintf("%d used, %d idle", counts[v1alpha1.InstanceLive], counts[v1alpha1.InstanceIdle])
	if n := counts[v1alpha1.InstanceForeign]; n > 0 {
		text += fmt.Sprintf(", %d foreign", n)
	}
	if n := counts[v1alpha1.InstanceStuck]; n > 0 {
		text += fmt.Sprintf(", %d stuck", n)
	}
	return text
}

// countEach joins the distinct words with their counts, in order of appearance.
func countEach(words []string, text func(word string, n, kinds int) string) string {
	var kinds []string
	counts := map[string]int{}
	for _, w := range words {
		if counts[w] == 0 {
			kinds = append(kinds, w)
		}
		counts[w]++
	}
	parts := make([]string, len(kinds))
	for i, k := range kinds {
		parts[i] = text(k, counts[k], len(kinds))
	}
	return strings.Join(parts, ", ")
}
