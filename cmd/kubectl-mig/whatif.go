// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// maxReplicas bounds what is placed in thought.
const maxReplicas = 100_000

type whatIfOptions struct {
	file     string
	replicas int // 0: what the file says
	output   string
}

func newWhatIfCommand(s *screen, a *access) *cobra.Command {
	var o whatIfOptions
	cmd := &cobra.Command{
		Use:   "what-if -f FILE",
		Short: "Tell what of a manifest would fit where, changing nothing",
		Long: `Reads pods, and anything with a pod template, and places them in thought one after
the other as the scheduler would. Nothing is created or changed. Ends with code 3
where something would wait or get no GPU.

Looked at are GPUs, and of each node taints, selectors and node affinity, cordons,
slots, CPU and memory. Affinity between pods, volumes, topology spread, quotas and
preemption are not. Between nodes that are equally good for the GPU the scheduler
asks its other plugins; here the first by name is taken.`,
		Example: `  kubectl mig what-if -f pod.yaml --replicas 20
  kubectl create deployment ... --dry-run=client -o yaml | kubectl mig what-if -f -`,
		Args: checked(noArguments),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.replicas < 1 && cmd.Flags().Changed("replicas") || o.replicas > maxReplicas {
				return usageError{fmt.Errorf("--replicas is %d; use 1 to %d", o.replicas, maxReplicas)}
			}
			return whatIf(cmd.Context(), s, a, o)
		},
	}
	cmd.Flags().StringVarP(&o.file, "filename", "f", "", "File with pods or pod templates; - is standard input")
	cmd.Flags().IntVar(&o.replicas, "replicas", 0, "How many of each, in place of what the file says")
	addOutput(cmd, &o.output, "; without it, slice maps", "table", "wide", "json", "yaml")
	return cmd
}

// outlook is what would happen to one workload, and its JSON form.
type outlook struct {
	workload
	Problem string       `json:"problem,omitempty"` // a mistake in it, or why it can never fit
	Trials  *pool.Trials `json:"trials,omitempty"`

	// Remedies are for the next of those that wait.
	Remedies []string `json:"remedies,omitempty"`

	bare bool // its Problem is that it would run without a GPU
}

func whatIf(ctx context.Context, s *screen, a *access, o whatIfOptions) error {
	if err := checkOutput(o.output, "table", "wide", "json", "yaml"); err != nil {
		return err
	}
	if o.file == "" {
		return usageError{errors.New("-f is missing: name a file, or - for standard input")}
	}
	namespace, err := a.connect()
	if err != nil {
		return err
	}
	workloads, err := readWorkloads(s, o.file, namespace)
	if err != nil {
		return err
	}
	survey, err := a.survey(ctx, namespace)
	if err != nil {
		return err
	}
	if err := survey.readAdmission(ctx, a, workloads); err != nil {
		return fmt.Errorf("reading admission policies: %w", err)
	}
	if survey.silence != "" {
		survey.note("%s", survey.silence)
	}
	outlooks, after, err := survey.try(workloads, o.replicas)
	survey.warn(s)
	if err != nil {
		return err
	}
	if err := showOutlooks(s, o, survey, outlooks, after); err != nil {
		return err
	}
	for _, l := range outlooks {
		if l.Problem != "" || l.Trials != nil && l.Trials.Waiting > 0 {
			return errWaiting
		}
	}
	return nil
}

// try places the workloads in thought, each beside those before it. after are pods
// that stand for what was placed.
func (v *survey) try(workloads []workload, replicas int) (out []outlook, after []*v1.Pod, err error) {
	fleet := v.fleet()
	for _, w := range workloads {
		if replicas > 0 {
			w.Replicas = replicas
		}
		w.pod = v.admitted(w.pod)
		l := outlook{workload: w, Problem: v.problem(&w)}
		if l.Problem == asksNothing && len(workloads) > 1 {
			continue // others of the file do
		}
		l.bare = l.Problem == asksNothing || l.Problem != "" && l.Problem == pool.Uncounted(w.pod, v.opts.Resources())
		if v.remarkOn(w.pod); l.Problem == "" {
			l.Trials, err = fleet.Try(w.pod, w.Replicas, v.gate(w.pod))
			var wrong *pool.InvalidError
			switch {
			case errors.As(err, &wrong):
				l.Problem, l.Remedies, err = wrong.Error(), texts(v.cures(w.pod)), nil
			case err != nil:
				return nil, nil, err
			default:
				fleet = l.Trials.After
				standIns := l.standIns(len(after))
				after = append(after, standIns...)
				v.pods = append(v.pods, standIns...)
				if l.Trials.Waiting > 0 {
					l.Remedies = v.remedies(w.pod, l.Trials.Reasons)
				}
			}
		}
		out = append(out, l)
	}
	return out, after, nil
}

// standIns are pods with the allocations of the trials.
func (l *outlook) standIns(from int) []*v1.Pod {
	var out []*v1.Pod
	for i, trial := range l.Trials.Placed {
		p := l.pod.DeepCopy()
		p.Name, p.UID = fmt.Sprintf("%s-%d", strings.TrimSuffix(l.Name, "-"), i+1), types.UID(fmt.Sprintf("what-if-%d", from+i))
		if len(l.Trials.Placed) == 1 {
			p.Name = strings.TrimSuffix(l.Name, "-")
		}
		p.Spec.NodeName = trial.Node
		alloc := v1alpha1.Allocation{
			Version: v1alpha1.AllocationVersion, Node: trial.Node, PodUID: p.UID, Containers: trial.Containers,
		}
		if value, err := alloc.Encode(); err == nil {
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			p.Annotations[v1alpha1.AnnotationAllocation] = value
		}
		out = append(out, p)
	}
	return out
}

func showOutlooks(s *screen, o whatIfOptions, v *survey, outlooks []outlook, after []*v1.Pod) error {
	switch o.output {
	case "json", "yaml":
		return s.encode(o.output, map[string]any{"workloads": outlooks})
	case "table", "wide":
		for i := range outlooks {
			outlooks[i].remark(s)
		}
		return s.printTable(trialTable(outlooks, o.output == "wide"), o.output == "wide")
	}
	var out []line
	for i := range outlooks {
		out = append(out, outlooks[i].draw(s)...)
	}
	touched := map[string]bool{}
	for _, p := range after {
		touched[p.Spec.NodeName] = true
	}
	if len(touched) > 0 {
		out = append(out, text(bold, "With all that would run in place:"), line{})
		out = append(out, v.mapsOf(s, touched)...)
	}
	return s.print(out...)
}

// mapsOf draws some nodes, and adds up what remains free on all.
func (v *survey) mapsOf(s *screen, nodes map[string]bool) []line {
	var everything statusOptions
	all := v.status(everything, labels.Everything())
	var out []line
	for i := range all.Nodes {
		if nodes[all.Nodes[i].Name] {
			out = append(out, drawNode(s, &all.Nodes[i], map[pool.SpanState]bool{})...)
			out = append(out, line{})
		}
	}
	return append(out, s.wrap("", plain, "Then of %s", all.totals())...)
}

// draw tells what would happen to a workload.
func (l *outlook) draw(s *screen) []line {
	title := line{}.add(bold, "%s", l.Kind+" "+l.Name)
	if l.Problem != "" {
		verdict := "would wait"
		if l.bare {
			verdict = "would get no GPU"
		}
		out := append([]line{title.add(red, "  %s", verdict)}, s.wrap("  ", plain, "%s", l.Problem)...)
		for _, r := range l.Remedies {
			out = append(out, s.wrap("  → ", plain, "%s", r)...)
		}
		return append(out, line{})
	}
	t := l.Trials
	title = title.add(plain, "  %s, each asks for %s", plural(l.Replicas, "replica"), t.Request)
	out := []line{title}
	switch {
	case t.Waiting == 0 && l.Replicas == 1:
		out = append(out, text(green, "  ✓ it would run"))
	case t.Waiting == 0:
		out = append(out, text(green, "  ✓ all would run"))
	case len(t.Placed) == 0:
		out = append(out, text(red, "  ✗ none would run"))
	default:
		out = append(out, text(amber, "  ✗ %d would run, %d would wait", len(t.Placed), t.Waiting))
	}
	for _, n := range byNode(t.Placed) {
		out = append(out, s.wrap("    ", plain, "%s: %s", n.node, n.describe())...)
	}
	if t.Waiting > 0 {
		for _, r := range t.Reasons {
			out = append(out, s.wrap("  • ", plain, "%s", r)...)
		}
		for _, other := range describeModes(t.Modes) {
			out = append(out, s.wrap("  → ", plain, "another mode for one more: %s", other)...)
		}
		for _, r := range l.Remedies {
			if t.Waiting > 1 {
				r = "for one more: " + r
			}
			out = append(out, s.wrap("  → ", plain, "%s", r)...)
		}
		for _, m := range t.More {
			out = append(out, s.wrap("  → ", plain, "%s", moreGPUs(m, t.Waiting))...)
		}
	}
	return append(out, line{})
}

// moreGPUs says how many GPUs would be enough.
func moreGPUs(m pool.MoreGPUs, pods int) string {
	t := fmt.Sprintf("%d more %s would be enough", m.Count, shortModel(m.Model))
	if pods > 1 {
		t += fmt.Sprintf(" for the %d that wait", pods)
	}
	if m.Together {
		t += ", the GPUs of each pod on one node"
	}
	return t + fmt.Sprintf(" (idle, configured like those of %s)", m.Like)
}

// remark tells beside a table why something of the workload would wait.
func (l *outlook) remark(s *screen) {
	name := l.Kind + " " + l.Name
	if l.Problem != "" {
		s.noteIf(name + ": " + l.Problem)
		return
	}
	for _, r := range l.Trials.Reasons {
		s.noteIf(name + ": " + r.String())
	}
}

// nodeTrials are the replicas that one node would get.
type nodeTrials struct {
	node   string
	trials []pool.Trial
}

// byNode gathers trials, in the order of their nodes' first.
func byNode(trials []pool.Trial) []nodeTrials {
	var out []nodeTrials
	at := map[string]int{}
	for _, t := range trials {
		i, ok := at[t.Node]
		if !ok {
			i = len(out)
			at[t.Node] = i
			out = append(out, nodeTrials{node: t.Node})
		}
		out[i].trials = append(out[i].trials, t)
	}
	slices.SortStableFunc(out, func(a, b nodeTrials) int { return naturally(a.node, b.node) })
	return out
}

// describe is "3 replicas: 2g.10gb on GPU 0 at 0, 2; 1g.5gb on GPU 1 at 6".
func (n *nodeTrials) describe() string {
	var spots []pool.Spot
	for _, t := range n.trials {
		spots = append(spots, t.Spots...)
	}
	return plural(len(n.trials), "replica") + ": " + describeSpots(spots)
}

// describeSpots gathers devices by GPU and profile.
func describeSpots(spots []pool.Spot) string {
	type group struct {
		gpu  int32
		what string
	}
	var order []group
	starts := map[group][]string{}
	for _, sp := range spots {
		g := group{sp.GPUIndex, deviceName(sp.Device)}
		if !sp.Exact {
			g.what += " (larger than asked for)"
		}
		if starts[g] == nil {
			order = append(order, g)
		}
		if sp.MIG != nil {
			starts[g] = append(starts[g], fmt.Sprint(sp.MIG.Start))
		} else {
			starts[g] = append(starts[g], "")
		}
	}
	slices.SortStableFunc(order, func(a, b group) int { return int(a.gpu - b.gpu) })
	for _, at := range starts {
		slices.SortFunc(at, naturally)
	}
	parts := make([]string, len(order))
	for i, g := range order {
		parts[i] = fmt.Sprintf("%s on GPU %d", g.what, g.gpu)
		if at := strings.Join(starts[g], ", "); strings.Trim(at, ", ") != "" {
			parts[i] += " at " + at
		} else if n := len(starts[g]); n > 1 {
			parts[i] = fmt.Sprintf("%d x %s", n, parts[i])
		}
	}
	return strings.Join(parts, "; ")
}

// deviceName is the profile, or the size of a software share.
func deviceName(d v1alpha1.Device) string {
	switch {
	case d.MIG != nil:
		return d.MIG.Profile
	case d.Share != nil && d.Share.Cores > 0:
		return fmt.Sprintf("share of %d MiB and %d%%", d.Share.MemoryMiB, d.Share.Cores)
	case d.Share != nil:
		return fmt.Sprintf("share of %d MiB", d.Share.MemoryMiB)
	}
	return "?"
}

// trialTable has a row for each node of a workload, or with wide for each device of
// each replica.
func trialTable(outlooks []outlook, wide bool) *table {
	t := &table{heads: []string{"WORKLOAD", "NODE", "REPLICAS", "DEVICES"}}
	if wide {
		t.heads = []string{"WORKLOAD", "REPLICA", "NODE", "GPU", "PROFILE", "START", "EXACT"}
	}
	for _, l := range outlooks {
		name := l.Kind + "/" + l.Name
		if l.Trials == nil {
			t.add(append([]piece{{name, plain}, {"<waiting>", red}}, dashes(len(t.heads)-2)...)...)
			continue
		}
		if wide {
			addReplicas(t, name, l.Trials)
			continue
		}
		for _, n := range byNode(l.Trials.Placed) {
			t.add(piece{name, plain}, piece{n.node, plain}, piece{fmt.Sprint(len(n.trials)), plain}, piece{strings.SplitN(n.describe(), ": ", 2)[1], plain})
		}
		if l.Trials.Waiting > 0 {
			t.add(piece{name, plain}, piece{"<waiting>", amber}, piece{fmt.Sprint(l.Trials.Waiting), amber}, piece{"-", plain})
		}
	}
	return t
}

// dashes are cells without content.
func dashes(n int) []piece { return slices.Repeat([]piece{{"-", plain}}, n) }

func addReplicas(t *table, name string, trials *pool.Trials) {
	for i, trial := range trials.Placed {
		for _, sp := range trial.Spots {
			start := "-"
			if sp.MIG != nil {
				start = fmt.Sprint(sp.MIG.Start)
			}
			t.add(piece{name, plain}, piece{fmt.Sprint(i + 1), plain}, piece{trial.Node, plain}, piece{fmt.Sprint(sp.GPUIndex), plain},
				piece{deviceName(sp.Device), plain}, piece{start, plain}, piece{fmt.Sprint(sp.Exact), plain})
		}
	}
	for i := range trials.Waiting {
		t.add(append([]piece{{name, plain}, {fmt.Sprint(len(trials.Placed) + i + 1), plain}, {"<waiting>", amber}}, dashes(4)...)...)
	}
}
