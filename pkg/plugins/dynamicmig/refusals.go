// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// avoidFor is how long a placement that an agent has refused is not chosen again:
// long enough for its next reports to show what stands there.
const avoidFor = 30 * time.Second

// refusals remembers what agents refused. Used by the GPUNode handler alone, which
// is serial.
type refusals struct {
	core *core
	seen map[string]map[types.UID]struct{} // by node
}

func newRefusals(c *core) *refusals {
	return &refusals{core: c, seen: map[string]map[types.UID]struct{}{}}
}

// note has the placements avoided of each pod that a report refuses for the first
// time.
func (r *refusals) note(obj *v1alpha1.GPUNode) {
	before, now := r.seen[obj.Name], map[types.UID]struct{}{}
	for _, p := range obj.Status.Pods {
		if p.Phase != v1alpha1.PodRefused {
			continue
		}
		now[p.UID] = struct{}{}
		if _, known := before[p.UID]; !known {
			r.avoid(obj.Name, p.UID)
		}
	}
	if r.seen[obj.Name] = now; len(now) == 0 {
		delete(r.seen, obj.Name)
	}
}

func (r *refusals) avoid(node string, uid types.UID) {
	h, ok := r.core.pool.Holder(uid)
	if !ok || h.Node != node {
		return
	}
	again := r.core.pool.Avoid(h)
	time.AfterFunc(avoidFor, func() {
		before, _ := r.core.pool.Node(node)
		again()
		if after, err := r.core.pool.Node(node); err == nil && after != nil {
			r.core.wake(before, after)
		}
	})
}
