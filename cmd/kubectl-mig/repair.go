// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/pool"
)

// repair is something that can be done about nodes and GPUs that are there.
type repair struct {
	// mend changes a GPU to what it would be then, and reports whether that is
	// another. It sets fields, and writes to nothing that they refer to. Nil is the
	// repair of a node: its agent is started.
	mend func(*v1alpha1.GPU) bool
	// begins is the sentence's beginning, and text what follows for each GPU with its
	// place, "GPU 0 of node1", or for the node.
	begins string
	text   func(g *v1alpha1.GPU, place string) string
}

// startAgent is the index of the repair that starts a node's agent.
const startAgent = 0

// repairs in the order in which they are done.
var repairs = []repair{
	{nil, "Starting", func(_ *v1alpha1.GPU, node string) string { return "the agent, dynamig-nodeagent, on " + node }},
	{
		func(g *v1alpha1.GPU) bool {
			var kept []v1alpha1.Instance
			for _, inst := range g.Instances {
				if inst.State != v1alpha1.InstanceForeign {
					kept = append(kept, inst)
				}
			}
			changed := len(kept) < len(g.Instances)
			g.Instances = kept
			return changed
		},
		"Destroying",
		func(g *v1alpha1.GPU, place string) string {
			var ids []string
			for _, inst := range g.Instances {
				if inst.State == v1alpha1.InstanceForeign {
					ids = append(ids, fmt.Sprint(inst.GI))
				}
			}
			return fmt.Sprintf("what somebody else has cut on %s, if nobody needs it (nvidia-smi mig -i %d -gi %s -dci, and -dgi)", place, g.Index, strings.Join(ids, ","))
		},
	},
	{
		func(g *v1alpha1.GPU) bool {
			if g.Health != v1alpha1.Unhealthy {
				return false
			}
			g.Health, g.Reason = v1alpha1.Healthy, ""
			return true
		},
		"Resetting or replacing",
		func(g *v1alpha1.GPU, place string) string {
			return fmt.Sprintf("%s, which is unhealthy (%s)", place, strings.TrimSuffix(g.Reason, "."))
		},
	},
	{
		func(g *v1alpha1.GPU) bool {
			if !g.Mode.Pending || g.Health == v1alpha1.Unhealthy {
				return false
			}
			g.Mode.Current, g.Mode.Pending, g.Reason = g.Mode.Wanted, false, ""
			if g.Mode.Wanted == v1alpha1.ModeHAMiCore && g.Shares == nil && g.MemoryMiB > 0 {
				// The configured count is not reported before the mode has changed.
				g.Shares = &v1alpha1.ShareCapacity{Count: int32(config.DefaultDevice().DeviceSplitCount), MemoryMiB: g.MemoryMiB, Cores: 100}
			}
			return true
		},
		"The end of",
		func(g *v1alpha1.GPU, place string) string {
			t := fmt.Sprintf("what holds %s back from mode %s", place, g.Mode.Wanted)
			if g.Reason == "" { // it told of the health, which another repair has mended
				return t
			}
			return fmt.Sprintf("%s (%s)", t, strings.TrimSuffix(g.Reason, "."))
		},
	},
}

// cure is a set of repairs after which a pod that fits nowhere would fit.
type cure struct {
	text  string // a sentence without its end, with the place that the pod would have
	agent bool   // one of them starts an agent
}

func texts(cures []cure) (out []string) {
	for _, c := range cures {
		out = append(out, c.text)
	}
	return out
}

// cures are the kinds of repairs that help alone. Where none does they are sets of as
// few kinds as it takes, of which nothing can be left out. Whether all together help is
// asked first, so that a pod that no repair helps costs little.
func (s *survey) cures(pod *v1.Pod) (out []cure) {
	all := s.mended(func(change) bool { return true })
	var kinds []int
	for i := range repairs {
		if slices.ContainsFunc(all.changes, func(c change) bool { return c.repair == i }) {
			kinds = append(kinds, i)
		}
	}
	if len(kinds) == 0 || all.try(pod) == nil {
		return nil
	}
	for size := 1; size <= len(kinds) && len(out) == 0; size++ {
		for _, set := range subsets(kinds, size) {
			if c := s.cureBy(pod, set); c != nil {
				out = append(out, *c)
			}
		}
	}
	return out
}

// subsets of a few numbers, in order.
func subsets(of []int, size int) [][]int {
	if size == 0 {
		return [][]int{nil}
	}
	var out [][]int
	for i, first := range of {
		for _, rest := range subsets(of[i+1:], size-1) {
			out = append(out, append([]int{first}, rest...))
		}
	}
	return out
}

// cureBy is the cure by these kinds of repairs; nil where they do not help.
func (s *survey) cureBy(pod *v1.Pod, kinds []int) *cure {
	m := s.mended(func(c change) bool { return slices.Contains(kinds, c.repair) })
	at := m.try(pod)
	if at == nil {
		return nil
	}
	m, at = s.only(at.Node).fewest(pod, m.behind(at), at)
	if len(m.changes) == 0 {
		return nil // kubelet's count of devices kept it away, and no GPU
	}
	return &cure{m.describe(at), slices.ContainsFunc(m.changes, func(c change) bool { return c.repair == startAgent })}
}

// only is the survey of one node.
func (s *survey) only(node string) *survey {
	out := *s
	out.gpuNodes = slices.DeleteFunc(slices.Clone(s.gpuNodes), func(n *v1alpha1.GPUNode) bool { return n.Name != node })
	return &out
}

// fewest leaves out changes that the pod can do without, one after the other, the last
// first. The place may then be another.
func (s *survey) fewest(pod *v1.Pod, needed []change, at *pool.Trial) (*mended, *pool.Trial) {
	keeping := func(kept []change) *mended {
		return s.mended(func(c change) bool { return slices.ContainsFunc(kept, c.same) })
	}
	for i := len(needed) - 1; i >= 0; i-- {
		m := keeping(slices.Delete(slices.Clone(needed), i, i+1))
		if then := m.try(pod); then != nil {
			needed, at = m.behind(then), then
			i = len(needed)
		}
	}
	return keeping(needed), at
}

// change is what a repair does to one GPU, or to a node.
type change struct {
	repair int // index of repairs
	node   string
	was    v1alpha1.GPU // just before; the zero value where it is about the node
}

func (c change) same(other change) bool {
	return c.repair == other.repair && c.node == other.node && c.was.UUID == other.was.UUID
}

// mended is a survey after some repairs.
type mended struct {
	*survey
	changes []change // by node, GPU and repair
}

// mended does the repairs that are wanted wherever they can be done. Where an agent is
// not started, its node stays as it is: what it would offer is not known.
func (s *survey) mended(wanted func(change) bool) *mended {
	m := &mended{}
	var nodes []*v1alpha1.GPUNode
	for _, n := range s.gpuNodes {
		next := n.DeepCopy()
		nodes = append(nodes, next)
		if out := s.outageOf(n); out != nil && out.word == pool.NoAgent {
			c := change{repair: startAgent, node: n.Name}
			if !wanted(c) {
				continue
			}
			m.changes = append(m.changes, c)
		}
		for k := range next.Status.GPUs {
			m.mend(n.Name, &next.Status.GPUs[k], wanted)
		}
	}
	var touched []string
	for _, c := range m.changes {
		touched = append(touched, c.node)
	}
	m.survey = s.offering(touched)
	m.survey.gpuNodes = nodes
	return m
}

// mend does the repairs of one GPU.
func (m *mended) mend(node string, g *v1alpha1.GPU, wanted func(change) bool) {
	for i, r := range repairs {
		c := change{i, node, *g}
		if r.mend == nil || !wanted(c) {
			continue
		}
		if r.mend(g) {
			m.changes = append(m.changes, c)
		}
	}
}

// try is the place that the pod would have; nil where it would have none.
func (m *mended) try(pod *v1.Pod) *pool.Trial {
	fleet, _ := pool.NewFleet(m.gpuNodes, m.pods, m.opts) // its problems have been told
	trials, err := fleet.Try(pod, 1, m.gate(pod))
	if err != nil || len(trials.Placed) == 0 {
		return nil
	}
	return &trials.Placed[0]
}

// behind are the changes that a place depends on.
func (m *mended) behind(at *pool.Trial) (out []change) {
	for _, c := range m.changes {
		on := func(spot pool.Spot) bool { return spot.GPU == c.was.UUID }
		if c.node == at.Node && (c.repair == startAgent || slices.ContainsFunc(at.Spots, on)) {
			out = append(out, c)
		}
	}
	return out
}

// describe is "Resetting or replacing GPU 0 of node1, which ...: then 1g.5gb on GPU 0 at
// 0 there".
func (m *mended) describe(at *pool.Trial) string {
	var clauses []string
	for i, r := range repairs {
		var what []string
		for _, c := range m.changes {
			if c.repair != i {
				continue
			}
			place := c.node
			if r.mend != nil {
				place = fmt.Sprintf("GPU %d of %s", c.was.Index, c.node)
			}
			what = append(what, r.text(&c.was, place))
		}
		if len(what) > 0 {
			clauses = append(clauses, r.begins+" "+strings.Join(what, ", and "))
		}
	}
	text, end := clauses[0], ""
	for i, c := range clauses[1:] {
		word := "; "
		if i == len(clauses)-2 {
			word, end = "; and ", ", if nothing of this is left out"
		}
		text += word + strings.ToLower(c[:1]) + c[1:]
	}
	return fmt.Sprintf("%s: then %s there%s", text, describeSpots(at.Spots), end)
}

// ailing says what is wrong with GPUs that a pod has.
func (s *survey) ailing(why *pool.Why) string {
	for _, n := range s.gpuNodes {
		if n.Name != why.Node {
			continue
		}
		for i := range n.Status.GPUs {
			g := &n.Status.GPUs[i]
			for _, d := range why.Devices {
				if d.GPU == g.UUID && g.Health == v1alpha1.Unhealthy {
					return fmt.Sprintf("GPU %d of %s, which the pod has, is unhealthy: %s", g.Index, n.Name, g.Reason)
				}
			}
		}
	}
	return ""
}
