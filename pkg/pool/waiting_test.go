// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import "testing"

func TestBareReasons(t *testing.T) {
	const no = "3 node(s) had no free MIG placement for 4 whole GPUs."
	for message, want := range map[string]string{
		"":                               "",
		"0/3 nodes are available: " + no: no,
		"0/3 nodes are available: " + no + " preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod.": no,
		"0/3 nodes are available: " + no + " preemption: not eligible due to preemptionPolicy=Never.":                              no,
		"limit nvidia.com/gpumem asks for 90000 MiB; no GPU in the cluster can be cut into that":                                   "limit nvidia.com/gpumem asks for 90000 MiB; no GPU in the cluster can be cut into that",
		"0/3 nodes are available": "0/3 nodes are available",
	} {
		if got := BareReason(message); got != want {
			t.Errorf("BareReason(%q) = %q, want %q", message, got, want)
		}
	}
}
