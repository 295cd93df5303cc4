// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"strings"
)

// Verdict says why a node does not suit. Curable verdicts could be cured by
// removing pods; with the others this node never suits as it is.
type Verdict struct {
	Reason  string
	Curable bool
}

// Reasons that do not depend on the request. kube-scheduler counts nodes by
// reason, so they are constants.
const (
	ReasonNoGPUNode   = "node(s) had no GPUNode"
	ReasonNodeChanged = "node(s) had a GPUNode of an earlier node of the same name"
	ReasonNoMode      = "node(s) had no GPU in a mode that annotation nvidia.com/vgpu-mode allows"
	ReasonNotOffered  = "node(s) had no GPU that takes new instances"
	ReasonNominated   = "node(s) had room only for a nominated pod of equal or higher priority"
)

// explain says why r does not fit: nothing on this hardware, somebody else's
// instance in the way, or pods in the way.
func (v *View) explain(r *Request) *Verdict {
	switch {
	case !v.Node.bare().holds(r):
		return &Verdict{Reason: "node(s) cannot be cut into " + describeAll(r)}
	case !v.Node.idle().holds(r):
		return &Verdict{Reason: "node(s) had foreign or stuck MIG instances in the way of " + describeAll(r)}
	default:
		return &Verdict{Reason: "node(s) had no free MIG placement for " + describeAll(r), Curable: true}
	}
}

// holds reports whether all devices of r can be placed.
func (v *View) holds(r *Request) bool { return newSearch(v, r).place(0) }

// describeAll says in words what a request asks for: "2 x 8000 MiB".
func describeAll(r *Request) string {
	var parts []string
	for i := 0; i < len(r.Devices); {
		n := 1
		for i+n < len(r.Devices) && r.Devices[i+n] == r.Devices[i] {
			n++
		}
		part := Describe(r.Devices[i])
		if n > 1 {
			part = fmt.Sprintf("%d x %s", n, part)
		}
		parts = append(parts, part)
		i += n
	}
	return strings.Join(parts, " and ")
}
