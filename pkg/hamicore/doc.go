// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package hamicore is HAMi-core as a container needs it: the library that keeps a
// process within its share of a GPU, from a directory of the host, and the
// variables and mounts that tell the library what the share is.
//
//	host                                          container
//	DIR/libvgpu.so[.VERSION]   ----------------->  /usr/local/vgpu/libvgpu.so   (ro)
//	DIR/containers/POD_CONTAINER  -------------->  /usr/local/vgpu              (rw)
//	DIR/ld.so.preload   ------------------------>  /etc/ld.so.preload           (ro)
//	LOCK   ------------------------------------->  /tmp/vgpulock                (rw)
//
// Words: a home is the container whose directory and limits a device goes with;
// a container that has a device before it (a plain init container) uses the same.
//
// Invariants:
//
//	I1  There is a limit of memory for every device that the library could see: the
//	    library takes none, or 0, for unlimited.
//	    A library that the dynamic linker would not load is no library.
//	I2  No two pods, and no two homes, share a directory.
//
// The names and values are those of HAMi v2.10 (pkg/device-plugin/nvidiadevice/
// nvinternal/plugin/server.go) and HAMi-core (src/include/libvgpu.h,
// src/multiprocess/multiprocess_memory_limit.c).
//
// hamicore does not know Kubernetes, NVML or CDI.
package hamicore
