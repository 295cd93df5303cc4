// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// Settled waits until hardware and pods are known, and then until no driver call
// was made for a moment; an error when ctx ends before.
func (a *Agent) Settled(ctx context.Context, quiet time.Duration) error {
	for last, since := a.calls.Load(), time.Now(); ; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the agent to be at rest: %w", context.Cause(ctx))
		case <-time.After(quiet / 10):
		}
		select {
		case <-a.ready:
		default:
			continue
		}
		if now := a.calls.Load(); now != last || !a.owners.isSynced() {
			last, since = now, time.Now()
		}
		if time.Since(since) >= quiet {
			return nil
		}
	}
}

// Describe draws what the agent would report, for people.
func (a *Agent) Describe() string {
	f := a.find()
	s := f.status()
	var b strings.Builder
	for i := range s.GPUs {
		gpu := &s.GPUs[i]
		fmt.Fprintf(&b, "GPU %d %s (%s): %s\n", gpu.Index, gpu.UUID, gpu.Model, gpu.Health)
		if gpu.Reason != "" {
			fmt.Fprintf(&b, "  not offered: %s\n", gpu.Reason)
		}
		for _, in := range gpu.Instances {
			fmt.Fprintf(&b, "  %s at %d: %s %s\n", a.owners.profileName(gpu.UUID, in.ProfileID), in.Start, in.State, a.owners.display(in.PodUID))
		}
	}
	for _, p := range s.Pods {
		fmt.Fprintf(&b, "pod %s: %s: %s\n", a.owners.display(p.UID), p.Phase, p.Reason)
	}
	for _, c := range s.Conditions {
		if c.Message != "" {
			fmt.Fprintf(&b, "%s is %s (%s): %s\n", c.Type, c.Status, c.Reason, strings.ReplaceAll(c.Message, "\n", " "))
		}
	}
	return b.String()
}

// profileName names a profile of a GPU for people.
func (s *owners) profileName(gpu string, id int32) string {
	s.mu.Lock()
	g := s.grounds
	s.mu.Unlock()
	if g != nil {
		if p := g.profile(v1alpha1.Span{GPU: gpu, ProfileID: id}); p != nil {
			return p.Name
		}
	}
	return fmt.Sprintf("profile %d", id)
}

// display names a pod for people; empty for none.
func (s *owners) display(uid types.UID) string {
	namespace, name, ok := s.name(uid)
	if !ok {
		return string(uid)
	}
	return namespace + "/" + name
}
