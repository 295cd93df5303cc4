// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// resetter resets simulated GPUs, and counts.
type resetter struct {
	bench *bench
	count atomic.Int64
	open  atomic.Int64 // sessions that are open
	fails atomic.Bool
}

func (r *resetter) reset(_ context.Context, gpu nvml.GPU) error {
	r.count.Add(1)
	if n := r.open.Load(); n != 0 {
		return errors.New("an NVML session has the GPU open")
	}
	if r.fails.Load() {
		return errors.New("in use by 1 client")
	}
	return r.bench.node.ResetGPU(gpu.ID)
}

// counted counts open sessions.
type counted struct {
	nvml.Driver
	open *atomic.Int64
}

func (c counted) Close() error {
	c.open.Add(-1)
	return c.Driver.Close()
}

// resetting is a bench with A100s without MIG whose agent may reset them.
func resetting(t *testing.T, gpus int) (*bench, *resetter) {
	t.Helper()
	specs := make([]sim.GPUSpec, gpus)
	for i := range specs {
		specs[i] = sim.GPUSpec{Board: "A100-40GB", Product: "NVIDIA A100-SXM4-40GB"}
	}
	b := benchOf(t, specs)
	r := &resetter{bench: b}
	b.reset = r.reset
	b.wrap = func(d nvml.Driver) nvml.Driver {
		r.open.Add(1)
		return counted{d, &r.open}
	}
	return b, r
}

func (b *bench) holdGPU(gpu, pid int) {
	b.t.Helper()
	if err := b.node.Hold(nvml.GPUID(b.gpus[gpu]), sim.Holder{GI: sim.WholeGPU, PID: pid}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) expectMode(gpu int, want string) {
	b.t.Helper()
	if got := b.status().GPUs[gpu].Mode.Current; got != want {
		b.t.Errorf("GPU %d is in mode %s, want %s; reason: %s", gpu, got, want, b.status().GPUs[gpu].Reason)
	}
}

func TestAmpereIsResetWhereThatIsAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := resetting(t, 2)
		b.start()
		defer b.stop()
		b.sleep(time.Minute)
		b.expectMode(0, v1alpha1.ModeMIG)
		b.expectMode(1, v1alpha1.ModeMIG)
		if got := r.count.Load(); got != 2 {
			t.Errorf("%d resets, want one for each GPU", got)
		}
		b.bind(pod{name: "a", devices: b.on(0, "1g.5gb@0")})
		b.mustPrepare("a")
		// Also back, when no instance is left.
		b.remove("a")
		b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "hami-core"}]}`)
		b.sleep(2 * time.Minute)
		b.expectMode(0, v1alpha1.ModeHAMiCore)
		if got := r.count.Load(); got != 4 {
			t.Errorf("%d resets, want two for each GPU", got)
		}
	})
}

// An Ampere GPU that waits for its pods says at once that it will need a reset, too.
func TestAmpereSaysAllThatItWaitsFor(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(1, "1g.5gb@0")})
		b.mustPrepare("a")
		b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "hami-core"}]}`)
		b.sleep(time.Minute)
		const want = "GPU 1: MIG mode is turned off when the MIG instances of GPU 1 are gone (1 are left); " +
			"an Ampere GPU needs a reset for it: run nvidia-smi -i 1 -mig 0 then, and reset it or reboot."
		b.expectText("condition", b.condition(v1alpha1.ConditionModePending), want)
	})
}

// TestStopWaitsForAReset: one that is broken off may leave the GPU unusable.
func TestStopWaitsForAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := resetting(t, 1)
		began, ended := make(chan struct{}), false
		b.reset = func(ctx context.Context, gpu nvml.GPU) error {
			close(began)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Minute):
			}
			ended = true
			return b.node.ResetGPU(gpu.ID)
		}
		b.start()
		<-began
		b.stop()
		if !ended {
			t.Error("the reset was broken off, or not waited for")
		}
	})
}

func TestGPUInUseIsNotReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := resetting(t, 1)
		b.holdGPU(0, 77)
		b.gpuOpener.Store(12)
		b.start()
		defer b.stop()
		b.sleep(5 * time.Minute)
		b.expectText("reason", b.status().GPUs[0].Reason, "not in use (by processes 12, 77)")
		b.expectText("condition", b.condition(v1alpha1.ConditionModePending), "True Pending: GPU 0: ")
		if err := b.node.Release(nvml.GPUID(b.gpus[0]), sim.WholeGPU, 77); err != nil {
			t.Fatal(err)
		}
		b.sleep(time.Minute)
		b.expectText("reason", b.status().GPUs[0].Reason, "not in use (by process 12)") // a handle that the driver does not show
		if b.dump().GPUs[0].Pending || r.count.Load() != 0 {
			t.Error("a GPU in use was touched")
		}
		b.gpuOpener.Store(0)
		b.sleep(time.Minute)
		b.expectMode(0, v1alpha1.ModeMIG)
	})
}

func TestResetThatFailsIsTriedAgainEverMoreRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := resetting(t, 1)
		r.fails.Store(true)
		b.start()
		defer b.stop()
		b.sleep(10 * time.Minute)
		if got := r.count.Load(); got < 3 || got > 8 {
			t.Errorf("%d resets in ten minutes, want some, and ever more rarely", got)
		}
		b.expectText("reason", b.status().GPUs[0].Reason, "in use by 1 client")
		r.fails.Store(false)
		b.sleep(15 * time.Minute)
		b.expectMode(0, v1alpha1.ModeMIG)
	})
}

func TestWithoutResetTheReportNamesWhoIsInTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := resetting(t, 1)
		b.reset = nil
		b.holdGPU(0, 77)
		b.start()
		defer b.stop()
		b.sleep(time.Minute)
		b.expectText("reason", b.status().GPUs[0].Reason, "stop what uses GPU 0 (by process 77), run nvidia-smi -i 0 -mig 1 and reset it or reboot")
		if b.dump().GPUs[0].Pending || r.count.Load() != 0 {
			t.Error("the GPU was touched")
		}
	})
}

// A reset waits for the driver calls of other GPUs, and gives up on one that hangs.
func TestResetWaitsForOtherCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSession(func() (nvml.Driver, error) { return closer{}, nil })
		ends := make(chan struct{})
		go s.use(t.Context(), nil, func(nvml.Driver) error {
			<-ends
			return nil
		})
		synctest.Wait()
		ran := false
		if err := s.alone(time.Second, func() error { ran = true; return nil }); !errors.Is(err, errBusy) || ran {
			t.Errorf("alone beside a call that hangs = %v, ran %t; want %v", err, ran, errBusy)
		}
		before := time.Now()
		if err := s.alone(time.Second, func() error { ran = true; return nil }); !errors.Is(err, errBusy) || time.Since(before) > 0 {
			t.Errorf("alone again = %v after %s; want %v at once: other calls would wait", err, time.Since(before), errBusy)
		}
		close(ends)
		synctest.Wait()
		began := make(chan struct{})
		opened := false
		err := s.alone(time.Second, func() error {
			ran = true
			go func() {
				opened, _ = s.use(t.Context(), nil, func(nvml.Driver) error { return nil })
				close(began)
			}()
			time.Sleep(time.Minute)
			if other := s.alone(time.Second, func() error { return nil }); !errors.Is(other, errResetting) {
				t.Errorf("a second reset at the same time = %v, want %v", other, errResetting)
			}
			select {
			case <-began:
				t.Error("a call began during a reset")
			default:
			}
			return nil
		})
		<-began
		if err != nil || !ran || !opened {
			t.Errorf("alone = %v, ran %t, a new session after it %t", err, ran, opened)
		}
		if n := s.reloaded(); n != 0 {
			t.Errorf("%d reloads of the driver; want none by a reset", n)
		}
	})
}

// A reset that never ends holds up the calls of other GPUs for a time only, and
// every other reset.
func TestResetThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSession(func() (nvml.Driver, error) { return closer{}, nil })
		ends := make(chan struct{})
		result := make(chan error, 1)
		go func() {
			result <- s.alone(time.Second, func() error {
				<-ends
				return nil
			})
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.use(ctx, nil, func(nvml.Driver) error { return nil }); !errors.Is(err, errDeadline) {
			t.Errorf("a call that gives up during a reset = %v; want %v", err, errDeadline)
		}
		if _, err := s.use(t.Context(), nil, func(nvml.Driver) error { return nil }); err != nil {
			t.Errorf("a call = %v", err)
		}
		if err := <-result; !errors.Is(err, errEndless) {
			t.Errorf("alone = %v; want %v", err, errEndless)
		}
		if err := s.alone(time.Second, func() error { return nil }); !errors.Is(err, errResetting) {
			t.Errorf("a second reset = %v; want %v", err, errResetting)
		}
		close(ends)
		synctest.Wait()
		if err := s.alone(time.Second, func() error { return nil }); err != nil {
			t.Errorf("a reset after it = %v", err)
		}
	})
}

// A wait for events has the GPUs open, also in a closed session.
func TestResetWaitsForWaitsForEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSession(func() (nvml.Driver, error) { return closer{}, nil })
		go s.wait(waiter{}, 3*time.Second)
		synctest.Wait()
		before := time.Now()
		err := s.alone(time.Minute, func() error {
			if waited := time.Since(before); waited < 3*time.Second {
				t.Errorf("the reset began after %s, beside a wait for events of 3 s", waited)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// waiter are events that do not come.
type waiter struct{ nvml.Events }

func (waiter) Wait(timeout time.Duration) (nvml.Event, error) {
	time.Sleep(timeout)
	return nvml.Event{}, nvml.ErrTimeout
}

// Who opens the GPU after it was asked who uses it is not reset away.
func TestGPUThatIsOpenedBeforeItsResetIsNotReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := resetting(t, 1)
		inner := b.wrap
		b.wrap = func(d nvml.Driver) nvml.Driver { return onClose{inner(d), func() { b.gpuOpener.Store(12) }} }
		b.start()
		defer b.stop()
		b.sleep(10 * time.Second)
		if n := r.count.Load(); n != 0 || b.gpuOpener.Load() == 0 {
			t.Errorf("%d resets of a GPU that was opened just before (process %d)", n, b.gpuOpener.Load())
		}
		b.expectText("reason", b.status().GPUs[0].Reason, "(by process 12)")
	})
}

// onClose calls f when the session is closed.
type onClose struct {
	nvml.Driver
	f func()
}

func (d onClose) Close() error {
	d.f()
	return d.Driver.Close()
}

// The reset of one GPU is no fault of another, and mends none.
func TestResetIsOfItsGPUOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := resetting(t, 2)
		b.holdGPU(1, 77)
		b.reset = func(ctx context.Context, gpu nvml.GPU) error {
			time.Sleep(time.Minute)
			return r.reset(ctx, gpu)
		}
		b.start()
		defer b.stop()
		b.sleep(2 * time.Minute)
		b.expectMode(0, v1alpha1.ModeMIG)
		if err := b.node.Release(nvml.GPUID(b.gpus[1]), sim.WholeGPU, 77); err != nil {
			t.Fatal(err)
		}
		b.sleep(40 * time.Second) // in the middle of the reset of GPU 1
		if got := b.status().GPUs[0]; got.Health != v1alpha1.Healthy {
			t.Errorf("GPU 0 is %s during the reset of GPU 1: %s", got.Health, got.Reason)
		}
		b.sleep(time.Minute)
		b.expectMode(1, v1alpha1.ModeMIG)

		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.xid("", 48)
		b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "mig", "gpus": [{"index": 1, "operatingmode": "hami-core"}]}]}`)
		b.sleep(3 * time.Minute)
		b.expectMode(1, v1alpha1.ModeHAMiCore)
		if got := r.count.Load(); got != 3 {
			t.Errorf("%d resets; want one of GPU 0 and two of GPU 1", got)
		}
		b.expectText("condition", b.condition("HardwareFailing"), "GPU 0: it reports XID 48")
	})
}

// closer is a driver that can be closed.
type closer struct{ nvml.Driver }

func (closer) Close() error { return nil }
