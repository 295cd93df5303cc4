// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/dynamig/dynamig/pkg/replay"
)

// lifetimes is how many mean lives of a request the replay of a large fleet takes;
// the first half is not measured. One seed does: large fleets hardly vary.
const lifetimes = 8

// sampleReport tells what it costs that kube-scheduler looks at a part of the nodes
// only: regret at load 1.0 with all nodes and with that part, on fleets of so many
// nodes with 8 H100.
func sampleReport(ctx context.Context, nodes []int) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "Regret at load 1.0, one run over %d mean lives, the first half not measured.\n\n| nodes of 8 | nodes looked at |", lifetimes)
	for _, m := range mixes {
		fmt.Fprintf(&b, " %s |", m.name)
	}
	b.WriteString(" mean |\n| ---: | --- |" + strings.Repeat(" ---: |", len(mixes)+1) + "\n")
	for _, n := range nodes {
		for _, sample := range []bool{false, true} {
			name := "all"
			if sample {
				name = "by default"
			}
			fmt.Fprintf(&b, "| %d | %s |", n, name)
			mean := 0.0
			for _, m := range mixes {
				regret, err := sampleRun(ctx, n, m, sample)
				if err != nil {
					return "", err
				}
				fmt.Fprintf(&b, " %.2f |", regret)
				mean += regret / float64(len(mixes))
			}
			fmt.Fprintf(&b, " %.2f |\n", mean)
		}
	}
	return b.String(), nil
}

// sampleRun is the regret of ours for one mix.
func sampleRun(ctx context.Context, nodes int, m mix, sample bool) (float64, error) {
	fleet, err := replay.ParseFleet([]string{fmt.Sprintf("%dx8xH100-80GB", nodes)}, nil)
	if err != nil {
		return 0, err
	}
	full := load{"1.0", 1}
	jobs := m.jobs(full, 1, fleet.GPUs(), int(lifetimes*float64(fleet.GPUs()*8)/m.slices()))
	opts := replay.Options{Policy: replay.Ours, Warmup: .5, NoOversize: true, Sample: sample}
	ours, err := replay.Run(ctx, fleet, jobs, opts)
	if err != nil {
		return 0, err
	}
	opts.Policy = replay.Repack
	bound, err := replay.Run(ctx, fleet, jobs, opts)
	if err != nil {
		return 0, err
	}
	return utilisation(full, bound) - utilisation(full, ours), nil
}
