// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package perf measures what scheduling MIG instances costs beside what the stock
// scheduler does without them. It runs upstream's scheduler_perf: one process with
// a real API server, the scheduler and the load, and a real etcd.
//
//	Stock         stock profile; pods ask for a plain extended resource
//	MIGMixed      as shipped; pods ask for MIG instances of three sizes
//	StockBatched  stock profile without default topology spread, equal pods:
//	              opportunistic batching can place many from one list
//	MIGOneSize    as shipped, equal pods, so that batching can help here, too
//
// MIGMixed is to be compared with Stock, MIGOneSize with StockBatched: the pairs
// have equal nodes, equally many pods, and equally many that are alike. What an
// agent would do (reports that change, CPU on nodes) is not part of it.
//
// API server, scheduler and load share the processors, so that each further write
// of the scheduler takes pods per second from itself.
//
// The figures of one run depend on the machine; the ratios travel further. Run it
// with hack/bench-scheduler.sh; the program in table prints the result.
package perf
