// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package sim is a GPU node without GPUs: an nvml.Driver that refuses what the
// NVIDIA driver refuses, and the other people on such a node.
//
//	agent --- Driver --+                        +-- state.json   (what is so)
//	test  --- Driver --+-- one lock, one file --+-- proc/driver/nvidia/capabilities/...
//	simgpu --- Node ---+      below Root        +-- dev/nvidia*, dev/nvidia-caps/*
//
// Words: a root is the directory that stands for "/" of one simulated node; a
// session is what Open gives and a reload of the driver ends; a holder is
// somebody who uses an instance, seen by NVML (a process) or not (a handle); a
// fault is something that was ordered to go wrong in a coming call.
//
// All processes share the state through one file, replaced by rename under a file
// lock, so it outlives each of them, and any may die at any moment.
//
// A GPU instance's life, with what refuses a step:
//
//	        CreateGPUInstance          CreateComputeInstance
//	(none) ------------------> GI only ---------------------> whole
//	   ^    I1, I2                |  ^                          |
//	   |                          |  +--------------------------+
//	   +--------------------------+     DestroyComputeInstance: holders
//	     DestroyGPUInstance: holders, a compute instance
//	   +--- reset, reboot, from everywhere (I5)
//
// Invariants:
//
//	I1  Instances of a GPU never overlap in memory slices; no profile has more
//	    instances than its Max; at most one instance has the media extensions
//	    (+me), and beside +me.all there is only -me.
//	I2  A start that the profile's table does not have is ErrInvalidArgument, also
//	    where the span is free; with MIG off a creation is ErrNotSupported.
//	I3  The id of a GPU instance is a function of size and start, so ids come back;
//	    a MIG UUID never does.
//	I4  What is refused changes nothing.
//	I5  No instance outlives a reset or a reboot.
//	I6  MIG mode changes on an idle GPU only. On Ampere the change waits for a
//	    reset or reboot and then persists; later GPUs change at once, and are off
//	    after a reset or reboot.
//	I7  The files below proc and dev are a function of the state, at the latest
//	    after the next Open.
//	I8  Each counted call has a number that no other call of the node has.
//
// sim does not know Kubernetes, pods or the agent, and it does not report what is
// not known: a board without a known memory size is refused.
package sim
