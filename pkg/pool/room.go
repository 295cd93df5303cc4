// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// maxSteps bounds a search for several devices, beyond which nothing is known. A
// step is below a microsecond. Realistic mixes need a few thousand.
const maxSteps = 100_000

// stepsOfTry is what it counts to try a place for a device.
const stepsOfTry = 5

// maxKinds is how many different wants a search can tell apart. A model has less
// than a dozen profiles.
const maxKinds = 16

// needs are numbers of devices, by kind of want.
type needs [maxKinds]uint8

// less is what of n is left beside h.
func (n needs) less(h *needs) needs {
	for i := range n {
		n[i] -= min(n[i], h[i])
	}
	return n
}

// covers reports whether n has all of h.
func (n *needs) covers(h *needs) bool {
	for i := range n {
		if n[i] < h[i] {
			return false
		}
	}
	return true
}

// room answers whether a node holds the rest of a request's devices. It knows for
// each GPU all that can be had of it together, and looks for one such set of each
// GPU that come to all devices. That is exact, and small: devices with equal
// answers are one kind, GPUs with equal states have equal sets, and what has
// failed once on the GPUs from some position on is not tried again.
type room struct {
	*search
	kinds []int // by position in the order
	first []int // a device of each kind
	total needs // of all devices
	sets  map[look][]needs

	dead map[rest]struct{} // for the states now
	most []needs           // by GPU: the most of each kind that it and those after it hold
}

// rest is what is left to place on the GPUs from one on.
type rest struct {
	gpu  int
	left needs
}

func newRoom(s *search) *room {
	r := &room{search: s, sets: map[look][]needs{}}
	for _, device := range s.order {
		kind := slices.IndexFunc(r.first, func(other int) bool { return s.alike(device, other) })
		if kind < 0 {
			kind = len(r.first)
			r.first = append(r.first, device)
		}
		r.kinds = append(r.kinds, kind)
		if kind < maxKinds {
			r.total[kind]++
		}
	}
	return r
}

// alike reports whether two devices have the same tables on all GPUs.
func (s *search) alike(a, b int) bool {
	for i := range s.view.Node.GPUs {
		on := s.request.on(s.view.Node.GPUs[i].Catalogue)
		if on.tables[a] != on.tables[b] {
			return false
		}
	}
	return true
}

// holds reports whether the devices from position i of the order on have room
// beside all that is there now.
func (r *room) holds(i int) bool {
	if len(r.first) > maxKinds || len(r.order) > 255 {
		r.steps = maxSteps + 1
		return false
	}
	var left needs
	for _, kind := range r.kinds[i:] {
		left[kind]++
	}
	gpus := len(r.view.Node.GPUs)
	r.dead, r.most = map[rest]struct{}{}, make([]needs, gpus+1)
	for g := gpus - 1; g >= 0; g-- {
		r.most[g] = r.most[g+1]
		for _, set := range r.setsOf(g) {
			for kind := range r.first {
				r.most[g][kind] = max(r.most[g][kind], uint8(min(255, int(r.most[g+1][kind])+int(set[kind]))))
			}
		}
	}
	return r.fits(rest{0, left})
}

// fits tries the sets of the GPU, and then of those after it.
func (r *room) fits(want rest) bool {
	if want.left == (needs{}) {
		return true
	}
	if want.gpu == len(r.view.Node.GPUs) || !r.most[want.gpu].covers(&want.left) {
		return false
	}
	if _, dead := r.dead[want]; dead {
		return false
	}
	sets := r.setsOf(want.gpu)
	for i := range sets {
		if r.steps++; r.exceeded() {
			return false
		}
		if r.fits(rest{want.gpu + 1, want.left.less(&sets[i])}) {
			return true
		}
	}
	r.dead[want] = struct{}{}
	return false
}

// setsOf lists what can be had together of a GPU as it is now, without sets that
// others cover, the largest first; at least the empty one.
func (r *room) setsOf(gpu int) []needs {
	g := &r.view.Node.GPUs[gpu]
	key := look{g.Catalogue, r.cut[gpu]}
	if len(g.avoided) > 0 {
		return r.fill(gpu, key)
	}
	sets, known := r.sets[key]
	if !known {
		sets = r.fill(gpu, key)
		r.sets[key] = sets
	}
	return sets
}

// fill finds the sets of a GPU.
func (r *room) fill(gpu int, at look) []needs {
	f := filler{room: r, gpu: gpu, catalogue: at.catalogue, seen: map[filled]struct{}{}, sets: map[needs]struct{}{}}
	f.fill(filled{state: at.state})
	var sets []needs
	for n := range f.sets {
		covered := false
		for other := range f.sets {
			if other != n && other.covers(&n) {
				covered = true
				break
			}
		}
		if !covered {
			sets = append(sets, n)
		}
	}
	slices.SortFunc(sets, func(a, b needs) int { return slices.Compare(b[:], a[:]) })
	return sets
}

// filler fills one GPU in all ways, one kind after the other.
type filler struct {
	*room
	gpu       int
	catalogue *geometry.Catalogue
	seen      map[filled]struct{}
	sets      map[needs]struct{}
}

// filled is a GPU with some devices on it, of kinds up to one.
type filled struct {
	state geometry.State
	kind  int
	has   needs
}

func (f *filler) fill(at filled) {
	if _, again := f.seen[at]; again {
		return
	}
	if f.steps++; f.exceeded() {
		return
	}
	f.seen[at] = struct{}{}
	if at.kind == len(f.first) {
		f.sets[at.has] = struct{}{}
		return
	}
	if at.has[at.kind] < f.total[at.kind] {
		more := at
		more.has[at.kind]++
		for _, more.state = range f.successors(at) {
			f.fill(more)
		}
	}
	at.kind++
	f.fill(at)
}

// successors are the states after one more device of the kind.
func (f *filler) successors(at filled) []geometry.State {
	t := f.request.on(f.catalogue).tables[f.first[at.kind]]
	if len(f.view.Node.GPUs[f.gpu].avoided) == 0 {
		return t.Successors(at.state)
	}
	var next []geometry.State
	for _, c := range t.Choices(at.state) {
		if after, ok := f.catalogue.Then(at.state, c.Placed); ok && !f.view.avoids(f.gpu, c.Placed) {
			next = append(next, after)
		}
	}
	return next
}
