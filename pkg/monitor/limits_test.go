// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/test/fleet"
)

// narrow is a server whose sockets hold little that is not read.
func narrow(t *testing.T, m *monitor.Monitor) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(m.Handler(open))
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			if err := c.(*net.TCPConn).SetWriteBuffer(4096); err != nil {
				t.Error(err)
			}
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// standStill asks from an address for a path, reads the answer's beginning and no more.
func standStill(t *testing.T, s *httptest.Server, from, path string) (leave func()) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: m\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	begin := make([]byte, 12)
	if _, err := io.ReadFull(c, begin); err != nil || string(begin) != "HTTP/1.1 200" {
		t.Fatalf("the answer to %s begins with %q, %v", path, begin, err)
	}
	return func() { c.Close() }
}

// TestReadersWhoStandStillAreCutOff: what they hold is free again after a while.
func TestReadersWhoStandStillAreCutOff(t *testing.T) {
	m := monitorOf(t, newFleet(t, 40, 0.7), everything)
	m.Hurry(time.Hour, 2*time.Second, time.Hour)
	s := narrow(t, m)
	standStill(t, s, "127.0.0.1", "/monitor/v1/watch")
	standStill(t, s, "127.0.0.1", "/metrics")
	eventually(t, "that all slots are free", func() bool { return m.Slots() == 0 })
}

// TestLargeAnswersAreFewAtOnce: a client has half of the slots, and is turned away with one
// more until it leaves another; another client has the other half. A stream that is sent the
// whole fleet is such an answer.
func TestLargeAnswersAreFewAtOnce(t *testing.T) {
	m := monitorOf(t, newFleet(t, monitor.MaxSmall+1, 0.7), everything)
	m.Hurry(time.Hour, time.Hour, time.Millisecond)
	s := narrow(t, m)
	take := func(from string) (leave func()) {
		for i := range monitor.MaxLarge / 2 {
			leave = standStill(t, s, from, []string{"/metrics", "/monitor/v1/watch"}[i%2])
		}
		return leave
	}
	leave := take("127.0.0.1")
	for _, path := range []string{"/metrics", "/monitor/v1/fleet", "/monitor/v1/watch"} {
		if got := get(t, s.URL+path, nil).StatusCode; got != http.StatusServiceUnavailable {
			t.Errorf("%s: %d, want %d", path, got, http.StatusServiceUnavailable)
		}
	}
	take("127.0.0.2")
	leave()
	eventually(t, "a free slot", func() bool { return get(t, s.URL+"/monitor/v1/fleet", nil).StatusCode == http.StatusOK })
}

// counter counts what it is sent, and ends the request with the first part of a stream.
type counter struct {
	*httptest.ResponseRecorder
	sent  uint64
	flush func()
}

func (c *counter) Write(b []byte) (int, error) { c.sent += uint64(len(b)); return len(b), nil }
func (c *counter) Flush()                      { c.flush() }

// TestAReaderCostsNoCopyOfTheFleet: whoever reads everything gets what was encoded once for
// all.
func TestAReaderCostsNoCopyOfTheFleet(t *testing.T) {
	f := newFleet(t, monitor.MaxSmall+1, 0.7)
	for i := range 2000 {
		f.Create(fleet.Pod{Namespace: "ns", Name: fmt.Sprintf("waiting-%d", i), GPUs: 1, MemoryMiB: 4000})
	}
	m := monitorOf(t, f, everything)
	for _, path := range []string{"/monitor/v1/fleet", "/monitor/v1/watch"} {
		eventually(t, path+" to allocate less than a fifth of what it sends", func() bool { // not at once: the pods are still being heard of
			ctx, end := context.WithCancel(t.Context())
			defer end()
			out := &counter{ResponseRecorder: httptest.NewRecorder(), flush: end}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			m.Handler(open).ServeHTTP(out, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil))
			runtime.ReadMemStats(&after)
			return out.sent > 800_000 && after.TotalAlloc-before.TotalAlloc < out.sent/5
		})
	}
}

// TestStreamsEndAndGoOn: a stream has its time, and the next one goes on after it.
func TestStreamsEndAndGoOn(t *testing.T) {
	f := newFleet(t, 3, 0.5)
	m := monitorOf(t, f, everything)
	m.Hurry(time.Millisecond, time.Minute, time.Minute)
	url := serve(t, m)
	first := watch(t, url+"/monitor/v1/watch")
	event, all := first.next()
	if event != "reset" || len(all.Nodes) != 3 {
		t.Fatalf("event %s with %d nodes, want reset with 3", event, len(all.Nodes))
	}
	if _, err := io.ReadAll(first.lines); err != nil {
		t.Errorf("the stream's end: %v", err)
	}
	f.Create(fleet.Pod{Namespace: "ns", Name: "p", GPUs: 1, MemoryMiB: 4000})
	eventually(t, "the waiting pod", func() bool {
		var now message
		get(t, url+"/monitor/v1/fleet", &now)
		return len(now.Waiting) == 1
	})
	event, m2 := watch(t, url+"/monitor/v1/watch?since="+all.Version).next()
	// Nodes may be in it: the informers may not have had all of them at first.
	if event != "fleet" || len(m2.Waiting) != 1 {
		t.Errorf("event %s with %d pods, want fleet with the pod", event, len(m2.Waiting))
	}
}
