// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command table prints what scheduler_perf has measured.
//
//	table DIRECTORY...
//
// Each directory has the JSON files of one run of test/perf. A figure is the median
// over the runs; a ratio is taken within each run, where both sides had the same
// machine, before its median is. Each case with MIG instances is compared with the
// stock case that has equally many pods alike.
package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

// cases lists the cases in the order of the table, and what each is compared with.
var cases = []struct{ name, against string }{
	{name: "Stock"},
	{name: "MIGMixed", against: "Stock"},
	{name: "StockBatched"},
	{name: "MIGOneSize", against: "StockBatched"},
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "Name the directories that hold the results, one for each run.")
		os.Exit(2)
	}
	var runs []run
	for _, dir := range os.Args[1:] {
		r, err := readRun(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		runs = append(runs, r)
	}
	if err := write(os.Stdout, runs); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// write prints one line for each workload that any run has.
func write(to io.Writer, runs []run) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "nodes\tcase\tpods/s\tp50\tFilter ms\tScore ms\tPreBind ms\tCPU ms/pod\tpods/s ratio\tCPU ratio\t")
	for _, nodes := range sizes(runs) {
		for _, c := range cases {
			at := workload{name: c.name, nodes: nodes}
			if _, ok := median(runs, at, throughput); !ok {
				continue
			}
			fmt.Fprintf(w, "%d\t%s", nodes, c.name)
			for _, column := range columns {
				fmt.Fprint(w, "\t", column.text(runs, at))
			}
			against := workload{name: c.against, nodes: nodes}
			fmt.Fprintf(w, "\t%s\t%s\t\n", ratio(runs, at, against, throughput), ratio(runs, at, against, cpuPerPod))
		}
	}
	return w.Flush()
}

// columns are the figures between case and ratios.
var columns = []column{
	{throughput, "%.0f"},
	{throughputP50, "%.0f"},
	{extensionPoint("Filter"), "%.3f"},
	{extensionPoint("Score"), "%.3f"},
	{extensionPoint("PreBind"), "%.2f"},
	{cpuPerPod, "%.2f"},
}

type column struct {
	figure figure
	format string
}

// text is "-" for what was not measured, such as Score where it never ran.
func (c column) text(runs []run, at workload) string {
	v, ok := median(runs, at, c.figure)
	if !ok {
		return "-"
	}
	return fmt.Sprintf(c.format, v)
}

// ratio compares a figure of two workloads.
func ratio(runs []run, at, against workload, f figure) string {
	var ratios []float64
	for _, r := range runs {
		ours, ok := r[at][f]
		stock, both := r[against][f]
		if ok && both && stock > 0 {
			ratios = append(ratios, ours/stock)
		}
	}
	if len(ratios) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f of %s", middle(ratios), against.name)
}

// sizes lists the numbers of nodes, ascending.
func sizes(runs []run) []int {
	var out []int
	for _, r := range runs {
		for at := range r {
			out = append(out, at.nodes)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// median of a figure over the runs that have it.
func median(runs []run, at workload, f figure) (float64, bool) {
	var values []float64
	for _, r := range runs {
		if v, ok := r[at][f]; ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return 0, false
	}
	return middle(values), true
}

// middle is the median; the mean of the two in the middle where there are two.
func middle(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
