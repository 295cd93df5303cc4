// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package simnvml

import (
	"errors"
	"slices"
	"sync"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

var _ lib.Interface = (*Library)(nil)

// Library is the library as one process has loaded it. Safe for parallel use.
type Library struct {
	*mock.Interface
	root string

	mu     sync.Mutex // guards what follows
	driver *sim.Driver
	calls  []string
	faults []fault
	lacks  []string // symbols that this version does not have
	gpus   map[nvml.GPUID]*gpu
}

// gpu is what the library remembers of a GPU.
type gpu struct {
	handles   int            // generation of the GPU's own handles: older ones are stale
	instances map[int]int    // the same of GPU instances and what is in them, by id
	uuids     map[int]string // MIG devices by index
}

type fault struct {
	call  string
	after int // calls of that name that still succeed
	ret   lib.Return
}

// New returns the library on the simulated node below root.
func New(root string) *Library {
	return &Library{Interface: &mock.Interface{}, root: root, gpus: map[nvml.GPUID]*gpu{}}
}

// Root is the directory that stands for "/" of the simulated node.
func (l *Library) Root() string { return l.root }

// Fault makes the nth coming call of a method fail, once; methods of what hangs on
// a GPU are named without it, such as "CreateComputeInstance", and Destroy is
// "GpuInstance.Destroy" or "ComputeInstance.Destroy".
func (l *Library) Fault(call string, nth int, ret lib.Return) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, fault{call, nth - 1, ret})
}

// Lack takes a symbol away, as an older driver does.
func (l *Library) Lack(symbol string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lacks = append(l.lacks, symbol)
}

// Stale makes all handles of a GPU that were given out stale.
func (l *Library) Stale(id nvml.GPUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gpu(id).handles++
}

// Calls returns the names of the calls so far, and forgets them.
func (l *Library) Calls() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls := l.calls
	l.calls = nil
	return calls
}

// Driver is the simulation's session, nil before Init.
func (l *Library) Driver() *sim.Driver {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.driver
}

// gpu returns what is remembered of a GPU. The lock is held.
func (l *Library) gpu(id nvml.GPUID) *gpu {
	if l.gpus[id] == nil {
		l.gpus[id] = &gpu{instances: map[int]int{}, uuids: map[int]string{}}
	}
	return l.gpus[id]
}

// enter logs a call and returns what it is to fail with, else SUCCESS.
func (l *Library) enter(call string) (*sim.Driver, lib.Return) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, call)
	for i := range l.faults {
		f := &l.faults[i]
		if f.call != call {
			continue
		}
		if f.after > 0 {
			f.after--
			continue
		}
		ret := f.ret
		l.faults = slices.Delete(l.faults, i, i+1)
		return l.driver, ret
	}
	if l.driver == nil && call != "Init" {
		return nil, lib.ERROR_UNINITIALIZED
	}
	return l.driver, lib.SUCCESS
}

var codes = []struct {
	err error
	ret lib.Return
}{
	{nvml.ErrUninitialized, lib.ERROR_UNINITIALIZED},
	{nvml.ErrInvalidArgument, lib.ERROR_INVALID_ARGUMENT},
	{nvml.ErrNotSupported, lib.ERROR_NOT_SUPPORTED},
	{nvml.ErrNoPermission, lib.ERROR_NO_PERMISSION},
	{nvml.ErrNotFound, lib.ERROR_NOT_FOUND},
	{nvml.ErrDriverNotLoaded, lib.ERROR_DRIVER_NOT_LOADED},
	{nvml.ErrTimeout, lib.ERROR_TIMEOUT},
	{nvml.ErrGPULost, lib.ERROR_GPU_IS_LOST},
	{nvml.ErrResetRequired, lib.ERROR_RESET_REQUIRED},
	{nvml.ErrInUse, lib.ERROR_IN_USE},
	{nvml.ErrInsufficientResources, lib.ERROR_INSUFFICIENT_RESOURCES},
	{nvml.ErrInvalidState, lib.ERROR_INVALID_STATE},
}

// code is the return code of the simulation's error.
func code(err error) lib.Return {
	if err == nil {
		return lib.SUCCESS
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.ret
		}
	}
	return lib.ERROR_UNKNOWN
}

// Init implements nvml.Interface.
func (l *Library) Init() lib.Return {
	if _, ret := l.enter("Init"); ret != lib.SUCCESS {
		return ret
	}
	d, err := sim.Open(l.root)
	if err != nil {
		return code(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.driver = d
	return lib.SUCCESS
}

// Shutdown implements nvml.Interface.
func (l *Library) Shutdown() lib.Return {
	d, ret := l.enter("Shutdown")
	if ret != lib.SUCCESS {
		return ret
	}
	l.mu.Lock()
	l.driver = nil
	l.mu.Unlock()
	return code(d.Close())
}

// SystemGetDriverVersion implements nvml.Interface.
func (l *Library) SystemGetDriverVersion() (string, lib.Return) {
	d, ret := l.enter("SystemGetDriverVersion")
	if ret != lib.SUCCESS {
		return "", ret
	}
	version, err := d.DriverVersion()
	return version, code(err)
}

// DeviceGetCount implements nvml.Interface.
func (l *Library) DeviceGetCount() (int, lib.Return) {
	d, ret := l.enter("DeviceGetCount")
	if ret != lib.SUCCESS {
		return 0, ret
	}
	gpus, err := d.GPUs(nil)
	return len(gpus), code(err)
}

// DeviceGetHandleByIndex implements nvml.Interface.
func (l *Library) DeviceGetHandleByIndex(index int) (lib.Device, lib.Return) {
	d, ret := l.enter("DeviceGetHandleByIndex")
	if ret != lib.SUCCESS {
		return nil, ret
	}
	gpus, err := d.GPUs(nil)
	if err != nil {
		return nil, code(err)
	}
	if index < 0 || index >= len(gpus) {
		return nil, lib.ERROR_INVALID_ARGUMENT
	}
	return l.device(gpus[index]), lib.SUCCESS
}

func (l *Library) device(facts nvml.GPU) *device {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &device{Device: &mock.Device{}, library: l, facts: facts, generation: l.gpu(facts.ID).handles}
}

// EventSetCreate implements nvml.Interface.
func (l *Library) EventSetCreate() (lib.EventSet, lib.Return) {
	if _, ret := l.enter("EventSetCreate"); ret != lib.SUCCESS {
		return nil, ret
	}
	return &eventSet{EventSet: &mock.EventSet{}, library: l}, lib.SUCCESS
}

// Extensions implements nvml.Interface.
func (l *Library) Extensions() lib.ExtendedInterface { return extensions{l} }

type extensions struct{ *Library }

// LookupSymbol implements nvml.ExtendedInterface.
func (e extensions) LookupSymbol(name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if slices.Contains(e.lacks, name) {
		return errors.New("undefined symbol: " + name)
	}
	return nil
}
