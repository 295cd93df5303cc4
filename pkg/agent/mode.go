// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// How a GPU comes to the MIG mode that the configuration wants.
//
//	Hopper and newer: SetMIGMode ------------------------------> in force
//	Ampere: without Config.Reset the report says what to do, with the processes
//	        that are in the way; with it, once nobody uses the GPU:
//	        SetMIGMode --> stored --> session closed, Config.Reset --> in force
//
// A GPU that anybody uses is left as it is, and so is one whose users cannot be
// told.

// turnOn turns MIG mode on.
func (w *worker) turnOn(ctx context.Context) error {
	if gpu, _ := w.facts(); w.owners.holdsShares(string(w.id)) {
		return fmt.Errorf("MIG mode is turned on when the pods that share GPU %d have ended%s", gpu.Index, w.resetThen(gpu, true))
	}
	return w.change(ctx, true)
}

// turnOff turns MIG mode off once no instance is left: those of ours that nobody
// owns are destroyed first (situation.retire), others are waited for.
func (w *worker) turnOff(ctx context.Context) error {
	gpu, _ := w.facts()
	if n := len(w.hardware); n > 0 || len(w.owners.wants(string(w.id))) > 0 {
		return fmt.Errorf("MIG mode is turned off when the MIG instances of GPU %d are gone (%d are left)%s", gpu.Index, n, w.resetThen(gpu, false))
	}
	return w.change(ctx, false)
}

// resetThen says what a change of mode takes once the GPU is empty, besides the agent.
func (w *worker) resetThen(gpu nvml.GPU, on bool) string {
	switch {
	case gpu.Architecture != nvml.Ampere:
		return ""
	case w.reset != nil:
		return ", with a reset"
	}
	return fmt.Sprintf("; an Ampere GPU needs a reset for it: run nvidia-smi -i %d -mig %s then, and reset it or reboot", gpu.Index, wordsOf(on).flag)
}

// words are of a mode that is to change.
type words struct{ now, then, flag string }

func wordsOf(on bool) words {
	if on {
		return words{now: "off", then: "on", flag: "1"}
	}
	return words{now: "on", then: "off", flag: "0"}
}

// change brings a GPU to the other mode, or says why that cannot be done now.
func (w *worker) change(ctx context.Context, on bool) error {
	gpu, _ := w.facts()
	say := wordsOf(on)
	resets := gpu.Architecture == nvml.Ampere
	switch {
	case resets && w.reset == nil:
		return fmt.Errorf("MIG mode is %s, and an Ampere GPU needs a reset to turn it %s; stop what uses GPU %d%s, run nvidia-smi -i %d -mig %s and reset it or reboot",
			say.now, say.then, gpu.Index, w.usersInWords(ctx), gpu.Index, say.flag)
	case resets:
		if err := w.mayReset(ctx, say); err != nil {
			return err
		}
	}
	err := w.call(ctx, "turning MIG mode "+say.then, func(d nvml.Driver) error { return d.SetMIGMode(w.id, on) })
	switch {
	case errors.Is(err, nvml.ErrInUse):
		return fmt.Errorf("MIG mode is %s and cannot be turned %s while GPU %d is in use%s; stop what uses it", say.now, say.then, gpu.Index, w.usersInWords(ctx))
	case errors.Is(err, nvml.ErrResetRequired) && w.reset == nil:
		return fmt.Errorf("MIG mode is stored as %s and waits for a reset of GPU %d; stop what uses it%s and reset it, or reboot the node", say.then, gpu.Index, w.usersInWords(ctx))
	case errors.Is(err, nvml.ErrResetRequired):
		if err := w.resetNow(ctx, say); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if err := w.readMode(ctx); err != nil {
		return err
	}
	if w.mode.Current != on {
		w.postponeReset()
		return fmt.Errorf("MIG mode is still %s after a reset of GPU %d; reboot the node", say.now, gpu.Index)
	}
	w.resets = 0
	klog.FromContext(ctx).V(2).Info("Changed MIG mode", "mode", say.then)
	return nil
}

// mayReset returns an error unless nobody uses the GPU, and the last reset that
// failed is some time ago.
func (w *worker) mayReset(ctx context.Context, say words) error {
	gpu, _ := w.facts()
	pids, err := w.users(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("MIG mode is %s, and GPU %d is not reset to turn it %s while it cannot be told who uses it: %w", say.now, gpu.Index, say.then, err)
	case len(pids) > 0:
		return fmt.Errorf("MIG mode is %s and is turned %s with a reset when GPU %d is not in use%s; stop what uses it", say.now, say.then, gpu.Index, inWords(pids))
	case time.Now().Before(w.nextReset):
		return fmt.Errorf("MIG mode is %s: %s; it is tried again", say.now, w.resetWhy)
	}
	return nil
}

// resetNow has the GPU reset while nothing of ours has it open. It is asked once
// more who uses the GPU: the mode was stored meanwhile.
func (w *worker) resetNow(ctx context.Context, say words) error {
	if err := w.mayReset(ctx, say); err != nil {
		return err
	}
	gpu, _ := w.facts()
	w.begin("resetting the GPU")
	err := w.session.alone(w.timing.Hang, func() error {
		// Whoever opened the GPU since keeps it; the driver cannot be asked any more.
		if pids, err := w.holders(gpu); err != nil || len(pids) > 0 {
			return cmp.Or(err, fmt.Errorf("it is in use again%s; stop what uses it", inWords(pids)))
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return w.reset(context.WithoutCancel(ctx), gpu) // broken off, it may leave the GPU unusable
	})
	w.finished()
	if err == nil {
		w.broken = breakdown{}
	}
	if errors.Is(err, errResetting) {
		return fmt.Errorf("MIG mode is stored as %s, and GPU %d waits for its reset: %w", say.then, gpu.Index, err)
	}
	if err != nil {
		w.resetWhy = fmt.Sprintf("resetting GPU %d: %v", gpu.Index, err)
		w.postponeReset()
		return fmt.Errorf("MIG mode is stored as %s, and GPU %d could not be reset: %w; reset it or reboot the node", say.then, gpu.Index, err)
	}
	klog.FromContext(ctx).V(2).Info("Reset the GPU")
	return nil
}

// postponeReset waits longer after each reset that did not help, up to some
// minutes: a reset is not to be tried with every look.
func (w *worker) postponeReset() {
	w.nextReset = time.Now().Add(w.timing.RetryMost << min(w.resets, 6))
	w.resets++
}

// users lists the processes that use the GPU: the driver's clients, and whoever has
// its device open, as monitoring and nvidia-persistenced do. We do not count.
func (w *worker) users(ctx context.Context) ([]int, error) {
	gpu, _ := w.facts()
	var processes []nvml.Process
	err := w.call(ctx, "listing processes", func(d nvml.Driver) (err error) {
		processes, err = d.Processes(w.id, nvml.WholeGPU)
		return err
	})
	if err != nil {
		return nil, err
	}
	pids, err := w.holders(gpu)
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		pids = append(pids, p.PID)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// holders lists the processes that have the GPU's device open.
func (w *worker) holders(gpu nvml.GPU) ([]int, error) {
	node, err := w.nodes.GPUNode(gpu.Minor)
	if err != nil {
		return nil, err
	}
	return w.openers([]DeviceNumber{{Major: node.Major, Minor: node.Minor}})
}

// usersInWords names the processes that use the GPU, in brackets; empty when there
// are none, or when that cannot be told.
func (w *worker) usersInWords(ctx context.Context) string {
	pids, err := w.users(ctx)
	if err != nil {
		return ""
	}
	return inWords(pids)
}

func inWords(pids []int) string {
	switch len(pids) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf(" (by process %d)", pids[0])
	}
	return fmt.Sprintf(" (by processes %s)", strings.Trim(strings.Join(strings.Fields(fmt.Sprint(pids)), ", "), "[]"))
}
