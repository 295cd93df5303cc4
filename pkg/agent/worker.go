// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
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
	id          nvml.GPUID
	session     *session
	journal     *journal
	owners      *owners
	nodes       Nodes
	openers     func([]DeviceNumber) ([]int, error)
	processesOf func(types.UID) ([]int, error)
	reset       func(context.Context, nvml.GPU) error // nil: never
	timing      Timing
	metrics     *metrics
	calls       *atomic.Uint64    // is told each driver call
	ears        *sync.WaitGroup   // of what listens to the GPU
	changed     func(urgent bool) // the report should look again
	learned     func()            // what is known of the GPUs should be put together anew
	stop        func()            // ends run

	kick  chan struct{} // with room for one
	first chan struct{} // closed after the first pass
	done  chan struct{} // closed when run has returned
	after chan struct{} // run begins when it is closed: the GPU had a worker before; may be nil

	serial chan struct{} // with room for one; full over each driver call that names the GPU (I5), by any worker

	mu      sync.Mutex // guards what follows
	gpu     nvml.GPU
	wanted  string  // mode
	stale   bool    // look at the hardware in the next pass
	unread  bool    // and read the profiles anew
	heard   []heard // that were not diagnosed yet
	calling string  // the driver call that runs, empty when none does
	since   time.Time
	state   state

	// Of the worker's goroutine only.
	model    *geometry.Model // nil until the profiles have been read
	reread   bool            // they are to be read anew
	reloaded bool            // the driver was loaded again, and the GPU was not looked at since
	mode     nvml.MIGMode
	modeWhy  string // why the wanted mode is not in force
	hardware []nvml.Instance
	failures int   // looks that failed in a row
	failure  error // of the last look
	nextLook time.Time
	troubles troubles

	nextReset time.Time              // when the GPU may be reset again
	resets    int                    // that did not help, in a row
	resetWhy  string                 // why the last one did not
	reused    map[v1alpha1.Span]bool // instances that were there before their pod
	broken    breakdown
	sick      map[v1alpha1.Span]sickness
	tenants   map[int]tenant // by GPU instance id
}

// newWorker makes a GPU's worker. before is the one that the GPU had; nil for none.
func (a *Agent) newWorker(gpu nvml.GPU, wanted string, before *worker) *worker {
	c := &a.config
	w := &worker{
		id: gpu.ID, gpu: gpu, wanted: wanted,
		session: a.session, journal: a.journal, owners: a.owners, metrics: a.metrics, calls: &a.calls, ears: &a.ears,
		nodes: c.Nodes, openers: c.Openers, processesOf: c.ProcessesOf, reset: c.Reset, timing: c.Timing,
		changed: a.changed, learned: func() { signal(a.rearrange) },
		kick: make(chan struct{}, 1), first: make(chan struct{}), done: make(chan struct{}), serial: make(chan struct{}, 1),
		troubles: troubles{least: c.Timing.RetryLeast, most: c.Timing.RetryMost, all: map[task]trouble{}},
		reused:   map[v1alpha1.Span]bool{},
		sick:     map[v1alpha1.Span]sickness{},
		tenants:  map[int]tenant{},
	}
	if before != nil {
		w.after, w.serial = before.done, before.serial
	}
	return w
}

// state is what the report shows of a GPU. It is replaced, never changed.
type state struct {
	model     *geometry.Model // nil until the profiles have been read
	mode      nvml.MIGMode
	modeWhy   string
	unhealthy string // why, empty when healthy
	broken    bool   // it stays so until it is reset: what is on it cannot be used
	instances []v1alpha1.Instance
	sick      []v1alpha1.Span // by start; instances that cannot be used
	sickWhy   string          // why, one line each
}

// maxSteps ends a pass that makes no progress, which would be a bug. A GPU has at
// most some ten wants and as many instances.
const maxSteps = 100

// run works until ctx ends. A driver call that runs then is waited for.
func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	ctx = klog.NewContext(ctx, klog.LoggerWithValues(klog.FromContext(ctx), "gpu", w.id))
	if w.after != nil {
		<-w.after // however long: done also says that no worker before this one runs
	}
	if ctx.Err() != nil {
		return
	}
	w.ears.Go(func() { w.watchXIDs(ctx) })
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

// set changes what the worker knows of its GPU from elsewhere. A driver that was
// loaded again may be another, with other profiles.
func (w *worker) set(gpu nvml.GPU, wanted string, reloaded bool) {
	w.mu.Lock()
	news := reloaded || w.gpu != gpu || w.wanted != wanted
	w.gpu, w.wanted, w.unread = gpu, wanted, w.unread || reloaded
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
	select {
	case w.serial <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.serial }()
	began := time.Now()
	w.begin(what)
	opened, err := w.session.use(ctx, func(waits bool) {
		if waits {
			w.finished() // another GPU's reset is not a fault of this one
		} else {
			w.begin(what)
		}
	}, f)
	w.finished()
	w.calls.Add(1)
	took(w.metrics.calls.WithLabelValues(what), began)
	if err != nil {
		w.metrics.callErrors.WithLabelValues(what, codeOf(err)).Inc()
	}
	if opened {
		w.learned()
	}
	return err
}

// begin and finished stand around what cannot be cancelled.
func (w *worker) begin(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calling, w.since = what, time.Now()
}

func (w *worker) finished() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calling = ""
}

// pass does what can be done now and returns when to come back at the latest.
func (w *worker) pass(ctx context.Context) time.Time {
	w.look(ctx)
	for range maxSteps {
		if ctx.Err() != nil {
			break // what is known of the hardware may be older than the last step
		}
		w.diagnose(w.news()) // before the driver gives the ids to other instances
		s := w.situation(ctx)
		w.publish(s)
		if w.failure != nil || s == nil {
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

// situation joins hardware, journal and wants; nil while the model is not known.
func (w *worker) situation(ctx context.Context) *situation {
	if w.model == nil {
		return nil
	}
	synced := w.owners.isSynced() // before the wants, which are all of them then
	wants := w.owners.wants(string(w.id))
	if w.failure == nil {
		w.recover(false)
		if synced {
			w.adopt(ctx, wants)
		}
	}
	all, void := match(w.hardware, w.journal.instances(string(w.id)), wants, w.model)
	if w.failure == nil && len(void) > 0 {
		w.journal.drop(void...)
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
		sick:  func(span v1alpha1.Span) bool { return w.sick[span].why != "" },
	}
	gpu, wanted := w.facts()
	s.retire = wanted == v1alpha1.ModeHAMiCore
	if w.broken.why != "" {
		s.off, s.refusal = true, fmt.Sprintf("GPU %d is unhealthy: %s", gpu.Index, w.broken.why)
		return s
	}
	if !w.mode.Current && w.failure == nil {
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
// was lost and cannot tell. All pods have been seen.
func (w *worker) adopt(ctx context.Context, wants []want) {
	needed := false
	w.journal.read(func(c *content) { needed = c.Lost != "" && !c.Adopted[string(w.id)] })
	if !needed {
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
