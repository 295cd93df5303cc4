// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"fmt"
	"strings"
)

// The policies.
const (
	Ours         = "ours"      // the scheduler's own code
	Templates    = "templates" // HAMi up to 2.9: whole-GPU layouts
	HAMi         = "hami-2.10" // HAMi 2.10: any placement; fullest node, emptiest GPU
	HAMiByMemory = "hami-mem"  // the same, had it looked at memory alone
	FirstFit     = "first-fit" // first GPU, lowest start
	BestFit      = "best-fit"  // fullest GPU, lowest start
	FGD          = "fgd"       // fragmentation gradient descent, told the trace's mix
	Repack       = "repack"    // the bound: everything may move at any time
)

// Policies lists the names of all policies, ours first and the bound last.
func Policies() []string {
	return []string{Ours, Templates, HAMi, HAMiByMemory, FirstFit, BestFit, FGD, Repack}
}

// newWorld makes an idle fleet under a policy.
func newWorld(f *Fleet, classes []class, opts Options) (world, error) {
	name := opts.Policy
	if name == Repack {
		return newBound(f, classes)
	}
	c := newCluster(f, classes)
	switch name {
	case Ours:
		o, err := newOurs(f, classes, opts)
		if err != nil {
			return nil, err
		}
		c.policy = o
	case Templates:
		giver, err := newTemplates(c)
		if err != nil {
			return nil, err
		}
		c.policy = newHAMi(c, giver, threeRatios)
	case HAMi:
		c.policy = newHAMi(c, newFlexible(c), threeRatios)
	case HAMiByMemory:
		c.policy = newHAMi(c, newFlexible(c), memoryRatio)
	case FirstFit:
		c.policy = &greedy{c, firstFit}
	case BestFit:
		c.policy = &greedy{c, bestFit}
	case FGD:
		c.policy = &greedy{c, leastFragmentation}
	default:
		return nil, fmt.Errorf("policy %q is not known; use one of %s", name, strings.Join(Policies(), ", "))
	}
	return c, nil
}
