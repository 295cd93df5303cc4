// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

// Result is what a replay measured. All figures are of the jobs that arrive after
// the warm-up, and of the time from the first of these arrivals to the last arrival
// or start, whichever is later. Means are over that time. Slices are memory slices.
type Result struct {
	Policy string `json:"policy"`
	Fleet  string `json:"fleet"`
	Mode   Mode   `json:"mode"`
	GPUs   int    `json:"gpus"`

	Jobs     int `json:"jobs"`
	Accepted int `json:"accepted"`
	Rejected int `json:"rejected"`
	// Impossible are the rejected jobs that not even the idle fleet could hold.
	Impossible int `json:"impossible"`
	// ImpossibleLine is where the first of them is in the trace's file; 0 without.
	ImpossibleLine int `json:"impossible_line,omitempty"`
	// Oversize is the number of accepted devices that are larger than needed.
	Oversize int `json:"oversize"`

	// A job's slice-seconds are its size times its duration, on the model where it
	// takes fewest slices; a job that runs forever counts up to the end.
	OfferedSliceSeconds  float64 `json:"offered_slice_seconds"`
	AcceptedSliceSeconds float64 `json:"accepted_slice_seconds"`

	// Utilisation is slices in use over all slices, from 0 to 1; a device uses what
	// it needs, even where it got more. ComputeUtilisation is the same of compute
	// slices.
	Utilisation        float64 `json:"utilisation"`
	ComputeUtilisation float64 `json:"compute_utilisation"`
	UtilisationAtEnd   float64 `json:"utilisation_at_end"`
	GPUsOn             float64 `json:"gpus_on"` // with at least one instance
	GPUsPeak           int     `json:"gpus_peak"`
	// Stranded is the part of all free slices, from 0 to 1, where no profile that
	// the trace asks for can lie. Null for the bound, which has no placements.
	Stranded *float64 `json:"stranded"`

	// Waits of the accepted jobs, in seconds; all 0 in mode loss. Percentiles are by
	// nearest rank.
	WaitMean float64 `json:"wait_mean"`
	WaitP50  float64 `json:"wait_p50"`
	WaitP95  float64 `json:"wait_p95"`
	WaitP99  float64 `json:"wait_p99"`

	// Decisions counts every time that the policy was asked, warm-up included.
	Decisions     int     `json:"decisions"`
	NsPerDecision float64 `json:"ns_per_decision"`
}
