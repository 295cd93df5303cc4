// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"sync/atomic"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// tableCache has the tables of a request's devices for each catalogue that it has
// met. They are looked up once; afterwards a decision is a look-up for each GPU.
type tableCache struct{ known atomic.Pointer[[]tablesOn] }

// tablesOn are a request's tables on one catalogue, by device.
type tablesOn struct {
	catalogue *geometry.Catalogue
	tables    []*geometry.Table
	bands     []int64 // added to the table's cost; see Request.band
}

// on returns the tables on a catalogue. Safe for parallel use.
func (r *Request) on(c *geometry.Catalogue) *tablesOn {
	if known := r.tables.known.Load(); known != nil {
		for i := range *known {
			if on := &(*known)[i]; on.catalogue == c {
				return on
			}
		}
	}
	return r.meet(c)
}

// meet adds the tables on a catalogue to those that are known.
func (r *Request) meet(c *geometry.Catalogue) *tablesOn {
	priced := r.prices.on(c)
	made := tablesOn{catalogue: c, tables: make([]*geometry.Table, len(r.Devices)), bands: make([]int64, len(r.Devices))}
	for i, w := range r.Devices {
		made.tables[i] = priced.Table(w, r.Policy.GPU)
		made.bands[i] = r.band(i, c, made.tables[i])
	}
	var more []tablesOn
	if known := r.tables.known.Load(); known != nil {
		more = slices.Clip(*known)
	}
	more = append(more, made)
	r.tables.known.Store(&more) // if another was faster, it is looked up again
	return &more[len(more)-1]
}

// cheapest is the instance for one device that costs least on a simple node, where
// GPUs are in these states, with its band; nil if there is none. It is a look-up for
// each GPU.
func (n *Node) cheapest(r *Request, device int, cut []geometry.State) (gpu int, c *geometry.Choice, cost, band int64) {
	if len(n.runs) == 1 { // nearly always: no bands to compare, which take as long as all the rest
		on := r.on(n.one[0].catalogue)
		gpu, c, cost = on.tables[device].Cheapest(cut)
		return gpu, c, cost, on.bands[device]
	}
	least := geometry.NoCost // with the band
	for i := range n.runs {
		run := &n.runs[i]
		on := r.on(run.catalogue)
		at, choice, here := on.tables[device].Cheapest(cut[run.from:run.to])
		if choice != nil && here+on.bands[device] < least {
			gpu, c, cost, band = run.from+at, choice, here, on.bands[device]
			least = cost + band
		}
	}
	return gpu, c, cost, band
}

// simple reports whether all of the node's GPUs are alike to a request: none
// shared, none avoided, none refused by the pod.
func (v *View) simple(r *Request) bool {
	return v.Node.simple && r.MIG && r.Select.acceptsAll()
}

// first is the preferred instance for a device on one GPU.
func (v *View) first(r *Request, device, gpu int, cut geometry.State) (Assigned, bool) {
	t := r.on(v.Node.GPUs[gpu].Catalogue).tables[device]
	for _, c := range t.Choices(cut) {
		if !v.avoids(gpu, c.Placed) {
			return Assigned{GPU: gpu, Choice: c, cost: t.CostOf(cut, c)}, true
		}
	}
	return Assigned{}, false
}

// avoids reports whether a placement is not to be chosen though it may be free.
func (v *View) avoids(gpu int, p geometry.Placed) bool {
	return !v.regardless && slices.Contains(v.Node.GPUs[gpu].avoided, p)
}
