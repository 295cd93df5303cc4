// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/dynamig/dynamig/pkg/pool"
)

// waiting are the unbound GPU pods, whether queued or in flight. Safe for parallel
// use.
type waiting struct {
	mu   sync.Mutex // guards pods
	pods map[types.UID]*v1.Pod
}

func newWaiting() *waiting { return &waiting{pods: map[types.UID]*v1.Pod{}} }

func (w *waiting) add(pod *v1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pods[pod.UID] = pod
}

func (w *waiting) remove(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pods, uid)
}

// fitting are the pods that fit a view, each on its own, by the queue's key.
func (w *waiting) fitting(view *pool.View) map[string]*v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]*v1.Pod{}
	for _, pod := range w.pods {
		if view.FitsPod(pod) {
			out[cache.MetaObjectToName(pod).String()] = pod
		}
	}
	return out
}

// errPodGone cancels the binding of a deleted pod.
var errPodGone = errors.New("the pod was deleted while it was being bound")

// bindings are the PreBinds in flight. Safe for parallel use.
type bindings struct {
	mu      sync.Mutex // guards cancels
	cancels map[types.UID]context.CancelCauseFunc
}

func newBindings() *bindings { return &bindings{cancels: map[types.UID]context.CancelCauseFunc{}} }

// start makes a context that cancel ends; done must be called.
func (b *bindings) start(ctx context.Context, uid types.UID) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancels[uid] = cancel
	return ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.cancels, uid)
		cancel(nil)
	}
}

func (b *bindings) cancel(uid types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cancel, ok := b.cancels[uid]; ok {
		cancel(errPodGone)
	}
}
