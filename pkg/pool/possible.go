// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Possible reports whether the pool's hardware could ever hold r, and says what is
// too much otherwise. It looks at models, not at nodes: its cost does not grow
// with the cluster.
func (p *Pool) Possible(r *Request) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	mig, share := r.MIG && len(p.models) > 0, r.Share && len(p.shares) > 0
	switch {
	case len(p.models)+len(p.shares) == 0:
		return invalid("no node offers GPUs yet: no GPUNode reports a usable GPU; kubectl mig status says why, node by node")
	case !mig && !share:
		return nil // Fit says so for each node
	}
	most := p.largest()
	if n := r.wholeGPUs(); n > most.gpus {
		return invalid("the pod asks for %d whole GPUs with %s; the largest node can hold %d", n, p.Names().Count, most.gpus)
	}
	if n := len(r.Devices); n > most.devices {
		return invalid("the pod asks for %d devices of %s; the largest node can hold %d", n, p.Names().Count, most.devices)
	}
	for i, w := range r.Devices {
		if mig && p.cuttable(w) || share && p.shareable(r.Shares[i]) {
			continue
		}
		if w.Profile != "" {
			return invalid("%s asks for %s; no GPU in the cluster can be cut into that, on offer are %s", field(w, p.Names()), Describe(w), p.profiles())
		}
		return invalid("%s asks for %s; no GPU in the cluster can %s", field(w, p.Names()), Describe(w), p.limits(mig, share))
	}
	return nil
}

// mostProfiles is how many profiles a message lists.
const mostProfiles = 16

// profiles lists what GPUs offer, the smallest first: "1g.5gb, 2g.10gb and 3g.20gb".
func (p *Pool) profiles() string {
	known := map[string]geometry.Profile{}
	for c := range p.models {
		for _, e := range c.Entries() {
			if profile, ok := c.Model().Profile(e.Profile); ok {
				known[profile.Name] = profile
			}
		}
	}
	names := SmallestFirst(known)
	if n := len(names); n > mostProfiles {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:mostProfiles], ", "), n-mostProfiles)
	}
	return strings.Join(names, ", ")
}

// SmallestFirst lists the names of profiles by size, memory and name.
func SmallestFirst(known map[string]geometry.Profile) []string {
	return slices.SortedFunc(maps.Keys(known), func(a, b string) int {
		return cmp.Or(cmp.Compare(known[a].Size, known[b].Size), cmp.Compare(known[a].MemoryMiB, known[b].MemoryMiB), cmp.Compare(a, b))
	})
}

func (p *Pool) cuttable(w geometry.Want) bool {
	for c := range p.models {
		if _, ok := c.Can(w); ok {
			return true
		}
	}
	return false
}

func (p *Pool) shareable(w ShareWant) bool {
	for c := range p.shares {
		if _, ok := w.on(&c); ok {
			return true
		}
	}
	return false
}

// limits says what is the most that GPUs offer in some modes.
func (p *Pool) limits(mig, share bool) string {
	var parts []string
	if mig {
		most, name := -1, ""
		for c := range p.models {
			if e, profile := largest(c); e.MemoryMiB > most || (e.MemoryMiB == most && profile.Name < name) {
				most, name = e.MemoryMiB, profile.Name
			}
		}
		parts = append(parts, fmt.Sprintf("be cut into that, the largest profile on offer is %s with %d MiB", name, most))
	}
	if share {
		var most int64
		for c := range p.shares {
			most = max(most, c.MemoryMiB)
		}
		parts = append(parts, fmt.Sprintf("be shared as that, the most on offer is %d MiB", most))
	}
	return strings.Join(parts, ", or ")
}

// field names the part of the pod that a want came from.
func field(w geometry.Want, names v1alpha1.Resources) string {
	switch {
	case w.Profile != "":
		return fmt.Sprintf("annotation %s", v1alpha1.AnnotationProfile)
	case w.MemoryMiB > 0:
		return fmt.Sprintf("limit %s", names.Memory)
	case w.Percent > 0:
		return fmt.Sprintf("limit %s", names.MemoryPercentage)
	case w.Cores > 0:
		return fmt.Sprintf("limit %s", names.Cores)
	default:
		return fmt.Sprintf("limit %s", names.Count)
	}
}
