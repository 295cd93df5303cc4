// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/pool"
)

// statusOptions are what status is asked to show.
type statusOptions struct {
	node     string
	selector string
	model    string
	free     string // profile, "any", or empty
	output   string
	watch    bool
}

// anyProfile is --free without a value.
const anyProfile = "any"

func newStatusCommand(s *screen, a *access) *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status [NODE]",
		Short: "Draw each GPU with its instances, pods and free slices",
		Long: `Draws each GPU to scale: every memory slice is as wide as the others. Shown are the
profile of each instance, its pod, and what is free; beside it how much is free and
the largest profile that still fits.`,
		Example: `  kubectl mig status
  kubectl mig status node1 --watch
  kubectl mig status --model h100 --free=3g.40gb
  kubectl mig status -o wide`,
		Args: checked(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.node = args[0]
			}
			return status(cmd.Context(), s, a, o)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.nodeNames(cmd), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().StringVarP(&o.selector, "selector", "l", "", "Only nodes whose labels match, such as zone=a")
	cmd.Flags().StringVar(&o.model, "model", "", "Only GPUs whose model contains this, such as h100")
	cmd.Flags().StringVar(&o.free, "free", "", "Only GPUs where something still fits, or with =PROFILE that profile")
	cmd.Flags().Lookup("free").NoOptDefVal = anyProfile
	_ = cmd.RegisterFlagCompletionFunc("free", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.profileNames(cmd), cobra.ShellCompDirectiveNoFileComp
	}) // it fails for a flag that does not exist only
	addOutput(cmd, &o.output, "; without it, slice maps", "table", "wide", "json", "yaml")
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "Draw again whenever something changes")
	return cmd
}

// fleetStatus is what status shows, and its JSON form.
type fleetStatus struct {
	Nodes   []nodeStatus `json:"nodes"`
	Silence string       `json:"silence,omitempty"` // why nothing is scheduling
	Waiting []waitingPod `json:"waiting"`

	filters []string // flags that choose among GPUs
	hidden  int      // GPUs that they leave out
}

// nodeStatus is a node's picture, and what it cannot show. During an outage its GPUs
// have nothing free.
type nodeStatus struct {
	pool.NodePicture
	Outage string `json:"outage,omitempty"`
	word   string // for Outage
}

// waitingPod is a pod that asks for GPUs and cannot start yet: it has no node, or was
// placed by somebody else.
type waitingPod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Request   string `json:"request"` // in words, or what is wrong with it
	Reason    string `json:"reason,omitempty"`
	Remedy    string `json:"remedy,omitempty"` // where room is not what it waits for
}

func status(ctx context.Context, s *screen, a *access, o statusOptions) error {
	if err := checkOutput(o.output, "table", "wide", "json", "yaml"); err != nil {
		return err
	}
	selector, err := labels.Parse(o.selector)
	if err != nil {
		return usageError{fmt.Errorf("-l %q: %w", o.selector, err)}
	}
	namespace, err := a.connect()
	if err != nil {
		return err
	}
	if o.watch {
		return watchStatus(ctx, s, a, namespace, o, selector)
	}
	survey, err := a.survey(ctx, namespace)
	if err != nil {
		return err
	}
	survey.warn(s)
	if err := survey.checkFree(o.free); err != nil {
		return err
	}
	if o.node != "" && !slices.ContainsFunc(survey.gpuNodes, func(n *v1alpha1.GPUNode) bool { return n.Name == o.node }) {
		return fmt.Errorf("node %s has no GPUNode: no agent of dynamig has reported it", o.node)
	}
	s.noteIf(o.beside(survey.silence))
	return survey.showStatus(s, o, selector)
}

// beside is a sentence that stands beside tables, and within everything else.
func (o *statusOptions) beside(sentence string) string {
	if o.output == "table" || o.output == "wide" {
		return sentence
	}
	return ""
}

// checkFree refuses a profile that no GPU has: nothing fits there by mistake.
func (v *survey) checkFree(profile string) error {
	if profile == "" || profile == anyProfile {
		return nil
	}
	names := profilesOf(v.gpuNodes)
	if len(names) == 0 || slices.Contains(names, profile) {
		return nil
	}
	return usageError{fmt.Errorf("--free=%s: no GPU of this cluster has that profile; use one of %s", profile, strings.Join(names, ", "))}
}

// profilesOf lists the names of the profiles that GPUs have, the smallest first.
func profilesOf(nodes []*v1alpha1.GPUNode) []string {
	known := map[string]geometry.Profile{}
	for _, n := range nodes {
		for _, m := range n.Status.Models {
			for _, p := range m.Profiles {
				known[p.Name] = geometry.Profile{Name: p.Name, Size: int(p.Size), MemoryMiB: int(p.MemoryMiB)}
			}
		}
	}
	return pool.SmallestFirst(known)
}

// showStatus prints one picture.
func (v *survey) showStatus(s *screen, o statusOptions, selector labels.Selector) error {
	st := v.status(o, selector)
	switch o.output {
	case "json", "yaml":
		return s.encode(o.output, st)
	case "table", "wide":
		return s.printTable(st.table(o.output == "wide"), o.output == "wide")
	default:
		return s.print(st.maps(s)...)
	}
}

// status draws the nodes that are asked for.
func (v *survey) status(o statusOptions, selector labels.Selector) fleetStatus {
	st := fleetStatus{Nodes: []nodeStatus{}, Silence: v.silence, Waiting: []waitingPod{}, filters: o.filters()}
	var catalogues pool.Catalogues
	for _, n := range v.gpuNodes {
		if o.node != "" && n.Name != o.node {
			continue
		}
		if !selector.Matches(v.labelsOf(n)) {
			st.hidden += len(n.Status.GPUs)
			continue
		}
		picture := nodeStatus{NodePicture: v.opts.Draw(n, v.podsOn(n.Name), &catalogues)}
		if out := v.outageOf(n); out != nil {
			picture.Outage, picture.word = out.text, string(out.word)
			picture.Withhold()
		}
		all := len(picture.GPUs)
		picture.GPUs = slices.DeleteFunc(picture.GPUs, func(g pool.GPUPicture) bool { return !o.shows(&g) })
		st.hidden += all - len(picture.GPUs)
		if len(picture.GPUs) > 0 || all == 0 && o.model == "" && o.free == "" {
			st.Nodes = append(st.Nodes, picture)
		}
	}
	slices.SortFunc(st.Nodes, func(a, b nodeStatus) int { return naturally(a.Name, b.Name) })
	if o.node == "" {
		st.Waiting = v.waiting()
	}
	return st
}

// labelsOf are those of the Node; of its GPUNode where Nodes may not be read.
func (v *survey) labelsOf(n *v1alpha1.GPUNode) labels.Set {
	if node, ok := v.nodes[n.Name]; ok {
		return node.Labels
	}
	return n.Labels
}

// filters are the flags that choose among GPUs, as they are written.
func (o *statusOptions) filters() (out []string) {
	if o.selector != "" {
		out = append(out, "-l "+o.selector)
	}
	if o.model != "" {
		out = append(out, "--model "+o.model)
	}
	switch o.free {
	case "":
	case anyProfile:
		out = append(out, "--free")
	default:
		out = append(out, "--free="+o.free)
	}
	return out
}

// shows reports whether a GPU is asked for.
func (o *statusOptions) shows(g *pool.GPUPicture) bool {
	if !strings.Contains(strings.ToLower(g.Model), strings.ToLower(o.model)) {
		return false
	}
	switch o.free {
	case "":
		return true
	case anyProfile:
		return g.Shares != nil && g.Shares.FreeCount > 0 && g.Shares.FreeMemoryMiB > 0 || slices.ContainsFunc(g.Fits, func(f pool.FitPicture) bool { return f.Count > 0 })
	default:
		return slices.ContainsFunc(g.Fits, func(f pool.FitPicture) bool { return f.Count > 0 && f.Profile == o.free })
	}
}

// waiting lists the pods that cannot start yet, by age.
func (v *survey) waiting() []waitingPod {
	var pods []*v1.Pod
	for _, p := range v.pods {
		if v.opts.Waits(p) {
			pods = append(pods, p)
		}
	}
	slices.SortFunc(pods, func(a, b *v1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	out := []waitingPod{}
	for _, p := range pods {
		w := waitingPod{Namespace: p.Namespace, Name: p.Name, Reason: pool.BareReason(waitsFor(p)), Remedy: pool.Remedy(p)}
		if r, err := pool.Parse(p, v.opts); err != nil {
			w.Request, w.Remedy = err.Error(), w.Remedy+v.leftToAdmission(p)
		} else {
			w.Request = r.Describe()
		}
		out = append(out, w)
	}
	return out
}

// waitsFor is the scheduler's own word on a pod.
func waitsFor(p *v1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse {
			return c.Message
		}
	}
	return ""
}

// naturally orders node2 before node10.
func naturally(a, b string) int {
	number := func(s string) (string, int) {
		i := len(s)
		for i > 0 && s[i-1] >= '0' && s[i-1] <= '9' && len(s)-i < 9 {
			i--
		}
		n := 0
		fmt.Sscan(s[i:], &n)
		return s[:i], n
	}
	prefix, n := number(a)
	other, m := number(b)
	return cmp.Or(cmp.Compare(prefix, other), cmp.Compare(n, m), cmp.Compare(a, b))
}
