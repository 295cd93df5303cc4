// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dynamig/dynamig/pkg/replay"
)

// openbSizes are fleets around what the trace needs, in nodes of 8 H100.
var openbSizes = []int{5, 6, 7, 8, 9}

// openbReport replays the two openb traces on fleets of several sizes.
func openbReport(ctx context.Context, dir string) (string, error) {
	var b strings.Builder
	for _, name := range []string{"default", "gpushare40"} {
		fmt.Fprintf(&b, "\n### openb, %s\n\n| policy |", name)
		for _, nodes := range openbSizes {
			fmt.Fprintf(&b, " %d GPUs |", 8*nodes)
		}
		b.WriteString("\n| --- |" + strings.Repeat(" ---: |", len(openbSizes)) + "\n")
		for _, policy := range replay.Policies() {
			fmt.Fprintf(&b, "| %s |", policy)
			for _, nodes := range openbSizes {
				loss, queue, err := openbRun(ctx, filepath.Join(dir, "openb_pod_list_"+name+".csv.gz"), nodes, policy)
				if err != nil {
					return "", err
				}
				fmt.Fprintf(&b, " %d, %.2f %%; %.0f s |", loss.Rejected, 100*(1-loss.AcceptedSliceSeconds/loss.OfferedSliceSeconds), queue.WaitMean)
			}
			b.WriteString("\n")
		}
	}
	return b.String(), nil
}

// openbRun replays one trace on one fleet in both modes.
func openbRun(ctx context.Context, file string, nodes int, policy string) (loss, queue *replay.Result, err error) {
	fleet, err := replay.ParseFleet([]string{fmt.Sprintf("%dx8xH100-80GB", nodes)}, nil)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close() // only read
	trace, err := replay.ReadTrace(f, file, replay.OpenbCompute, fleet)
	if err != nil {
		return nil, nil, err
	}
	opts := replay.Options{Policy: policy, Mode: replay.Loss}
	if loss, err = replay.Run(ctx, fleet, trace.Jobs, opts); err != nil {
		return nil, nil, err
	}
	opts.Mode = replay.Queue
	queue, err = replay.Run(ctx, fleet, trace.Jobs, opts)
	return loss, queue, err
}
