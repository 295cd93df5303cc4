// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// Why a step did not work, besides the driver's own errors.
var (
	errInUse    = errors.New("in use")
	errUnproven = errors.New("it cannot be proven unused before all pods of the node have been seen; is the API server away?")
	errLingers  = errors.New("the driver still lists it")
	errUnlisted = errors.New("the driver does not list it")
	errNotSame  = errors.New("it is not there any more")
)

// do does one step and notes how it went.
func (w *worker) do(ctx context.Context, st step) {
	var err error
	switch st.act {
	case create:
		err = w.create(ctx, st.want)
	case take:
		err = w.take(ctx, st.want, &st.target)
	case finish:
		err = w.finish(ctx, st.want, &st.target)
	case confirm:
		err = w.journal.put(st.want.span, record{State: live, UUID: st.target.UUID, Owner: st.want.owner})
	case destroy:
		err = w.destroy(ctx, &st.target, st.want.owner)
	case refuse:
		w.owners.refused(st.want.owner, st.reason)
		return
	}
	k := task{span: st.want.span}
	if st.act == destroy {
		k = task{span: st.target.span, remove: true}
	}
	if err == nil {
		w.troubles.clear(k)
		return
	}
	w.failed(ctx, st, k, err)
}

// failed notes a failure, and refuses the want where the limits are reached.
func (w *worker) failed(ctx context.Context, st step, k task, err error) {
	if ctx.Err() != nil {
		return // the agent stops; the next one goes on
	}
	switch st.act {
	case create, finish:
		w.metrics.createErrors.WithLabelValues(codeOf(err)).Inc()
	case destroy:
		w.metrics.destroyErrors.WithLabelValues(codeOf(err)).Inc()
	}
	now := time.Now()
	t := w.troubles.note(k, err.Error(), now)
	klog.FromContext(ctx).V(4).Info("Could not do a step", "placement", k.span.Start, "err", err)
	if w.failure = w.read(ctx); w.failure != nil {
		w.nextLook = now.Add(w.timing.RetryLeast)
	}
	hopeless := errors.Is(err, nvml.ErrInsufficientResources) || errors.Is(err, nvml.ErrInvalidArgument)
	giveUp := hopeless && (t.tries >= w.timing.Tries || now.Sub(t.first) >= w.timing.GiveUp)
	if st.act == destroy {
		if st.want.owner == "" {
			return
		}
		t.reason = fmt.Sprintf("%s is in the way and cannot be destroyed: %s", w.name(&st.target), t.reason)
		w.troubles.all[task{span: st.want.span}] = t
		giveUp = now.Sub(t.first) >= w.timing.StuckGiveUp
	}
	if giveUp && !st.want.prepared {
		w.owners.refused(st.want.owner, fmt.Sprintf("%s on GPU %s at %d could not be created in %d tries: %s",
			st.want.profile, w.index(), st.want.span.Start, t.tries, t.reason))
	}
}

// create makes both parts of an instance, the intent first (I2).
func (w *worker) create(ctx context.Context, want want) error {
	began := time.Now()
	delete(w.reused, want.span)
	if err := w.journal.put(want.span, record{State: creating, Owner: want.owner}); err != nil {
		return err
	}
	err := w.call(ctx, "creating a GPU instance", func(d nvml.Driver) error {
		_, err := d.CreateGPUInstance(w.id, nvml.ProfileID(want.span.ProfileID), int(want.span.Start))
		return err
	})
	if errors.Is(err, nvml.ErrInsufficientResources) || errors.Is(err, nvml.ErrInvalidArgument) || errors.Is(err, nvml.ErrNotSupported) {
		// Refused: what may be there now is not ours, and must not seem so.
		w.journal.drop(want.span)
		return errors.Join(err, w.journal.commit())
	}
	f, listErr := w.readBack(ctx, want.span)
	if listErr != nil {
		// Where both failed, the intent stays: it may have been created all the same.
		return errors.Join(err, listErr)
	}
	return w.complete(ctx, want, f, began)
}

// readBack finds an instance that was just created.
func (w *worker) readBack(ctx context.Context, span v1alpha1.Span) (*found, error) {
	if err := w.list(ctx); err != nil {
		return nil, err
	}
	for _, in := range w.hardware {
		if spanIn(in, w.model) == span {
			return &found{Instance: in, span: span, ours: true}, nil
		}
	}
	return nil, errUnlisted
}

// finish makes an instance whole that is half there.
func (w *worker) finish(ctx context.Context, want want, f *found) error {
	if err := w.journal.put(want.span, record{State: creating, Owner: want.owner}); err != nil {
		return err
	}
	return w.complete(ctx, want, f, time.Now())
}

// complete creates the compute instance and journals the result. Where that fails
// the GPU instance is destroyed again.
func (w *worker) complete(ctx context.Context, want want, f *found, began time.Time) error {
	var whole nvml.Instance
	err := w.call(ctx, "creating a compute instance", func(d nvml.Driver) (err error) {
		whole, err = d.CreateComputeInstance(w.id, f.GI)
		return err
	})
	if err != nil {
		return errors.Join(err, w.undo(ctx, want, f))
	}
	i := slices.IndexFunc(w.hardware, func(in nvml.Instance) bool { return in.GI == f.GI })
	if i < 0 {
		return errUnlisted
	}
	w.hardware[i] = whole
	w.noteTenants()
	if err := w.journal.put(want.span, record{State: live, UUID: whole.UUID, Owner: want.owner}); err != nil {
		return err
	}
	took(w.metrics.creates, began)
	klog.FromContext(ctx).V(2).Info("Created instance", "profile", want.profile, "placement", want.span.Start,
		"instance", whole.UUID, "duration", time.Since(began))
	return nil
}

// undo destroys a GPU instance whose compute instance could not be created. What
// cannot be undone stays in the journal. A failure may come after the work is
// done: then the instance is whole and nothing is undone.
func (w *worker) undo(ctx context.Context, want want, f *found) error {
	now, err := w.readBack(ctx, want.span)
	if errors.Is(err, errUnlisted) {
		w.journal.drop(want.span)
		return nil
	}
	if err != nil || now.CI != nvml.NoCI {
		return err
	}
	if err := w.destroyGPUInstance(ctx, f.GI); err != nil {
		return fmt.Errorf("undoing: %w", err)
	}
	if err := w.checkGone(ctx, want.span); err != nil {
		return err
	}
	w.journal.drop(want.span)
	return nil
}

// checkGone returns an error unless the driver has ceased to list an instance: it
// may report success and go on listing it.
func (w *worker) checkGone(ctx context.Context, span v1alpha1.Span) error {
	_, err := w.readBack(ctx, span)
	switch {
	case errors.Is(err, errUnlisted):
		return nil
	case err == nil:
		return errLingers
	default:
		return err
	}
}

// take gives an idle instance to an owner. It must be as unused as one that is to
// be destroyed, or two pods would share it.
func (w *worker) take(ctx context.Context, want want, f *found) error {
	if err := w.proveQuiet(ctx, f); err != nil {
		return fmt.Errorf("reusing %s: %w", w.name(f), err)
	}
	r := record{State: creating, Owner: want.owner}
	if f.Whole() {
		r.State, r.UUID = live, f.UUID
	}
	if err := w.journal.put(want.span, r); err != nil {
		return err
	}
	w.reused[want.span] = f.Whole()
	w.metrics.reuses.Inc()
	klog.FromContext(ctx).V(2).Info("Reused instance", "profile", want.profile, "placement", want.span.Start, "instance", f.UUID)
	return nil
}

// destroy takes an idle instance of ours down, once it is proven unused (I1).
// clearedFor is the pod that needs its place, empty when none does.
func (w *worker) destroy(ctx context.Context, f *found, clearedFor types.UID) error {
	began := time.Now()
	if !w.owners.unowned(f.span, clearedFor) {
		return errUnproven
	}
	if err := w.proveQuiet(ctx, f); err != nil {
		return err
	}
	if err := w.journal.put(f.span, record{State: destroying, UUID: f.record.UUID, Owner: f.former}); err != nil {
		return err
	}
	if f.CI != nvml.NoCI {
		err := w.call(ctx, "destroying a compute instance", func(d nvml.Driver) error {
			return d.DestroyComputeInstance(w.id, f.GI, f.CI)
		})
		if err != nil && !isGone(err) {
			return err
		}
	}
	if err := w.destroyGPUInstance(ctx, f.GI); err != nil {
		return err
	}
	if err := w.checkGone(ctx, f.span); err != nil {
		return err
	}
	w.journal.drop(f.span)
	delete(w.reused, f.span)
	took(w.metrics.destroys, began)
	klog.FromContext(ctx).V(2).Info("Destroyed instance", "profile", w.profileName(f.Profile), "placement", f.Start,
		"instance", f.UUID, "duration", time.Since(began))
	return nil
}

func (w *worker) destroyGPUInstance(ctx context.Context, gi int) error {
	err := w.call(ctx, "destroying a GPU instance", func(d nvml.Driver) error { return d.DestroyGPUInstance(w.id, gi) })
	if isGone(err) {
		return nil
	}
	return err
}

// isGone reports whether a destruction failed because nothing is left to destroy.
func isGone(err error) bool {
	return errors.Is(err, nvml.ErrNotFound) || errors.Is(err, nvml.ErrNotSupported)
}

// proveQuiet returns an error unless an instance is still the one that was seen last,
// and nobody uses it or may do so at any time: the driver lists no process, no process
// has its capability devices open, and none is left of the pod that had it. Somebody
// else may have destroyed it since, and what has its id and place now is not ours. A
// container outlives a pod that is deleted with force, and opens the devices when it
// likes. Without a compute instance nobody can.
func (w *worker) proveQuiet(ctx context.Context, f *found) error {
	if err := w.list(ctx); err != nil {
		return err
	}
	if !slices.Contains(w.hardware, f.Instance) {
		return errNotSame
	}
	if f.CI == nvml.NoCI {
		return nil
	}
	var processes []nvml.Process
	err := w.call(ctx, "listing processes", func(d nvml.Driver) (err error) {
		processes, err = d.Processes(w.id, f.GI)
		return err
	})
	if err != nil {
		return err
	}
	if len(processes) > 0 {
		return fmt.Errorf("%w by process %d", errInUse, processes[0].PID)
	}
	gpu, _ := w.facts()
	nodes, err := w.nodes.InstanceNodes(gpu.Minor, f.GI, f.CI)
	if err != nil {
		return err
	}
	var devices []DeviceNumber
	for _, n := range nodes[min(1, len(nodes)):] { // the first is the GPU's own
		devices = append(devices, DeviceNumber{Major: n.Major, Minor: n.Minor})
	}
	pids, err := w.openers(devices)
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("%w: process %d has its capability device open", errInUse, pids[0])
	}
	// A pod that was refused was never given it, whatever else runs there.
	if f.former == "" || w.owners.alive(f.former) {
		return nil
	}
	pids, err = w.processesOf(f.former)
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("%w: process %d of the deleted pod that had it still runs", errInUse, pids[0])
	}
	return nil
}

// name names an instance for people.
func (w *worker) name(f *found) string {
	return fmt.Sprintf("%s on GPU %s at %d", w.profileName(f.Profile), w.index(), f.Start)
}

func (w *worker) profileName(id nvml.ProfileID) string {
	if p, ok := w.model.Profile(geometry.ProfileID(id)); ok {
		return p.Name
	}
	return fmt.Sprintf("profile %d", id)
}

func (w *worker) index() string {
	gpu, _ := w.facts()
	return fmt.Sprint(gpu.Index)
}
