// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// What the hardware says of itself. An error of the whole GPU holds until the GPU
// was reset or the driver loaded again; one of an instance until that instance is
// gone, which is soon after its pod: such an instance is never given to another.

// applicationXIDs are the fault of what runs there (NVIDIA's device plugin and DRA
// driver leave the same ones out).
var applicationXIDs = []int{13, 31, 43, 45, 68, 109}

// xidWait is how long one wait for events lasts: it cannot be cancelled.
const xidWait = 500 * time.Millisecond

// breakdown is an error of the whole GPU. The zero value is none.
type breakdown struct {
	why       string
	instances []string // UUIDs of what was there: a reset takes them away
	mode      bool     // MIG mode was on: a reset turns it off, but for Ampere
}

// sickness is an error of one instance. An error may also have been that of the
// instance that had the same id before: then nobody is told, and the instance is
// destroyed after its pod all the same.
type sickness struct {
	uuid, why string
	doubtful  bool
}

// heard is an event and when it came.
type heard struct {
	nvml.Event
	at time.Time
}

// tenant is the instance that has a GPU instance id. The driver gives ids again, and
// an event has nothing but the id.
type tenant struct {
	uuid  string
	since time.Time // when it was seen first; zero where no other had the id before
}

// xidDoubt is how long after an instance was given an id an error may still be that of
// the one before: events wait in the driver, and for a thread that takes them.
const xidDoubt = 5 * time.Second

// noteTenants remembers which instances have had which ids.
func (w *worker) noteTenants() {
	for _, in := range w.hardware {
		t, again := w.tenants[in.GI]
		if !in.Whole() || t.uuid == in.UUID {
			continue
		}
		t = tenant{uuid: in.UUID}
		if again {
			t.since = time.Now()
		}
		w.tenants[in.GI] = t
	}
}

// watchXIDs listens to the GPU until ctx ends. Where it reports nothing, only
// failing calls show what is wrong.
func (w *worker) watchXIDs(ctx context.Context) {
	for ctx.Err() == nil {
		var events nvml.Events
		err := w.call(ctx, "asking for events", func(d nvml.Driver) (err error) {
			events, err = d.Events(w.id)
			return err
		})
		if errors.Is(err, nvml.ErrNotSupported) {
			klog.FromContext(ctx).V(2).Info("The GPU reports no XID errors")
			return
		}
		if err == nil {
			w.readXIDs(ctx, events)
			if err := events.Close(); err != nil {
				klog.FromContext(ctx).V(4).Info("Could not end the events", "err", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(w.timing.Check):
		}
	}
}

// waitForEars waits until nobody listens or sweeps any more, but not for ever: the
// session is closed, which ends waits, but a driver call may hang, and removing what
// containers have left may take long.
func (a *Agent) waitForEars() {
	done := make(chan struct{})
	go func() {
		a.ears.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(a.config.Timing.Stop):
	}
}

// readXIDs returns when there will be no more events.
func (w *worker) readXIDs(ctx context.Context, events nvml.Events) {
	for ctx.Err() == nil {
		e, err := w.session.wait(events, xidWait)
		switch {
		case err == nil:
			w.hear(ctx, e)
		case !errors.Is(err, nvml.ErrTimeout):
			w.lookAgain() // which finds out whether GPU or session is lost
			return
		}
	}
}

// hear takes an event.
func (w *worker) hear(ctx context.Context, e nvml.Event) {
	w.metrics.xids.WithLabelValues(string(w.id), strconv.Itoa(e.XID)).Inc()
	application := slices.Contains(applicationXIDs, e.XID)
	klog.FromContext(ctx).V(2).Info("The GPU reports an error", "xid", e.XID, "instance", e.GI, "application", application)
	if application {
		return
	}
	w.mu.Lock()
	w.heard, w.stale = append(w.heard, heard{e, time.Now()}), true
	w.mu.Unlock()
	w.wake()
}

// news returns what was heard since it was asked last.
func (w *worker) news() []heard {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := w.heard
	w.heard = nil
	return news
}

// diagnose joins what was heard with the hardware as it is known now, and returns
// what is of no instance in it. The driver gives the ids of instances that are gone
// to new ones, so it is called before each step that may do that.
func (w *worker) diagnose(news []heard) (strange []heard) {
	for _, e := range news {
		if e.GI == nvml.WholeGPU {
			w.breaks(e)
			continue
		}
		i := slices.IndexFunc(w.hardware, func(in nvml.Instance) bool { return in.GI == e.GI && in.Whole() })
		if i < 0 || w.model == nil {
			strange = append(strange, e)
			continue
		}
		w.sickens(e, &w.hardware[i])
	}
	return strange
}

// breaks notes an error of the whole GPU.
func (w *worker) breaks(e heard) {
	gpu, _ := w.facts()
	why := fmt.Sprintf("it reports XID %d; reset it or reboot the node", e.XID)
	w.broken = breakdown{why: why, mode: w.mode.Current}
	for _, in := range w.hardware {
		w.broken.instances = append(w.broken.instances, in.UUID)
	}
	w.owners.ail(func(span v1alpha1.Span) bool { return span.GPU == string(w.id) }, fmt.Sprintf("GPU %d is unhealthy: %s", gpu.Index, why))
}

// sickens notes an error of an instance.
func (w *worker) sickens(e heard, in *nvml.Instance) {
	gpu, _ := w.facts()
	span := spanIn(*in, w.model)
	s := sickness{uuid: in.UUID, why: fmt.Sprintf("%s on GPU %d at %d reports XID %d", w.profileName(in.Profile), gpu.Index, span.Start, e.XID)}
	if since := w.tenants[in.GI].since; !since.IsZero() && e.at.Sub(since) < xidDoubt {
		s.doubtful = true
		if w.sick[span].uuid == in.UUID {
			return // there is no less doubt than before
		}
	}
	w.sick[span] = s
	if !s.doubtful {
		w.owners.ail(func(other v1alpha1.Span) bool { return other == span },
			s.why+"; delete the pod to have it placed anew, on a new instance")
	}
}

// recover forgets what a reset, a reload of the driver or the end of an instance
// has cured.
func (w *worker) recover(reloaded bool) {
	there := func(uuid string) bool {
		return slices.ContainsFunc(w.hardware, func(in nvml.Instance) bool { return in.UUID == uuid })
	}
	reset := len(w.broken.instances) > 0 && !slices.ContainsFunc(w.broken.instances, there) || w.broken.mode && !w.mode.Current
	if reset || reloaded {
		w.broken = breakdown{}
	}
	for span, s := range w.sick {
		if !there(s.uuid) {
			delete(w.sick, span)
		}
	}
}

// ail tells the owners of some placements, once each, that something is wrong. A
// software share counts as an empty span of its GPU.
func (s *owners) ail(of func(v1alpha1.Span) bool, message string) {
	s.do(func() {
		for _, o := range s.pods {
			share := func(d v1alpha1.Device) bool { return of(v1alpha1.Span{GPU: d.GPU}) }
			if o.holds() && (slices.ContainsFunc(o.spans, of) || slices.ContainsFunc(o.shares, share)) && !o.told[message] && len(o.told) < maxTold {
				o.told[message] = true
				s.events.warn(o, reasonUnhealthy, strings.ToUpper(message[:1])+message[1:])
			}
		}
	})
}
