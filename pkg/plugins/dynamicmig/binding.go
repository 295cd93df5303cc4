// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

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
