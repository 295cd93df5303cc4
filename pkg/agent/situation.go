// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// situation is one GPU at one moment, as plain values: what should be done next
// is a function of it.
type situation struct {
	model *geometry.Model
	found []found // by start
	wants []want  // in the order in which they are served
	due   func(task) bool
	stuck func(v1alpha1.Span) bool
	sick  func(v1alpha1.Span) bool // the hardware reports an error of the instance

	off     bool   // nothing can be created: MIG mode is off
	refusal string // and nothing ever will: why
	retire  bool   // the GPU is to leave MIG mode: idle instances go
}

// found is an instance in the hardware.
type found struct {
	nvml.Instance
	span   v1alpha1.Span
	ours   bool
	record record    // of ours; Owner is set only while that pod wants it
	former types.UID // the pod that ours was given to last, whether that wants it or not; empty = none, or not known
}

// idle reports whether it is ours and nobody's.
func (f *found) idle() bool { return f.ours && f.record.Owner == "" }

// ready reports whether a container may use it.
func (f *found) ready() bool {
	return f.ours && f.Whole() && f.record.State == live && f.record.UUID == f.UUID
}

// act is a kind of step.
type act int

const (
	rest    act = iota // nothing to do now
	create             // GPU instance and compute instance, for want
	take               // give target, which is idle, to want
	finish             // make target, which is want's, whole
	confirm            // journal that target, which is want's, is whole
	destroy            // target, which is idle; for want, if any
	refuse             // want, for good
)

// step is one thing to do.
type step struct {
	act    act
	want   want
	target found
	reason string // of refuse
}

// next is the first step that is due: refusals, so that nothing is created for a
// pod that cannot have all of its devices; wants in their order; then what is left
// of instances that nobody wants.
func (s *situation) next() step {
	if s.off {
		return s.refuseAll()
	}
	for _, w := range s.wants {
		if st := s.serve(w); st.act == refuse {
			st.want = w
			return st
		}
	}
	for _, w := range s.wants {
		if !s.due(task{span: w.span}) {
			continue
		}
		if st := s.serve(w); st.act != rest {
			st.want = w
			return st
		}
	}
	for _, f := range s.found {
		if s.leftover(&f) && s.due(task{span: f.span, remove: true}) {
			return step{act: destroy, target: f}
		}
	}
	return step{}
}

// refuseAll refuses, one by one, the wants that will never be served.
func (s *situation) refuseAll() step {
	for _, w := range s.wants {
		if s.refusal != "" && !w.prepared {
			return step{act: refuse, want: w, reason: s.refusal}
		}
	}
	return step{}
}

// leftover reports whether an idle instance has to go although nothing needs its
// place: it is not whole, or its destruction has begun, or was tried for long.
func (s *situation) leftover(f *found) bool {
	return f.idle() && (s.retire || s.sick(f.span) || !f.Whole() || f.record.State == destroying || s.stuck(f.span)) &&
		!slices.ContainsFunc(s.wants, func(w want) bool { return w.span == f.span })
}

// serve is the next step for one want; rest when it has what it wants, or nothing
// can be done for it now.
func (s *situation) serve(w want) step {
	i := slices.IndexFunc(s.found, func(f found) bool { return f.span == w.span })
	if i < 0 {
		return s.makeRoom(w)
	}
	f := s.found[i]
	switch {
	case !f.ours:
		return s.foreign(w, &f)
	case f.idle() && s.sick(f.span):
		return s.remove(w, &f)
	case f.idle():
		return step{act: take, target: f}
	case f.record.Owner != w.owner, f.ready():
		return step{}
	case !f.Whole():
		return step{act: finish, target: f}
	default:
		return step{act: confirm, target: f}
	}
}

// remove destroys an idle instance before a want is served, when it is due.
func (s *situation) remove(w want, f *found) step {
	if w.terminating || !s.due(task{span: f.span, remove: true}) {
		return step{}
	}
	return step{act: destroy, target: *f}
}

// foreign refuses a want whose place somebody else has taken. A pod that was
// prepared before keeps its claim: it may be running.
func (s *situation) foreign(w want, f *found) step {
	if w.prepared {
		return step{}
	}
	return step{act: refuse, reason: fmt.Sprintf("%s at %d is blocked by an instance that the agent did not create (%s); destroy it with nvidia-smi mig, or exclude the GPU",
		w.profile, w.span.Start, s.describe(f))}
}

// makeRoom creates what a want lacks, or destroys the idle instance that is in the
// way. A pod that is ending does not start, so nothing is done for it.
func (s *situation) makeRoom(w want) step {
	if w.terminating {
		return step{}
	}
	blockers, err := s.inTheWay(w.span)
	if err != nil {
		return step{act: refuse, reason: fmt.Sprintf("%s at %d can not be created beside what is on the GPU: %v", w.profile, w.span.Start, err)}
	}
	for i := range blockers {
		switch b := &blockers[i]; {
		case !b.ours:
			return s.foreign(w, b)
		case !b.idle():
			return step{} // of a pod that ends; wants do not overlap
		case s.due(task{span: b.span, remove: true}):
			return step{act: destroy, target: *b}
		}
	}
	if len(blockers) > 0 {
		return step{}
	}
	return step{act: create}
}

// inTheWay lists the instances that have to go before a placement can be created:
// those that overlap, and idle ones that use up what a GPU has once (the media
// engines) or the profile's maximum. The error says that even that would not do.
func (s *situation) inTheWay(span v1alpha1.Span) ([]found, error) {
	var blockers, beside []found
	for _, f := range s.found {
		if overlap(f.span, span) {
			blockers = append(blockers, f)
		} else {
			beside = append(beside, f)
		}
	}
	at := geometry.Placed{Profile: geometry.ProfileID(span.ProfileID), Start: int(span.Start)}
	for {
		_, err := s.model.Occupy(s.occupancy(beside), at)
		if err == nil {
			return blockers, nil
		}
		if errors.Is(err, geometry.ErrUnknownProfile) || errors.Is(err, geometry.ErrOffTable) {
			return nil, err
		}
		i := slices.IndexFunc(beside, func(f found) bool { return f.idle() && s.helps(f, beside, at) })
		if i < 0 {
			i = slices.IndexFunc(beside, func(f found) bool { return f.idle() })
		}
		if i < 0 {
			return nil, err
		}
		blockers = append(blockers, beside[i])
		beside = slices.Delete(beside, i, i+1)
	}
}

// helps reports whether the placement can be created once f alone is gone.
func (s *situation) helps(f found, all []found, at geometry.Placed) bool {
	rest := slices.DeleteFunc(slices.Clone(all), func(other found) bool { return other.span == f.span })
	_, err := s.model.Occupy(s.occupancy(rest), at)
	return err == nil
}

// occupancy adds instances up.
func (s *situation) occupancy(all []found) geometry.Occupancy {
	var o geometry.Occupancy
	for _, f := range all {
		o = occupy(s.model, o, f.span)
	}
	return o
}

// occupy adds a span to an occupancy; one that the model cannot place is blocked.
func occupy(m *geometry.Model, o geometry.Occupancy, span v1alpha1.Span) geometry.Occupancy {
	next, err := m.Occupy(o, geometry.Placed{Profile: geometry.ProfileID(span.ProfileID), Start: int(span.Start)})
	if err != nil {
		return m.Block(o, geometry.Placement{Start: int(span.Start), Size: int(span.Size)})
	}
	return next
}

// describe names an instance for people.
func (s *situation) describe(f *found) string {
	name := fmt.Sprintf("profile %d", f.Profile)
	if p, ok := s.model.Profile(geometry.ProfileID(f.Profile)); ok {
		name = p.Name
	}
	return fmt.Sprintf("%s at %d, GPU instance %d", name, f.Start, f.GI)
}

// match joins the hardware with the journal. An instance is ours when the journal
// has its placement, unless both know a UUID and they differ: MIG UUIDs never
// repeat, so then somebody else has made it after ours was gone. void lists the
// records that have nothing in the hardware any more.
func match(hardware []nvml.Instance, records map[v1alpha1.Span]record, wants []want, model *geometry.Model) (all []found, void []v1alpha1.Span) {
	seen := map[v1alpha1.Span]bool{}
	for _, in := range hardware {
		f := found{Instance: in, span: spanIn(in, model)}
		r, known := records[f.span]
		if known && (r.UUID == "" || in.UUID == "" || r.UUID == in.UUID) {
			seen[f.span] = true
			f.ours, f.record, f.former = true, r, r.Owner
			if !slices.ContainsFunc(wants, func(w want) bool { return w.span == f.span && w.owner == r.Owner }) {
				f.record.Owner = ""
			}
		}
		all = append(all, f)
	}
	for span := range records {
		if !seen[span] {
			void = append(void, span)
		}
	}
	slices.SortFunc(void, compareSpans)
	return all, void
}

// spanIn is where an instance lies. A profile that the model lacks has size 1.
func spanIn(in nvml.Instance, model *geometry.Model) v1alpha1.Span {
	size := 1
	if p, ok := model.Profile(geometry.ProfileID(in.Profile)); ok {
		size = p.Size
	}
	return v1alpha1.Span{GPU: string(in.GPU), ProfileID: int32(in.Profile), Start: int32(in.Start), Size: int32(size)}
}
