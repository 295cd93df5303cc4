// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Why is where a pod is, and how good that place is as things stand now. What
// stood there when it was chosen is not recorded.
type Why struct {
	Request string      `json:"request"` // in words
	Node    string      `json:"node"`
	Devices []WhyDevice `json:"devices"`

	// Others are the best places elsewhere if it were placed now, best first: by GPU
	// for a pod with one device, else by node. Better counts those that are better
	// than its own.
	Others []Other `json:"others,omitempty"`
	Better int     `json:"better"`
}

// WhyDevice is one device of a placed pod.
type WhyDevice struct {
	Spot
	Containers []string `json:"containers"` // that have it, in the order of their names
	Asked      string   `json:"asked"`      // in words
	Model      string   `json:"model"`

	// Withheld is why its GPU takes no new work, in the agent's words: then it has no
	// score.
	Withheld string `json:"withheld,omitempty"`

	// Smallest is the smallest profile of this GPU that would have been enough; the
	// device's own when Exact.
	Smallest string `json:"smallest,omitempty"`

	// Cost is how many more of each profile the GPU could still get without this
	// pod and with it, where that differs.
	Cost []Cost `json:"cost,omitempty"`
}

// Cost is what a placement takes from one profile.
type Cost struct {
	Profile string `json:"profile"`
	Without int    `json:"without"`
	With    int    `json:"with"`
}

// Other is another place.
type Other struct {
	Node  string  `json:"node"`
	Spots []Spot  `json:"devices"`
	Score float64 `json:"score"` // in memory slices, lower is better
	total int64   // Plan.Score
}

// Why explains a pod that is bound, from its allocation. The error says what is
// wrong with pod or allocation.
func (f *Fleet) Why(pod *v1.Pod, barred Barred) (*Why, error) {
	r, err := f.pool.Parse(pod)
	if err != nil {
		return nil, err
	}
	text, ok := pod.Annotations[v1alpha1.AnnotationAllocation]
	if r == nil || !ok {
		return nil, fmt.Errorf("pod %s/%s has no annotation %s", pod.Namespace, pod.Name, v1alpha1.AnnotationAllocation)
	}
	a, err := v1alpha1.DecodeAllocation(text)
	if err == nil {
		err = a.OwnsCounted(pod, pod.Spec.NodeName, f.opts.Resources().Count)
	}
	if err != nil {
		return nil, err
	}
	w := &Why{Request: describeAll(r), Node: a.Node}
	s := f.site(a.Node)
	if s == nil {
		w.addBare(r, &a)
		return w, nil
	}
	without := f.view(s, anybody, func(t *Tenant) bool { return t.UID == pod.UID })
	with := f.view(s, anybody, nil)
	total := without.total(r, w.addDevices(r, &a, without, with))
	f.others(w, pod, r, total, barred)
	return w, nil
}

func (f *Fleet) site(node string) *site {
	if i := slices.IndexFunc(f.sites, func(s *site) bool { return s.node.Name == node }); i >= 0 {
		return f.sites[i]
	}
	return nil
}

// use is one device of the allocation with the containers that have it.
type use struct {
	device     v1alpha1.Device
	containers []string
	want       geometry.Want
}

// usesOfDevices lists the pod's devices in the order of the request.
func usesOfDevices(r *Request, a *v1alpha1.Allocation) []use {
	uses := make([]use, len(r.Devices))
	for i := range uses {
		uses[i].want = r.Devices[i]
	}
	for name, devices := range a.Containers {
		for k, i := range r.Containers[name] {
			if k < len(devices) && i < len(uses) {
				uses[i].device = devices[k]
				uses[i].containers = append(uses[i].containers, name)
			}
		}
	}
	for i := range uses {
		slices.Sort(uses[i].containers)
	}
	return uses
}

// addBare describes the devices when the node is not known.
func (w *Why) addBare(r *Request, a *v1alpha1.Allocation) {
	for _, u := range usesOfDevices(r, a) {
		w.Devices = append(w.Devices, WhyDevice{Spot: Spot{Device: u.device, GPUIndex: -1}, Containers: u.containers, Asked: Describe(u.want)})
	}
}

// addDevices describes the devices and returns the score of the whole, added up as
// Fit does: the largest device first, each beside those before it.
func (w *Why) addDevices(r *Request, a *v1alpha1.Allocation, without, with *View) (total int64) {
	uses := usesOfDevices(r, a)
	w.Devices = make([]WhyDevice, len(uses))
	beside := without
	for _, i := range r.order() {
		u, d := uses[i], &w.Devices[i]
		*d = WhyDevice{Spot: Spot{Device: u.device, GPUIndex: -1}, Containers: u.containers, Asked: Describe(u.want)}
		at, ok := without.Node.index[u.device.GPU]
		if !ok {
			continue
		}
		g := &without.Node.GPUs[at]
		d.GPUIndex, d.Model, d.Withheld = g.Index, g.Catalogue.Model().Name(), g.Reason
		chosen, ok := beside.chosen(r, i, at, u.device)
		if ok {
			d.Spot = beside.spot(i, chosen)
			d.Device = u.device // the memory that was promised then
			total += beside.score(r, i, &chosen, beside.taken[at])
			beside = beside.with(Plan{Devices: []Assigned{chosen}})
		}
		if u.device.MIG == nil {
			continue
		}
		d.judge(g.Catalogue, u.want, without.occupied[at], with.occupied[at])
	}
	return total
}

// judge compares with the smallest that would have been enough, and with the GPU as
// it would be without the pod.
func (d *WhyDevice) judge(c *geometry.Catalogue, want geometry.Want, without, with geometry.Occupancy) {
	if e, ok := c.Can(want); ok {
		p, _ := c.Model().Profile(e.Profile)
		d.Smallest = p.Name
		d.Exact = d.Exact || p.Name == d.MIG.Profile
	}
	d.Cost = cost(c, without, with)
}

// chosen is the choice that a device of an allocation is; false where it could not
// be made.
func (v *View) chosen(r *Request, i, gpu int, d v1alpha1.Device) (Assigned, bool) {
	if d.Share != nil {
		s := v.state()
		share := *d.Share
		share.ID = 0
		return Assigned{GPU: gpu, Share: share}, v.Node.GPUs[gpu].Shares != nil && s.admits(&v.Node.GPUs[gpu], gpu, share)
	}
	if d.MIG == nil {
		return Assigned{}, false
	}
	at := geometry.Placed{Profile: geometry.ProfileID(d.MIG.ProfileID), Start: int(d.MIG.Start)}
	t := r.on(v.Node.GPUs[gpu].Catalogue).tables[i]
	for _, c := range t.Choices(v.cut[gpu]) {
		if c.Placed == at {
			return Assigned{GPU: gpu, Choice: c, cost: t.CostOf(v.cut[gpu], c)}, true
		}
	}
	return Assigned{}, false
}

// cost compares what still fits in two states of a GPU.
func cost(c *geometry.Catalogue, before, after geometry.Occupancy) []Cost {
	var out []Cost
	for _, e := range c.Entries() {
		p, _ := c.Model().Profile(e.Profile)
		known := slices.ContainsFunc(out, func(other Cost) bool { return other.Profile == p.Name })
		if n, m := c.Count(before, p.ID), c.Count(after, p.ID); n != m && !known {
			out = append(out, Cost{Profile: p.Name, Without: n, With: m})
		}
	}
	return out
}

// others looks for where the pod would go if it were placed now.
func (f *Fleet) others(w *Why, pod *v1.Pod, r *Request, total int64, barred Barred) {
	for _, s := range f.sites {
		if !barred.open(s.node.Name, 0) {
			continue
		}
		v := f.view(s, askerOf(pod), func(t *Tenant) bool { return t.UID == pod.UID })
		w.Others = append(w.Others, v.placesFor(r)...)
	}
	w.Others = slices.DeleteFunc(w.Others, func(o Other) bool { return o.Node == w.Node && sameDevices(o.Spots, w.Devices) })
	slices.SortStableFunc(w.Others, func(a, b Other) int { return cmp.Compare(a.total, b.total) })
	for _, o := range w.Others {
		if o.total < total {
			w.Better++
		}
	}
}

// placesFor lists a node's places for a request: each GPU's best for one device,
// the best plan for several.
func (v *View) placesFor(r *Request) []Other {
	if len(r.Devices) > 1 {
		plan, verdict := v.Fit(r)
		if verdict != nil {
			return nil
		}
		return []Other{v.other(plan)}
	}
	var out []Other
	for i := range v.Node.GPUs {
		if a, score, ok := v.bestOn(r, i); ok {
			out = append(out, v.other(Plan{Devices: []Assigned{a}, Score: v.total(r, score)}))
		}
	}
	return out
}

func (v *View) other(p Plan) Other {
	o := Other{Node: v.Node.Name, Spots: v.spots(p), total: p.Score}
	for _, s := range o.Spots {
		if s.Score != nil {
			o.Score += *s.Score
		}
	}
	return o
}

// sameDevices reports whether a plan is what the pod has.
func sameDevices(spots []Spot, devices []WhyDevice) bool {
	key := func(d v1alpha1.Device) (k v1alpha1.Span) {
		k.GPU = d.GPU
		if d.MIG != nil {
			k.ProfileID, k.Start = d.MIG.ProfileID, d.MIG.Start
		}
		return k
	}
	var a, b []string
	for i := range spots {
		a = append(a, fmt.Sprint(key(spots[i].Device)))
	}
	for i := range devices {
		b = append(b, fmt.Sprint(key(devices[i].Device)))
	}
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// Tenant is what is known of a pod that holds devices.
func (f *Fleet) Tenant(uid types.UID) (Tenant, bool) {
	if t, ok := f.uid[uid]; ok {
		return *t, true
	}
	return Tenant{}, false
}
