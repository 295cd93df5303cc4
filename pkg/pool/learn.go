// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// pricing keeps a pool's prices in step with its mix of requests and its models.
type pricing struct {
	mix    *Mix
	learns bool
	now    atomic.Pointer[Prices]
	stale  chan struct{} // holds one token where now is not up to date

	mu   sync.Mutex             // guards seen
	seen map[types.UID]struct{} // pods learned from
}

func newPricing(opts Options) *pricing {
	return &pricing{mix: NewMix(opts.Expected), learns: opts.Learn, stale: make(chan struct{}, 1), seen: map[types.UID]struct{}{}}
}

func (p *pricing) outdate() {
	select {
	case p.stale <- struct{}{}:
	default: // it is known
	}
}

// See learns from a pod, where that is switched on: from each only once, and from none
// that waits for what no node has, which may come later. Of bound pods it is for those
// that were placed here. For the handler of pod events, not for the scheduling cycle.
func (p *Pool) See(pod *v1.Pod) {
	if !p.prices.learns || p.prices.knows(pod.UID) {
		return
	}
	r, err := p.Parse(pod)
	if err != nil || r == nil || pod.Spec.NodeName == "" && p.Possible(r) != nil || !p.prices.first(pod.UID) {
		return
	}
	if p.prices.mix.See(r); p.prices.mix.Moved() {
		p.prices.outdate()
	}
}

// knows reports whether a pod was learned from.
func (p *pricing) knows(uid types.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, known := p.seen[uid]
	return known
}

// first reports whether a pod is learned from for the first time, and notes it.
func (p *pricing) first(uid types.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, again := p.seen[uid]
	p.seen[uid] = struct{}{}
	return !again
}

// Gone forgets that a pod was seen; idempotent.
func (p *Pool) Gone(uid types.UID) {
	p.prices.mu.Lock()
	defer p.prices.mu.Unlock()
	delete(p.prices.seen, uid)
}

// KeepPrices computes scores anew, whenever requests have moved the mix or a model
// has come, until ctx ends. Without it the mix does not matter.
func (p *Pool) KeepPrices(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.prices.stale:
			p.price()
		}
	}
}

// price computes scores for the mix as it is.
func (p *Pool) price() { p.prices.now.Store(p.prices.mix.Prices(p.inUse(), p.prices.now.Load())) }

// inUse lists the catalogues of GPUs on offer.
func (p *Pool) inUse() []*geometry.Catalogue {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Collect(maps.Keys(p.models))
}
