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
		s := &session{open: func() (nvml.Driver, error) { return closer{}, nil }}
		ends := make(chan struct{})
		go s.use(func(nvml.Driver) error {
			<-ends
			return nil
		})
		synctest.Wait()
		ran := false
		if err := s.alone(time.Second, func() error { ran = true; return nil }); !errors.Is(err, errBusy) || ran {
			t.Errorf("alone beside a call that hangs = %v, ran %t; want %v", err, ran, errBusy)
		}
		close(ends)
		synctest.Wait()
		began := make(chan struct{})
		opened := false
		err := s.alone(time.Second, func() error {
			ran = true
			go func() {
				opened, _ = s.use(func(nvml.Driver) error { return nil })
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
	})
}

// closer is a driver that can be closed.
type closer struct{ nvml.Driver }

func (closer) Close() error { return nil }
