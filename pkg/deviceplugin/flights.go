// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// flights are the preparations under way. Kubelet gives up waiting after 30 s and
// asks again later; the work goes on meanwhile, and who asks again joins it.
type flights struct {
	// mu guards all fields and those of each flight but err.
	mu      sync.Mutex
	byKey   map[string]*flight
	stopped bool
	running sync.WaitGroup
}

// flight is one preparation.
type flight struct {
	podUID types.UID
	cancel context.CancelCauseFunc
	done   chan struct{} // closed at the end
	err    error         // valid after done
}

func newFlights() *flights {
	return &flights{byKey: map[string]*flight{}}
}

// join starts work under this key, or finds it under way. Work's context has the
// values of ctx but not its end: only callOff and stop end it, with a cause.
func (f *flights) join(ctx context.Context, key string, pod types.UID, work func(context.Context) error) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.byKey[key]; fl != nil {
		return fl
	}
	fl := &flight{podUID: pod, done: make(chan struct{})}
	if f.stopped {
		fl.err = errStopping
		close(fl.done)
		return fl
	}
	ctx, fl.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	f.byKey[key] = fl
	f.running.Go(func() {
		err := work(ctx)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause // says more than "context canceled"
		}
		f.land(key, fl, err)
	})
	return fl
}

func (f *flights) land(key string, fl *flight, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byKey, key)
	fl.err = err
	fl.cancel(nil)
	close(fl.done)
}

// callOff ends the preparations for these pods without waiting for them.
func (f *flights) callOff(pods map[types.UID]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range f.byKey {
		if pods[fl.podUID] {
			fl.cancel(errPodEnded)
		}
	}
}

// stop ends all preparations and waits for them; no other begins.
func (f *flights) stop() {
	f.mu.Lock()
	f.stopped = true
	for _, fl := range f.byKey {
		fl.cancel(errStopping)
	}
	f.mu.Unlock()
	f.running.Wait()
}
