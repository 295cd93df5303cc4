// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// OtherModes are what a pod that waits would find in the other mode. Nil where that
// would not help.
type OtherModes struct {
	// Pod is the place that it would have if its annotation allowed both modes.
	Pod *Trial `json:"pod,omitempty"`
	// GPUs would hold it if they were switched.
	GPUs *ModeChange `json:"gpus,omitempty"`
}

// ModeChange is GPUs of one node that nobody uses, and that would hold a pod in the
// other mode.
type ModeChange struct {
	Node  string  `json:"node"`
	GPUs  []int32 `json:"gpus"` // to be switched, by index
	Mode  string  `json:"mode"` // to this
	Spots []Spot  `json:"devices"`

	// Library is that HAMi-core's library must be on the node, which shares nothing yet,
	// so that it is not known to be there.
	Library bool `json:"library,omitempty"`
}

// otherModes looks for a place that the modes alone keep from a pod. barred is the
// pod's.
func (f *Fleet) otherModes(pod *v1.Pod, r *Request, barred Barred) *OtherModes {
	out := &OtherModes{Pod: f.withoutMode(pod, barred)}
	for _, s := range f.sites {
		if out.GPUs != nil {
			break
		}
		if barred.open(s.node.Name, 0) {
			out.GPUs = f.switched(s, askerOf(pod), r)
		}
	}
	if out.Pod == nil && out.GPUs == nil {
		return nil
	}
	return out
}

// withoutMode is the best place for a pod whose annotation names a mode, if it did not.
func (f *Fleet) withoutMode(pod *v1.Pod, barred Barred) *Trial {
	if pod.Annotations[v1alpha1.AnnotationMode] == "" {
		return nil
	}
	free := pod.DeepCopy()
	delete(free.Annotations, v1alpha1.AnnotationMode)
	r, err := f.request(free)
	if err != nil {
		return nil // no GPU could be that in the other mode
	}
	prospects := make([]prospect, len(f.sites))
	for i, s := range f.sites {
		prospects[i] = prospectOf(f.view(s, askerOf(pod), nil), r, barred, 0)
	}
	best := bestOf(prospects)
	if best < 0 {
		return nil
	}
	trial := prospects[best].trial(r)
	return &trial
}

// switched tries a request on a node whose unused GPUs are all in the other mode.
func (f *Fleet) switched(s *site, who asker, r *Request) *ModeChange {
	for _, to := range []string{v1alpha1.ModeMIG, v1alpha1.ModeHAMiCore} {
		if to == v1alpha1.ModeMIG && !r.MIG || to == v1alpha1.ModeHAMiCore && !r.Share {
			continue
		}
		other := *s
		var changed []int32
		if other.node, changed = f.inMode(s, to); len(changed) == 0 {
			continue
		}
		view := f.view(&other, who, nil)
		plan, verdict := view.Fit(r)
		if verdict != nil {
			continue
		}
		out := &ModeChange{Node: s.node.Name, Mode: to, Spots: view.spots(plan), Library: to == v1alpha1.ModeHAMiCore && !s.node.shares()}
		for _, spot := range out.Spots {
			if slices.Contains(changed, spot.GPUIndex) && !slices.Contains(out.GPUs, spot.GPUIndex) {
				out.GPUs = append(out.GPUs, spot.GPUIndex)
			}
		}
		return out
	}
	return nil
}

// inMode is a node with the GPUs that nobody uses in a mode, and which that changes.
func (f *Fleet) inMode(s *site, mode string) (*Node, []int32) {
	node := *s.node
	node.GPUs = slices.Clone(node.GPUs)
	var changed []int32
	for i := range node.GPUs {
		g := &node.GPUs[i]
		switch {
		case s.uses(g.ID) || g.blocked.Mask != 0:
			continue
		case mode == v1alpha1.ModeMIG && g.Shares != nil && len(g.Catalogue.Entries()) > 0:
			g.Offered, g.Shares = true, nil
		case mode == v1alpha1.ModeHAMiCore && g.Offered:
			g.Offered, g.Shares = false, f.shareCapacity(g)
		default:
			continue
		}
		changed = append(changed, g.Index)
	}
	node.divide()
	return &node, changed
}

// shares reports whether some GPU takes software shares.
func (n *Node) shares() bool {
	return slices.ContainsFunc(n.GPUs, func(g GPU) bool { return g.Shares != nil })
}

func (s *site) uses(gpu string) bool {
	return slices.ContainsFunc(s.tenants, func(t *Tenant) bool {
		return slices.ContainsFunc(t.Spans, func(h Held) bool { return h.GPU == gpu })
	})
}

// shareCapacity is what a GPU would offer to shares: what another of its model does,
// else its largest instance's memory for HAMi's ten shares.
func (f *Fleet) shareCapacity(g *GPU) *v1alpha1.ShareCapacity {
	for _, s := range f.sites {
		for i := range s.node.GPUs {
			if other := &s.node.GPUs[i]; other.Model == g.Model && other.Shares != nil {
				return other.Shares
			}
		}
	}
	_, whole := largest(g.Catalogue)
	return &v1alpha1.ShareCapacity{Count: 10, MemoryMiB: int64(whole.MemoryMiB), Cores: 100}
}
