// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo && !gpu

package native

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/native/simnvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// Reported ids of profiles on seven-slice GPUs, and their enums.
const (
	p1g, enum1g = 19, lib.GPU_INSTANCE_PROFILE_1_SLICE
	p2g         = 14
	p3g         = 9
)

func node(t *testing.T, gpus ...sim.GPUSpec) *simnvml.Library {
	t.Helper()
	root := t.TempDir()
	if err := sim.Create(root, sim.Spec{Seed: t.Name(), PlainDevices: true, GPUs: gpus}); err != nil {
		t.Fatal(err)
	}
	return simnvml.New(root)
}

func open(t *testing.T, library lib.Interface) *Driver {
	t.Helper()
	d, err := OpenLibrary(library, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// one is a session on a node with one GPU in MIG mode.
func one(t *testing.T, board string) (*Driver, *simnvml.Library, nvml.GPUID) {
	t.Helper()
	library := node(t, sim.GPUSpec{Board: board, MIG: true})
	d := open(t, library)
	gpus, err := d.GPUs(nil)
	must(t, err)
	library.Calls()
	return d, library, gpus[0].ID
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v; want %v", err, want)
	}
}

// whole creates an instance.
func whole(t *testing.T, d *Driver, id nvml.GPUID, p nvml.ProfileID, start int) nvml.Instance {
	t.Helper()
	gi, err := d.CreateGPUInstance(id, p, start)
	must(t, err)
	in, err := d.CreateComputeInstance(id, gi.GI)
	must(t, err)
	return in
}

func TestEveryReturnCodeHasItsError(t *testing.T) {
	want := map[lib.Return]error{
		lib.ERROR_UNINITIALIZED: nvml.ErrUninitialized, lib.ERROR_INVALID_ARGUMENT: nvml.ErrInvalidArgument,
		lib.ERROR_NOT_SUPPORTED: nvml.ErrNotSupported, lib.ERROR_NO_PERMISSION: nvml.ErrNoPermission,
		lib.ERROR_NOT_FOUND: nvml.ErrNotFound, lib.ERROR_DRIVER_NOT_LOADED: nvml.ErrDriverNotLoaded,
		lib.ERROR_LIBRARY_NOT_FOUND: nvml.ErrDriverNotLoaded, lib.ERROR_LIB_RM_VERSION_MISMATCH: nvml.ErrDriverNotLoaded,
		lib.ERROR_TIMEOUT: nvml.ErrTimeout, lib.ERROR_GPU_IS_LOST: nvml.ErrGPULost, lib.ERROR_RESET_REQUIRED: nvml.ErrResetRequired,
		lib.ERROR_IN_USE: nvml.ErrInUse, lib.ERROR_INSUFFICIENT_RESOURCES: nvml.ErrInsufficientResources,
		lib.ERROR_INVALID_STATE: nvml.ErrInvalidState, lib.ERROR_UNKNOWN: nvml.ErrUnknown,
		lib.ERROR_FUNCTION_NOT_FOUND: nvml.ErrNotSupported, lib.ERROR_GPU_NOT_FOUND: nvml.ErrNotFound,
		lib.ERROR_INSUFFICIENT_SIZE: nvml.ErrUnknown, lib.Return(12345): nvml.ErrUnknown,
	}
	for ret, err := range want {
		got := check(ret, "asking %d", 7)
		if !errors.Is(got, err) || !strings.HasPrefix(got.Error(), "asking 7: ") || !strings.Contains(got.Error(), fmt.Sprint(int(ret))) {
			t.Errorf("check(%d) = %v; want %q with the code", int(ret), got, err)
		}
	}
	if err := check(lib.SUCCESS, ""); err != nil {
		t.Errorf("check(SUCCESS) = %v", err)
	}
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	for ret, words := range map[lib.Return]string{
		lib.ERROR_LIBRARY_NOT_FOUND: "opening the library", lib.ERROR_DRIVER_NOT_LOADED: "opening the library",
		lib.ERROR_LIB_RM_VERSION_MISMATCH: "reload the driver or reboot",
	} {
		library := node(t, sim.GPUSpec{Board: "A30-24GB"})
		library.Fault("Init", 1, ret)
		_, err := OpenLibrary(library, "")
		wantErr(t, err, nvml.ErrDriverNotLoaded)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v; want one that says %q", err, words)
		}
	}
	_, err := Open(t.TempDir())
	wantErr(t, err, nvml.ErrDriverNotLoaded)
}

// T1, T2: enum 9 is asked for, 15 comes back; the scan goes over the gaps to the
// end that the library has.
func TestProfilesAreScannedByEnumAndNamedByReportedID(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	profiles, err := d.Profiles(id)
	must(t, err)
	want := map[nvml.ProfileID]string{0: "7g.40gb", 5: "4g.20gb", 9: "3g.20gb", 14: "2g.10gb", 15: "1g.10gb", 19: "1g.5gb", 20: "1g.5gb+me"}
	got := map[nvml.ProfileID]string{}
	for _, p := range profiles {
		got[p.ID] = p.Name
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("profiles (-want +got):\n%s", diff)
	}
	asked := 0
	for _, call := range library.Calls() {
		if call == "GetGpuInstanceProfileInfo" {
			asked++
		}
	}
	if asked != lib.GPU_INSTANCE_PROFILE_COUNT+1 {
		t.Errorf("%d enums were asked for; want %d and the one after, which ends the scan", asked, lib.GPU_INSTANCE_PROFILE_COUNT)
	}
	if again, err := d.Profiles(id); err != nil || !cmp.Equal(profiles, again) || slices.Contains(library.Calls(), "GetGpuInstanceProfileInfo") {
		t.Errorf("profiles again: %v, %v; want the same, from memory", again, err)
	}
}

// T7: names from the newest version that the driver has, else made as drivers do.
func TestProfileNamesOfOlderDrivers(t *testing.T) {
	for _, board := range boards {
		d, _, id := one(t, board)
		newest, err := d.Profiles(id)
		must(t, err)
		for name, age := range map[string]func(*simnvml.Library){
			"knows version 2 only": func(l *simnvml.Library) {
				for range newest {
					l.Fault("GetGpuInstanceProfileInfoV3", 1, lib.ERROR_ARGUMENT_VERSION_MISMATCH)
				}
			},
			"does not know the function": func(l *simnvml.Library) { l.Lack("nvmlDeviceGetGpuInstanceProfileInfoV") },
		} {
			d, library, id := one(t, board)
			age(library)
			older, err := d.Profiles(id)
			must(t, err)
			if diff := cmp.Diff(newest, older); diff != "" {
				t.Errorf("%s, a driver that %s (-newest +it):\n%s", board, name, diff)
			}
		}
	}
}

func TestMemoryIsWhatThisDriverReports(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	must(t, library.Driver().SetProfileMemory(id, p1g, 4711))
	profiles, err := d.Profiles(id)
	must(t, err)
	i := slices.IndexFunc(profiles, func(p nvml.Profile) bool { return p.ID == p1g })
	if got := profiles[i].MemoryMiB; got != 4711 {
		t.Errorf("memory of 1g is %d MiB; want 4711", got)
	}
}

func TestSessionThatFailsHasNoGPUs(t *testing.T) {
	for _, c := range []struct {
		call string
		ret  lib.Return
		want error
	}{
		{"DeviceGetCount", lib.ERROR_UNKNOWN, nvml.ErrUnknown},
		{"DeviceGetHandleByIndex", lib.ERROR_UNINITIALIZED, nvml.ErrUninitialized},
		{"GetName", lib.ERROR_UNINITIALIZED, nvml.ErrUninitialized},
	} {
		d, library, _ := one(t, "A30-24GB")
		library.Fault(c.call, 1, c.ret)
		if gpus, err := d.GPUs(nil); !errors.Is(err, c.want) || gpus != nil {
			t.Errorf("GPUs with %s failing = %v, %v; want %v alone", c.call, gpus, err, c.want)
		}
	}
}

func TestGPUWithoutMIGIsNotCapable(t *testing.T) {
	d, library, _ := one(t, "A30-24GB")
	library.Fault("GetMigMode", 1, lib.ERROR_NOT_SUPPORTED)
	gpus, err := d.GPUs(nil)
	must(t, err)
	if gpus[0].MIGCapable {
		t.Error("a GPU without a MIG mode is called capable")
	}
}

// A GPU that somebody else is to have is opened to be recognised, and that is all.
func TestOfASkippedGPUOnlyItsUUIDIsRead(t *testing.T) {
	d, library, id := one(t, "A30-24GB")
	library.Calls()
	gpus, err := d.GPUs(func(nvml.GPUID, int) bool { return true })
	must(t, err)
	if diff := cmp.Diff([]nvml.GPU{{ID: id}}, gpus); diff != "" {
		t.Errorf("GPUs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"DeviceGetCount", "DeviceGetHandleByIndex", "GetUUID"}, library.Calls()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// Whoever leaves a GPU to somebody else by its index need not hear that it is silent.
func TestASkippedGPUThatDoesNotAnswerIsNoError(t *testing.T) {
	library := node(t, sim.GPUSpec{Board: "A30-24GB", MIG: true}, sim.GPUSpec{Board: "A30-24GB", MIG: true})
	for _, call := range []string{"DeviceGetHandleByIndex", "GetUUID"} {
		library.Fault(call, 1, lib.ERROR_GPU_IS_LOST)
		gpus, err := open(t, library).GPUs(func(_ nvml.GPUID, index int) bool { return index == 0 })
		must(t, err)
		if len(gpus) != 1 || gpus[0].Index != 1 {
			t.Errorf("%s: GPUs = %v; want the second only", call, gpus)
		}
	}
}

// A GPU that does not answer does not hide the others, is named, and stays listed
// where it was seen before.
func TestGPUThatDoesNotAnswerDoesNotHideTheOthers(t *testing.T) {
	for _, call := range []string{"DeviceGetHandleByIndex", "GetUUID", "GetMinorNumber", "GetName", "GetMemoryInfo", "GetPciInfo", "GetArchitecture", "GetVirtualizationMode", "GetMigMode"} {
		for ret, want := range map[lib.Return]error{lib.ERROR_GPU_IS_LOST: nvml.ErrGPULost, lib.ERROR_RESET_REQUIRED: nvml.ErrResetRequired, lib.ERROR_UNKNOWN: nvml.ErrUnknown} {
			library := node(t, sim.GPUSpec{Board: "A30-24GB", MIG: true}, sim.GPUSpec{Board: "A30-24GB", MIG: true})
			d := open(t, library)
			library.Fault(call, 1, ret)
			without, err := d.GPUs(nil)
			if !errors.Is(err, want) || !strings.Contains(err.Error(), "GPU 0") {
				t.Errorf("%s %d: GPUs = %v; want an error that names GPU 0", call, int(ret), err)
			}
			gpus, err := d.GPUs(nil)
			must(t, err)
			if len(gpus) != 2 || len(without) != 1 || without[0] != gpus[1] {
				t.Errorf("%s %d: GPUs %v; want the second only", call, int(ret), without)
			}
			library.Fault(call, 1, ret)
			again, err := d.GPUs(nil)
			must(t, err)
			if diff := cmp.Diff(gpus, again); diff != "" {
				t.Errorf("%s %d: GPUs once they were seen (-before +now):\n%s", call, int(ret), diff)
			}
		}
	}
	library := node(t, sim.GPUSpec{Board: "A30-24GB", MIG: true})
	id := nvml.GPUID("GPU-x")
	library.Fault("DeviceGetHandleByIndex", 1, lib.ERROR_GPU_IS_LOST)
	_, err := open(t, library).Instances(id)
	wantErr(t, err, nvml.ErrGPULost)
}

// T3.
func TestSetMIGModeNeedsBothResultsAndTheMode(t *testing.T) {
	cases := []struct {
		name  string
		board string
		set   func(*simnvml.Library, nvml.GPUID)
		want  error
	}{
		{"Hopper changes at once", "H100-80GB", func(*simnvml.Library, nvml.GPUID) {}, nil},
		{"Ampere stores it", "A100-40GB", func(*simnvml.Library, nvml.GPUID) {}, nvml.ErrResetRequired},
		{"a client keeps it", "H100-80GB", func(l *simnvml.Library, id nvml.GPUID) {
			_ = l.Driver().Hold(id, sim.Holder{GI: sim.WholeGPU, PID: 7})
		}, nvml.ErrInUse},
		{"the call itself fails", "H100-80GB", func(l *simnvml.Library, _ nvml.GPUID) {
			l.Fault("SetMigMode", 1, lib.ERROR_NO_PERMISSION)
		}, nvml.ErrNoPermission},
		{"what follows fails", "H100-80GB", func(l *simnvml.Library, _ nvml.GPUID) {
			l.Fault("GetMigMode", 1, lib.ERROR_UNKNOWN)
		}, nvml.ErrUnknown},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			library := node(t, sim.GPUSpec{Board: c.board})
			d := open(t, library)
			gpus, err := d.GPUs(nil)
			must(t, err)
			c.set(library, gpus[0].ID)
			if err := d.SetMIGMode(gpus[0].ID, true); !errors.Is(err, c.want) {
				t.Errorf("SetMIGMode = %v; want %v", err, c.want)
			}
		})
	}
}

// modeless says that it has changed a mode, and has not.
type modeless struct {
	*simnvml.Library
	pending int
}

type modelessDevice struct {
	lib.Device
	pending int
}

func (m modeless) DeviceGetHandleByIndex(i int) (lib.Device, lib.Return) {
	device, ret := m.Library.DeviceGetHandleByIndex(i)
	return modelessDevice{device, m.pending}, ret
}

func (m modelessDevice) SetMigMode(int) (activation, ret lib.Return) { return lib.SUCCESS, lib.SUCCESS }

func (m modelessDevice) GetMigMode() (current, pending int, ret lib.Return) {
	return lib.DEVICE_MIG_DISABLE, m.pending, lib.SUCCESS
}

func TestSetMIGModeVerifiesTheMode(t *testing.T) {
	for pending, want := range map[int]error{lib.DEVICE_MIG_ENABLE: nvml.ErrResetRequired, lib.DEVICE_MIG_DISABLE: nvml.ErrInvalidState} {
		d := open(t, modeless{node(t, sim.GPUSpec{Board: "H100-80GB"}), pending})
		gpus, err := d.GPUs(nil)
		must(t, err)
		wantErr(t, d.SetMIGMode(gpus[0].ID, true), want)
	}
}

// A GPU whose calls do not return delays a walk once, and no other GPU after it.
func TestGPUThatHangsIsPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		library := &hanging{Library: node(t, sim.GPUSpec{Board: "A30-24GB", MIG: true}, sim.GPUSpec{Board: "A30-24GB", MIG: true}), until: make(chan struct{})}
		d := open(t, library)
		gpus, err := d.GPUs(nil)
		wantErr(t, err, nvml.ErrTimeout)
		if len(gpus) != 1 || gpus[0].Index != 1 {
			t.Fatalf("GPUs = %v; want the second", gpus)
		}
		began := time.Now()
		_, err = d.Instances(gpus[0].ID)
		must(t, err)
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the other GPU waited %s", waited)
		}
		_, err = d.Instances("GPU-x")
		wantErr(t, err, nvml.ErrTimeout)
		must(t, d.Close())
		if slices.Contains(library.Calls(), "Shutdown") {
			t.Error("the library was given back under a call that runs")
		}
		close(library.until)
		synctest.Wait()
		if !slices.Contains(library.Calls(), "Shutdown") {
			t.Error("the library was not given back after the last call")
		}
	})
}

// hanging lets the first GPU's opening wait.
type hanging struct {
	*simnvml.Library
	until chan struct{}
}

func (h *hanging) DeviceGetHandleByIndex(index int) (lib.Device, lib.Return) {
	if index == 0 {
		<-h.until
	}
	return h.Library.DeviceGetHandleByIndex(index)
}

// T6: after a change of mode the old handle is stale; nobody notices.
func TestHandlesAreLookedUpAgain(t *testing.T) {
	library := node(t, sim.GPUSpec{Board: "H100-80GB"})
	d := open(t, library)
	gpus, err := d.GPUs(nil)
	must(t, err)
	id := gpus[0].ID
	must(t, d.SetMIGMode(id, true))
	in := whole(t, d, id, p1g, 3)
	library.Stale(id)
	library.Calls()
	got, err := d.Instances(id)
	must(t, err)
	if diff := cmp.Diff([]nvml.Instance{in}, got); diff != "" {
		t.Errorf("instances with a stale handle (-want +got):\n%s", diff)
	}
	if again := count(library.Calls(), "DeviceGetHandleByIndex"); again != 1 {
		t.Errorf("the GPU was looked up %d times; want once", again)
	}
	_, err = d.Instances(id)
	must(t, err)
	if again := count(library.Calls(), "DeviceGetHandleByIndex"); again != 0 {
		t.Errorf("a good handle was looked up %d times; want never", again)
	}
	// A call may be the first to find out. It fails, and the next looks it up.
	library.Fault("GetMigMode", 1, lib.ERROR_INVALID_ARGUMENT)
	_, err = d.MIGMode(id)
	wantErr(t, err, nvml.ErrInvalidArgument)
	library.Calls()
	_, err = d.MIGMode(id)
	must(t, err)
	if again := count(library.Calls(), "DeviceGetHandleByIndex"); again != 1 {
		t.Errorf("after INVALID_ARGUMENT the GPU was looked up %d times; want once", again)
	}
	library.Fault("GetUUID", 1, lib.ERROR_GPU_IS_LOST)
	_, err = d.MIGMode(id)
	wantErr(t, err, nvml.ErrGPULost)
}

func count(calls []string, call string) int {
	n := 0
	for _, c := range calls {
		if c == call {
			n++
		}
	}
	return n
}

// T4: a GPU instance alone is listed; the count that the driver reports does not
// limit the list.
func TestGPUInstancesAreListedByProfile(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	gi, err := d.CreateGPUInstance(id, p2g, 2)
	must(t, err)
	in := whole(t, d, id, p1g, 0)
	got, err := d.Instances(id)
	must(t, err)
	if diff := cmp.Diff([]nvml.Instance{in, gi}, got); diff != "" {
		t.Errorf("instances (-want +got):\n%s", diff)
	}
	library.Fault("GpuInstance.GetInfo", 1, lib.ERROR_INVALID_ARGUMENT) // destroyed while listing
	got, err = d.Instances(id)
	must(t, err)
	if len(got) != 1 {
		t.Errorf("instances %v; want one, the other is gone", got)
	}
	library.Fault("GetGpuInstances", 3, lib.ERROR_UNKNOWN)
	_, err = d.Instances(id)
	wantErr(t, err, nvml.ErrUnknown)
}

// short reports too small a count.
type short struct{ *simnvml.Library }

type shortDevice struct{ lib.Device }

func (s short) DeviceGetHandleByIndex(i int) (lib.Device, lib.Return) {
	device, ret := s.Library.DeviceGetHandleByIndex(i)
	return shortDevice{device}, ret
}

func (s shortDevice) GetGpuInstanceProfileInfo(enum int) (lib.GpuInstanceProfileInfo, lib.Return) {
	info, ret := s.Device.GetGpuInstanceProfileInfo(enum)
	info.InstanceCount = 1
	return info, ret
}

func (s shortDevice) GpuInstanceProfileInfoV3(enum int) (lib.GpuInstanceProfileInfo_v3, lib.Return) {
	return s.Device.(named).GpuInstanceProfileInfoV3(enum)
}

func (s shortDevice) GpuInstanceProfileInfoV2(enum int) (lib.GpuInstanceProfileInfo_v2, lib.Return) {
	return s.Device.(named).GpuInstanceProfileInfoV2(enum)
}

func TestTooSmallAnInstanceCountHidesNothing(t *testing.T) {
	d := open(t, short{node(t, sim.GPUSpec{Board: "A30-24GB", MIG: true})})
	gpus, err := d.GPUs(nil)
	must(t, err)
	id := gpus[0].ID
	for start := range 4 {
		whole(t, d, id, 14, start)
	}
	if got, err := d.Instances(id); err != nil || len(got) != 4 {
		t.Errorf("Instances = %v, %v; want four", got, err)
	}
}

// T5.
func TestMIGDevicesAreFoundAtSparseIndices(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	first, second := whole(t, d, id, p1g, 0), whole(t, d, id, p1g, 1)
	must(t, d.DestroyComputeInstance(id, first.GI, first.CI)) // its index is free, above the other's
	library.Calls()
	got, err := d.Instances(id)
	must(t, err)
	first.CI, first.UUID = nvml.NoCI, ""
	if diff := cmp.Diff([]nvml.Instance{first, second}, got); diff != "" {
		t.Errorf("instances (-want +got):\n%s", diff)
	}
	if asked := count(library.Calls(), "GetMigDeviceHandleByIndex"); asked != 7 {
		t.Errorf("%d indices were asked for; want all 7", asked)
	}
	library.Fault("MIG.GetGpuInstanceId", 1, lib.ERROR_INVALID_ARGUMENT) // of an old driver
	got, err = d.Instances(id)
	must(t, err)
	if got[1].Whole() {
		t.Errorf("instance %+v is whole without a MIG device", got[1])
	}
	library.Fault("GetMigDeviceHandleByIndex", 1, lib.ERROR_UNKNOWN)
	_, err = d.Instances(id)
	wantErr(t, err, nvml.ErrUnknown)
}

func TestOnlyASpanningComputeInstanceIsWhole(t *testing.T) {
	a, b := compute{gi: 1, ci: 0, uuid: "MIG-a", spans: true}, compute{gi: 1, ci: 1, uuid: "MIG-b"}
	cases := []struct {
		name string
		all  computes
		ci   int
		uuid string
	}{
		{"none", nil, nvml.NoCI, ""},
		{"of another", computes{{gi: 2, ci: 0, uuid: "MIG-c", spans: true}}, nvml.NoCI, ""},
		{"one that spans", computes{a}, 0, "MIG-a"},
		{"one that does not", computes{b}, 1, ""},
		{"two", computes{b, a}, 0, ""},
	}
	for _, c := range cases {
		if ci, uuid := c.all.of(1); ci != c.ci || uuid != c.uuid {
			t.Errorf("%s: %d, %q; want %d, %q", c.name, ci, uuid, c.ci, c.uuid)
		}
	}
}

// T8 is the adapter's panic in CreateGpuInstance. Each step of a creation that
// fails leaves nothing, or says what it left.
func TestCreateThatFailsHalfWay(t *testing.T) {
	cases := []struct {
		call string
		ret  lib.Return
		want error
		left int
	}{
		{"CreateGpuInstanceWithPlacement", lib.ERROR_INSUFFICIENT_RESOURCES, nvml.ErrInsufficientResources, 0},
		{"CreateGpuInstanceWithPlacement", lib.ERROR_NO_PERMISSION, nvml.ErrNoPermission, 0},
		{"GpuInstance.GetInfo", lib.ERROR_UNKNOWN, nvml.ErrUnknown, 0},
		{"GetGpuInstanceById", lib.ERROR_NOT_FOUND, nvml.ErrNotFound, 1},
		{"GetComputeInstanceProfileInfo", lib.ERROR_UNKNOWN, nvml.ErrUnknown, 1},
		{"CreateComputeInstance", lib.ERROR_INSUFFICIENT_RESOURCES, nvml.ErrInsufficientResources, 1},
		{"ComputeInstance.GetInfo", lib.ERROR_UNKNOWN, nvml.ErrUnknown, 1},
		{"GetMaxMigDeviceCount", lib.ERROR_UNKNOWN, nvml.ErrUnknown, 1},
		{"MIG.GetUUID", lib.ERROR_NOT_FOUND, nvml.ErrInvalidState, 1},
	}
	for _, c := range cases {
		t.Run(c.call, func(t *testing.T) {
			d, library, id := one(t, "A100-40GB")
			library.Fault(c.call, 1, c.ret)
			gi, err := d.CreateGPUInstance(id, p3g, 4)
			if err == nil {
				_, err = d.CreateComputeInstance(id, gi.GI)
			}
			wantErr(t, err, c.want)
			s, err := library.Driver().Dump()
			must(t, err)
			if got := len(s.GPUs[0].Instances); got != c.left {
				t.Errorf("%d GPU instances are left; want %d", got, c.left)
			}
		})
	}
}

func TestTheSpanningComputeProfileIsTaken(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	library.Calls()
	in := whole(t, d, id, p3g, 0)
	if asked := count(library.Calls(), "GetComputeInstanceProfileInfo"); asked != 3 {
		t.Errorf("%d compute profiles were read; want 3, of 1, 2 and 3 slices", asked)
	}
	if !in.Whole() {
		t.Errorf("instance %+v is not whole", in)
	}
}

func TestDestroyPassesOnWhatTheLibrarySays(t *testing.T) {
	for _, c := range []struct {
		call string
		ret  lib.Return
		want error
	}{
		{"GetGpuInstanceById", lib.ERROR_NOT_FOUND, nvml.ErrNotFound},
		{"GetGpuInstanceById", lib.ERROR_NOT_SUPPORTED, nvml.ErrNotSupported},
		{"GetComputeInstanceById", lib.ERROR_NOT_FOUND, nvml.ErrNotFound},
		{"ComputeInstance.Destroy", lib.ERROR_IN_USE, nvml.ErrInUse},
		{"GpuInstance.Destroy", lib.ERROR_IN_USE, nvml.ErrInUse},
		{"GpuInstance.Destroy", lib.ERROR_UNKNOWN, nvml.ErrUnknown},
	} {
		d, library, id := one(t, "A100-40GB")
		in := whole(t, d, id, p1g, 0)
		library.Fault(c.call, 1, c.ret)
		err := d.DestroyComputeInstance(id, in.GI, in.CI)
		if err == nil {
			err = d.DestroyGPUInstance(id, in.GI)
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s %d: error %v; want %v", c.call, int(c.ret), err, c.want)
		}
	}
}

// Success, and the driver lists it once more.
func TestLingeringInstanceIsListedOnce(t *testing.T) {
	d, library, id := one(t, "H100-80GB")
	gi, err := d.CreateGPUInstance(id, p1g, 0)
	must(t, err)
	must(t, library.Driver().AddFault(sim.Fault{Call: sim.CallDestroyGPUInstance, Linger: 1}))
	must(t, d.DestroyGPUInstance(id, gi.GI))
	for _, want := range []int{1, 0} {
		if got, err := d.Instances(id); err != nil || len(got) != want {
			t.Errorf("Instances = %v, %v; want %d", got, err, want)
		}
	}
}

// T9.
func TestProcessesOfAnInstanceAndOfTheGPU(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	one, two := whole(t, d, id, p1g, 0), whole(t, d, id, p1g, 1)
	must(t, library.Driver().Hold(id, sim.Holder{GI: one.GI, PID: 11, MemoryMiB: 100}))
	must(t, library.Driver().Hold(id, sim.Holder{GI: two.GI, PID: 22}))
	must(t, library.Driver().Hold(id, sim.Holder{GI: two.GI}))
	for gi, want := range map[int][]nvml.Process{
		one.GI: {{PID: 11, MemoryMiB: 100}}, two.GI: {{PID: 22}}, nvml.WholeGPU: {{PID: 11, MemoryMiB: 100}, {PID: 22}},
	} {
		got, err := d.Processes(id, gi)
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("processes of %d (-want +got):\n%s", gi, diff)
		}
	}
}

// nameless does not say whose a process is, as drivers before 450.
type nameless struct{ *simnvml.Library }

type namelessDevice struct{ shortDevice }

func (n nameless) DeviceGetHandleByIndex(i int) (lib.Device, lib.Return) {
	device, ret := n.Library.DeviceGetHandleByIndex(i)
	return namelessDevice{shortDevice{device}}, ret
}

func (n namelessDevice) GetComputeRunningProcesses() ([]lib.ProcessInfo, lib.Return) {
	return []lib.ProcessInfo{{Pid: 33, UsedGpuMemory: ^uint64(0), GpuInstanceId: unknown, ComputeInstanceId: unknown}}, lib.SUCCESS
}

func TestProcessWithoutAnInstanceCountsForEach(t *testing.T) {
	d := open(t, nameless{node(t, sim.GPUSpec{Board: "A100-40GB", MIG: true})})
	gpus, err := d.GPUs(nil)
	must(t, err)
	in := whole(t, d, gpus[0].ID, p1g, 0)
	got, err := d.Processes(gpus[0].ID, in.GI)
	must(t, err)
	if diff := cmp.Diff([]nvml.Process{{PID: 33}}, got); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
}

func TestEventsThatFail(t *testing.T) {
	for _, call := range []string{"EventSetCreate", "GetSupportedEventTypes", "RegisterEvents"} {
		d, library, id := one(t, "A100-40GB")
		library.Fault(call, 1, lib.ERROR_NOT_SUPPORTED)
		_, err := d.Events(id)
		wantErr(t, err, nvml.ErrNotSupported)
	}
	d, library, id := one(t, "A100-40GB")
	events, err := d.Events(id)
	must(t, err)
	for ret, want := range map[lib.Return]error{
		lib.ERROR_GPU_IS_LOST: nvml.ErrGPULost, lib.ERROR_UNINITIALIZED: nvml.ErrUninitialized, lib.ERROR_UNKNOWN: nvml.ErrUnknown,
	} {
		library.Fault("EventSet.Wait", 1, ret)
		_, err := events.Wait(time.Minute)
		wantErr(t, err, want)
	}
	must(t, events.Close())
	if got := library.Calls(); got[len(got)-1] != "EventSet.Free" {
		t.Errorf("the last call is %s; want EventSet.Free", got[len(got)-1])
	}
}

// A GPU that has fallen off the bus may not say which one it is any more, just when its
// last event says that.
func TestEventOfAGPUThatDoesNotAnswer(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	events, err := d.Events(id)
	must(t, err)
	must(t, library.Driver().LoseGPU(id))
	library.Fault("GetUUID", 1, lib.ERROR_GPU_IS_LOST)
	got, err := events.Wait(time.Minute)
	must(t, err)
	if diff := cmp.Diff(nvml.Event{GPU: id, XID: 79, GI: nvml.WholeGPU, CI: nvml.NoCI}, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	must(t, events.Close())
}

// The library is given back only when nobody is in it, and Close does not wait.
func TestCloseWhileACallRuns(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	events, err := d.Events(id)
	must(t, err)
	library.Calls()
	waited := make(chan error)
	go func() {
		_, err := events.Wait(time.Minute)
		waited <- err
	}()
	for !slices.Contains(library.Calls(), "EventSet.Wait") {
		time.Sleep(time.Millisecond)
	}
	simulation := library.Driver()
	must(t, d.Close())
	if slices.Contains(library.Calls(), "Shutdown") {
		t.Error("the library was shut down under a call")
	}
	must(t, simulation.XID(id, nvml.WholeGPU, 13))
	must(t, <-waited)
	for calls := []string{}; !slices.Contains(calls, "Shutdown"); calls = library.Calls() {
		time.Sleep(time.Millisecond)
	}
	_, err = events.Wait(0)
	wantErr(t, err, nvml.ErrUninitialized)
}

func TestSessionThatIsLostIsOpenedAnew(t *testing.T) {
	d, library, id := one(t, "A100-40GB")
	in := whole(t, d, id, p1g, 0)
	must(t, library.Driver().LoseSessions())
	_, err := d.Instances(id)
	wantErr(t, err, nvml.ErrUninitialized)
	must(t, d.Close())
	got, err := open(t, library).Instances(id)
	must(t, err)
	if diff := cmp.Diff([]nvml.Instance{in}, got); diff != "" {
		t.Errorf("instances in a new session (-want +got):\n%s", diff)
	}
}

// Random creations and destructions, of GPU instances and compute instances: what
// native lists is what there is.
func TestRandomOperationsAreListedAsTheyAre(t *testing.T) {
	for _, board := range boards {
		d, library, id := one(t, board)
		profiles, err := d.Profiles(id)
		must(t, err)
		random := rand.New(rand.NewPCG(7, uint64(len(board))))
		for range 60 {
			listed, err := d.Instances(id)
			must(t, err)
			truth, err := library.Driver().Instances(id)
			must(t, err)
			if len(truth)+len(listed) > 0 {
				if diff := cmp.Diff(truth, listed); diff != "" {
					t.Fatalf("%s: instances (-simulation +native):\n%s", board, diff)
				}
			}
			p := profiles[random.IntN(len(profiles))]
			switch choice := random.IntN(5); {
			case choice < 2 || len(listed) == 0:
				gi, err := d.CreateGPUInstance(id, p.ID, p.Starts[random.IntN(len(p.Starts))])
				if err == nil && choice > 0 {
					_, err = d.CreateComputeInstance(id, gi.GI)
				}
				if err != nil && !errors.Is(err, nvml.ErrInsufficientResources) {
					t.Fatal(err)
				}
			default:
				in := listed[random.IntN(len(listed))]
				if in.CI != nvml.NoCI {
					must(t, d.DestroyComputeInstance(id, in.GI, in.CI))
				}
				if choice < 4 {
					must(t, d.DestroyGPUInstance(id, in.GI))
				}
			}
		}
	}
}
