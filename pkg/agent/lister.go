// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// lister lists the GPUs of the node, one listing at a time. A listing cannot be
// cancelled, so one that does not return is left behind until it does. For one
// caller at a time.
type lister struct {
	session *session
	hang    time.Duration // until a listing counts as one that does not return

	last    *listing // that worked; nil until one has
	running *listing // that was begun and has not been taken
}

// listing is what the driver said of the node.
type listing struct {
	began   atomic.Pointer[time.Time] // nil while it waits for the reset of a GPU
	done    chan struct{}             // closed when the rest is filled in
	version string                    // of the driver
	gpus    []nvml.GPU
	missing []string // GPUs that do not answer, sentences
	err     error
}

// list replaces last. An error leaves it as it is. Of GPUs that skip names nothing is
// read but what they are known by.
func (l *lister) list(ctx context.Context, skip func(nvml.GPUID, int) bool) error {
	if l.running != nil {
		if late := l.running.late(l.hang); late != nil {
			select {
			case <-l.running.done: // what it says is old
				l.running = nil
			default:
				return late
			}
		}
	}
	if l.running == nil {
		l.running = &listing{done: make(chan struct{})}
		l.running.held(false)
		go l.running.ask(ctx, l.session, skip)
	}
	for ended := false; !ended; {
		select {
		case <-l.running.done:
			ended = true
		case <-time.After(l.hang):
			if late := l.running.late(l.hang); late != nil {
				return late
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	done := l.running
	l.running = nil
	if done.err == nil {
		l.last = done
	}
	return done.err
}

func (n *listing) held(waits bool) {
	if waits {
		n.began.Store(nil)
	} else {
		n.began.Store(new(time.Now()))
	}
}

// late says so if the listing should have returned by now.
func (n *listing) late(hang time.Duration) error {
	began := n.began.Load()
	if began == nil || time.Since(*began) < hang {
		return nil
	}
	return fmt.Errorf("the driver has been listing them since %s; look for NVRM in the kernel log, and reset the GPU that hangs or reboot the node",
		began.UTC().Format(time.TimeOnly))
}

func (n *listing) ask(ctx context.Context, s *session, skip func(nvml.GPUID, int) bool) {
	defer close(n.done)
	_, n.err = s.use(ctx, n.held, func(d nvml.Driver) (err error) {
		if n.version, err = d.DriverVersion(); err != nil {
			return err
		}
		n.gpus, err = d.GPUs(skip)
		return err
	})
	if n.err != nil && len(n.gpus) > 0 {
		for line := range strings.SplitSeq(n.err.Error(), "\n") {
			n.missing = append(n.missing, line+"; its pods cannot start")
		}
		n.err = nil
	}
}
