// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package native is nvml.Driver over NVIDIA's management library, through go-nvml.
// It and what lies below it are the only packages that need cgo; without cgo, Open
// says so and nothing else is there.
//
//	nvml.Driver                 nvml.Interface (go-nvml)
//	   Driver ------------------------+--> libnvidia-ml.so.1   (dlopen at Open)
//	    | check: return code          +--> simnvml: the simulation, for tests
//	    |   to typed error
//	    +-- boards: what a session has learnt of each GPU, and its handle
//
// What the library does not say of itself, and where it is dealt with:
//
//	T1  Profiles have two numbers. Calls that ask for information take the enum,
//	    everything that comes back has the reported id (profiles.go).
//	T2  Enums are scanned from 0 until INVALID_ARGUMENT; NOT_SUPPORTED is a gap
//	    (profiles.go).
//	T3  SetMigMode returns the activation status first and its own result second,
//	    and both may be SUCCESS without the mode being in force (mode.go).
//	T4  GPU instances are listed profile by profile, because a walk over MIG handles
//	    shows compute instances only, and with a buffer for every placement, because
//	    InstanceCount is wrong on some GPUs (instances.go).
//	T5  MIG indices are sparse; a MIG handle belongs to an instance only if its ids
//	    say so (instances.go).
//	T6  A handle may go stale at any reset: the GPU's own is checked before each
//	    use and looked up again once, those of instances are never kept (board.go).
//	T7  A function that the loaded library lacks would end the process: newer ones
//	    are looked up first (profiles.go).
//	T8  The driver would choose a place that fragments the GPU: the place is always
//	    given (instances.go).
//	T9  A driver that does not say whose a process is leaves every instance in use
//	    (instances.go).
//
// It was tested over simnvml only: no GPU was at hand.
package native
