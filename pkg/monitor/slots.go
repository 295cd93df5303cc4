// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// slots are places for readers. One client, told by its address, has half of them at
// most, so that who takes all they can get leaves some to others.
type slots struct {
	taken chan struct{} // has one for each; its capacity is how many there are

	mu      sync.Mutex // guards clients
	clients map[string]*client
}

// client is there while somebody holds a slot, or waits for one, at its address.
type client struct {
	taken   chan struct{} // of these, as in slots
	readers int           // who hold or wait
}

func newSlots(count int) *slots {
	return &slots{taken: make(chan struct{}, count), clients: map[string]*client{}}
}

// enter waits for a slot until ctx ends. What it returns gives the slot back; it is nil
// where there was none.
func (s *slots) enter(ctx context.Context, r *http.Request) (leave func()) {
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = r.RemoteAddr
	}
	mine := s.arrive(address)
	select {
	case mine.taken <- struct{}{}:
	case <-ctx.Done():
		s.depart(address)
		return nil
	}
	select {
	case s.taken <- struct{}{}:
	case <-ctx.Done():
		<-mine.taken
		s.depart(address)
		return nil
	}
	return func() {
		<-s.taken
		<-mine.taken
		s.depart(address)
	}
}

func (s *slots) arrive(address string) *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[address]
	if c == nil {
		c = &client{taken: make(chan struct{}, cap(s.taken)/2)}
		s.clients[address] = c
	}
	c.readers++
	return c
}

func (s *slots) depart(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.clients[address]; c.readers > 1 {
		c.readers--
	} else {
		delete(s.clients, address)
	}
}
