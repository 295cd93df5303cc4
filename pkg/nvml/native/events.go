// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"fmt"
	"time"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// events implements nvml.Events with one event set. Events of MIG instances come
// through their parent, which is the only one that can be registered.
type events struct {
	driver *Driver
	set    lib.EventSet
	ids    []nvml.GPUID // that are registered
}

// Events implements nvml.Driver.
func (d *Driver) Events(ids ...nvml.GPUID) (nvml.Events, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("asking for events of no GPU: %w", nvml.ErrInvalidArgument)
	}
	if err := d.begin(); err != nil {
		return nil, fmt.Errorf("asking for events: %w", err)
	}
	defer d.end()
	set, ret := d.lib.EventSetCreate()
	if err := check(ret, "making an event set"); err != nil {
		return nil, err
	}
	for _, id := range ids {
		if err := d.register(id, set); err != nil {
			set.Free() // the error that is returned says more
			return nil, fmt.Errorf("asking for events of %s: %w", id, err)
		}
	}
	return &events{driver: d, set: set, ids: ids}, nil
}

func (d *Driver) register(id nvml.GPUID, set lib.EventSet) error {
	b, err := d.gpu(id)
	if err != nil {
		return err
	}
	supported, ret := b.device.GetSupportedEventTypes()
	if err := check(ret, "reading which events there are"); err != nil {
		return d.judge(id, err)
	}
	if supported&lib.EventTypeXidCriticalError == 0 {
		return fmt.Errorf("it reports no XID errors: %w", nvml.ErrNotSupported)
	}
	return d.judge(id, check(b.device.RegisterEvents(lib.EventTypeXidCriticalError, set), "registering"))
}

// Wait implements nvml.Events. The library waits in the kernel, and holds a thread
// for that time.
func (e *events) Wait(timeout time.Duration) (nvml.Event, error) {
	if err := e.driver.begin(); err != nil {
		return nvml.Event{}, fmt.Errorf("waiting for an event: %w", err)
	}
	defer e.driver.end()
	for deadline := time.Now().Add(timeout); ; {
		left := max(0, time.Until(deadline))
		data, ret := e.set.Wait(uint32((left + time.Millisecond - 1) / time.Millisecond))
		if err := check(ret, "waiting for an event"); err != nil {
			return nvml.Event{}, err
		}
		if data.EventType != lib.EventTypeXidCriticalError {
			continue
		}
		id, err := e.whose(data)
		if err != nil {
			return nvml.Event{}, err
		}
		event := nvml.Event{GPU: id, XID: int(data.EventData), GI: nvml.WholeGPU, CI: nvml.NoCI}
		if data.GpuInstanceId != unknown {
			event.GI = int(data.GpuInstanceId)
			if data.ComputeInstanceId != unknown {
				event.CI = int(data.ComputeInstanceId)
			}
		}
		return event, nil
	}
}

// whose event it is. Of several GPUs the library has to say: one that has fallen off
// the bus may not answer any more.
func (e *events) whose(data lib.EventData) (nvml.GPUID, error) {
	if len(e.ids) == 1 {
		return e.ids[0], nil
	}
	uuid, ret := data.Device.GetUUID()
	return nvml.GPUID(uuid), check(ret, "reading whose event it is (XID %d)", data.EventData)
}

// Close implements nvml.Events. With a closed session the set is gone already.
func (e *events) Close() error {
	if e.driver.begin() != nil {
		return nil
	}
	defer e.driver.end()
	return check(e.set.Free(), "freeing an event set")
}
