// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// avoidFor is how long a placement that an agent has refused is not chosen again:
// long enough for its next reports to show what stands there.
const avoidFor = 30 * time.Second

// refusals remembers what agents refused. Safe for parallel use: a refused pod is
// noted when its report comes, or, where that was first, when it is seen bound.
type refusals struct {
	core *core
	mu   sync.Mutex                        // guards seen
	seen map[string]map[types.UID]struct{} // refused pods whose placements are or were avoided, by node
}

func newRefusals(c *core) *refusals {
	return &refusals{core: c, seen: map[string]map[types.UID]struct{}{}}
}

// noteAll notes each pod that a report refuses, and forgets those that it does not.
func (r *refusals) noteAll(obj *v1alpha1.GPUNode) {
	var refused []types.UID
	for _, p := range obj.Status.Pods {
		if p.Phase == v1alpha1.PodRefused {
			refused = append(refused, p.UID)
		}
	}
	r.keep(obj.Name, refused)
	for _, uid := range refused {
		r.note(obj.Name, uid)
	}
}

// keep forgets all pods of a node but these.
func (r *refusals) keep(node string, uids []types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid := range r.seen[node] {
		if !slices.Contains(uids, uid) {
			delete(r.seen[node], uid)
		}
	}
	if len(r.seen[node]) == 0 {
		delete(r.seen, node)
	}
}

// note is avoid for a pod that the ledger has. One that holds nothing yet is left for
// when it is seen bound.
func (r *refusals) note(node string, uid types.UID) {
	if h, ok := r.core.pool.Holder(uid); ok && h.Node == node {
		r.avoid(h)
	}
}

// avoid has a refused pod's placements avoided, once.
func (r *refusals) avoid(h pool.Holder) {
	node := h.Node
	if !r.first(node, h.UID) {
		return
	}
	again := r.core.pool.Avoid(h)
	time.AfterFunc(avoidFor, func() {
		before, _ := r.core.pool.Node(node)
		again()
		r.core.wake(before, node)
	})
}

// first reports whether the pod was not noted before, and marks it.
func (r *refusals) first(node string, uid types.UID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.seen[node][uid]; known {
		return false
	}
	if r.seen[node] == nil {
		r.seen[node] = map[types.UID]struct{}{}
	}
	r.seen[node][uid] = struct{}{}
	return true
}
