// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// SetCapacity offers n slots. Fewer than now takes away only slots that no pod
// holds; the rest follows as pods end. Until the first call the slots of the
// earlier run are offered, if a pod may hold one. After an error nothing has changed.
func (p *Plugin) SetCapacity(n int) error {
	t, end := p.slots.begin()
	defer end()
	t.resize(n, p.kept())
	if err := p.slots.commit(t); err != nil {
		return err
	}
	p.slots.settle(n)
	return nil
}

// Release says that the pod has ended, after which Pods must not know it: its
// preparation is called off, its CDI files are removed, its slots withdrawn and
// new ones offered in the same update. Releasing a pod without slots does nothing.
// After an error, call it again.
func (p *Plugin) Release(podUID types.UID) error {
	return p.release(map[types.UID]bool{podUID: true})
}

func (p *Plugin) release(pods map[types.UID]bool) error {
	// First, so that what is not called off has bound its slots and is undone below.
	p.flights.callOff(pods)
	t, end := p.slots.begin()
	defer end()
	kept := p.kept()
	var errs []error
	for slot, u := range t.Slots {
		if u.PodUID == "" || !pods[u.PodUID] {
			continue
		}
		if err := p.removeFile(slot); err != nil {
			errs = append(errs, err)
			continue
		}
		if p.handedOn(slot, u.PodUID) {
			t.Slots[slot] = use{} // kubelet was quicker: the slot is another pod's already
		} else {
			delete(t.Slots, slot)
		}
	}
	t.resize(p.slots.wanted, kept)
	return errors.Join(append(errs, p.slots.commit(t))...)
}

// handedOn reports whether kubelet has given a bound slot to another pod.
func (p *Plugin) handedOn(slot string, podUID types.UID) bool {
	if !p.slots.wasHanded(slot).IsZero() {
		return true // Allocate came after the slot was bound
	}
	c, err := readCheckpoint(p.checkpointPath(), p.config.Resource)
	if err != nil {
		return true // offering it a little longer does no harm
	}
	return slices.ContainsFunc(c.holders()[slot], func(uid types.UID) bool { return uid != podUID })
}

// kept returns a function that reports whether some pod may hold a slot that is
// not bound: kubelet has picked it just now, or names it in its checkpoint.
func (p *Plugin) kept() func(slot string) bool {
	inCheckpoint := p.inCheckpoint()
	return func(slot string) bool {
		return time.Since(p.slots.wasHanded(slot)) < p.timing.handed || inCheckpoint(slot)
	}
}

// inCheckpoint returns a function that reports whether kubelet's checkpoint, as it
// is at the first call, names a slot. Pods that have ended may still be in it, and
// an unreadable one names everything: keeping a slot longer does no harm.
func (p *Plugin) inCheckpoint() func(slot string) bool {
	read := sync.OnceValues(func() (map[string][]types.UID, error) {
		c, err := readCheckpoint(p.checkpointPath(), p.config.Resource)
		return c.holders(), err
	})
	return func(slot string) bool {
		holders, err := read()
		return err != nil || len(holders[slot]) > 0
	}
}

// removeFile removes a slot's CDI file. Changing is held.
func (p *Plugin) removeFile(slot string) error {
	if err := p.config.CDI.RemoveSlot(slot); err != nil {
		return err
	}
	p.slots.free(slot)
	return nil
}

// Sweep releases the pods that have ended while nobody looked, and removes CDI
// files that belong to no slot and no live pod. It is called once the owner knows
// every pod of the node, not before: a file may be all that a container needs to
// start again (I5). Live must be quick and is called without any lock held.
func (p *Plugin) Sweep(live func(types.UID) bool) error {
	ended := map[types.UID]bool{}
	for pod := range p.slots.pods() {
		if !live(pod) {
			ended[pod] = true
		}
	}
	stray, err := p.strayFiles(live)
	return errors.Join(err, p.release(ended), p.removeStray(stray))
}

// strayFiles lists the slots with a file whose owner is not alive.
func (p *Plugin) strayFiles(live func(types.UID) bool) ([]string, error) {
	slots, err := p.config.CDI.Slots()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slots, func(slot string) bool {
		owner, _, err := p.config.CDI.ReadOwner(slot)
		return err == nil && live(types.UID(owner))
	}), nil
}

// removeStray removes files of slots that are not bound.
func (p *Plugin) removeStray(slots []string) error {
	t, end := p.slots.begin()
	defer end()
	var errs []error
	for _, slot := range slots {
		if t.Slots[slot].PodUID == "" {
			errs = append(errs, p.removeFile(slot))
		}
	}
	return errors.Join(errs...)
}

// SetUnhealthy says that exactly these pods' slots are unhealthy. Kubelet shows
// that in the pods' status, and would not admit such a pod again.
func (p *Plugin) SetUnhealthy(podUIDs []types.UID) {
	pods := map[types.UID]bool{}
	for _, uid := range podUIDs {
		pods[uid] = true
	}
	p.slots.setUnhealthy(pods)
}

// dropWithdrawn drops withdrawn slots when their grace is over, until ctx ends.
func (p *Plugin) dropWithdrawn(ctx context.Context) {
	for {
		var kept []string
		if revived := p.slots.revived(); len(revived) > 0 {
			inCheckpoint := p.inCheckpoint()
			kept = slices.DeleteFunc(revived, func(slot string) bool { return !inCheckpoint(slot) })
		}
		next, changed := p.slots.drop(p.timing, kept)
		var due <-chan time.Time
		if next > 0 {
			due = time.After(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-due:
			klog.FromContext(ctx).V(5).Info("Dropping withdrawn slots")
		}
	}
}
