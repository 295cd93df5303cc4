// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
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
	stale, unread, news := w.stale, w.unread, w.heard
	w.stale, w.unread, w.heard = false, false, nil
	w.mu.Unlock()
	w.reread, w.reloaded = w.reread || unread, w.reloaded || unread
	if !w.reloaded {
		news = w.diagnose(news) // the rest may be of instances that were not listed yet
	}
	now := time.Now()
	if !stale && now.Before(w.nextLook) {
		return
	}
	w.failure = w.read(ctx)
	if w.reloaded && w.failure == nil {
		w.recover(true)
		w.reloaded = false
	}
	for _, e := range w.diagnose(news) {
		klog.FromContext(ctx).V(2).Info("The instance of the error is gone already", "xid", e.XID, "instance", e.GI)
	}
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

// readMode keeps the mode that was read last where that fails.
func (w *worker) readMode(ctx context.Context) error {
	var mode nvml.MIGMode
	err := w.call(ctx, "reading MIG mode", func(d nvml.Driver) (err error) {
		mode, err = d.MIGMode(w.id)
		return err
	})
	if err == nil {
		w.mode = mode
	}
	return err
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
		w.noteTenants()
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
