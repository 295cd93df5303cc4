// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"sync"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// session is the one NVML session. It is opened when first needed and again after
// the driver said that it is lost. Safe for parallel use.
type session struct {
	open func() (nvml.Driver, error)

	mu     sync.Mutex  // guards what follows; held while a session is opened
	driver nvml.Driver // nil when there is none
	count  int         // sessions opened so far
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
	if errors.Is(err, nvml.ErrUninitialized) {
		err = errors.Join(err, s.forget(d))
	}
	return opened, err
}

func (s *session) current() (d nvml.Driver, opened bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.driver != nil {
		return s.driver, false, nil
	}
	d, err = s.open()
	if err != nil {
		return nil, false, fmt.Errorf("opening NVML session: %w", err)
	}
	s.driver = d
	s.count++
	return d, true, nil
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
