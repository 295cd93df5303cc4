// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes cluster on one Linux machine, as root,
// without a registry, a container engine or a virtual machine: etcd,
// kube-apiserver and kube-controller-manager as host processes on 127.0.0.1, and
// any number of nodes, each a containerd and a kubelet in namespaces of their
// own. There is no scheduler: whoever starts the cluster brings one.
//
// Words: a cluster has a name, from which every trace outside its directory is
// derived, and a directory with everything else. A node has an index, from 1. A
// tracked process is one whose pid and start time are on disk.
//
//	host   127.0.0.1:PortBase..   etcd  kube-apiserver  kube-controller-manager  (your scheduler)
//	         |
//	         +-- bridge tc-NAME-1, 10.N.1.1/24 -- node 1: mount and pid namespace, process 1 = pause
//	         |                                      containerd  kubelet  (your agent)  pods 10.N.1.2..
//	         +-- bridge tc-NAME-2, 10.N.2.1/24 -- node 2 ...
//
// A node shares the host's network and cgroup tree. What kubelet and containerd
// want at fixed paths (/var/lib/kubelet, /run/containerd, /etc/cdi, ...) is bound
// over from DIR/nodes/NODE, so each node has its own; the mount points themselves
// are made on the host where they are missing, and stay, empty.
//
// What always holds:
//
//	I1  A cluster outlives the process that started it, and can be opened again.
//	I2  No process is signalled that this package did not start: a pid counts only
//	    together with its start time, or with the mark in its environment.
//	I3  Down needs nothing on disk to find processes, bridges and cgroups, so it
//	    works after a kill -9 between any two lines of this package.
//	I4  After Down nothing is left but DIR/log: see Leftovers.
//	I5  Everything listens on 127.0.0.1 or on a node's bridge, nothing on the machine's
//	    outer addresses; only etcd trusts whoever connects.
//	I6  Clusters of different names and ports do not disturb each other.
//
// Pods have an address and reach their node, but there are no Services, no DNS and
// no way out; a pod that needs the API server uses the host's network.
//
// The package knows nothing about GPUs or about the product under test.
package cluster
