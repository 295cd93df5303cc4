// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package dynamicmig is the kube-scheduler plugin DynamicMIG and the wrapped
// NodeResourcesFit, DynamicMIGFit. It adapts: framework types to pkg/pool and
// back. No decision is made here.
//
//	PreFilter   pod -> Request, once; pods without our resources are skipped
//	Filter      NodeInfo -> View -> Fit?            parallel, writes nothing
//	Score       View -> Plan.Score, ranked into 0..100 by NormalizeScore
//	Reserve     the choice, recorded in the ledger  (nobody chooses again)
//	PreBind     with allocationWrite: Annotation one patch: annotation dynamig.io/allocation
//	Bind        with allocationWrite: Binding the Binding, with that annotation
//	PostBind    one event: what was placed and why there
//
// Invariants:
//
//	I1  A pod holds spans from Reserve on; ownership begins at Bind.
//	I2  A pod object given by the framework is never written to: it may be the one
//	    in the scheduler's cache.
//	I3  Handlers, hints and Filter have no effect outside this process, so that
//	    every replica may run them.
//
// dynamicmig does not know NVML, kubelet or how a placement is chosen.
package dynamicmig
