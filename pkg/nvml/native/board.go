// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"errors"
	"fmt"
	"time"

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
	found := false
	passed, err := d.each(nil, func(v visit) bool {
		if found = v.gpu.ID == id; found {
			b = board{device: v.device}
		}
		return !found
	})
	switch {
	case found:
		d.mu.Lock()
		d.boards[id] = b
		d.mu.Unlock()
		return b, nil
	case err != nil:
		return board{}, fmt.Errorf("looking for %s: %w", id, err)
	case len(passed) > 0:
		return board{}, fmt.Errorf("looking for %s: it is not among the GPUs that answer: %w", id, reasons(passed))
	}
	return board{}, fmt.Errorf("looking for %s: this node has no such GPU: %w", id, nvml.ErrNotFound)
}

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

// patience is how long one GPU may take to be opened and read before the walk goes
// on without it. Without persistence mode opening takes some seconds.
const patience = 5 * time.Second

// visit is a GPU that answered.
type visit struct {
	gpu    nvml.GPU // ID and Index, and what read has read
	device lib.Device
	err    error // why it did not answer; then of gpu only the Index is known
}

// reasons joins why GPUs did not answer.
func reasons(passed []visit) error {
	var all []error
	for _, v := range passed {
		all = append(all, v.err)
	}
	return errors.Join(all...)
}

// each opens each GPU, in the library's order, reads it (nil: not) and calls f, until
// that returns false. A GPU that does not answer, or not in time, does not hide the
// others: it is passed over, and passed says why. The error is of the session.
func (d *Driver) each(read func(index int, id nvml.GPUID, device lib.Device) (nvml.GPU, error), f func(visit) bool) (passed []visit, err error) {
	count, ret := d.lib.DeviceGetCount()
	if err := check(ret, "counting GPUs"); err != nil {
		return nil, err
	}
	for i := range count {
		v := d.visit(i, read)
		switch {
		case errors.Is(v.err, nvml.ErrUninitialized) || errors.Is(v.err, nvml.ErrDriverNotLoaded):
			return passed, v.err
		case v.err != nil:
			passed = append(passed, v)
		case !f(v):
			return passed, nil
		}
	}
	return passed, nil
}

// visit opens and reads one GPU. A GPU that has not answered for long is not asked
// again before it does.
func (d *Driver) visit(index int, read func(int, nvml.GPUID, lib.Device) (nvml.GPU, error)) visit {
	late := visit{gpu: nvml.GPU{Index: index}, err: fmt.Errorf("GPU %d does not answer: %w", index, nvml.ErrTimeout)}
	d.mu.Lock()
	before := d.late[index]
	d.mu.Unlock()
	if before != nil && len(before) == 0 {
		return late
	}
	if err := d.begin(); err != nil {
		return visit{gpu: nvml.GPU{Index: index}, err: err}
	}
	done := make(chan visit, 1)
	go func() {
		defer d.end()
		done <- d.open(index, read)
	}()
	select {
	case v := <-done:
		return v
	case <-time.After(patience):
		d.mu.Lock()
		d.late[index] = done
		d.mu.Unlock()
		return late
	}
}

func (d *Driver) open(index int, read func(int, nvml.GPUID, lib.Device) (nvml.GPU, error)) (v visit) {
	device, ret := d.lib.DeviceGetHandleByIndex(index)
	uuid := ""
	if ret == lib.SUCCESS {
		uuid, ret = device.GetUUID()
	}
	v = visit{gpu: nvml.GPU{ID: nvml.GPUID(uuid), Index: index}, device: device, err: check(ret, "opening GPU %d", index)}
	if v.err == nil && read != nil {
		v.gpu, v.err = read(index, v.gpu.ID, device)
	}
	return v
}
