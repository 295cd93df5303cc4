// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// repair is something that can be done about GPUs that are there.
type repair struct {
	// mend changes a GPU to what it would be then, and reports whether that is
	// another.
	mend func(*v1alpha1.GPU) bool
	// text is what to do, with a mended GPU's place: "GPU 0 of node1".
	text func(g *v1alpha1.GPU, place string) string
}

// defaultShares is HAMi's deviceSplitCount, for a GPU whose configured one is not
// reported before its mode has changed.
const defaultShares = 10

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
		func(g *v1alpha1.GPU, place string) string {
			var ids []string
			for _, inst := range g.Instances {
				if inst.State == v1alpha1.InstanceForeign {
					ids = append(ids, fmt.Sprint(inst.GI))
				}
			}
			return fmt.Sprintf("Destroying what somebody else has cut on %s, if nobody needs it (nvidia-smi mig -i %d -gi %s -dci, and -dgi)", place, g.Index, strings.Join(ids, ","))
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
		func(g *v1alpha1.GPU, place string) string {
			return fmt.Sprintf("Resetting or replacing %s, which is unhealthy (%s)", place, strings.TrimSuffix(g.Reason, "."))
		},
	},
	{
		func(g *v1alpha1.GPU) bool {
			if !g.Mode.Pending || g.Health == v1alpha1.Unhealthy {
				return false
			}
			g.Mode.Current, g.Mode.Pending, g.Reason = g.Mode.Wanted, false, ""
			if g.Mode.Wanted == v1alpha1.ModeHAMiCore && g.Shares == nil && g.MemoryMiB > 0 {
				g.Shares = &v1alpha1.ShareCapacity{Count: defaultShares, MemoryMiB: g.MemoryMiB, Cores: 100}
			}
			return true
		},
		func(g *v1alpha1.GPU, place string) string {
			return fmt.Sprintf("The end of what holds %s back from mode %s (%s)", place, g.Mode.Wanted, strings.TrimSuffix(g.Reason, "."))
		},
	},
}

// repaired are the repairs after which a pod that fits nowhere would fit, with the place
// that it would have.
func (s *survey) repaired(pod *v1.Pod) (out []string) {
	for _, r := range repairs {
		nodes := make([]*v1alpha1.GPUNode, len(s.gpuNodes))
		before, changed := map[string]v1alpha1.GPU{}, false
		place := func(node string, index int32) string { return fmt.Sprintf("GPU %d of %s", index, node) }
		for i, n := range s.gpuNodes {
			nodes[i] = n.DeepCopy()
			for k := range nodes[i].Status.GPUs {
				g := &nodes[i].Status.GPUs[k]
				if r.mend(g) {
					before[place(n.Name, g.Index)], changed = n.Status.GPUs[k], true
				}
			}
		}
		if !changed {
			continue
		}
		fleet, _ := pool.NewFleet(nodes, s.pods, s.opts) // its problems have been told
		trials, err := fleet.Try(pod, 1, s.gate(pod))
		if err != nil || len(trials.Placed) == 0 {
			continue
		}
		at := trials.Placed[0]
		for _, spot := range at.Spots {
			if g, mended := before[place(at.Node, spot.GPUIndex)]; mended {
				out = append(out, r.text(&g, place(at.Node, g.Index))+": then "+describeSpots(at.Spots)+" there")
				break
			}
		}
	}
	return out
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
