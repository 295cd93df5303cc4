// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package replay plays a trace of jobs over a fleet of GPUs without a cluster, in
// simulated time, and measures how well the fleet was used.
//
//	--fleet 12x8xH100-80GB --ParseFleet--> Fleet --+
//	--device-config -------/                       |
//	                                               +--Run--> Result
//	trace.csv[.gz] --ReadTrace--> Trace -----------+
//	                            policy ------------/
//
// Words: a job is what a pod would be: one or more equal devices on one node, from
// its arrival, for its duration. A class is all jobs that ask for the same. A
// policy chooses GPUs and placements; the policy "ours" is the scheduler's own code
// (pkg/pool), the others are comparators written down here. The size of a job, in
// memory slices, is that of the smallest adequate profile: what a policy gives
// beyond it is no use to anybody and is not counted as used.
//
// Two modes. In Loss what does not fit on arrival is rejected. In Queue it waits:
// first come first served, but later jobs may start where an earlier one does not
// fit. At one moment jobs first end, then waiting ones start in order of arrival,
// then new ones arrive, in the trace's order.
//
// Invariants, which the tests cite:
//
//	I1  accepted + rejected = jobs; what was accepted was on offer.
//	I2  At no time do two instances overlap, and each lies where its profile may.
//	I3  Equal input gives an equal Result, except NsPerDecision.
//	I4  No policy knows what is to come.
//
// replay does not know Kubernetes clients, the scheduling framework, NVML, or how
// results are shown.
package replay
