// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// slotKeeper keeps what kubelet may give away in line with GPUs and pods.
type slotKeeper struct {
	agent    *Agent
	slots    Slots
	released []types.UID // ended pods that are still to be released
	swept    bool
	known    bool // capacity was set
	capacity int
}

// run works until ctx ends. It begins when the hardware is known, and offers nothing
// new without a configuration: until then what an earlier run offered holds.
func (k *slotKeeper) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-k.agent.ready:
	}
	for {
		wait := k.agent.config.Timing.Check // also notices calls that hang
		if err := k.update(); err != nil {
			klog.FromContext(ctx).Error(err, "Could not update the slots")
			wait = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-k.agent.slotsDirty:
		case <-time.After(wait):
		}
	}
}

// update tells what is new. What did not work is tried again by the next update.
func (k *slotKeeper) update() error {
	var errs []error
	var failed []types.UID
	for _, uid := range append(k.released, k.agent.owners.takeEnded()...) {
		if err := k.slots.Release(uid); err != nil {
			failed, errs = append(failed, uid), append(errs, err)
		}
	}
	k.released = failed
	if k.agent.owners.isSynced() {
		if !k.swept {
			err := k.slots.Sweep(k.agent.owners.alive)
			k.swept = err == nil
			errs = append(errs, err)
		}
	}
	if inv := k.agent.inventoryNow(); inv != nil {
		errs = append(errs, k.offer(inv))
	}
	return errors.Join(errs...)
}

// offer tells the capacity, and which pods' slots are unhealthy.
func (k *slotKeeper) offer(inv *inventory) error {
	capacity, unhealthy := k.agent.capacity(inv)
	k.slots.SetUnhealthy(unhealthy)
	if k.known && k.capacity == capacity {
		return nil
	}
	err := k.slots.SetCapacity(capacity)
	k.known, k.capacity = err == nil, capacity
	return err
}

// gpus lists the GPU of each device that the owner holds.
func (o *ownerView) gpus() []string {
	var out []string
	for _, span := range o.spans {
		out = append(out, span.GPU)
	}
	for _, d := range o.shares {
		out = append(out, d.GPU)
	}
	return out
}

// capacity is how many devices kubelet may give to pods: what the offered GPUs can
// hold, or do hold if that is more after a change of configuration, plus the slots
// that pods hold without a place on one of these: pods of lost GPUs, refused ones,
// and those that were not placed. So a lost GPU takes away free slots only. A node
// without an entry offers none: its pods may have devices of another plugin, and those
// with slots of ours keep them anyway. It also
// returns the pods with a placement on a GPU that stays broken until it is reset,
// or with an instance of which the hardware reports an error. A GPU that is unhealthy
// for other reasons may come back, and kubelet would not admit such a pod again.
func (a *Agent) capacity(inv *inventory) (devices int, unhealthy []types.UID) {
	if !inv.configured {
		return 0, nil
	}
	most, lost, held := map[string]int{}, map[string]bool{}, map[string]int{}
	ill := map[v1alpha1.Span]bool{}
	for i := range inv.gpus {
		gpu := &inv.gpus[i]
		view := gpu.worker.view()
		switch ok, _ := inv.offers(gpu, &view); {
		case !ok:
		case gpu.wanted == v1alpha1.ModeHAMiCore:
			most[string(gpu.ID)] = int(gpu.shares.Count)
		default:
			most[string(gpu.ID)] = pool.Devices(inv.catalogues[gpu.Name])
		}
		lost[string(gpu.ID)] = view.broken
		for _, span := range view.sick {
			ill[span] = true
		}
	}
	for _, o := range a.owners.view() {
		elsewhere, sick := o.slots, false
		for _, gpu := range o.gpus() {
			if most[gpu] > 0 {
				held[gpu]++
				elsewhere--
			}
			sick = sick || lost[gpu]
		}
		for _, span := range o.spans {
			sick = sick || ill[span]
		}
		devices += max(0, elsewhere)
		if sick {
			unhealthy = append(unhealthy, o.uid)
		}
	}
	for gpu, n := range most {
		devices += max(n, held[gpu])
	}
	return devices, unhealthy
}
