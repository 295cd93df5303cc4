// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"math"
	"slices"
	"time"
)

// meter adds up what a Result needs.
type meter struct {
	jobs []Job
	warm int // the first job that counts

	at   float64 // sums go up to here
	now  gauge
	sums sums

	from  float64 // when measuring began
	begun sums    // the sums then
	end   float64 // the last arrival or start so far
	ended sums    // the sums then
	last  gauge   // the state after it
	peak  int     // GPUs on, since from

	accepted, rejected, impossible, oversize int
	impossibleLine                           int // of the first such job
	offered, taken                           work
	waits                                    []float64
}

// sums are integrals over time.
type sums struct{ memory, compute, gpus, free, stranded float64 }

// work is slice-seconds.
type work struct {
	finite float64
	// Of jobs that run forever: slices, and slices times arrival.
	forever, arrivals float64
}

func (w *work) add(j Job, slices int) {
	if math.IsInf(j.Duration, 1) {
		w.forever += float64(slices)
		w.arrivals += float64(slices) * j.Arrival
		return
	}
	w.finite += float64(slices) * j.Duration
}

// until counts jobs that run forever up to a moment.
func (w *work) until(end float64) float64 { return w.finite + w.forever*end - w.arrivals }

func newMeter(jobs []Job, warmup float64, idle gauge) *meter {
	return &meter{jobs: jobs, warm: int(warmup * float64(len(jobs))), at: jobs[0].Arrival, now: idle, last: idle}
}

// advance moves the clock: until now the state was what it became at the last step.
func (m *meter) advance(now float64) {
	dt := now - m.at
	m.at = now
	m.sums.memory += dt * float64(m.now.memory)
	m.sums.compute += dt * float64(m.now.compute)
	m.sums.gpus += dt * float64(m.now.gpus)
	m.sums.free += dt * float64(m.now.free)
	m.sums.stranded += dt * float64(m.now.stranded)
}

// arrived notes a job; advance was called before.
func (m *meter) arrived(job, slices int) {
	if job == m.warm {
		m.from, m.begun = m.at, m.sums
		m.peak = m.now.gpus
	}
	if job >= m.warm {
		m.offered.add(m.jobs[job], slices)
	}
	m.mark()
}

// mark ends the measurement here, until further notice.
func (m *meter) mark() { m.end, m.ended, m.last = m.at, m.sums, m.now }

// started notes that a job runs; advance was called before.
func (m *meter) started(job, slices, oversize int, state gauge) {
	m.now = state
	m.mark()
	m.peak = max(m.peak, state.gpus)
	if job < m.warm {
		return
	}
	m.accepted++
	m.oversize += oversize
	m.taken.add(m.jobs[job], slices)
	m.waits = append(m.waits, m.at-m.jobs[job].Arrival)
}

// freed notes that jobs have ended; advance was called before.
func (m *meter) freed(state gauge) { m.now = state }

// refused notes that a job was rejected.
func (m *meter) refused(job int, impossible bool) {
	if job < m.warm {
		return
	}
	m.rejected++
	if impossible {
		if m.impossible == 0 {
			m.impossibleLine = m.jobs[job].Line
		}
		m.impossible++
	}
}

// result fills in what was measured.
func (m *meter) result(f *Fleet, r *Result) {
	r.Jobs, r.Accepted, r.Rejected = len(m.jobs)-m.warm, m.accepted, m.rejected
	r.Impossible, r.ImpossibleLine, r.Oversize = m.impossible, m.impossibleLine, m.oversize
	r.OfferedSliceSeconds, r.AcceptedSliceSeconds = m.offered.until(m.end), m.taken.until(m.end)

	span := m.end - m.from
	mean := func(from, to float64, atEnd int) float64 {
		if span <= 0 {
			return float64(atEnd)
		}
		return (to - from) / span
	}
	memory, compute := f.capacity()
	r.Utilisation = mean(m.begun.memory, m.ended.memory, m.last.memory) / float64(memory)
	r.ComputeUtilisation = mean(m.begun.compute, m.ended.compute, m.last.compute) / float64(compute)
	r.UtilisationAtEnd = float64(m.last.memory) / float64(memory)
	r.GPUsOn, r.GPUsPeak = mean(m.begun.gpus, m.ended.gpus, m.last.gpus), m.peak
	if r.Policy != Repack {
		stranded := 0.0
		if free := mean(m.begun.free, m.ended.free, m.last.free); free > 0 {
			stranded = mean(m.begun.stranded, m.ended.stranded, m.last.stranded) / free
		}
		r.Stranded = &stranded
	}

	slices.Sort(m.waits)
	for _, w := range m.waits {
		r.WaitMean += w / float64(len(m.waits))
	}
	r.WaitP50, r.WaitP95, r.WaitP99 = rank(m.waits, 50), rank(m.waits, 95), rank(m.waits, 99)
}

// rank is a percentile of sorted values, by nearest rank.
func rank(sorted []float64, percent int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*percent+99)/100-1]
}

// pace fills in what deciding took.
func (r *Result) pace(decisions int, took time.Duration) {
	r.Decisions = decisions
	if decisions > 0 {
		r.NsPerDecision = float64(took.Nanoseconds()) / float64(decisions)
	}
}
