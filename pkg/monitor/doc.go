// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package monitor shows the pool to people: Prometheus metrics, a JSON API and a
// page, on one port of every scheduler replica. It reads; it decides nothing.
//
//	GPUNodes, pods (informers) --+
//	Pool, Ledger ----------------+--> Fleet --> /metrics
//	decisions of Reserve ------> Journal  |     /monitor/v1/  (JSON, server-sent events)
//	                                      +---> /            (a page, without build step)
//
// Words: a picture is a node as pool.Draw shows it; a fleet is all pictures of one
// moment with the waiting pods; a version counts the changes that this process has
// seen, so that a reader can ask for what is newer.
//
// Invariants:
//
//	I1  Pictures are drawn by the pool's own builder, from the newest informer and
//	    ledger content at the time of the request: nothing is polled on a timer for
//	    /metrics.
//	I2  A picture is never changed after it is drawn; what is unchanged is not drawn
//	    again.
//	I3  No request changes anything in the cluster.
//	I4  The number of series is bounded by GPUs, instances and profiles, never by
//	    what users write; see docs/metrics.md.
//
// monitor does not know the scheduling framework, NVML, how a placement is chosen, or
// who may read (package serve does).
package monitor
