// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// worker brings one GPU to what its owners want. It is the only one to make driver
// calls that name the GPU (I5).
//
//	kick, timer --> pass: look at the hardware if need be
//	                      |
//	                      v
//	                situation --next--> step --do--> again, until at rest
//	                      |
//	                      +--> results for the owners, state for the report
type worker struct {
	id      nvml.GPUID
	session *session
	journal *journal
	owners  *owners
	nodes   Nodes
	openers func([]DeviceNumber) ([]int, error)
	timing  Timing
	changed func(urgent bool) // the report should look again
	learned func()            // what is known of the GPUs should be put together anew
	stop    func()            // ends run

	kick  chan struct{} // with room for one
	first chan struct{} // closed after the first pass
	done  chan struct{} // closed when run has returned

	mu      sync.Mutex // guards what follows
	gpu     nvml.GPU
	wanted  string // mode
	stale   bool   // look at the hardware in the next pass
	unread  bool   // and read the profiles anew
	calling string // the driver call that runs, empty when none does
	since   time.Time
	state   state

	// Of the worker's goroutine only.
	model    *geometry.Model // nil until the profiles have been read
	mode     nvml.MIGMode
	modeWhy  string // why the wanted mode is not in force
	hardware []nvml.Instance
	failures int   // looks that failed in a row
	failure  error // of the last look
	nextLook time.Time
	troubles troubles
	reused   map[v1alpha1.Span]bool // instances that were there before their pod
}

// state is what the report shows of a GPU. It is replaced, never changed.
type state struct {
	model     *geometry.Model // nil until the profiles have been read
	mode      nvml.MIGMode
	modeWhy   string
	unhealthy string // why, empty when healthy
	lost      bool   // the GPU is gone until it is reset
	instances []v1alpha1.Instance
}

// maxSteps ends a pass that makes no progress, which would be a bug. A GPU has at
// most some ten wants and as many instances.
const maxSteps = 100

// run works until ctx ends. A driver call that runs then is waited for.
func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	ctx = klog.NewContext(ctx, klog.LoggerWithValues(klog.FromContext(ctx), "gpu", w.id))
	timer := time.NewTimer(0)
	defer timer.Stop()
	var first sync.Once
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		case <-timer.C:
		}
		next := w.pass(ctx)
		first.Do(func() { close(w.first) })
		timer.Reset(max(0, time.Until(next)))
	}
}

// wake makes the worker do a pass.
func (w *worker) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// lookAgain makes the worker do a pass that reads the hardware.
func (w *worker) lookAgain() {
	w.mu.Lock()
	w.stale = true
	w.mu.Unlock()
	w.wake()
}

// set changes what the worker knows of its GPU from elsewhere. In a new session
// the driver may be another, with other profiles.
func (w *worker) set(gpu nvml.GPU, wanted string, newSession bool) {
	w.mu.Lock()
	news := newSession || w.gpu != gpu || w.wanted != wanted
	w.gpu, w.wanted, w.unread = gpu, wanted, w.unread || newSession
	w.mu.Unlock()
	if news {
		w.lookAgain()
	}
}

// facts returns the GPU and the wanted mode.
func (w *worker) facts() (nvml.GPU, string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gpu, w.wanted
}

// view returns what the report shows. A call that does not return makes the GPU
// unhealthy, whatever its last state was.
func (w *worker) view() state {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.state
	if w.calling != "" && time.Since(w.since) >= w.timing.Hang {
		s.unhealthy = fmt.Sprintf("a driver call (%s) has not returned since %s", w.calling, w.since.UTC().Format(time.TimeOnly))
	}
	return s
}

// call makes one driver call. It cannot be cancelled.
func (w *worker) call(ctx context.Context, what string, f func(nvml.Driver) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.mu.Lock()
	w.calling, w.since = what, time.Now()
	w.mu.Unlock()
	opened, err := w.session.use(f)
	w.mu.Lock()
	w.calling = ""
	w.mu.Unlock()
	if opened {
		w.learned()
	}
	return err
}

// pass does what can be done now and returns when to come back at the latest.
func (w *worker) pass(ctx context.Context) time.Time {
	w.look(ctx)
	for range maxSteps {
		s := w.situation(ctx)
		w.publish(s)
		if w.failure != nil || s == nil || ctx.Err() != nil {
			break
		}
		st := s.next()
		if st.act == rest {
			break
		}
		w.do(ctx, st)
	}
	if err := w.journal.commit(); err != nil { // what was only noted, such as ended pods
		klog.FromContext(ctx).Error(err, "Could not write the journal")
	}
	next := w.nextLook
	if t := w.troubles.wake(time.Now()); !t.IsZero() && t.Before(next) {
		next = t
	}
	return next
}

// look reads the hardware when it is time to, or when somebody asked for it.
func (w *worker) look(ctx context.Context) {
	w.mu.Lock()
	stale, unread := w.stale, w.unread
	w.stale, w.unread = false, false
	w.mu.Unlock()
	if unread {
		w.model = nil
	}
	now := time.Now()
	if !stale && now.Before(w.nextLook) {
		return
	}
	w.failure = w.read(ctx)
	if w.failure == nil {
		w.failures = 0
		w.nextLook = now.Add(w.timing.Check)
		return
	}
	w.nextLook = now.Add(min(w.timing.RetryLeast<<min(w.failures, 16), w.timing.Check))
	w.failures++
	klog.FromContext(ctx).V(4).Info("Could not read the GPU", "err", w.failure)
}

// read reads profiles, mode and instances, and turns MIG mode on where it should be.
func (w *worker) read(ctx context.Context) error {
	if w.model == nil {
		if err := w.readProfiles(ctx); err != nil {
			return err
		}
	}
	if err := w.readMode(ctx); err != nil {
		return err
	}
	w.modeWhy = ""
	if _, wanted := w.facts(); wanted == v1alpha1.ModeMIG && !w.mode.Current {
		if err := w.turnOn(ctx); err != nil {
			w.modeWhy = err.Error()
		}
	}
	return w.list(ctx)
}

func (w *worker) readProfiles(ctx context.Context) error {
	var profiles []nvml.Profile
	err := w.call(ctx, "listing profiles", func(d nvml.Driver) (err error) {
		profiles, err = d.Profiles(w.id)
		return err
	})
	if err != nil {
		return err
	}
	gpu, _ := w.facts()
	model, err := modelOf(gpu.Name, profiles)
	if err != nil {
		return err
	}
	w.model = model
	return nil
}

func (w *worker) readMode(ctx context.Context) error {
	return w.call(ctx, "reading MIG mode", func(d nvml.Driver) (err error) {
		w.mode, err = d.MIGMode(w.id)
		return err
	})
}

// turnOn turns MIG mode on, on GPUs that need no reset for it. The driver refuses
// while anybody uses the GPU.
func (w *worker) turnOn(ctx context.Context) error {
	gpu, _ := w.facts()
	if gpu.Architecture == nvml.Ampere {
		return fmt.Errorf("MIG mode is off, and an Ampere GPU needs a reset to turn it on; stop what uses GPU %d, run nvidia-smi -i %d -mig 1 and reset it or reboot",
			gpu.Index, gpu.Index)
	}
	err := w.call(ctx, "turning MIG mode on", func(d nvml.Driver) error { return d.SetMIGMode(w.id, true) })
	switch {
	case errors.Is(err, nvml.ErrInUse):
		return fmt.Errorf("MIG mode is off and cannot be turned on while GPU %d is in use; stop what uses it", gpu.Index)
	case errors.Is(err, nvml.ErrResetRequired):
		return fmt.Errorf("MIG mode is stored and waits for a reset of GPU %d; reset it or reboot the node", gpu.Index)
	case err != nil:
		return err
	}
	klog.FromContext(ctx).V(2).Info("Turned MIG mode on")
	return w.readMode(ctx)
}

// list reads the instances.
func (w *worker) list(ctx context.Context) error {
	if !w.mode.Current {
		w.hardware = nil
		return nil
	}
	var hardware []nvml.Instance
	err := w.call(ctx, "listing instances", func(d nvml.Driver) (err error) {
		hardware, err = d.Instances(w.id)
		return err
	})
	if err == nil {
		w.hardware = hardware
	}
	return err
}

// situation joins hardware, journal and wants; nil while the model is not known.
func (w *worker) situation(ctx context.Context) *situation {
	if w.model == nil {
		return nil
	}
	wants := w.owners.wants(string(w.id))
	if w.failure == nil {
		w.adopt(ctx, wants)
	}
	all, void := match(w.hardware, w.journal.instances(string(w.id)), wants, w.model)
	if w.failure == nil && len(void) > 0 {
		w.journal.change(func(c *content) {
			for _, span := range void {
				delete(c.Instances, span)
			}
		})
	}
	w.troubles.keep(func(k task) bool {
		if k.remove {
			return slices.ContainsFunc(all, func(f found) bool { return f.span == k.span && f.idle() })
		}
		return slices.ContainsFunc(wants, func(want want) bool { return want.span == k.span })
	})
	now := time.Now()
	s := &situation{
		model: w.model, found: all, wants: wants,
		due:   func(k task) bool { return w.troubles.due(k, now) },
		stuck: w.stuck,
	}
	if gpu, wanted := w.facts(); !w.mode.Current && w.failure == nil {
		s.off = true
		if wanted != v1alpha1.ModeMIG {
			s.refusal = fmt.Sprintf("GPU %d is not in MIG mode", gpu.Index)
		}
	}
	return s
}

// stuck reports whether an instance could not be destroyed for long.
func (w *worker) stuck(span v1alpha1.Span) bool {
	t, tried := w.troubles.all[task{span: span, remove: true}]
	return tried && t.next.Sub(t.first) >= w.timing.Stuck
}

// adopt takes, once, the instances for ours that bound pods own, where the journal
// was lost and cannot tell.
func (w *worker) adopt(ctx context.Context, wants []want) {
	needed := false
	w.journal.read(func(c *content) { needed = c.Lost != "" && !c.Adopted[string(w.id)] })
	if !needed || !w.owners.isSynced() {
		return
	}
	w.journal.change(func(c *content) {
		c.Adopted[string(w.id)] = true
		for _, in := range w.hardware {
			span := spanIn(in, w.model)
			i := slices.IndexFunc(wants, func(w want) bool { return w.span == span })
			if i < 0 {
				continue
			}
			r := record{State: creating, Owner: wants[i].owner}
			if in.Whole() {
				r.State, r.UUID = live, in.UUID
			}
			c.Instances[span] = r
			klog.FromContext(ctx).V(2).Info("Adopted instance", "instance", in.UUID, "placement", span.Start, "profile", wants[i].profile)
		}
	})
}

// publish gives the results to the owners and the state to the report.
func (w *worker) publish(s *situation) {
	next := state{
		model: w.model, mode: w.mode, modeWhy: w.modeWhy,
		unhealthy: w.unhealthy(), lost: errors.Is(w.failure, nvml.ErrGPULost), instances: w.instances(s),
	}
	w.mu.Lock()
	news, learned := !next.equal(&w.state), next.model != w.state.model
	w.state = next
	w.mu.Unlock()
	if learned {
		w.learned()
	}
	if s != nil {
		w.owners.settle(string(w.id), w.results(s))
	}
	if news {
		w.changed(false)
	}
}

func (s *state) equal(other *state) bool {
	return s.model == other.model && s.mode == other.mode && s.modeWhy == other.modeWhy &&
		s.unhealthy == other.unhealthy && s.lost == other.lost && slices.Equal(s.instances, other.instances)
}

// unhealthy says why the GPU cannot be used. A call that fails now and then, as
// during a reset, is no reason.
func (w *worker) unhealthy() string {
	switch {
	case w.failure == nil:
		return ""
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

// modelOf builds the geometry of a GPU from what NVML reports.
func modelOf(name string, profiles []nvml.Profile) (*geometry.Model, error) {
	list := make([]geometry.Profile, len(profiles))
	for i, p := range profiles {
		list[i] = geometry.Profile{
			ID: geometry.ProfileID(p.ID), Name: p.Name, MemoryMiB: p.MemoryMiB, SMs: p.SMs,
			ComputeSlices: p.ComputeSlices, Size: p.Size, Max: p.Max, Starts: p.Starts,
		}
	}
	return geometry.NewModel(name, list)
}
