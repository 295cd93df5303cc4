// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"sync/atomic"
	"time"
)

// serverClock tells the time by the API server's last answer, since this machine's
// clock may be wrong. The zero value goes by this machine's until there is one. Safe
// for parallel use.
type serverClock struct {
	ahead atomic.Int64 // nanoseconds by which the server's clock is ahead of this one
}

// wrap has the clock set by the header Date of each answer, whole seconds.
func (c *serverClock) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(request *http.Request) (*http.Response, error) {
		answer, err := next.RoundTrip(request)
		if err != nil {
			return nil, err
		}
		if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
			c.ahead.Store(int64(time.Until(date)))
		}
		return answer, nil
	})
}

// since is how long ago something was. What was within the second is not ahead of the
// server's clock.
func (c *serverClock) since(t time.Time) time.Duration {
	return max(0, time.Since(t)+time.Duration(c.ahead.Load()))
}

// roundTrip implements http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
