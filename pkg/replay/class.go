// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/pool"
)

// class is all jobs that ask for the same.
type class struct {
	devices int
	want    geometry.Want
	weight  float64 // devices asked for over the whole trace

	// sizes has the smallest adequate profile by model of the fleet: what a job of
	// this class uses there. The zero value where the model has none.
	sizes []size
	// least is the number of memory slices of a device on the model where it takes
	// fewest; 0 where no model can hold it.
	least int
}

// size is what one device uses.
type size struct {
	entry   geometry.Entry
	memory  int // slices; 0 where nothing is adequate
	compute int // slices
}

// classes groups jobs. The second result has the class of each job.
func (f *Fleet) classes(jobs []Job, oversize bool) ([]class, []int) {
	type key struct {
		devices int
		want    geometry.Want
	}
	known := map[key]int{}
	var found []class
	of := make([]int, len(jobs))
	for i, job := range jobs {
		k := key{job.Devices, job.Want}
		at, ok := known[k]
		if !ok {
			at = len(found)
			known[k] = at
			want := job.Want
			want.Oversize = oversize
			found = append(found, f.class(job.Devices, want))
		}
		found[at].weight += float64(job.Devices)
		of[i] = at
	}
	return found, of
}

// class resolves a want on every model.
func (f *Fleet) class(devices int, want geometry.Want) class {
	c := class{devices: devices, want: want, sizes: make([]size, len(f.models))}
	for i, m := range f.models {
		entry, ok := m.catalogue.Can(want)
		if !ok {
			continue
		}
		p, _ := m.catalogue.Model().Profile(entry.Profile)
		c.sizes[i] = size{entry: entry, memory: p.Size, compute: p.ComputeSlices}
		if c.least == 0 || p.Size < c.least {
			c.least = p.Size
		}
	}
	return c
}

// mix is how often each profile of a model is asked for, by devices.
func mix(classes []class, model int) map[geometry.ProfileID]float64 {
	weights := map[geometry.ProfileID]float64{}
	for i := range classes {
		if s := classes[i].sizes[model]; s.memory > 0 {
			weights[s.entry.Profile] += classes[i].weight
		}
	}
	return weights
}

// answers checks that each board of the fleet can say what suits each job.
func (f *Fleet) answers(trace *Trace) error {
	checked := map[geometry.Want]bool{}
	for _, job := range trace.Jobs {
		if checked[job.Want] {
			continue
		}
		checked[job.Want] = true
		if name := job.Want.Profile; name != "" && !f.has(name) {
			return fmt.Errorf("%s:%d:%d: the job asks for profile %q, which no board of the fleet has; %s has %s",
				trace.File, job.Line, job.Column, name, f.models[0].board.Key, f.models[0].names())
		}
		for _, m := range f.models {
			if p, unknown := m.unknown(job.Want); unknown {
				return fmt.Errorf("%s:%d:%d: the job asks for %s, and how much memory %s of %s has is not known; ask by profile or by gpucores alone, or use another board",
					trace.File, job.Line, job.Column, pool.Describe(job.Want), p.Name, m.board.Key)
			}
		}
	}
	return nil
}

// has reports whether any board has a profile of that name.
func (f *Fleet) has(profile string) bool {
	return slices.ContainsFunc(f.models, func(m *model) bool {
		_, ok := m.catalogue.Model().ByName(profile)
		return ok
	})
}

// names lists the model's profiles.
func (m *model) names() string {
	var names []string
	for _, p := range m.catalogue.Model().Profiles() {
		names = append(names, p.Name)
	}
	return strings.Join(names, ", ")
}

// unknown finds the smallest profile that may be the answer to a want by memory,
// and whose memory nobody knows.
func (m *model) unknown(w geometry.Want) (geometry.Profile, bool) {
	if w.MemoryMiB <= 0 || w.Profile != "" || w.Full {
		return geometry.Profile{}, false
	}
	exact := m.slices() + 1 // of the known answer
	if entry, ok := m.catalogue.Can(w); ok {
		p, _ := m.catalogue.Model().Profile(entry.Profile)
		exact = p.Size
	}
	short := 0 // of the largest that is known to be too small
	for _, e := range m.catalogue.Entries() {
		if p, _ := m.catalogue.Model().Profile(e.Profile); e.MemoryMiB > 0 && e.MemoryMiB < w.MemoryMiB {
			short = max(short, p.Size)
		}
	}
	for _, e := range m.catalogue.Entries() {
		p, _ := m.catalogue.Model().Profile(e.Profile)
		if e.MemoryMiB == 0 && !p.Special() && p.Size > short && p.Size < exact {
			return p, true
		}
	}
	return geometry.Profile{}, false
}
