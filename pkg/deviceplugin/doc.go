// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package deviceplugin speaks kubelet's device plugin protocol for one resource.
// It hands out slots, finds out which pod holds them when a container starts, has
// that container's devices prepared, and writes them where the runtime looks.
//
// Words: a slot is an opaque token (s0000, s0001, ...) that kubelet counts and
// gives to containers; to offer a slot is to list it as healthy; a slot is handed
// when Allocate answered for it, bound when it stands for one device of one pod,
// and withdrawn when it is not offered any more. The owner is the caller of this
// package, who knows pods and devices.
//
//	kubelet                  this package                    owner
//	  |  Register <-----------  a new socket name each time
//	  |  ListAndWatch ------->  slots, as many as SetCapacity said
//	  |  Allocate ----------->  names only, from memory
//	  |  ... pulls the image ...
//	  |  PreStartContainer -->  who holds these slots?
//	  |    <-- checkpoint ----    pod UID, container
//	  |    <-- PodResources --    the same pod? --------> Pods
//	  |                           its devices ----------> Preparer
//	  |                         bind, write CDI files
//	  |  CreateContainer ---->  (the runtime reads the CDI files)
//
// A slot's life; a slot serves one pod only:
//
//	        SetCapacity         Allocate        PreStartContainer
//	(none) ------------> free ------------> handed ------------> bound
//	  ^                   |                                        |
//	  |  grace            | SetCapacity                 Release    |
//	  +------- withdrawn <+----------------------------------------+
//
// Invariants:
//
//	I1  Allocate reads memory only: it blocks the admission of every pod of the node.
//	I2  A number is never used for a second slot, also not after a restart.
//	I3  A bound slot keeps its device until its pod ends, whoever restarts.
//	I4  A container starts only with CDI files of its own pod: a file of another
//	    pod is removed and the start fails, since the runtime reads files
//	    asynchronously and might still see the old one.
//	I5  A CDI file stays while its pod lives. Kubelet may start a container without
//	    asking, right after its own restart.
//	I6  A slot that kubelet may have picked is not dropped from the list: it is
//	    first listed as unhealthy, which keeps kubelet from picking it, and dropped
//	    later. Kubelet 1.37 looks a picked slot up in the newest list after Allocate
//	    has answered, and crashes if it is not there (devicemanager/manager.go,
//	    allocateContainerResources, allDevices[resource][dev].Topology).
//	I7  Kubelet never has two registrations of ours: the old stream ends first.
//	I8  Kubelet has a registration of ours only while there are slots to list. It
//	    gives a resource to whoever registered last, so on a node that offers nothing
//	    the resource stays with the plugin that has it (devicemanager/manager.go,
//	    PluginConnected).
//
// deviceplugin does not know MIG, NVML or GPUNode.
package deviceplugin
