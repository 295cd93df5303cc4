// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"fmt"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// MIGMode implements nvml.Driver. It is read anew each time.
func (d *Driver) MIGMode(id nvml.GPUID) (nvml.MIGMode, error) {
	if err := d.begin(); err != nil {
		return nvml.MIGMode{}, fmt.Errorf("reading MIG mode of %s: %w", id, err)
	}
	defer d.end()
	return d.mode(id)
}

func (d *Driver) mode(id nvml.GPUID) (nvml.MIGMode, error) {
	b, err := d.gpu(id)
	if err != nil {
		return nvml.MIGMode{}, fmt.Errorf("reading MIG mode: %w", err)
	}
	current, pending, ret := b.device.GetMigMode()
	if err := check(ret, "reading MIG mode of %s", id); err != nil {
		return nvml.MIGMode{}, d.judge(id, err)
	}
	return nvml.MIGMode{Current: current == lib.DEVICE_MIG_ENABLE, Pending: pending == lib.DEVICE_MIG_ENABLE}, nil
}

// SetMIGMode implements nvml.Driver (T3). The library may unbind or reset the GPU,
// so nothing that was known of it holds afterwards, whatever the result.
func (d *Driver) SetMIGMode(id nvml.GPUID, on bool) error {
	word, value := "off", lib.DEVICE_MIG_DISABLE
	if on {
		word, value = "on", lib.DEVICE_MIG_ENABLE
	}
	if err := d.begin(); err != nil {
		return fmt.Errorf("turning MIG mode %s on %s: %w", word, id, err)
	}
	defer d.end()
	b, err := d.gpu(id)
	if err != nil {
		return fmt.Errorf("turning MIG mode %s: %w", word, err)
	}
	activation, ret := b.device.SetMigMode(value)
	d.forget(id)
	if err := check(ret, "turning MIG mode %s on %s", word, id); err != nil {
		return err
	}
	if err := check(activation, "activating MIG mode %s on %s", word, id); err != nil {
		return err
	}
	mode, err := d.mode(id)
	switch {
	case err != nil:
		return fmt.Errorf("verifying that MIG mode is %s: %w", word, err)
	case mode.Current == on && mode.Pending == on:
		return nil
	case mode.Pending == on:
		return fmt.Errorf("turning MIG mode %s on %s: the driver reports success, and the mode is stored only: %w", word, id, nvml.ErrResetRequired)
	}
	return fmt.Errorf("turning MIG mode %s on %s: the driver reports success, and the mode did not change: %w", word, id, nvml.ErrInvalidState)
}
