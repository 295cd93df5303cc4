// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/pool"
)

// ours is the scheduler: pkg/pool decides, with scores for the mix of requests that
// it has learned from the jobs that have arrived.
type ours struct {
	fleet    *Fleet
	requests []*pool.Request // by class, at the prices of the moment
	index    *pool.Index

	mix        *pool.Mix // nil where it does not learn
	prices     *pool.Prices
	catalogues []*geometry.Catalogue

	enough int // nodes with room to look at, 0 for the best of all
	next   int // node to begin with

	// What was chosen last.
	node int
	plan pool.Plan
}

func newOurs(f *Fleet, classes []class, opts Options) (*ours, error) {
	o := &ours{fleet: f, index: pool.NewIndex(f.nodes)}
	if !opts.NoLearning {
		o.mix = pool.NewMix(nil)
	}
	if opts.Sample {
		o.enough = sampled(len(f.nodes))
	}
	for _, m := range f.models {
		o.catalogues = append(o.catalogues, m.catalogue)
	}
	for i := range classes {
		r, err := pool.Parse(classes[i].pod(), pool.Options{NoOversize: !classes[i].want.Oversize})
		if err != nil {
			return nil, fmt.Errorf("policy %s: the pod of a job: %w", Ours, err)
		}
		o.requests = append(o.requests, r)
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

// learn sees a job, and computes prices anew where that moves the mix. The
// scheduler does this beside its decisions, a moment later.
func (o *ours) learn(class int) {
	if o.mix == nil {
		return
	}
	if o.mix.See(o.requests[class]); !o.mix.Moved() {
		return
	}
	o.prices = o.mix.Prices(o.catalogues, o.prices)
	for i, r := range o.requests {
		o.requests[i] = r.At(o.prices)
	}
}

func (o *ours) choose(class int) ([]Spot, bool) {
	if !o.best(o.requests[class]) {
		return nil, false
	}
	spots := make([]Spot, len(o.plan.Devices))
	for i, d := range o.plan.Devices {
		spots[i] = Spot{o.fleet.first[o.node] + d.GPU, d.Placed}
	}
	return spots, true
}

// best finds a node and a plan.
func (o *ours) best(r *pool.Request) (ok bool) {
	if o.enough == 0 {
		o.node, o.plan, ok = o.index.Best(r)
		return ok
	}
	asked := 0
	o.node, o.plan, asked, ok = o.index.BestOf(r, o.next, o.enough)
	o.next = (o.next + asked) % len(o.fleet.nodes)
	return ok
}

// sampled is how many nodes with room kube-scheduler looks at for a pod, by default
// (numFeasibleNodesToFind in pkg/scheduler/schedule_one.go of v1.37.2).
func sampled(nodes int) int {
	percent := max(50-nodes/125, 5)
	return min(nodes, max(nodes*percent/100, 100))
}

// took is called with what choose has just returned.
func (o *ours) took(_ int, _ []Spot) error { return o.index.Take(o.node, o.plan) }

func (o *ours) gave(_ int, spots []Spot) error {
	for _, s := range spots {
		node := o.fleet.gpus[s.GPU].node
		if err := o.index.Release(node, s.GPU-o.fleet.first[node], s.Placed); err != nil {
			return err
		}
	}
	return nil
}
