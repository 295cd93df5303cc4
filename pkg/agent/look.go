// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// What a worker reads of its GPU.

// look reads the hardware when it is time to, or when somebody asked for it.
func (w *worker) look(ctx context.Context) {
	w.mu.Lock()
	stale, unread := w.stale, w.unread
	w.stale, w.unread = false, false
	w.mu.Unlock()
	w.reread = w.reread || unread
	now := time.Now()
	if !stale && now.Before(w.nextLook) {
		return
	}
	w.failure = w.read(ctx)
	if w.failure == nil {
		w.failures = 0
		w.nextLook = now.Add(w.timing.Check)
		return
	}
	w.nextLook = now.Add(min(w.timing.RetryLeast<<min(w.failures, 16), w.timing.Check))
	w.failures++
	klog.FromContext(ctx).V(4).Info("Could not read the GPU", "err", w.failure)
}

// read reads profiles, mode and instances, and turns MIG mode on where it should be.
func (w *worker) read(ctx context.Context) error {
	gpu, wanted := w.facts()
	if !gpu.MIGCapable {
		return w.readPlain(ctx, gpu)
	}
	if w.model == nil || w.reread {
		if err := w.readProfiles(ctx); err != nil {
			return err
		}
	}
	if err := w.readMode(ctx); err != nil {
		return err
	}
	w.modeWhy = ""
	if wanted == v1alpha1.ModeMIG && !w.mode.Current {
		if err := w.turnOn(ctx); err != nil {
			w.modeWhy = err.Error()
		}
	}
	if err := w.list(ctx); err != nil {
		return err
	}
	if wanted == v1alpha1.ModeHAMiCore && w.mode.Current {
		if err := w.turnOff(ctx); err != nil {
			w.modeWhy = err.Error()
		}
	}
	return nil
}

// readPlain is read for a GPU that cannot do MIG: the driver must still know it.
func (w *worker) readPlain(ctx context.Context, gpu nvml.GPU) error {
	if w.model == nil || w.reread {
		w.model, w.reread = nothingToCut(gpu.Name), false
	}
	return w.call(ctx, "listing processes", func(d nvml.Driver) error {
		_, err := d.Processes(w.id, nvml.WholeGPU)
		return err
	})
}

func (w *worker) readProfiles(ctx context.Context) error {
	var profiles []nvml.Profile
	err := w.call(ctx, "listing profiles", func(d nvml.Driver) (err error) {
		profiles, err = d.Profiles(w.id)
		return err
	})
	if err != nil {
		return err
	}
	gpu, _ := w.facts()
	model, err := modelOf(gpu.Name, profiles)
	if err != nil {
		return err
	}
	w.model, w.reread = model, false
	return nil
}

func (w *worker) readMode(ctx context.Context) error {
	return w.call(ctx, "reading MIG mode", func(d nvml.Driver) (err error) {
		w.mode, err = d.MIGMode(w.id)
		return err
	})
}

// turnOn turns MIG mode on, on GPUs that need no reset for it. The driver refuses
// while anybody uses the GPU.
func (w *worker) turnOn(ctx context.Context) error {
	gpu, _ := w.facts()
	if w.owners.holdsShares(string(w.id)) {
		return fmt.Errorf("MIG mode is turned on when the pods that share GPU %d have ended", gpu.Index)
	}
	if gpu.Architecture == nvml.Ampere {
		return fmt.Errorf("MIG mode is off, and an Ampere GPU needs a reset to turn it on; stop what uses GPU %d, run nvidia-smi -i %d -mig 1 and reset it or reboot",
			gpu.Index, gpu.Index)
	}
	err := w.call(ctx, "turning MIG mode on", func(d nvml.Driver) error { return d.SetMIGMode(w.id, true) })
	switch {
	case errors.Is(err, nvml.ErrInUse):
		return fmt.Errorf("MIG mode is off and cannot be turned on while GPU %d is in use; stop what uses it", gpu.Index)
	case errors.Is(err, nvml.ErrResetRequired):
		return fmt.Errorf("MIG mode is stored and waits for a reset of GPU %d; reset it or reboot the node", gpu.Index)
	case err != nil:
		return err
	}
	klog.FromContext(ctx).V(2).Info("Turned MIG mode on")
	return w.readMode(ctx)
}

// turnOff turns MIG mode off once no instance is left: those of ours that nobody
// owns are destroyed first (situation.retire), others are waited for.
func (w *worker) turnOff(ctx context.Context) error {
	gpu, _ := w.facts()
	if n := len(w.hardware); n > 0 || len(w.owners.wants(string(w.id))) > 0 {
		return fmt.Errorf("MIG mode is turned off when the MIG instances of GPU %d are gone (%d are left)", gpu.Index, n)
	}
	if gpu.Architecture == nvml.Ampere {
		return fmt.Errorf("MIG mode is on, and an Ampere GPU needs a reset to turn it off; stop what uses GPU %d, run nvidia-smi -i %d -mig 0 and reset it or reboot",
			gpu.Index, gpu.Index)
	}
	err := w.call(ctx, "turning MIG mode off", func(d nvml.Driver) error { return d.SetMIGMode(w.id, false) })
	switch {
	case errors.Is(err, nvml.ErrInUse):
		return fmt.Errorf("MIG mode is on and cannot be turned off while GPU %d is in use; stop what uses it", gpu.Index)
	case errors.Is(err, nvml.ErrResetRequired):
		return fmt.Errorf("MIG mode is stored as off and waits for a reset of GPU %d; reset it or reboot the node", gpu.Index)
	case err != nil:
		return err
	}
	klog.FromContext(ctx).V(2).Info("Turned MIG mode off")
	return w.readMode(ctx)
}

// list reads the instances.
func (w *worker) list(ctx context.Context) error {
	if !w.mode.Current {
		w.hardware = nil
		return nil
	}
	var hardware []nvml.Instance
	err := w.call(ctx, "listing instances", func(d nvml.Driver) (err error) {
		hardware, err = d.Instances(w.id)
		return err
	})
	if err == nil {
		w.hardware = hardware
	}
	return err
}

// modelOf builds the geometry of a GPU from what NVML reports.
func modelOf(name string, profiles []nvml.Profile) (*geometry.Model, error) {
	list := make([]geometry.Profile, len(profiles))
	for i, p := range profiles {
		list[i] = geometry.Profile{
			ID: geometry.ProfileID(p.ID), Name: p.Name, MemoryMiB: p.MemoryMiB, SMs: p.SMs,
			ComputeSlices: p.ComputeSlices, Size: p.Size, Max: p.Max, Starts: p.Starts,
		}
	}
	return geometry.NewModel(name, list)
}
