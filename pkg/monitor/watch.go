// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// message is the answer of /monitor/v1/fleet, and what /monitor/v1/watch sends: there
// only what is newer than the version asked for. Its JSON has, beside the fields below,
// "waiting", all WaitingPods, and "nodes", Pictures.
type message struct {
	Version string    `json:"version"`
	At      time.Time `json:"at"`
	Gone    []string  `json:"gone,omitempty"` // nodes that are no more

	all   bool     // of the fleet; else what has changed
	nodes []*Drawn // newer than the version asked for
	view  *View    // whose pods wait
}

func (m *Monitor) version(n uint64) string { return m.boot + "." + strconv.FormatUint(n, 10) }

// message has the nodes that are newer than since, or all where that cannot be told.
func (m *Monitor) message(view *View, since uint64) *message {
	msg := &message{Version: m.version(view.Version), At: m.journal.now(), view: view}
	gone, ok := m.fleet.Gone(since)
	if !ok || since == 0 || since > view.Version {
		msg.all, msg.nodes = true, view.Nodes
		return msg
	}
	msg.Gone = gone
	for _, n := range view.Nodes {
		if n.Version > since {
			msg.nodes = append(msg.nodes, n)
		}
	}
	return msg
}

// event is the message's name in a stream.
func (msg *message) event() string {
	if msg.all {
		return "reset"
	}
	return "fleet"
}

// write writes the message on one line. What all readers get is encoded once for all of
// them and written from there, so that a reader of the whole fleet costs no memory of
// its size.
func (msg *message) write(out io.Writer) error {
	head, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	waiting, err := msg.view.waitingJSON()
	if err != nil {
		return err
	}
	to := bufio.NewWriter(out) // remembers the first error
	to.Write(head[:len(head)-len("}")])
	to.WriteString(`,"waiting":`)
	to.Write(waiting)
	to.WriteString(`,"nodes":[`)
	for i, n := range msg.nodes {
		text, err := n.JSON()
		if err != nil {
			return fmt.Errorf("encoding node %s: %w", n.Name, err)
		}
		if i > 0 {
			to.WriteByte(',')
		}
		if _, err := to.Write(text); err != nil {
			return err
		}
	}
	to.WriteString("]}")
	return to.Flush()
}

// updateEvery is how often a stream looks for changes.
const updateEvery = 200 * time.Millisecond

// keepAlive is how long a stream may be silent: proxies end what says nothing.
const keepAlive = 15 * time.Second

// stream is one reader of /monitor/v1/watch.
type stream struct {
	m     *Monitor
	r     *http.Request
	w     http.ResponseWriter
	since uint64    // version that the reader has
	last  time.Time // when something was sent; zero: nothing yet
}

// serveWatch streams what changes as server-sent events named "fleet". A version
// of another process, or too old, or none, is answered with everything and the event
// "reset". A stream has its end, so that slots come free.
func (m *Monitor) serveWatch(w http.ResponseWriter, r *http.Request) {
	leave, err := m.enter(r, m.watchers)
	if err != nil {
		crowded(w)
		return
	}
	defer leave()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	s := &stream{m: m, r: r, w: w, since: m.since(r.URL.Query().Get("since"))}
	tick := time.NewTicker(updateEvery)
	defer tick.Stop()
	end := time.NewTimer(m.streamAge)
	defer end.Stop()
	for {
		err := s.update()
		if errors.Is(err, errCrowded) && s.last.IsZero() {
			crowded(w)
		}
		if err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-end.C:
			return
		case <-tick.C:
		}
	}
}

// update sends what is new; at first, and after a while, also that nothing is.
func (s *stream) update() error {
	view := s.m.fleet.Recent(updateEvery)
	s.m.extend(s.w)
	if view.Version != s.since {
		return s.send(view)
	}
	if time.Since(s.last) < keepAlive {
		return nil
	}
	if _, err := io.WriteString(s.w, ": nothing new\n\n"); err != nil {
		return err
	}
	return s.flush()
}

// send sends what the view has beyond what the reader has. A message of the fleet's size
// takes a slot, as other answers of that size do.
func (s *stream) send(view *View) error {
	msg := s.m.message(view, s.since)
	if len(msg.nodes) > maxSmall {
		leave, err := s.m.enter(s.r, s.m.large)
		if err != nil {
			return err
		}
		defer leave()
		s.m.extend(s.w)
	}
	if _, err := fmt.Fprintf(s.w, "event: %s\ndata: ", msg.event()); err != nil {
		return err
	}
	if err := msg.write(s.w); err != nil {
		return err
	}
	if _, err := io.WriteString(s.w, "\n\n"); err != nil {
		return err
	}
	s.since = view.Version
	return s.flush()
}

func (s *stream) flush() error {
	s.last = time.Now()
	return http.NewResponseController(s.w).Flush()
}

// since reads a version that this process has given out; 0 for any other.
func (m *Monitor) since(text string) uint64 {
	boot, number, _ := strings.Cut(text, ".")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || boot != m.boot {
		return 0
	}
	return n
}
