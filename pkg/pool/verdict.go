// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"strings"
	"sync"
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
	ReasonUnreadable  = "node(s) had a GPUNode that cannot be read"
	ReasonNoMode      = "node(s) had no GPU in a mode that annotation nvidia.com/vgpu-mode allows"
	ReasonSharesOnly  = "node(s) had GPUs for software shares only, which the pod cannot have"
	ReasonNoLibrary   = "node(s) had GPUs to share but no usable library of HAMi-core; install it there as condition LibraryUnusable of the GPUNode says"
	ReasonNotOffered  = "node(s) had no GPU that takes new instances"
	ReasonNotSelected = "node(s) had no GPU that the pod's annotations accept"
	ReasonNominated   = "node(s) had room only for a nominated pod of equal or higher priority"
)

// explain says why r does not fit: nothing on this hardware, somebody else's
// instance in the way, a place that an agent has just refused, or pods in the way.
func (v *View) explain(r *Request) *Verdict {
	words, n := reasonsBy[v.considered(r)], v.Node
	switch {
	case !n.bare.couldHold(r):
		return r.verdict(words.never, false)
	case n.idle != n.bare && !n.idle.couldHold(r):
		return r.verdict("node(s) had foreign or stuck MIG instances in the way of ", false)
	case n.avoids && regardless(n, v.state()).Fits(r):
		return r.verdict(words.refused, true)
	default:
		return r.verdict(words.full, true)
	}
}

// verdicts are those of one request, by the words before what it asks for: where
// most nodes are full, each of them gives the same.
type verdicts struct{ known sync.Map }

func (r *Request) verdict(words string, curable bool) *Verdict {
	if r.verdicts == nil { // not from Parse
		return &Verdict{Reason: words + describeAll(r), Curable: curable}
	}
	known, ok := r.verdicts.known.Load(words)
	if !ok {
		known, _ = r.verdicts.known.LoadOrStore(words, &Verdict{Reason: words + describeAll(r), Curable: curable})
	}
	return known.(*Verdict)
}

// reasonsBy the modes that were considered; what is asked for follows.
var reasonsBy = map[mode]struct{ never, full, refused string }{
	mig: {
		"node(s) cannot be cut into ",
		"node(s) had no free MIG placement for ",
		"node(s) had just refused the only free MIG placement for ",
	},
	share: {
		"node(s) cannot share GPUs as ",
		"node(s) had no GPU with enough left to share for ",
		"node(s) had just refused the only GPU with enough left to share for ",
	},
	mig | share: {
		"node(s) can neither be cut into nor share GPUs as ",
		"node(s) had neither a free MIG placement nor enough of a GPU left to share for ",
		"node(s) had just refused the only place for ",
	},
}

// couldHold reports whether all devices of r can be placed, or the search was too
// long to tell.
func (v *View) couldHold(r *Request) bool {
	_, out := v.plan(r)
	return out != none
}

// describeAll says in words what a request asks for: "2 x 8000 MiB".
func describeAll(r *Request) string {
	var parts []string
	for i := 0; i < len(r.Devices); {
		n := 1
		for i+n < len(r.Devices) && r.Devices[i+n] == r.Devices[i] {
			n++
		}
		part := Describe(r.Devices[i])
		switch {
		case n > 1 && part == aWholeGPU:
			part = fmt.Sprintf("%d whole GPUs", n)
		case n > 1:
			part = fmt.Sprintf("%d x %s", n, part)
		}
		parts = append(parts, part)
		i += n
	}
	return strings.Join(parts, " and ")
}
