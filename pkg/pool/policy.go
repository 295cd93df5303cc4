// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"strconv"
	"strings"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Policy says where a pod's devices should be. The zero Policy leaves both to the
// score, which packs best; see geometry.ByScore.
type Policy struct {
	// Node prefers the node with the least (Binpack) or the most (Spread) left on
	// its GPUs, before the pod.
	Node geometry.Policy
	// GPU prefers, on a node, the GPU with the least or the most left, before the
	// device.
	GPU geometry.Policy
	// Weights say what counts as left of a shared GPU; none: its memory alone.
	Weights Weights
}

// Weights are HAMi's of a shared GPU's shares, cores and memory.
type Weights struct{ Slot, Core, Memory int32 }

// maxWeight keeps sums of weights small.
const maxWeight = 1_000_000

// parseWeights reads HAMi's annotation: all three, in any order, not all 0.
func parseWeights(text string) (w Weights, err error) {
	fields := map[string]*int32{"slot": &w.Slot, "core": &w.Core, "memory": &w.Memory}
	for _, part := range listOf(text) {
		key, value, _ := strings.Cut(part, "=")
		field := fields[strings.TrimSpace(key)]
		delete(fields, strings.TrimSpace(key))
		n, wrong := strconv.ParseInt(strings.TrimSpace(value), 10, 32)
		if field == nil || wrong != nil || n < 0 || n > maxWeight {
			return w, badWeights(text)
		}
		*field = int32(n)
	}
	if len(fields) > 0 || w == (Weights{}) {
		return w, badWeights(text)
	}
	return w, nil
}

func badWeights(text string) error {
	return invalid("annotation %s is %q; write slot, core and memory with whole numbers from 0 to %d, not all of them 0, such as slot=1,core=1,memory=3",
		v1alpha1.AnnotationWeights, text, maxWeight)
}

// left is what t leaves of a shared GPU: MiB without weights, else a fraction of
// wholeGPU.
func (w Weights) left(t Taken, c *v1alpha1.ShareCapacity) int64 {
	if w == (Weights{}) {
		return c.MemoryMiB - t.MemoryMiB
	}
	part := func(weight int32, left, all int64) int64 { return int64(weight) * wholeGPU * left / max(all, 1) }
	sum := part(w.Slot, int64(c.Count)-int64(t.Count), int64(c.Count)) +
		part(w.Core, int64(c.Cores)-int64(t.Cores), int64(c.Cores)) +
		part(w.Memory, c.MemoryMiB-t.MemoryMiB, c.MemoryMiB)
	return sum / (int64(w.Slot) + int64(w.Core) + int64(w.Memory))
}

// wholeGPU is as fine as the MiB of a GPU.
const wholeGPU = 1 << 18

// parse reads HAMi's annotations. That for GPUs may be a list in HAMi, of which
// the first of binpack and spread counts; "numa" and "topology-aware" order GPUs
// there and change nothing here.
func (p *Policy) parse(annotations map[string]string) error {
	for _, part := range listOf(annotations[v1alpha1.AnnotationNodePolicy]) {
		if !known(part) {
			return invalid("annotation %s is %q; use binpack or spread", v1alpha1.AnnotationNodePolicy, part)
		}
		p.Node = geometry.Policy(part)
	}
	decided := false
	for _, part := range listOf(annotations[v1alpha1.AnnotationGPUPolicy]) {
		switch {
		case known(part):
			if !decided {
				p.GPU, decided = geometry.Policy(part), true
			}
		case part == "mutex":
			return invalid("annotation %s asks for mutex, which does not exist here; ask for a whole GPU instead", v1alpha1.AnnotationGPUPolicy)
		case part != "numa" && part != "topology-aware":
			return invalid("annotation %s is %q; use binpack or spread", v1alpha1.AnnotationGPUPolicy, part)
		}
	}
	if text := annotations[v1alpha1.AnnotationWeights]; text != "" {
		var err error
		if p.Weights, err = parseWeights(text); err != nil {
			return err
		}
	}
	return nil
}

func known(policy string) bool {
	return policy == string(geometry.Binpack) || policy == string(geometry.Spread)
}

// Weights of the bands: each is larger than any sum of what stands below it, for
// as many devices as a node can have. Above them is geometry.OversizeCost.
const (
	modeWeight = int64(1) << 48
	leftWeight = int64(1) << 39 // of a 256th of a node; larger than the average cost of a device
)

// score of one choice for a device on its own. A software share is always exact:
// its score is what it leaves on the GPU, of its memory or as the pod weighs it, so
// that shares fill GPUs up unless the policy is to spread them.
func (v *View) score(r *Request, device int, a *Assigned, t Taken) int64 {
	g := &v.Node.GPUs[a.GPU]
	if !a.IsShare() {
		return r.on(g.Catalogue).bands[device] + a.cost
	}
	score, left := int64(0), r.Policy.Weights.left(t.With(a.Share), g.Shares)*geometry.ScoreStep
	if r.MIG && r.Share {
		score = modeWeight
	}
	if r.Policy.GPU == geometry.Spread {
		return score - left
	}
	return score + left
}

// band is how little an instance suits a device whose pod names no mode, beside
// the 1 of a software share: not at all, 0, where the request fills half or more of
// the smallest adequate one; else 2, and also for a container with several devices,
// since one CUDA process sees one MIG device.
func (r *Request) band(device int, c *geometry.Catalogue, t *geometry.Table) int64 {
	if !r.MIG || !r.Share || !r.joint[device] && fillsHalf(r.Devices[device], c.Model(), t) {
		return 0
	}
	return 2 * modeWeight
}

// fillsHalf reports whether a want uses half or more of the smallest adequate
// instance, by what it asks for.
func fillsHalf(w geometry.Want, m *geometry.Model, t *geometry.Table) bool {
	p, memoryMiB, ok := t.Exact()
	switch {
	case !ok, w.Full, w.Profile != "":
		return true
	case w.MemoryMiB > 0:
		return 2*w.MemoryMiB >= memoryMiB
	case w.Percent > 0:
		return 2*w.Percent*m.MemorySlices() >= 100*p.Size
	default:
		return 2*w.Cores*m.ComputeSlices() >= 100*p.ComputeSlices
	}
}

// total is the score of a plan from the sum of its devices' scores. With a policy
// for nodes, what is left of the node comes after the bands and before all else.
// Last comes how many GPUs of the node are idle.
func (v *View) total(r *Request, sum int64) int64 {
	if r.Policy.Node == geometry.ByScore {
		return sum + v.idle
	}
	bands := (sum + modeWeight/2) / modeWeight * modeWeight
	average := (sum - bands) / int64(len(r.Devices)) / geometry.ScoreStep * geometry.ScoreStep
	left := v.left() * leftWeight
	if r.Policy.Node == geometry.Spread {
		left = -left
	}
	return bands + left + average + v.idle
}

// countIdle is how many GPUs of the node have nothing on them and could take
// something. Of nodes where a pod costs the same, that with the fewest gets it, so
// that others keep whole GPUs together for pods that want many of them.
func (v *View) countIdle() (idle int64) {
	for i := range v.Node.GPUs {
		g := &v.Node.GPUs[i]
		if (g.Offered || g.Shares != nil) && v.occupied[i].Mask == 0 && v.taken[i].Count == 0 {
			idle++
		}
	}
	return min(idle, geometry.ScoreStep-1)
}

// left is the part of the node's GPUs that is free, in 256ths.
func (v *View) left() int64 {
	free, gpus := int64(0), int64(0)
	for i := range v.Node.GPUs {
		switch g := &v.Node.GPUs[i]; {
		case g.Offered:
			m := g.Catalogue.Model()
			free += int64(256 * m.FreeSlices(v.occupied[i]) / m.MemorySlices())
		case g.Shares != nil:
			free += 256 * (g.Shares.MemoryMiB - v.taken[i].MemoryMiB) / max(g.Shares.MemoryMiB, 1)
		default:
			continue
		}
		gpus++
	}
	return free / max(gpus, 1)
}
