// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import "context"

// Alive returns when the agent's state can be read, which is at once unless it has
// come to a deadlock; an error when ctx ends before. A driver call that hangs is
// no reason to restart: it would hang again.
func (a *Agent) Alive(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		a.find()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
