// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// trouble is something that did not work and is tried again.
type trouble struct {
	first  time.Time // when it failed first
	next   time.Time // when it is tried again
	tries  int
	reason string // why it failed last
}

// lasting reports whether it is more than a hiccup: an instance is often in use
// for a moment after its pod has ended.
func (t trouble) lasting() bool { return t.tries >= 3 }

// same reports whether two troubles look alike to people.
func (t trouble) same(other trouble) bool {
	return t.reason == other.reason && t.lasting() == other.lasting()
}

// task is something that a worker does to a placement and that can fail.
type task struct {
	span   v1alpha1.Span
	remove bool // destroy what is there, else provide it
}

// troubles are a worker's. Waiting times double from least to most.
type troubles struct {
	least, most time.Duration
	all         map[task]trouble
}

// due reports whether a task may be tried now.
func (t *troubles) due(k task, now time.Time) bool {
	return !now.Before(t.all[k].next)
}

// note records a failure. One that was not tried for long begins anew.
func (t *troubles) note(k task, reason string, now time.Time) trouble {
	old, again := t.all[k]
	if !again || now.Sub(old.next) > 2*t.most {
		old = trouble{first: now}
	}
	wait := min(t.least<<min(old.tries, 16), t.most)
	next := trouble{first: old.first, next: now.Add(wait), tries: old.tries + 1, reason: reason}
	t.all[k] = next
	return next
}

// clear forgets a task's failures.
func (t *troubles) clear(k task) { delete(t.all, k) }

// keep forgets the tasks that are not wanted any more.
func (t *troubles) keep(wanted func(task) bool) {
	for k := range t.all {
		if !wanted(k) {
			delete(t.all, k)
		}
	}
}

// wake is when the next task becomes due after now, zero when none does. What is
// due already could not be tried, and waits for something else to happen.
func (t *troubles) wake(now time.Time) time.Time {
	var first time.Time
	for _, x := range t.all {
		if x.next.After(now) && (first.IsZero() || x.next.Before(first)) {
			first = x.next
		}
	}
	return first
}
