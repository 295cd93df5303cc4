// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/replay"
)

const replayLong = `Replay plays a trace of jobs over a fleet of GPUs, without a cluster and in simulated
time, and says how well the fleet was used. Policy "ours" is the scheduler's own
code; the others are for comparison.

A trace is a CSV file, perhaps compressed with gzip; "-" is the standard input. Its
first line names the columns, in any order; unknown ones are ignored, with a note
where they look like these:

  arrival, duration   seconds; a job without a duration runs forever
  devices             on one node; 1 where it is missing
  profile             of each device, such as 1g.10gb; or
  gpumem, gpucores    MiB and percent of each device, one or both of them
                      a job without any of these three asks for whole GPUs

Policies:

  ours        the scheduler's own code
  templates   HAMi up to 2.9: whole-GPU layouts, the fullest node, the emptiest GPU
  hami-2.10   HAMi 2.10: any placement, the fullest node, the emptiest GPU
  hami-mem    the same with what is full told by memory alone
  first-fit   the first GPU with room
  best-fit    the fullest GPU with room
  fgd         fragmentation gradient descent, told the trace's mix of requests
  repack      the bound: everything may move at any time (GPUs of 8 memory slices)
  all         all of these, repack where it knows the fleet`

const replayExample = `  # How many of these jobs would 12 nodes with 8 H100 turn away?
  kubectl mig replay --fleet 12x8xH100-80GB --trace jobs.csv

  # How long would they wait instead, also on a mixed fleet?
  kubectl mig replay --fleet 4x8xH100-80GB --fleet 2x4xA30-24GB --trace jobs.csv --mode queue

  # All policies side by side, on the trace of a real cluster
  kubectl mig replay --fleet 9x8xH100-80GB --trace openb_pod_list_default.csv.gz --trace-format openb --policy all`

// replayFlags are what the command line says.
type replayFlags struct {
	fleet, policies         []string
	device, trace           string
	format, share, oversize string
	mode, output            string
	warmup                  float64
	learn                   bool
	all                     bool // of the policies
}

func newReplayCommand(s *screen) *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:     "replay --fleet NODESxGPUSxBOARD --trace FILE",
		Short:   "Play a trace of jobs over a fleet of GPUs, without a cluster",
		Long:    replayLong,
		Example: replayExample,
		Args:    checked(noArguments),
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), s) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.fleet, "fleet", nil, "nodes x GPUs of each x board, such as 12x8xH100-80GB; may be repeated")
	flags.StringVar(&f.device, "device-config", "", "HAMi's device-config.yaml, which narrows what the GPUs offer")
	flags.StringVar(&f.trace, "trace", "", `CSV file with the jobs, perhaps compressed with gzip; "-" is the standard input`)
	flags.StringVar(&f.format, "trace-format", "csv", "csv or openb")
	flags.StringVar(&f.share, "openb-map", "compute", "what a share of a GPU means in an openb trace: compute or memory")
	flags.StringSliceVar(&f.policies, "policy", []string{replay.Ours}, "one or more of "+strings.Join(replay.Policies(), ", ")+", or all")
	flags.StringVar(&f.mode, "mode", string(replay.Loss), "what does not fit is rejected (loss) or waits (queue)")
	flags.Float64Var(&f.warmup, "warmup", 0, "part of the jobs that come first and are not measured, from 0 to below 1")
	flags.StringVar(&f.oversize, "oversize", "Allow", "a larger profile where the smallest adequate one is not free: Allow or Never")
	flags.BoolVar(&f.learn, "learn", true, "policy ours learns which profiles are asked for, as the scheduler does by default")
	flags.StringVarP(&f.output, "output", "o", "table", "table or json")
	for name, values := range map[string][]string{
		"trace-format": {"csv", "openb"}, "openb-map": {"compute", "memory"}, "policy": append(replay.Policies(), "all"),
		"mode": {string(replay.Loss), string(replay.Queue)}, "oversize": {"Allow", "Never"}, "output": {"table", "json"},
	} {
		// It fails for a flag that does not exist only.
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

// check finds mistakes that need no file to be seen.
func (f *replayFlags) check() error {
	switch {
	case len(f.fleet) == 0:
		return errors.New("--fleet is missing; give for example --fleet 12x8xH100-80GB")
	case f.trace == "":
		return errors.New("--trace is missing; give a CSV file with the jobs")
	}
	for _, c := range []struct {
		flag, value string
		known       []string
	}{
		{"trace-format", f.format, []string{"csv", "openb"}},
		{"openb-map", f.share, []string{"compute", "memory"}},
		{"mode", f.mode, []string{string(replay.Loss), string(replay.Queue)}},
		{"oversize", f.oversize, []string{"Allow", "Never"}},
		{"output", f.output, []string{"table", "json"}},
	} {
		if !slices.Contains(c.known, c.value) {
			return fmt.Errorf("--%s is %q; use %s", c.flag, c.value, strings.Join(c.known, " or "))
		}
	}
	if f.all = slices.Contains(f.policies, "all"); f.all {
		f.policies = replay.Policies()
	}
	for _, p := range f.policies {
		if !slices.Contains(replay.Policies(), p) {
			return fmt.Errorf("--policy %q is not known; use %s or all", p, strings.Join(replay.Policies(), ", "))
		}
	}
	if !(f.warmup >= 0 && f.warmup < 1) {
		return fmt.Errorf("--warmup is %v; use a part of the jobs from 0 to below 1", f.warmup)
	}
	return nil
}

func (f *replayFlags) run(ctx context.Context, s *screen) error {
	if err := f.check(); err != nil {
		return usageError{err}
	}
	fleet, err := f.readFleet()
	if err != nil {
		return err
	}
	for _, note := range fleet.Notes {
		s.noteIf(note)
	}
	trace, err := f.readTrace(s.in, fleet)
	if err != nil {
		return err
	}
	for _, note := range trace.Notes {
		s.noteIf(note)
	}
	var results []*replay.Result
	for _, policy := range f.policies {
		opts := replay.Options{
			Policy: policy, Mode: replay.Mode(f.mode), Warmup: f.warmup, NoOversize: f.oversize == "Never", NoLearning: !f.learn,
		}
		progress := newProgress(s.err, policy, len(trace.Jobs))
		opts.Progress = progress.show
		r, err := replay.Run(ctx, fleet, trace.Jobs, opts)
		progress.wipe()
		if f.all && errors.Is(err, replay.ErrNoBound) {
			s.noteIf(err.Error())
			continue
		}
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	if f.output == "json" {
		return printJSON(s.out, results)
	}
	return f.printTable(s.out, results)
}

func (f *replayFlags) readFleet() (*replay.Fleet, error) {
	var device *config.Device
	if f.device != "" {
		text, err := os.ReadFile(f.device)
		if err != nil {
			return nil, fmt.Errorf("reading --device-config: %w", err)
		}
		if device, err = config.ParseDevice(f.device, text); err != nil {
			return nil, err
		}
	}
	fleet, err := replay.ParseFleet(f.fleet, device)
	if err != nil {
		return nil, usageError{err}
	}
	return fleet, nil
}

func (f *replayFlags) readTrace(in io.Reader, fleet *replay.Fleet) (*replay.Trace, error) {
	format := replay.CSV
	switch {
	case f.format == "openb" && f.share == "memory":
		format = replay.OpenbMemory
	case f.format == "openb":
		format = replay.OpenbCompute
	}
	if f.trace == "-" {
		return replay.ReadTrace(in, "standard input", format, fleet)
	}
	file, err := os.Open(f.trace)
	if err != nil {
		return nil, fmt.Errorf("reading --trace: %w", err)
	}
	defer file.Close() // only read
	return replay.ReadTrace(file, f.trace, format, fleet)
}

// printJSON prints one object for one policy, and a list for several.
func printJSON(out io.Writer, results []*replay.Result) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	if len(results) == 1 {
		return e.Encode(results[0])
	}
	return e.Encode(results)
}

// printTable prints one line for each policy.
func (f *replayFlags) printTable(out io.Writer, results []*replay.Result) error {
	first := results[0]
	fmt.Fprintf(out, "%s on %s (%s), mode %s\n\n", plural(first.Jobs, "job"), plural(first.GPUs, "GPU"), first.Fleet, first.Mode)
	queue := first.Mode == replay.Queue
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := []string{"ACCEPTED", "REJECTED", "WORK", "MEMORY", "COMPUTE", "STRANDED", "GPUS ON", "PEAK"}
	if queue {
		head = append(head, "WAIT MEAN", "P50", "P95", "P99")
	}
	head = append(head, "NS/DECISION")
	policy := func(name string) string { return fmt.Sprintf("%-10s", name) }
	fmt.Fprintln(w, policy("POLICY")+"\t"+strings.Join(head, "\t")+"\t")
	for _, r := range results {
		cells := []string{
			fmt.Sprint(r.Accepted), fmt.Sprint(r.Rejected), workDone(r),
			percent(r.Utilisation), percent(r.ComputeUtilisation), "-", fmt.Sprintf("%.1f", r.GPUsOn), fmt.Sprint(r.GPUsPeak),
		}
		if r.Stranded != nil {
			cells[5] = percent(*r.Stranded)
		}
		if queue {
			for _, wait := range []float64{r.WaitMean, r.WaitP50, r.WaitP95, r.WaitP99} {
				cells = append(cells, fmt.Sprintf("%.0fs", wait))
			}
		}
		cells = append(cells, fmt.Sprintf("%.0f", r.NsPerDecision))
		fmt.Fprintln(w, policy(r.Policy)+"\t"+strings.Join(cells, "\t")+"\t")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nWORK is the part of the offered slice-seconds that was accepted; MEMORY and COMPUTE are the parts\n"+
		"of the fleet's slices in use, STRANDED of its free ones that no job of the trace could use.")
	if slices.ContainsFunc(results, rejectedUnknown) {
		fmt.Fprintln(out, "WORK is - where what was rejected is not known in slice-seconds: such a job fits no GPU, or runs forever\n"+
			"and came last. A duration for each job makes it known.")
	}
	if n := first.Impossible; n > 0 {
		ask, where := "ask", ""
		if n == 1 {
			ask = "asks"
		}
		if first.ImpossibleLine > 0 {
			where = fmt.Sprintf("; the first is line %d of %s", first.ImpossibleLine, f.trace)
		}
		fmt.Fprintf(out, "%d of the rejected jobs %s for what not even the idle fleet could hold%s.\n", n, ask, where)
	}
	return nil
}

// workDone is the part of the offered work that was accepted; "-" where none was, or
// where it is not known how much.
func workDone(r *replay.Result) string {
	if r.OfferedSliceSeconds == 0 || rejectedUnknown(r) {
		return "-"
	}
	return percent(r.AcceptedSliceSeconds / r.OfferedSliceSeconds)
}

// rejectedUnknown reports whether jobs were rejected that no slices can be counted
// for: that fit no GPU, or all of which run forever and came last.
func rejectedUnknown(r *replay.Result) bool {
	return r.Impossible > 0 || r.Rejected > 0 && r.AcceptedSliceSeconds == r.OfferedSliceSeconds
}

// percent of a part from 0 to 1.
func percent(part float64) string { return fmt.Sprintf("%.1f%%", 100*part) }

// progress is a line on a terminal that says how far a replay is.
type progress struct {
	out    io.Writer // nil where there is no terminal
	policy string
	jobs   int
	shown  int // percent; -1 is nothing yet
}

func newProgress(out io.Writer, policy string, jobs int) *progress {
	p := &progress{policy: policy, jobs: jobs, shown: -1}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.out = out
	}
	return p
}

func (p *progress) show(arrived int) {
	if now := 100 * arrived / p.jobs; p.out != nil && now != p.shown {
		p.shown = now
		fmt.Fprintf(p.out, "\r%s: %d of %d jobs (%d%%)\x1b[K", p.policy, arrived, p.jobs, now)
	}
}

// wipe clears the line.
func (p *progress) wipe() {
	if p.out != nil && p.shown >= 0 {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
