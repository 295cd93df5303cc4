// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// session is the one NVML session. It is opened when first needed and again after
// the driver said that it is lost. Safe for parallel use.
type session struct {
	open    func() (nvml.Driver, error)
	opening chan struct{} // with room for one; full while a session is opened, which may never end

	mu        sync.Mutex        // guards what follows; never held across a driver call but Close
	driver    nvml.Driver       // nil when there is none
	lost      bool              // the last session was lost
	reloads   int               // sessions opened after one was lost
	running   map[int]time.Time // calls that run now, and since when
	begun     int               // calls begun so far
	waits     int               // waits for events that run now
	barrier   chan struct{}     // closed when calls may begin again; nil when they may
	resetting chan struct{}     // closed when the reset ends that runs, maybe for longer than calls wait for it; nil when none does
}

func newSession(open func() (nvml.Driver, error)) *session {
	return &session{open: open, opening: make(chan struct{}, 1), running: map[int]time.Time{}}
}

// reloaded is how many sessions came after one that the driver had lost: when it
// grows, everything that a driver said before may be different now.
func (s *session) reloaded() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reloads
}

// use calls f with the session's driver and reports whether a session was opened
// for it. A lost session is closed, so that the next use opens a new one. held is
// told when the call has to wait for the reset of a GPU and when that is over; it
// may be nil.
func (s *session) use(ctx context.Context, held func(bool), f func(nvml.Driver) error) (opened bool, err error) {
	call, err := s.begin(ctx, held)
	if err != nil {
		return false, err
	}
	d, opened, err := s.current(ctx)
	if err == nil {
		err = f(d)
	}
	s.mu.Lock()
	delete(s.running, call)
	s.mu.Unlock()
	if d != nil && errors.Is(err, nvml.ErrUninitialized) {
		err = errors.Join(err, s.forget(d))
	}
	return opened, err
}

// begin notes a call, once calls may begin.
func (s *session) begin(ctx context.Context, held func(bool)) (call int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.barrier != nil {
		if err := s.pass(ctx, s.barrier, held); err != nil {
			return 0, err
		}
	}
	s.begun++
	s.running[s.begun] = time.Now()
	return s.begun, nil
}

// current returns the session's driver, and whether it was opened for this call.
// Opening cannot be cancelled; other calls wait for it until their ctx ends.
func (s *session) current(ctx context.Context) (d nvml.Driver, opened bool, err error) {
	if d := s.now(); d != nil {
		return d, false, nil
	}
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	if d := s.now(); d != nil {
		return d, false, nil
	}
	if d, err = s.open(); err != nil {
		return nil, false, fmt.Errorf("opening NVML session: %w", err)
	}
	if err := ctx.Err(); err != nil { // the agent may have closed the session for good
		return nil, false, errors.Join(err, d.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driver = d; s.lost {
		s.reloads++
		s.lost = false
	}
	return d, true, nil
}

// now is the session's driver, nil when there is none.
func (s *session) now() nvml.Driver {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.driver
}

// pass waits until calls may begin again. mu is held, but for the wait.
func (s *session) pass(ctx context.Context, barrier chan struct{}, held func(bool)) error {
	s.mu.Unlock()
	defer s.mu.Lock()
	if held != nil {
		held(true)
		defer held(false)
	}
	select {
	case <-barrier:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait waits for an event as nvml.Events.Wait does. It may outlast the session, and
// has the GPUs open for as long as it runs.
func (s *session) wait(events nvml.Events, timeout time.Duration) (nvml.Event, error) {
	count := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waits += n
	}
	count(1)
	defer count(-1)
	return events.Wait(timeout)
}

var (
	errBusy      = errors.New("another driver call does not return")
	errResetting = errors.New("another reset still runs")
	errEndless   = errors.New("the reset does not end")
)

// resetLimit is how long calls wait for a reset.
const resetLimit = 3 * time.Minute

// alone calls reset while the session is closed: no driver call runs, and those that
// come wait. It waits so long for the calls that run, and lets no call wait for one
// that has run for that long already. A reset that does not end is left behind: calls
// go on, and there is no other reset before it has ended. The next call opens a new
// session.
func (s *session) alone(patience time.Duration, reset func() error) error {
	barrier := make(chan struct{})
	if err := s.raise(barrier, patience); err != nil {
		return err
	}
	defer func() {
		s.mu.Lock()
		s.barrier = nil
		s.mu.Unlock()
		close(barrier)
	}()
	began := time.Now()
	if !s.quiet(began.Add(patience), func() int { return len(s.running) }) {
		return errBusy
	}
	if err := s.close(); err != nil {
		return err
	}
	if !s.quiet(time.Now().Add(patience), func() int { return s.waits }) {
		return errBusy
	}
	ended := make(chan struct{})
	s.mu.Lock()
	s.resetting = ended
	s.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		err := reset()
		s.mu.Lock()
		s.resetting = nil
		s.mu.Unlock()
		close(ended)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(resetLimit):
		return errEndless
	}
}

func (s *session) raise(barrier chan struct{}, patience time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.barrier != nil || s.resetting != nil {
		return errResetting
	}
	for _, since := range s.running {
		if time.Since(since) >= patience {
			return errBusy
		}
	}
	s.barrier = barrier
	return nil
}

// letReset waits for the reset that runs, if one does, but not for ever.
func (s *session) letReset() {
	s.mu.Lock()
	resetting := s.resetting
	s.mu.Unlock()
	if resetting == nil {
		return
	}
	select {
	case <-resetting:
	case <-time.After(resetLimit):
	}
}

// quiet waits until n is zero and reports whether that was so by the deadline.
func (s *session) quiet(deadline time.Time, n func() int) bool {
	count := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return n()
	}
	for ; count() > 0; time.Sleep(10 * time.Millisecond) {
		if !time.Now().Before(deadline) {
			return false
		}
	}
	return true
}

// forget closes a lost session, once.
func (s *session) forget(lost nvml.Driver) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driver != lost {
		return nil
	}
	s.driver, s.lost = nil, true
	return lost.Close()
}

// close ends the session. Calls that still run see it closed.
func (s *session) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driver == nil {
		return nil
	}
	d := s.driver
	s.driver = nil
	return d.Close()
}
