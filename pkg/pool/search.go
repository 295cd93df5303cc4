// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// maxGroups bounds how many groups of devices may each have a mode of their own:
// pods with more get one mode for all of them.
const maxGroups = 4

// search finds the best plan over the modes that each group of devices may have.
func (v *View) search(r *Request) (best Plan, out outcome) {
	modes := v.considered(r)
	groups := r.groups()
	count := 1 + slices.Max(groups)
	tries := 1
	if modes == mig|share {
		tries = 1 << min(count, maxGroups)
	}
	for try := range tries {
		s := newSearch(v, r, groups)
		for g := range s.modes {
			switch {
			case modes != mig|share:
				s.modes[g] = modes
			case try>>min(g, maxGroups-1)&1 == 0:
				s.modes[g] = share
			default:
				s.modes[g] = mig
			}
		}
		s.any = modes
		switch {
		case s.run():
			if plan := s.plan(); out != found || plan.Score < best.Score {
				best, out = plan, found
			}
		case s.exceeded() && out == none:
			out = exceeded
		}
	}
	return best, out
}

// considered are the modes that the request allows and the node has.
func (v *View) considered(r *Request) (m mode) {
	for i := range v.Node.GPUs {
		if v.Node.GPUs[i].Offered {
			m |= mig
		}
		if v.Node.GPUs[i].Shares != nil {
			m |= share
		}
	}
	return m & r.modes()
}

// groups numbers, by device, the sets of devices that must be of one mode: those
// of a container, and of all containers that have a device in common; from 0, in the
// order of their first device. A device that stands alone has none, -1.
func (r *Request) groups() []int {
	before := make([]int, len(r.Devices)) // a device of the same set, the first of it itself
	for i := range before {
		before[i] = i
	}
	first := func(device int) int {
		for before[device] != device {
			before[device] = before[before[device]] // so that the way is short the next time
			device = before[device]
		}
		return device
	}
	for _, devices := range r.Containers {
		for _, d := range devices {
			a, b := first(d), first(devices[0])
			before[max(a, b)] = min(a, b)
		}
	}
	of, next := make([]int, len(r.Devices)), 0
	for i := range of {
		switch {
		case !r.joint[i]:
			of[i] = -1
		case first(i) < i:
			of[i] = of[first(i)]
		default:
			of[i] = next
			next++
		}
	}
	return of
}

// search is one depth-first search over the devices of a request, with the modes
// of the groups given.
type search struct {
	view    *View
	request *Request
	order   []int // devices, largest want first
	group   []int // by device, -1 for those that stand alone
	modes   []mode
	any     mode // of devices that stand alone
	state
	users  [][]int  // by device: containers with several devices that have it
	used   []uint64 // by such container: positions of its devices' GPUs, as bits
	chosen []Assigned
	scores []int64 // by device
	dead   map[string]struct{}
	steps  int
	room   *room // for the search that knows instances only
}

func newSearch(v *View, r *Request, groups []int) *search {
	s := &search{
		view:    v,
		request: r,
		order:   r.order(),
		group:   groups,
		modes:   make([]mode, 1+slices.Max(groups)),
		state:   v.state(),
		users:   make([][]int, len(r.Devices)),
		chosen:  make([]Assigned, len(r.Devices)),
		scores:  make([]int64, len(r.Devices)),
		dead:    map[string]struct{}{},
	}
	for _, name := range slices.Sorted(maps.Keys(r.Containers)) {
		if devices := r.Containers[name]; len(devices) > 1 {
			for _, d := range devices {
				s.users[d] = append(s.users[d], len(s.used))
			}
			s.used = append(s.used, 0)
		}
	}
	return s
}

// order lists the devices, the largest want first.
func (r *Request) order() []int {
	order := make([]int, len(r.Devices))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(compareWants(r.Devices[b], r.Devices[a]), cmp.Compare(r.Shares[b].Cores, r.Shares[a].Cores))
	})
	return order
}

// compareWants orders by size, as far as a want tells without a model.
func compareWants(a, b geometry.Want) int {
	full := func(w geometry.Want) int {
		if w.Full {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(full(a), full(b)), cmp.Compare(a.Percent, b.Percent),
		cmp.Compare(a.MemoryMiB, b.MemoryMiB), cmp.Compare(a.Cores, b.Cores), cmp.Compare(a.Profile, b.Profile))
}

// run searches. Where all devices are instances, and bound to no NUMA node, there is
// a search that finds whatever exists in few steps.
func (s *search) run() bool {
	instances := !s.request.Select.NUMA && s.any == mig
	for _, m := range s.modes {
		instances = instances && m == mig
	}
	if instances {
		return s.instances()
	}
	return s.place(0)
}

// place assigns the devices from position i of the order on.
func (s *search) place(i int) bool {
	if i == len(s.order) {
		return true
	}
	state := s.key(i)
	if _, known := s.dead[state]; known {
		return false
	}
	device := s.order[i]
	for _, c := range s.candidates(device) {
		if s.steps += stepsOfTry; s.exceeded() {
			return false
		}
		gpu := c.GPU
		occupied, taken, cut := s.occupied[gpu], s.taken[gpu], s.cut[gpu]
		if !s.take(s.view.Node, c.Assigned) {
			continue // not reached: only free places are candidates
		}
		used := slices.Clone(s.used)
		if s.request.Select.NUMA || c.IsShare() {
			for _, u := range s.users[device] {
				s.used[u] |= 1 << gpu
			}
		}
		s.chosen[device], s.scores[device] = c.Assigned, c.score
		if s.place(i + 1) {
			return true
		}
		s.occupied[gpu], s.taken[gpu], s.cut[gpu], s.used = occupied, taken, cut, used
	}
	s.dead[state] = struct{}{}
	return false
}

// exceeded reports whether the search was given up.
func (s *search) exceeded() bool { return s.steps > maxSteps }

// candidate is a choice with its score.
type candidate struct {
	Assigned
	score int64
}

// candidates lists the choices for a device, best first. Of GPUs that look the
// same only the first is tried.
func (s *search) candidates(device int) []candidate {
	type look struct {
		catalogue *geometry.Catalogue
		shares    v1alpha1.ShareCapacity
		occupied  geometry.Occupancy
		taken     Taken
		used      uint64 // by which of the containers
		numa      int32
	}
	in := s.any
	if g := s.group[device]; g >= 0 {
		in = s.modes[g]
	}
	tried := map[look]struct{}{}
	var out []candidate
	for i := range s.view.Node.GPUs {
		g := &s.view.Node.GPUs[i]
		if !s.request.Select.accept(g) || !s.allowed(device, i, in) {
			continue
		}
		this := look{catalogue: g.Catalogue, occupied: s.occupied[i], taken: s.taken[i], used: s.usersOf(i)}
		if g.Shares != nil {
			this.shares = *g.Shares
		}
		if s.request.Select.NUMA {
			this.numa = g.NUMA
		}
		if _, again := tried[this]; again {
			continue
		}
		if len(g.avoided) == 0 && !g.avoidsShares {
			tried[this] = struct{}{}
		}
		s.view.each(s.request, device, i, &s.state, in, func(a Assigned) {
			out = append(out, candidate{a, s.view.score(s.request, device, &a, s.taken[i])})
		})
	}
	slices.SortStableFunc(out, func(a, b candidate) int { return cmp.Compare(a.score, b.score) })
	return out
}

// allowed reports whether the container's other devices leave a GPU to this one.
func (s *search) allowed(device, gpu int, in mode) bool {
	for _, u := range s.users[device] {
		if in == share && s.used[u]>>gpu&1 != 0 {
			return false
		}
		if s.request.Select.NUMA && !s.oneNUMA(s.used[u], s.view.Node.GPUs[gpu].NUMA) {
			return false
		}
	}
	return true
}

// oneNUMA reports whether GPUs, as bits, are all of one NUMA node.
func (s *search) oneNUMA(gpus uint64, numa int32) bool {
	for i := range s.view.Node.GPUs {
		if gpus>>i&1 != 0 && s.view.Node.GPUs[i].NUMA != numa {
			return false
		}
	}
	return true
}

// usersOf is which containers have devices on a GPU, as bits.
func (s *search) usersOf(gpu int) (bits uint64) {
	for u, gpus := range s.used {
		bits |= gpus >> gpu & 1 << min(u, 63)
	}
	return bits
}

// key names a state of the search: what is left to place, and where.
func (s *search) key(i int) string {
	key := make([]byte, 0, 1+len(s.occupied)*40+len(s.used)*8)
	key = binary.AppendUvarint(key, uint64(i))
	for g, o := range s.occupied {
		key = binary.LittleEndian.AppendUint64(key, o.Mask)
		key = append(key, o.Counts[:]...)
		if t := s.taken[g]; t.Count > 0 {
			key = append(key, 1)
			key = binary.AppendUvarint(key, uint64(t.Count))
			key = binary.AppendUvarint(key, uint64(t.MemoryMiB))
			key = binary.AppendUvarint(key, uint64(t.Cores))
		} else {
			key = append(key, 0)
		}
	}
	for _, gpus := range s.used {
		key = binary.LittleEndian.AppendUint64(key, gpus)
	}
	return string(key)
}

func (s *search) plan() Plan {
	p := Plan{Devices: s.chosen}
	for _, score := range s.scores {
		p.Score += score
	}
	return p
}
