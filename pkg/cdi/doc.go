// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package cdi writes the files that tell a container runtime what a container
// sees: specifications of the Container Device Interface (CDI), from plain values.
//
// Words: a slot is an opaque name that kubelet hands to a container in Allocate,
// long before it is known what the slot stands for; edits are what the runtime
// changes in a container; the owner is whoever a slot's file was written for, any
// text that the caller compares later.
//
//	Allocate answers        dynamig.io/slot=s0007    dynamig.io/driver=all
//	                               |                        |
//	files in Dir     dynamig.io-slot_s0007.json    dynamig.io-driver.json
//	                 owner, device nodes, env      driver libraries, control nodes
//	                               |                        |
//	                               +-------> runtime <------+
//	                                 CreateContainer merges both
//
// Invariants:
//
//	I1  A runtime sees a file whole or not at all: it is written under a name that
//	    is no CDI file name, in the same directory, and renamed. (A runtime's watch
//	    reports a rename inside the directory, but not one into it from elsewhere.)
//	I2  A device name is defined by one file only; two would disable it.
//	I3  A file that already has the wanted content is not touched, so that nothing
//	    makes the runtime read its cache anew.
//
// A container may hold several slots of one GPU, whose device nodes then repeat
// that GPU's own. This is harmless: runtimes that use CDI's library merge device
// nodes by path, the last one winning (pkg/cdi/container-edits.go,
// ContainerEdits.Apply), and runc merges the equal device rules.
//
// cdi does not know Kubernetes, NVML, or who asks.
package cdi
