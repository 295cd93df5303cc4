// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// eventPoll is how often a waiting stream looks whether the state has changed.
const eventPoll = 50 * time.Millisecond

// events implements nvml.Events by looking at the shared state, since the process
// that raises an XID is another one.
type events struct {
	driver *Driver
	gpus   []nvml.GPUID
	last   int    // Seq of the last event that was returned or came before
	seen   []byte // state.json as it was looked at last
	closed atomic.Bool
}

// Events implements nvml.Driver.
func (d *Driver) Events(ids ...nvml.GPUID) (nvml.Events, error) {
	e := &events{driver: d, gpus: slices.Clone(ids)}
	if len(ids) == 0 {
		return nil, fmt.Errorf("asking for events of no GPU: %w", nvml.ErrInvalidArgument)
	}
	for _, id := range ids {
		err := d.call(CallEvents, id, func(s *State, _ *GPU, _ Fault) error {
			e.last = max(e.last, s.LastEvent)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("asking for events of %s: %w", id, err)
		}
	}
	return e, nil
}

// Wait implements nvml.Events.
func (e *events) Wait(timeout time.Duration) (nvml.Event, error) {
	for left := timeout; ; left -= eventPoll {
		event, err := e.next()
		if !errors.Is(err, nvml.ErrTimeout) {
			return event, err
		}
		if left <= 0 {
			return nvml.Event{}, fmt.Errorf("waiting %s for an event: %w", timeout, err)
		}
		time.Sleep(min(left, eventPoll))
	}
}

// next returns the next event, or ErrTimeout when there is none now.
func (e *events) next() (nvml.Event, error) {
	if e.closed.Load() || e.driver.closed.Load() {
		return nvml.Event{}, fmt.Errorf("waiting for an event: the session is closed: %w", nvml.ErrUninitialized)
	}
	text, err := os.ReadFile(e.driver.stateFile()) // replaced as a whole, so no lock
	if err != nil {
		return nvml.Event{}, fmt.Errorf("waiting for an event: %w", err)
	}
	if bytes.Equal(text, e.seen) {
		return nvml.Event{}, nvml.ErrTimeout
	}
	s, err := decodeState(text)
	if err != nil {
		return nvml.Event{}, fmt.Errorf("waiting for an event: %w", err)
	}
	if s.Session != e.driver.session {
		return nvml.Event{}, fmt.Errorf("waiting for an event: the driver was loaded again: %w", nvml.ErrUninitialized)
	}
	for _, event := range s.Events {
		if event.Seq > e.last && slices.Contains(e.gpus, event.GPU) {
			e.last = event.Seq
			return nvml.Event{GPU: event.GPU, XID: event.XID, GI: event.GI, CI: event.CI}, nil
		}
	}
	for _, g := range s.GPUs {
		if g.Lost && slices.Contains(e.gpus, g.UUID) {
			return nvml.Event{}, fmt.Errorf("waiting for an event: GPU %d has fallen off the bus: %w", g.Index, nvml.ErrGPULost)
		}
	}
	e.seen = text
	return nvml.Event{}, nvml.ErrTimeout
}

// Close implements nvml.Events.
func (e *events) Close() error {
	e.closed.Store(true)
	return nil
}
