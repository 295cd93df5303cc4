// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"math"
	"time"
)

// Mode says what becomes of a job that does not fit on arrival.
type Mode string

// Modes.
const (
	Loss  Mode = "loss"  // it is rejected
	Queue Mode = "queue" // it waits; later jobs may start before it where it does not fit
)

// Options of a replay.
type Options struct {
	Policy string // one of Policies; empty is Ours
	Mode   Mode   // empty is Loss
	// Warmup is the part of the jobs, from 0 to below 1, that come first and are not
	// measured.
	Warmup float64
	// NoOversize makes policies refuse a job where only a larger profile than the
	// smallest adequate one is free.
	NoOversize bool
	// NoLearning keeps policy ours at expecting all profiles alike. Otherwise it
	// learns from the jobs that arrive, as the scheduler does where it is told to.
	NoLearning bool
	// Sample shows policy ours as many nodes with room as kube-scheduler looks at
	// for a pod by default, the next ones each time, and not all.
	Sample bool
	// Progress, where set, is called now and then with the number of jobs that have
	// arrived.
	Progress func(arrived int)

	clock func() time.Time         // for NsPerDecision
	watch func(event, int, []Spot) // tests see every step
}

// event is a step of a replay.
type event int

const (
	started event = iota
	ended
	rejected
)

// progressEvery is how many jobs arrive between two looks at context and progress.
const progressEvery = 256

// Run replays jobs, by ascending arrival, on a fleet. Errors are mistakes in the
// options, policies that do not know the fleet, ctx's end, and, should a policy
// place what cannot be, that.
func Run(ctx context.Context, f *Fleet, jobs []Job, opts Options) (*Result, error) {
	opts.Policy, opts.Mode = cmp.Or(opts.Policy, Ours), cmp.Or(opts.Mode, Loss)
	switch {
	case opts.Mode != Loss && opts.Mode != Queue:
		return nil, fmt.Errorf("replaying: mode is %q; use %s or %s", opts.Mode, Loss, Queue)
	case !(opts.Warmup >= 0 && opts.Warmup < 1):
		return nil, fmt.Errorf("replaying: warmup is %v; want a part of the jobs from 0 to below 1", opts.Warmup)
	case len(jobs) == 0:
		return nil, fmt.Errorf("replaying: there are no jobs")
	}
	if opts.clock == nil {
		opts.clock = time.Now
	}
	classes, of := f.classes(jobs, !opts.NoOversize)
	w, err := newWorld(f, classes, opts)
	if err != nil {
		return nil, err
	}
	r := &run{
		fleet: f, jobs: jobs, opts: opts, classes: classes, of: of, world: w,
		waiting: make([][]int, len(classes)), dead: make([]bool, len(classes)),
		meter: newMeter(jobs, opts.Warmup, w.read()),
	}
	r.possible()
	for i := range jobs {
		if i%progressEvery == 0 {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
			if opts.Progress != nil {
				opts.Progress(i)
			}
		}
		if err := r.arrive(i); err != nil {
			return nil, fmt.Errorf("replaying: job %d: %w", i, err)
		}
	}
	if err := r.drain(ctx); err != nil {
		return nil, err
	}
	result := &Result{Policy: opts.Policy, Fleet: f.Text, Mode: opts.Mode, GPUs: len(f.gpus)}
	r.meter.result(f, result)
	result.pace(r.decisions, r.took)
	return result, nil
}

// run is one replay.
type run struct {
	fleet   *Fleet
	jobs    []Job
	opts    Options
	classes []class
	of      []int // class, by job
	world   world
	ends    ends
	meter   *meter

	waiting [][]int // jobs by class, in order of arrival
	queued  int     // of all classes
	// dead classes did not fit when last tried, and no job has ended since: what has
	// been placed since then cannot have made room.
	dead []bool

	never     []bool // by class: not even the idle fleet holds it
	decisions int
	took      time.Duration
}

// possible finds the classes that could never start.
func (r *run) possible() {
	for i := range r.classes {
		_, ok := r.world.choose(i)
		r.never = append(r.never, !ok)
	}
}

// end is a running job's.
type end struct {
	at    float64
	job   int
	spots []Spot
}

// ends is a heap by time; of one time the job that came first.
type ends []end

func (e ends) Len() int { return len(e) }
func (e ends) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].job < e[j].job
}
func (e ends) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *ends) Push(x any)   { *e = append(*e, x.(end)) }
func (e *ends) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

// arrive is the next job.
func (r *run) arrive(job int) error {
	now := r.jobs[job].Arrival
	if err := r.until(now); err != nil {
		return err
	}
	r.meter.arrived(job, r.slices(job))
	class := r.of[job]
	r.world.arrived(class)
	fits, err := false, error(nil)
	if r.opts.Mode == Loss || !r.dead[class] {
		fits, err = r.start(job, now)
	}
	switch {
	case err != nil || fits:
		return err
	case r.opts.Mode == Queue && !r.never[class]:
		r.dead[class] = true
		r.waiting[class] = append(r.waiting[class], job)
		r.queued++
	default:
		r.reject(job)
	}
	return nil
}

// slices is the size of a job.
func (r *run) slices(job int) int {
	c := &r.classes[r.of[job]]
	return c.devices * c.least
}

// start tries to start a job now.
func (r *run) start(job int, now float64) (bool, error) {
	before := r.opts.clock()
	spots, ok := r.world.choose(r.of[job])
	r.took += r.opts.clock().Sub(before)
	r.decisions++
	if !ok {
		return false, nil
	}
	if err := r.world.place(r.of[job], spots); err != nil {
		return false, err
	}
	if d := r.jobs[job].Duration; !math.IsInf(d, 1) {
		heap.Push(&r.ends, end{now + d, job, spots})
	}
	r.meter.started(job, r.slices(job), r.oversize(job, spots), r.world.read())
	r.see(started, job, spots)
	return true, nil
}

// oversize counts the devices that are larger than needed.
func (r *run) oversize(job int, spots []Spot) int {
	n := 0
	for _, s := range spots {
		model := r.fleet.gpus[s.GPU].model
		p, _ := r.fleet.models[model].catalogue.Model().Profile(s.Profile)
		if p.Size > r.classes[r.of[job]].sizes[model].memory {
			n++
		}
	}
	return n
}

func (r *run) reject(job int) {
	r.meter.refused(job, r.never[r.of[job]])
	r.see(rejected, job, nil)
}

func (r *run) see(e event, job int, spots []Spot) {
	if r.opts.watch != nil {
		r.opts.watch(e, job, spots)
	}
}

// until plays everything that happens up to a moment.
func (r *run) until(now float64) error {
	for len(r.ends) > 0 && r.ends[0].at <= now {
		if err := r.next(); err != nil {
			return err
		}
	}
	r.meter.advance(now)
	return nil
}

// next plays the next moment at which jobs end: they go, and waiting ones start.
func (r *run) next() error {
	now := r.ends[0].at
	r.meter.advance(now)
	for len(r.ends) > 0 && r.ends[0].at == now {
		e := heap.Pop(&r.ends).(end)
		if err := r.world.remove(r.of[e.job], e.spots); err != nil {
			return err
		}
		r.see(ended, e.job, e.spots)
	}
	r.meter.freed(r.world.read())
	clear(r.dead)
	return r.startWaiting(now)
}

// startWaiting starts what waits and fits, in order of arrival.
func (r *run) startWaiting(now float64) error {
	for r.queued > 0 {
		first := -1 // class of the job that has waited longest and may fit
		for class, jobs := range r.waiting {
			if len(jobs) > 0 && !r.dead[class] && (first < 0 || jobs[0] < r.waiting[first][0]) {
				first = class
			}
		}
		if first < 0 {
			return nil
		}
		ok, err := r.start(r.waiting[first][0], now)
		switch {
		case err != nil:
			return err
		case ok:
			r.waiting[first] = r.waiting[first][1:]
			r.queued--
		default:
			r.dead[first] = true
		}
	}
	return nil
}

// drain plays on after the last arrival until nothing waits, or nothing ends any
// more: what still waits then never starts.
func (r *run) drain(ctx context.Context) error {
	for steps := 0; r.queued > 0 && len(r.ends) > 0; steps++ {
		if steps%progressEvery == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		if err := r.next(); err != nil {
			return fmt.Errorf("replaying: %w", err)
		}
	}
	for _, jobs := range r.waiting {
		for _, job := range jobs {
			r.reject(job)
		}
	}
	return nil
}
