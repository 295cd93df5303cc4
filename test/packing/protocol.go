// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"

	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/replay"
)

// protocol is how much is measured.
type protocol struct{ seeds, fills, arrivals int }

// kinds are the profiles that requests ask for, with their memory slices.
var kinds = []struct {
	profile string
	slices  float64
}{{"7g.80gb", 8}, {"4g.40gb", 4}, {"3g.40gb", 4}, {"2g.20gb", 2}, {"1g.20gb", 2}, {"1g.10gb", 1}}

// A mix is how often each kind is asked for; all together 1.
type mix struct {
	name  string
	parts [6]float64
}

var mixes = []mix{
	{"uniform", [6]float64{1. / 6, 1. / 6, 1. / 6, 1. / 6, 1. / 6, 1. / 6}},
	{"skew-small", [6]float64{.05, .10, .10, .20, .25, .30}},
	{"skew-big", [6]float64{.30, .25, .20, .10, .10, .05}},
	{"two-ends", [6]float64{.30, .05, .05, .05, .05, .50}}, // training and notebooks
	{"middle", [6]float64{.05, .20, .30, .30, .10, .05}},   // inference
}

// A load is offered slices over slices; the fill is apart.
type load struct {
	name string
	rho  float64 // 0 is the fill
}

var loads = []load{{"0.85", .85}, {"1.0", 1}, {"fill", 0}}

// The fleet.
const gpus = 100

var fleetText = []string{"12x8xH100-80GB", "1x4xH100-80GB"}

// jobs draws requests for the fleet. The same seed gives the same for every policy.
func (p protocol) jobs(m mix, l load, seed int) []replay.Job {
	return m.jobs(l, seed, gpus, p.arrivals)
}

// slices is what a request takes, on the average.
func (m mix) slices() float64 {
	mean := 0.0
	for i, part := range m.parts {
		mean += part * kinds[i].slices
	}
	return mean
}

// jobs draws requests for that many GPUs: so many, or in a fill until all slices
// have been offered.
func (m mix) jobs(l load, seed, gpus, arrivals int) []replay.Job {
	chance := rand.New(rand.NewPCG(uint64(seed), 2026))
	slices := float64(gpus * 8)
	var jobs []replay.Job
	at, offered := 0.0, 0.0
	for l.rho == 0 && offered < slices || l.rho > 0 && len(jobs) < arrivals {
		i := m.draw(chance.Float64())
		offered += kinds[i].slices
		job := replay.Job{Devices: 1, Duration: math.Inf(1), Want: geometry.Want{Profile: kinds[i].profile}}
		if l.rho > 0 {
			at += chance.ExpFloat64() * m.slices() / (l.rho * slices)
			job.Duration = chance.ExpFloat64()
		} else {
			at++
		}
		job.Arrival = at
		jobs = append(jobs, job)
	}
	return jobs
}

// draw picks a kind by a number from 0 to below 1.
func (m mix) draw(u float64) int {
	for i, part := range m.parts {
		if u -= part; u < 0 {
			return i
		}
	}
	return len(m.parts) - 1 // rounding
}

// runs is how many seeds a load has.
func (p protocol) runs(l load) int {
	if l.rho == 0 {
		return p.fills
	}
	return p.seeds
}

// cell is the results of one policy at one load for one mix, by seed.
type cell []*replay.Result

// measured is all results, by policy, load and mix in the order of their lists.
type measured map[string][][]cell

// task is one trace, to be replayed by every policy.
type task struct{ load, mix, seed int }

// measure replays everything, as many traces at once as there are processors.
func (p protocol) measure(ctx context.Context, progress func(done, all int)) (measured, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	fleet, err := replay.ParseFleet(fleetText, nil)
	if err != nil {
		return nil, err
	}
	out, tasks := measured{}, []task{}
	for _, policy := range replay.Policies() {
		out[policy] = make([][]cell, len(loads))
		for l := range loads {
			out[policy][l] = make([]cell, len(mixes))
			for m := range mixes {
				out[policy][l][m] = make(cell, p.runs(loads[l]))
			}
		}
	}
	for l := range loads {
		for m := range mixes {
			for seed := range p.runs(loads[l]) {
				tasks = append(tasks, task{l, m, seed})
			}
		}
	}
	next := make(chan task)
	var group sync.WaitGroup
	var mu sync.Mutex // guards done
	done := 0
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for t := range next {
				if err := p.replay(ctx, fleet, t, out); err != nil {
					cancel(err)
				}
				mu.Lock()
				done++
				progress(done, len(tasks))
				mu.Unlock()
			}
		})
	}
	for _, t := range tasks {
		next <- t // replay returns at once after the first error
	}
	close(next)
	group.Wait()
	return out, context.Cause(ctx)
}

// replay is one trace by every policy.
func (p protocol) replay(ctx context.Context, fleet *replay.Fleet, t task, out measured) error {
	jobs := p.jobs(mixes[t.mix], loads[t.load], t.seed)
	opts := replay.Options{Warmup: .25, NoOversize: true}
	if loads[t.load].rho == 0 {
		opts.Warmup = 0
	}
	for _, opts.Policy = range replay.Policies() {
		r, err := replay.Run(ctx, fleet, jobs, opts)
		if err != nil {
			return err
		}
		out[opts.Policy][t.load][t.mix][t.seed] = r
	}
	return nil
}
