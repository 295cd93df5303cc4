// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// ours is the scheduler: pkg/pool decides from its view of each node, and the node
// with the best plan wins. Views are rebuilt, and plans made again, for nodes that
// changed; a view's plan for a request never does.
type ours struct {
	fleet    *Fleet
	requests []*pool.Request // by class
	ledger   *pool.Ledger
	views    []*pool.View // by node; nil when it has changed
	plans    [][]planned  // by node and class
}

// planned is what a view answers.
type planned struct {
	known, fits bool
	plan        pool.Plan
}

func newOurs(f *Fleet, classes []class) (*ours, error) {
	o := &ours{
		fleet: f, ledger: pool.NewLedger(),
		views: make([]*pool.View, len(f.nodes)), plans: make([][]planned, len(f.nodes)),
	}
	for i := range classes {
		r, err := pool.Parse(classes[i].pod(), pool.Options{NoOversize: !classes[i].want.Oversize})
		if err != nil {
			return nil, fmt.Errorf("policy %s: the pod of a job: %w", Ours, err)
		}
		o.requests = append(o.requests, r)
	}
	for i := range o.plans {
		o.plans[i] = make([]planned, len(classes))
	}
	return o, nil
}

// pod is what a job of this class would be in a cluster.
func (c *class) pod() *v1.Pod {
	limits := v1.ResourceList{v1alpha1.ResourceGPU: *resource.NewQuantity(int64(c.devices), resource.DecimalSI)}
	if c.want.MemoryMiB > 0 {
		limits[v1alpha1.ResourceMemory] = *resource.NewQuantity(int64(c.want.MemoryMiB), resource.DecimalSI)
	}
	if c.want.Cores > 0 {
		limits[v1alpha1.ResourceCores] = *resource.NewQuantity(int64(c.want.Cores), resource.DecimalSI)
	}
	pod := &v1.Pod{}
	pod.Annotations = map[string]string{v1alpha1.AnnotationMode: v1alpha1.ModeMIG}
	if c.want.Profile != "" {
		pod.Annotations[v1alpha1.AnnotationProfile] = c.want.Profile
	}
	pod.Spec.Containers = []v1.Container{{Name: "job", Resources: v1.ResourceRequirements{Limits: limits}}}
	return pod
}

func (o *ours) choose(class int) ([]Spot, bool) {
	at, least := -1, int64(0)
	for node := range o.fleet.nodes {
		if p := o.on(node, class); p.fits && (at < 0 || p.plan.Score < least) {
			at, least = node, p.plan.Score
		}
	}
	if at < 0 {
		return nil, false
	}
	var spots []Spot
	for _, d := range o.on(at, class).plan.Devices {
		spots = append(spots, Spot{o.fleet.first[at] + d.GPU, d.Placed})
	}
	return spots, true
}

// on is the plan of a node for a class.
func (o *ours) on(node, class int) *planned {
	p := &o.plans[node][class]
	if p.known {
		return p
	}
	if o.views[node] == nil {
		none := func(func(*v1.Pod) bool) {}
		o.views[node] = o.ledger.View(o.fleet.nodes[node], none, pool.Scope{Ledger: pool.LedgerAll}, pool.Options{})
	}
	plan, verdict := o.views[node].Fit(o.requests[class])
	*p = planned{known: true, fits: verdict == nil, plan: plan}
	return p
}

func (o *ours) took(_ int, spots []Spot) {
	node := o.fleet.gpus[spots[0].GPU].node
	h := pool.Holder{UID: uid(spots), Node: o.fleet.nodes[node].Name}
	for _, s := range spots {
		g := &o.fleet.nodes[node].GPUs[s.GPU-o.fleet.first[node]]
		at, err := g.Catalogue.Model().Placement(s.Placed)
		if err != nil {
			panic(err) // the plan was made from this catalogue
		}
		h.Spans = append(h.Spans, pool.Held{GPU: g.ID, Placed: s.Placed, Size: at.Size})
	}
	o.ledger.Assume(h)
	o.changed(node)
}

func (o *ours) gave(_ int, spots []Spot) {
	o.ledger.Forget(uid(spots))
	o.changed(o.fleet.gpus[spots[0].GPU].node)
}

func (o *ours) changed(node int) {
	o.views[node] = nil
	clear(o.plans[node])
}

// uid names a job by its first instance: no two that run have the same.
func uid(spots []Spot) types.UID {
	return types.UID(fmt.Sprintf("%d@%d", spots[0].GPU, spots[0].Start))
}
