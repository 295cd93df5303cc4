// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// What workers, report and slots ask the owners.

// wants lists what owners want of one GPU, in the order of their admission.
func (s *owners) wants(gpu string) []want {
	s.mu.Lock()
	defer s.mu.Unlock()
	var holders []*owner
	for _, o := range s.pods {
		if o.holds() {
			holders = append(holders, o)
		}
	}
	slices.SortFunc(holders, func(a, b *owner) int { return cmp.Compare(a.order, b.order) })
	var out []want
	for _, o := range holders {
		for _, span := range o.spans {
			if span.GPU == gpu {
				out = append(out, want{
					span: span, owner: o.UID, profile: o.profile(span), prepared: o.Prepared,
					terminating: o.pod != nil && o.pod.DeletionTimestamp != nil,
				})
			}
		}
	}
	return out
}

// profile is the name of a placement's profile, for people.
func (o *owner) profile(span v1alpha1.Span) string {
	return o.device(span).Profile
}

// device is the part of the allocation that a span comes from.
func (o *owner) device(span v1alpha1.Span) v1alpha1.MIGInstance {
	for _, devices := range o.allocation.Containers {
		for _, d := range devices {
			if d.MIG != nil && spanOf(d) == span {
				return *d.MIG
			}
		}
	}
	return v1alpha1.MIGInstance{}
}

// spanOf is the placement of a MIG device.
func spanOf(d v1alpha1.Device) v1alpha1.Span {
	return v1alpha1.Span{GPU: d.GPU, ProfileID: d.MIG.ProfileID, Start: d.MIG.Start, Size: d.MIG.Size}
}

// unowned reports whether it is proven that no live pod owns a placement: all
// pods have been seen, and none has it. A pod for which the place is being cleared
// (empty: none) does not count as long as it has never been prepared: what is there
// was not given to it.
func (s *owners) unowned(span v1alpha1.Span, clearedFor types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.synced {
		return false
	}
	for _, o := range s.pods {
		if o.Refused == "" && slices.Contains(o.spans, span) && (o.UID != clearedFor || o.Prepared) {
			return false
		}
	}
	return true
}

// isSynced reports whether every pod of the node has been seen.
func (s *owners) isSynced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

// results are what a worker has for the wants of its GPU.
type results struct {
	made    map[want]made
	trouble map[want]trouble
}

// settle takes a worker's results. It does nothing when they are not new.
func (s *owners) settle(gpu string, r results) {
	s.mu.Lock()
	news := false
	for _, o := range s.pods {
		news = news || o.holds() && o.differs(gpu, r)
	}
	s.mu.Unlock()
	if !news {
		return
	}
	s.do(func() {
		for _, o := range s.pods {
			if o.holds() {
				o.take(gpu, r)
				s.tell(o)
			}
		}
	})
}

// readmit looks again at the pods that wait for GPUs that they are to share, if the
// health of these has changed.
func (s *owners) readmit() {
	s.mu.Lock()
	news := false
	for _, o := range s.pods {
		if o.ailing != "" {
			why, lasting := s.grounds.ailing(o)
			news = news || why != o.ailing || lasting
		}
	}
	s.mu.Unlock()
	if news {
		s.do(s.admitAll)
	}
}

// tell the pod's user, once each, that the pod is prepared or why it fails.
func (s *owners) tell(o *owner) {
	switch phase, reason := o.phase(), o.reason(); {
	case phase == v1alpha1.PodPrepared && !o.Prepared:
		o.Prepared = true
		s.keep(o)
		s.events.prepared(o, s.grounds)
		took(s.journal.metrics.prepares, o.since)
	case phase == v1alpha1.PodFailing && !o.told[reason] && len(o.told) < maxTold:
		o.told[reason] = true
		s.events.warn(o, reasonFailing, "Preparing the pod's devices fails and is tried again: "+reason)
	}
}

// maxTold bounds the events about different failures of one pod.
const maxTold = 5

// differs reports whether take would change anything.
func (o *owner) differs(gpu string, r results) bool {
	seen := 0
	for w, m := range r.made {
		if w.owner == o.UID {
			seen++
			if o.made[w.span] != m {
				return true
			}
		}
	}
	for w, t := range r.trouble {
		if w.owner == o.UID {
			seen++
			if !o.trouble[w.span].same(t) {
				return true
			}
		}
	}
	had := 0
	for _, span := range o.spans {
		if _, ok := o.made[span]; ok && span.GPU == gpu {
			had++
		}
		if _, ok := o.trouble[span]; ok && span.GPU == gpu {
			had++
		}
	}
	return had != seen
}

// take notes a GPU's results.
func (o *owner) take(gpu string, r results) {
	for _, span := range o.spans {
		if span.GPU == gpu {
			delete(o.made, span)
			delete(o.trouble, span)
		}
	}
	for w, m := range r.made {
		if w.owner == o.UID {
			o.made[w.span] = m
		}
	}
	for w, t := range r.trouble {
		if w.owner == o.UID {
			o.trouble[w.span] = t
		}
	}
}

// ownerView is a copy of what report and slots need of an owner.
type ownerView struct {
	uid    types.UID
	phase  v1alpha1.PodPhase // empty when it was not placed
	reason string
	slots  int               // that kubelet has given to it
	spans  []v1alpha1.Span   // that it holds
	shares []v1alpha1.Device // likewise
}

// view lists all owners by UID.
func (s *owners) view() []ownerView {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]ownerView, 0, len(s.pods))
	for uid, o := range s.pods {
		v := ownerView{uid: uid, slots: len(o.spans) + len(o.shares)}
		if o.pod != nil {
			v.slots = slotsOf(o.pod)
		}
		if o.placed() || o.Refused != "" {
			v.phase, v.reason = o.phase(), o.reason()
		}
		if o.holds() {
			v.spans, v.shares = o.spans, o.shares
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b ownerView) int { return cmp.Compare(a.uid, b.uid) })
	return out
}

// takeEnded returns the pods that have ended since the last call.
func (s *owners) takeEnded() []types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ended := s.ended
	s.ended = nil
	return ended
}

// alive reports whether a pod is an owner.
func (s *owners) alive(uid types.UID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pods[uid] != nil
}
