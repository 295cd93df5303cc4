// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
)

// Alive returns when the agent's state can be read, which is at once unless it has
// come to a deadlock; an error when ctx ends before. A driver call that hangs is
// no reason to restart: it would hang again.
func (a *Agent) Alive(ctx context.Context) error {
	select {
	case <-a.probe():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// probe reads the state and returns a channel that is closed then. All who ask
// meanwhile wait for the same one, so that a deadlock costs one goroutine.
func (a *Agent) probe() <-chan struct{} {
	a.probing.Lock()
	defer a.probing.Unlock()
	if a.probed == nil {
		done := make(chan struct{})
		a.probed = done
		go func() {
			a.find()
			a.probing.Lock()
			a.probed = nil
			a.probing.Unlock()
			close(done)
		}()
	}
	return a.probed
}

// Unready says what keeps containers from being started that a rollout should wait
// for: nil when they can be, and also where the GPUs cannot be listed and GPUNode says
// so. Nodes without a driver would hold up all others otherwise.
func (a *Agent) Unready() error {
	a.mu.Lock()
	good, told := a.settings != nil, a.trouble != "" && a.told
	a.mu.Unlock()
	if !good {
		return errors.New("there is no good configuration")
	}
	select {
	case <-a.ready:
		return nil
	default:
	}
	if told {
		return nil
	}
	return errors.New("the GPUs have not been read yet")
}

// toldTrouble notes whether the report in force says why the GPUs cannot be listed.
func (a *Agent) toldTrouble(trouble string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = trouble != ""
}

// ReportDriverFile reports why containers cannot be given what each needs of the
// driver; nil when they can.
func (a *Agent) ReportDriverFile(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	a.tell(&a.driverFile, text)
}
