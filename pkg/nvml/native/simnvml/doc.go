// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package simnvml presents a simulated node (package sim) as go-nvml's interface,
// so that package native is tested line by line without a GPU.
//
//	native.Driver --> Library, device, gpuInstance, computeInstance, eventSet
//	                     |  handles, enums, return codes, order of results
//	                     v
//	                  sim.Driver   the rules, the state, other processes
//
// It behaves as the library does and not as a kind mock would:
//
//   - profiles are asked for by enum and come back with their reported id;
//   - an enum that the GPU lacks is NOT_SUPPORTED, one beyond the last that this
//     library knows INVALID_ARGUMENT;
//   - MIG devices are at the highest free indices, so that indices are sparse;
//   - a handle of what is gone is INVALID_ARGUMENT, also where the same id is there
//     again; a GPU's own handle goes stale with a change of mode or a reset;
//   - SetMigMode reports a pending change as activation status, and its own result
//     is SUCCESS;
//   - InstanceCount is the size of the buffer that GetGpuInstances has.
//
// Whatever of the interface is not there panics with the name of the method, by
// go-nvml's mocks, which the types embed.
//
// Library.Fault makes any call fail by name and count; Library.Calls is the log.
package simnvml
