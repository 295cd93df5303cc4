// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/pool"
)

// repair is something that can be done about GPUs that are there.
type repair struct {
	// mend changes a GPU to what it would be then, and reports whether that is
	// another.
	mend func(*v1alpha1.GPU) bool
	// begins is the sentence's beginning, and text what follows for each GPU with its
	// place: "GPU 0 of node1".
	begins string
	text   func(g *v1alpha1.GPU, place string) string
}

var repairs = []repair{
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
			return fmt.Sprintf("what holds %s back from mode %s (%s)", place, g.Mode.Wanted, strings.TrimSuffix(g.Reason, "."))
		},
	},
}

// repaired are the repairs after which a pod that fits nowhere would fit, with the place
// that it would have.
func (s *survey) repaired(pod *v1.Pod) (out []string) {
	for _, r := range repairs {
		nodes, before := s.mended(r)
		if len(before) == 0 {
			continue
		}
		fleet, _ := pool.NewFleet(nodes, s.pods, s.opts) // its problems have been told
		trials, err := fleet.Try(pod, 1, s.offering(slices.Collect(maps.Keys(before))).gate(pod))
		if err != nil || len(trials.Placed) == 0 {
			continue
		}
		at := trials.Placed[0]
		var what []string
		for _, spot := range at.Spots {
			g, ok := before[at.Node][spot.GPUIndex]
			if !ok {
				continue
			}
			if t := r.text(&g, fmt.Sprintf("GPU %d of %s", g.Index, at.Node)); !slices.Contains(what, t) {
				what = append(what, t)
			}
		}
		if len(what) > 0 {
			out = append(out, fmt.Sprintf("%s %s: then %s there", r.begins, strings.Join(what, ", and "), describeSpots(at.Spots)))
		}
	}
	return out
}

// mended are the nodes after a repair wherever it can be done, and by node and index
// the GPUs that it changes, as they were. A node without an agent stays as it is: what
// its agent would offer is not known.
func (s *survey) mended(r repair) (nodes []*v1alpha1.GPUNode, before map[string]map[int32]v1alpha1.GPU) {
	before = map[string]map[int32]v1alpha1.GPU{}
	for _, n := range s.gpuNodes {
		if out := s.outageOf(n); out != nil && out.word == pool.NoAgent {
			nodes = append(nodes, n)
			continue
		}
		next := n.DeepCopy()
		nodes = append(nodes, next)
		for k := range next.Status.GPUs {
			g := &next.Status.GPUs[k]
			if !r.mend(g) {
				continue
			}
			if before[n.Name] == nil {
				before[n.Name] = map[int32]v1alpha1.GPU{}
			}
			before[n.Name][g.Index] = n.Status.GPUs[k]
		}
	}
	return nodes, before
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
