// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"errors"
	"fmt"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// board is what a session knows of a GPU. It is replaced, never changed.
type board struct {
	device   lib.Device
	profiles []profile // by enum; nil until they were read
}

// gpu returns a GPU's board with a handle that is good (T6). A handle that the
// library does not know any more, or that names another GPU now, is looked up
// again, once.
func (d *Driver) gpu(id nvml.GPUID) (board, error) {
	d.mu.Lock()
	b, known := d.boards[id]
	d.mu.Unlock()
	if known {
		uuid, ret := b.device.GetUUID()
		switch {
		case ret == lib.SUCCESS && uuid == string(id):
			return b, nil
		case ret != lib.SUCCESS && ret != lib.ERROR_INVALID_ARGUMENT && ret != lib.ERROR_NOT_FOUND:
			return board{}, check(ret, "checking the handle of %s", id)
		}
		d.forget(id)
	}
	lost, err := d.each(func(_ int, other nvml.GPUID, device lib.Device) error {
		if other == id {
			b = board{device: device}
			return errFound
		}
		return nil
	})
	switch {
	case errors.Is(err, errFound):
		d.mu.Lock()
		d.boards[id] = b
		d.mu.Unlock()
		return b, nil
	case err != nil:
		return board{}, fmt.Errorf("looking for %s: %w", id, err)
	case lost > 0:
		return board{}, fmt.Errorf("looking for %s: %d GPU(s) of this node are lost, and it is not among the others: %w", id, lost, nvml.ErrGPULost)
	}
	return board{}, fmt.Errorf("looking for %s: this node has no such GPU: %w", id, nvml.ErrNotFound)
}

// errFound ends a walk over GPUs.
var errFound = errors.New("found")

// forget drops what is known of a GPU: after a change of mode, and when the
// library refused an argument, which may have been the handle.
func (d *Driver) forget(id nvml.GPUID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.boards, id)
}

// judge passes a result on, and forgets the GPU where that is called for.
func (d *Driver) judge(id nvml.GPUID, err error) error {
	if errors.Is(err, nvml.ErrInvalidArgument) {
		d.forget(id)
	}
	return err
}

// each calls f with each GPU, in the library's order, until f returns an error. GPUs
// that are lost, or that need a reset before anything else, are passed over and
// counted: whether the library says so itself or f finds it out.
func (d *Driver) each(f func(index int, id nvml.GPUID, device lib.Device) error) (lost int, err error) {
	count, ret := d.lib.DeviceGetCount()
	if err := check(ret, "counting GPUs"); err != nil {
		return 0, err
	}
	for i := range count {
		uuid := ""
		device, ret := d.lib.DeviceGetHandleByIndex(i)
		if ret == lib.SUCCESS {
			uuid, ret = device.GetUUID()
		}
		err := check(ret, "opening GPU %d", i)
		if err == nil {
			err = f(i, nvml.GPUID(uuid), device)
		}
		switch {
		case errors.Is(err, nvml.ErrGPULost) || errors.Is(err, nvml.ErrResetRequired):
			lost++
		case err != nil:
			return lost, err
		}
	}
	return lost, nil
}
