// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// session is the one NVML session. It is opened when first needed and again after
// the driver said that it is lost. Safe for parallel use.
type session struct {
	open func() (nvml.Driver, error)

	mu      sync.Mutex    // guards what follows; held while a session is opened
	driver  nvml.Driver   // nil when there is none
	count   int           // sessions opened so far
	running int           // calls that run now
	barrier chan struct{} // closed when calls may begin again; nil when they may
}

// opened is how many sessions there have been: when it grows, everything that a
// driver said before may be different now.
func (s *session) opened() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// use calls f with the session's driver and reports whether a session was opened
// for it. A lost session is closed, so that the next use opens a new one.
func (s *session) use(f func(nvml.Driver) error) (opened bool, err error) {
	d, opened, err := s.current()
	if err != nil {
		return false, err
	}
	err = f(d)
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
	if errors.Is(err, nvml.ErrUninitialized) {
		err = errors.Join(err, s.forget(d))
	}
	return opened, err
}

func (s *session) current() (d nvml.Driver, opened bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.barrier != nil {
		barrier := s.barrier
		s.mu.Unlock()
		<-barrier
		s.mu.Lock()
	}
	if s.driver != nil {
		s.running++
		return s.driver, false, nil
	}
	d, err = s.open()
	if err != nil {
		return nil, false, fmt.Errorf("opening NVML session: %w", err)
	}
	s.driver = d
	s.count++
	s.running++
	return d, true, nil
}

var (
	errBusy      = errors.New("another driver call does not return")
	errResetting = errors.New("another GPU is being reset")
)

// alone calls f while the session is closed: no driver call runs, and those that
// come wait. It waits so long for the calls that run. The next call opens a new
// session.
func (s *session) alone(patience time.Duration, f func() error) error {
	s.mu.Lock()
	if s.barrier != nil {
		s.mu.Unlock()
		return errResetting
	}
	barrier := make(chan struct{})
	s.barrier = barrier
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.barrier = nil
		s.mu.Unlock()
		close(barrier)
	}()
	for deadline := time.Now().Add(patience); s.calls() > 0; time.Sleep(10 * time.Millisecond) {
		if !time.Now().Before(deadline) {
			return errBusy
		}
	}
	if err := s.close(); err != nil {
		return err
	}
	// A wait for events goes on for that long in a closed session, and has the GPUs
	// open until then.
	time.Sleep(2 * xidWait)
	return f()
}

func (s *session) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// forget closes a lost session, once.
func (s *session) forget(lost nvml.Driver) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driver != lost {
		return nil
	}
	s.driver = nil
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
