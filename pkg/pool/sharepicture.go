// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// SharesPicture is what a GPU in mode hami-core gives to software shares, and who
// has them.
type SharesPicture struct {
	v1alpha1.ShareCapacity

	// What is left; nothing where one share has the GPU for itself.
	FreeCount     int   `json:"freeCount"`
	FreeMemoryMiB int64 `json:"freeMemoryMiB"`
	FreeCores     int   `json:"freeCores"`

	Held []SharePicture `json:"held"` // by pod, then as in its allocation
}

// SharePicture is one share. Its state is Used, Preparing, Published or Assumed.
type SharePicture struct {
	MemoryMiB int64        `json:"memoryMiB"`
	Cores     int32        `json:"cores"` // percent; 0: no limit
	State     SpanState    `json:"state"`
	Owner     OwnerPicture `json:"owner"`
}

// sharesLeft is what a GPU in mode hami-core still offers to shares.
func (v *View) sharesLeft(at int) v1alpha1.ShareCapacity {
	all, taken := *v.Node.GPUs[at].Shares, v.Taken(at)
	if taken.Exclusive {
		return v1alpha1.ShareCapacity{}
	}
	return v1alpha1.ShareCapacity{
		Count:     max(0, all.Count-int32(taken.Count)),
		MemoryMiB: max(0, all.MemoryMiB-taken.MemoryMiB),
		Cores:     max(0, all.Cores-int32(taken.Cores)),
	}
}

// drawShares is the picture of one GPU's shares; nil where it takes none.
func drawShares(status *v1alpha1.GPUNodeStatus, view *View, at int, holders []Holder, known map[types.UID]*owner) *SharesPicture {
	g := &view.Node.GPUs[at]
	if g.Shares == nil {
		return nil
	}
	left := view.sharesLeft(at)
	out := &SharesPicture{
		ShareCapacity: *g.Shares, Held: []SharePicture{},
		FreeCount: int(left.Count), FreeMemoryMiB: left.MemoryMiB, FreeCores: int(left.Cores),
	}
	for i := range holders {
		h := &holders[i]
		for _, held := range h.Spans {
			if held.GPU != g.ID || !held.IsShare() {
				continue
			}
			out.Held = append(out.Held, SharePicture{
				MemoryMiB: held.Share.MemoryMiB, Cores: held.Share.Cores, State: shareState(status, h),
				Owner: known[h.UID].picture(&held, h.UID),
			})
		}
	}
	slices.SortStableFunc(out.Held, func(a, b SharePicture) int {
		return cmp.Or(cmp.Compare(a.Owner.Namespace, b.Owner.Namespace), cmp.Compare(a.Owner.Name, b.Owner.Name))
	})
	return out
}

// shareState is Used once the node's agent is done with the pod: it lists those that
// it is not.
func shareState(status *v1alpha1.GPUNodeStatus, h *Holder) SpanState {
	if h.State == Bound && !preparing(status, h.UID) {
		return SpanUsed
	}
	return stateOf(h.State)
}

func preparing(status *v1alpha1.GPUNodeStatus, uid types.UID) bool {
	return slices.ContainsFunc(status.Pods, func(p v1alpha1.PodPreparation) bool { return p.UID == uid })
}
