// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

// start makes a container's devices usable and visible to the runtime. It returns
// an error when ctx ends, but what it began goes on, and a later call for the same
// container joins it. Starting what is prepared already changes nothing.
func (p *Plugin) start(ctx context.Context, names []string) error {
	slots, err := p.slots.known(names)
	if err != nil {
		return err
	}
	h, err := p.identify(ctx, slots)
	if err != nil {
		return err
	}
	key := fmt.Sprintf("%s/%s/%s", h.PodUID, h.Name, strings.Join(slots, ","))
	fl := p.flights.join(ctx, key, h.PodUID, func(ctx context.Context) error { return p.prepare(ctx, h) })
	select {
	case <-fl.done:
		err = fl.err
	case <-ctx.Done():
		err = errStillPreparing
	}
	if err != nil {
		return fmt.Errorf("preparing container %s of pod %s/%s: %w", h.Name, h.Namespace, h.Pod, err)
	}
	return nil
}

// prepare is the work of one flight.
func (p *Plugin) prepare(ctx context.Context, h held) error {
	begin := time.Now()
	// Release may have come between finding the pod and taking off.
	if _, _, ok := p.config.Pods.Pod(h.PodUID); !ok {
		return errPodEnded
	}
	if err := p.reclaim(h); err != nil {
		return err
	}
	demands, devices, err := p.ask(ctx, h)
	if err != nil {
		return err
	}
	if !pause(ctx, time.Until(p.slots.lastFreed(h.slots).Add(p.timing.settle))) {
		return ctx.Err()
	}
	if err := p.publish(ctx, h, demands, devices); err != nil {
		return err
	}
	klog.FromContext(ctx).V(2).Info("Prepared container", "pod", klog.KRef(h.Namespace, h.Pod), "container", h.Name,
		"slots", h.slots, "duration", time.Since(begin))
	return nil
}

// reclaim takes the slots from the pod that had them before, if any. That pod has
// ended, or kubelet would not have given them away, but nobody has released it. A
// file of it is removed and the start fails (I4).
func (p *Plugin) reclaim(h held) error {
	t, end := p.slots.begin()
	defer end()
	var stale, errs []error
	for _, slot := range h.slots {
		owner, found, err := p.config.CDI.ReadOwner(slot)
		if found && (err != nil || owner != string(h.PodUID)) {
			errs = append(errs, p.removeFile(slot))
			stale = append(stale, fmt.Errorf("slot %s: %w", slot, errStaleFile))
		}
		if u := t.Slots[slot]; u.PodUID != "" && u.PodUID != h.PodUID {
			t.Slots[slot] = use{}
		}
	}
	if err := errors.Join(append(errs, p.slots.commit(t))...); err != nil {
		return err
	}
	if len(stale) > 0 {
		return stale[0] // one sentence is enough
	}
	return nil
}

// ask has the devices of the container prepared, and those of the containers that
// share slots with it: its slots must suit them too.
func (p *Plugin) ask(ctx context.Context, h held) ([]demand, map[string]Device, error) {
	var demands []demand
	devices := map[string]Device{}
	for _, sharer := range h.group {
		c := h.Container
		c.Name = sharer.Container
		prepared, err := p.config.Preparer.Prepare(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		d := demand{container: sharer.Container, slots: sharer.Slots}
		for _, device := range prepared {
			d.devices = append(d.devices, device.Key)
			if sharer.Container == h.Name {
				devices[device.Key] = device
			}
		}
		demands = append(demands, d)
	}
	return demands, devices, nil
}

// publish binds the container's slots and writes their CDI files.
func (p *Plugin) publish(ctx context.Context, h held, demands []demand, devices map[string]Device) error {
	t, end := p.slots.begin()
	defer end()
	if err := context.Cause(ctx); err != nil {
		return err // released meanwhile; from here on Release waits for end
	}
	bound := map[string]string{}
	for slot, u := range t.Slots {
		if u.PodUID == h.PodUID {
			bound[slot] = u.Device
		}
	}
	assigned, err := assign(demands, bound)
	if err != nil {
		return err
	}
	for _, slot := range h.slots {
		switch t.Slots[slot].PodUID {
		case "":
			t.Slots[slot] = use{PodUID: h.PodUID, Container: h.Name, Device: assigned[slot]}
		case h.PodUID:
		default:
			return fmt.Errorf("slot %s: %w", slot, errDisagree) // taken since reclaim
		}
	}
	if err := p.slots.commit(t); err != nil {
		return err
	}
	for _, slot := range h.slots {
		if err := p.config.CDI.WriteSlot(slot, string(h.PodUID), devices[assigned[slot]].Edits); err != nil {
			return err
		}
	}
	return nil
}
