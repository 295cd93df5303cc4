// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// Which owners may have their placements.

// admitAll admits every placed owner that can be judged: those that were prepared
// before first, then in the order in which they were seen. mu is held.
func (s *owners) admitAll() {
	var waiting []*owner
	for _, o := range s.pods {
		if o.placed() && o.Refused == "" && o.order == 0 {
			waiting = append(waiting, o)
		}
	}
	slices.SortFunc(waiting, func(a, b *owner) int {
		if a.Prepared != b.Prepared {
			return map[bool]int{true: -1, false: 1}[a.Prepared]
		}
		return cmp.Compare(a.seen, b.seen)
	})
	for _, o := range waiting {
		s.admit(o)
	}
}

// errWait: the hardware is not known well enough to judge an allocation.
var errWait = errors.New("the GPUs are not known yet")

// admit gives an owner its placements, unless they are not to be had. What a pod
// has had before is not judged again.
func (s *owners) admit(o *owner) {
	if !o.Prepared {
		o.ailing = ""
		switch err := s.grounds.judge(&o.allocation); {
		case errors.Is(err, errWait):
			return
		case err != nil:
			s.refuse(o, err.Error())
			return
		}
		switch why, lasting := s.grounds.ailing(o); {
		case lasting:
			s.refuse(o, why)
			return
		case why != "":
			o.ailing = why
			s.tell(o)
			return
		}
	}
	if other, span, ok := s.conflict(o); ok {
		s.contest(o, fmt.Sprintf("%s is held by pod %s/%s, which came first", s.grounds.describe(span), other.Namespace, other.Name))
		return
	}
	if why, ok := s.crowded(o); ok {
		s.contest(o, why)
		return
	}
	s.admitted++
	o.order, o.contested = s.admitted, ""
	if len(o.spans) == 0 {
		s.tell(o) // nobody creates anything for it
	}
}

// grace is how long a pod may wait for another to be gone that has its placement.
// After a broken watch, client-go passes new pods on before it tells of deleted
// ones.
const grace = 3 * time.Second

// contest refuses an owner whose placement another has, after the grace, and not
// before every pod has been seen: the other may be known from the journal only, and
// be gone.
func (s *owners) contest(o *owner, why string) {
	switch {
	case s.synced && time.Since(o.since) >= grace:
		s.refuse(o, why)
	case o.contested == "":
		time.AfterFunc(grace-time.Since(o.since), func() { s.do(s.admitAll) })
		o.contested = why
	}
}

// conflict finds an owner that holds memory slices of o's placements (I3).
func (s *owners) conflict(o *owner) (*owner, v1alpha1.Span, bool) {
	for _, other := range s.pods {
		if other == o || !other.holds() {
			continue
		}
		for _, span := range o.spans {
			if slices.ContainsFunc(other.spans, func(held v1alpha1.Span) bool { return overlap(span, held) }) {
				return other, span, true
			}
		}
	}
	return nil, v1alpha1.Span{}, false
}

// overlap reports whether two spans share a memory slice.
func overlap(a, b v1alpha1.Span) bool {
	return a.GPU == b.GPU && a.Start < b.Start+b.Size && b.Start < a.Start+a.Size
}
