// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package pool decides which placements a pod gets. It turns a pod into a
// Request, a node's GPUNode and pods into a View, and answers with a Plan or a
// Verdict. Scheduler plugin, monitor, what-if and replay all call it, so there is
// one implementation of every decision.
//
//	pod ----Parse----> Request -----+
//	                                +--Fit--> Plan --Allocation--> annotation
//	GPUNode --NodeOf--> Node --+    |     \
//	pods, Ledger --------------+--View     +-> Verdict (a reason, and whether
//	                                           removing pods could help)
//
// Draw turns the same into a picture for people: metrics, page, kubectl mig.
//
// Words: a Holder is what one pod holds on one node; a span is a placement on a
// GPU; a hypothetical pod is one that kube-scheduler shows on a node where it is
// not (nominated by preemption).
//
// Invariants:
//
//	I1  A span is taken if and only if a pod of the node holds it or GPUNode marks
//	    it Foreign or Stuck. Live and Idle instances do not count.
//	I2  A Ledger entry wins over the same pod's annotation.
//	I3  A View is immutable; equal input gives an equal Plan.
//	I4  A node's revision only grows, with every change of what pods hold there,
//	    also with simulated ones, so that (generation, pods, Node, revision) names a
//	    View.
//	I5  A pod that the node's agent has refused holds no spans.
//
// Costs: a Request looks its tables up once for each catalogue; then one device on
// a node is a look-up for each GPU, about ten nanoseconds and no allocation. For a
// fleet without a cluster, Index finds the best node of any number in some hundred
// nanoseconds:
//
//	x := NewIndex(nodes)             // from NodeOf or NewNode
//	node, plan, ok := x.Best(r)      // r from Parse, once for all equal pods
//	err := x.Take(node, plan)
//	err = x.Release(node, plan.Devices[0].GPU, plan.Devices[0].Placed)
//
// pool does not know the scheduling framework, clients, clocks or NVML.
package pool
