// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// What a worker tells the owners and the report.

// publish gives the results to the owners and the state to the report.
func (w *worker) publish(s *situation) {
	next := state{
		model: w.model, mode: w.mode, modeWhy: w.modeWhy,
		unhealthy: w.unhealthy(), broken: errors.Is(w.failure, nvml.ErrGPULost) || w.broken.why != "", instances: w.instances(s),
	}
	for _, span := range slices.SortedFunc(maps.Keys(w.sick), compareSpans) {
		if s := w.sick[span]; !s.doubtful {
			next.sick = append(next.sick, span)
			next.sickWhy += s.why + "\n"
		}
	}
	w.mu.Lock()
	news, learned := !next.equal(&w.state), next.model != w.state.model || next.mode != w.state.mode
	w.state = next
	w.mu.Unlock()
	if learned {
		w.learned()
	}
	if s != nil {
		w.owners.settle(string(w.id), w.results(s))
	}
	w.owners.readmit()
	if news {
		w.changed(false)
	}
}

func (s *state) equal(other *state) bool {
	return s.model == other.model && s.mode == other.mode && s.modeWhy == other.modeWhy &&
		s.unhealthy == other.unhealthy && s.broken == other.broken && s.sickWhy == other.sickWhy &&
		slices.Equal(s.instances, other.instances) && slices.Equal(s.sick, other.sick)
}

// unhealthy says why the GPU cannot be used. A call that fails now and then, as
// during a reset, is no reason.
func (w *worker) unhealthy() string {
	switch {
	case w.failure == nil:
		return w.broken.why
	case errors.Is(w.failure, nvml.ErrGPULost):
		return "the GPU is lost; reset it or reboot the node"
	case w.failures >= 3 || w.model == nil:
		return w.failure.Error()
	default:
		return ""
	}
}

// instances lists what is in the hardware.
func (w *worker) instances(s *situation) []v1alpha1.Instance {
	if s == nil {
		return nil
	}
	var out []v1alpha1.Instance
	for _, f := range s.found {
		in := v1alpha1.Instance{
			ProfileID: f.span.ProfileID, Start: f.span.Start, GI: int32(f.GI), CI: int32(f.CI), UUID: f.UUID,
			State: v1alpha1.InstanceLive, PodUID: f.record.Owner,
		}
		switch {
		case !f.ours:
			in.State = v1alpha1.InstanceForeign
		case f.idle() && w.stuck(f.span):
			in.State = v1alpha1.InstanceStuck
		case f.idle():
			in.State = v1alpha1.InstanceIdle
		}
		out = append(out, in)
	}
	return out
}

// results says for each want what it has, or why it does not have it. A want that
// is simply not served yet has neither.
func (w *worker) results(s *situation) results {
	r := results{made: map[want]made{}, trouble: map[want]trouble{}}
	gpu, _ := w.facts()
	for _, want := range s.wants {
		i := slices.IndexFunc(s.found, func(f found) bool { return f.span == want.span && f.record.Owner == want.owner })
		if i >= 0 && s.found[i].ready() {
			f := s.found[i]
			r.made[want] = made{gpuMinor: gpu.Minor, gi: f.GI, ci: f.CI, uuid: f.UUID, reused: w.reused[want.span]}
			continue
		}
		if t, ok := w.troubles.all[task{span: want.span}]; ok {
			r.trouble[want] = t
		} else if why := w.whyNot(s, want); why != "" {
			r.trouble[want] = trouble{tries: 3, reason: why}
		}
	}
	return r
}

// whyNot says why nothing can be done for a want.
func (w *worker) whyNot(s *situation, want want) string {
	gpu, _ := w.facts()
	switch st := s.serve(want); {
	case w.unhealthy() != "":
		return fmt.Sprintf("GPU %d: %s", gpu.Index, w.unhealthy())
	case !w.mode.Current && w.modeWhy != "":
		return fmt.Sprintf("GPU %d: %s", gpu.Index, w.modeWhy)
	case !w.mode.Current:
		return fmt.Sprintf("GPU %d: MIG mode is off", gpu.Index)
	case st.act == rest && want.prepared && !want.terminating:
		return fmt.Sprintf("%s on GPU %d at %d is blocked by an instance that the agent did not create", want.profile, gpu.Index, want.span.Start)
	default:
		return ""
	}
}
