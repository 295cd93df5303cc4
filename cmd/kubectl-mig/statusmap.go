// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// remarkColumns are kept for "4/8 free" and "max 3g.20gb" beside a map.
const remarkColumns = 14

// tightSlice is how wide a memory slice should be at least, in columns: where the
// remarks would leave less, they go below the map.
const tightSlice = 6

// mostWaiting is how many waiting pods are listed.
const mostWaiting = 10

// maps draws everything.
func (st *fleetStatus) maps(s *screen) []line {
	var out []line
	seen := map[pool.SpanState]bool{}
	if st.Silence != "" {
		out = append(out, s.wrap("! ", red, "%s", st.Silence)...)
		out = append(out, line{})
	}
	for i := range st.Nodes {
		out = append(out, drawNode(s, &st.Nodes[i], seen)...)
		out = append(out, line{})
	}
	out = append(out, s.flow(dim, explainSigns(seen))...)
	out = append(out, s.wrap("", plain, "%s", st.totals())...)
	return append(out, st.drawWaiting(s)...)
}

// drawNode is a heading, each GPU, and what an operator should know.
func drawNode(s *screen, n *nodeStatus, seen map[pool.SpanState]bool) []line {
	out := heading(s, &n.NodePicture)
	if n.Outage != "" {
		out = append(out, s.wrap("  ! ", red, "%s", n.Outage)...)
	}
	if n.Problem != "" {
		return append(out, s.wrap("  ! ", red, "%s", n.Problem)...)
	}
	groups := alike(n.GPUs)
	width := 0
	for _, g := range groups {
		width = max(width, columns(g.label()))
	}
	for _, g := range groups {
		out = append(out, drawGPU(s, g, width, seen)...)
	}
	out = append(out, drawConditions(s, &n.NodePicture)...)
	for _, p := range n.Preparations {
		name := cmp.Or(p.Name, string(p.UID))
		out = append(out, s.wrap("  • ", preparationStyle(p.Phase), "%s: %s", name, describePreparation(&p))...)
	}
	return out
}

// drawConditions says what is wrong with a node, each sentence once: many are those of
// GPUs, or stand in several conditions.
func drawConditions(s *screen, n *pool.NodePicture) []line {
	var told []string
	for i := range n.GPUs {
		if reason := strings.TrimSuffix(n.GPUs[i].Reason, "."); reason != "" {
			told = append(told, reason)
		}
	}
	var out []line
	for _, c := range n.Conditions {
		if !pool.Wrong(c) {
			continue
		}
		sentences := slices.DeleteFunc(strings.Split(strings.TrimSpace(c.Message), "\n"), func(sentence string) bool {
			return sentence == "" || slices.ContainsFunc(told, func(t string) bool { return strings.Contains(sentence, t) })
		})
		if len(sentences) == 0 {
			continue
		}
		out = append(out, s.wrap("  ! ", amber, "%s: %s", c.Type, firstLine(strings.Join(sentences, "\n"), n.Name))...)
		for _, sentence := range sentences {
			told = append(told, strings.TrimSuffix(sentence, "."))
		}
	}
	return out
}

// firstLine of a message of a node's condition, which may have a sentence in each of
// several. What is in force in place of a mistake is said, too, and is no mistake.
func firstLine(message, node string) string {
	sentences, inForce := strings.CutSuffix(strings.TrimSpace(message), "\n"+v1alpha1.LastGoodInForce+".")
	first, rest, more := strings.Cut(sentences, "\n")
	if inForce {
		first = strings.TrimSuffix(first, ".") + ". " + v1alpha1.LastGoodInForce + "."
	}
	if !more {
		return first
	}
	return fmt.Sprintf("%s (and %d more; kubectl describe gpunode %s has all)", first, strings.Count(rest, "\n")+1, node)
}

func preparationStyle(phase v1alpha1.PodPhase) style {
	if phase == v1alpha1.PodFailing || phase == v1alpha1.PodRefused {
		return red
	}
	return plain
}

func describePreparation(p *pool.PreparationPicture) string {
	return strings.TrimSuffix(strings.ToLower(string(p.Phase))+": "+p.Reason, ": ")
}

// heading names a node and what it has.
func heading(s *screen, n *pool.NodePicture) []line {
	models, used, idle := map[string]int{}, 0, 0
	for _, g := range n.GPUs {
		models[shortModel(g.Model)]++
		u, i := devicesOf(&g)
		used, idle = used+u, idle+i
	}
	l := text(bold, "%s", n.Name)
	if n.Problem != "" {
		return []line{l}
	}
	r := roomOf(n.GPUs)
	l = l.add(plain, "  %s", counted(models))
	rest := text(dim, "  %s", modesOf(n.GPUs))
	if r.slices > 0 {
		rest = rest.add(plain, "  %d/%d free", r.free, r.slices)
	}
	if r.largest != "" {
		rest = rest.add(plain, ", max %s", r.largest)
	}
	if r.memory > 0 {
		rest = rest.add(plain, "  %d/%d MiB free", r.freeMemory, r.memory)
	}
	rest = rest.add(dim, "  %d used, %d idle", used, idle)
	if l.columns()+rest.columns() > s.width {
		return []line{l, rest}
	}
	return []line{append(l, rest...)}
}

// devicesOf counts the devices that pods have on a GPU, and the idle instances that
// stay: one in the way of a pod is destroyed before that pod starts.
func devicesOf(g *pool.GPUPicture) (used, idle int) {
	if g.Shares != nil {
		used = len(g.Shares.Held)
	}
	for i := range g.Spans {
		switch sp := &g.Spans[i]; {
		case sp.State.Owned():
			used++
		case sp.State == pool.SpanIdle && !inTheWay(sp, g.Spans):
			idle++
		}
	}
	return used, idle
}

// inTheWay reports whether an instance stands where another span is taken.
func inTheWay(of *pool.SpanPicture, spans []pool.SpanPicture) bool {
	return slices.ContainsFunc(spans, func(s pool.SpanPicture) bool {
		return s.State.Takes() && s.Start < of.Start+of.Size && of.Start < s.Start+s.Size
	})
}

// shortModel leaves out what all of them begin with.
func shortModel(m string) string { return strings.TrimPrefix(m, "NVIDIA ") }

// counted is "2x A100-SXM4-40GB, 1x A30".
func counted(of map[string]int) string {
	var parts []string
	for name, n := range of {
		parts = append(parts, fmt.Sprintf("%dx %s", n, name))
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		return "no GPUs"
	}
	return strings.Join(parts, ", ")
}

func modesOf(gpus []pool.GPUPicture) string {
	var modes []string
	for _, g := range gpus {
		mode := g.Mode.Current
		if g.Mode.Pending {
			mode += " (" + g.Mode.Wanted + " pending)"
		}
		if !slices.Contains(modes, mode) {
			modes = append(modes, mode)
		}
	}
	return strings.Join(modes, ", ")
}

// room is what is free on some GPUs.
type room struct {
	free, slices int    // memory slices of GPUs that are cut
	largest      string // profile that fits on any of them

	freeMemory, memory int64 // MiB of GPUs that are shared
}

func roomOf(gpus []pool.GPUPicture) (r room) {
	most := int64(-1)
	for i := range gpus {
		g := &gpus[i]
		if g.Shares != nil {
			r.freeMemory += g.Shares.FreeMemoryMiB
			r.memory += g.Shares.MemoryMiB
			continue
		}
		if g.Mode.Wanted != v1alpha1.ModeMIG {
			continue // nor does the GPUNode's column FREE count it
		}
		r.free += g.FreeSlices
		r.slices += g.MemorySlices
		if size := sizeOf(g); g.LargestFree != "" && size > most {
			r.largest, most = g.LargestFree, size
		}
	}
	return r
}

// sizeOf is the memory of a GPU's largest free profile, in MiB, about.
func sizeOf(g *pool.GPUPicture) int64 {
	return g.MemoryMiB * int64(g.LargestFreeSlices) / int64(max(1, g.MemorySlices))
}

// gpuGroup is a GPU, or several idle ones of a kind that look the same.
type gpuGroup struct {
	*pool.GPUPicture
	last int32 // index
}

func (g gpuGroup) label() string {
	if g.last > g.Index {
		return fmt.Sprintf("  GPU %d-%d ", g.Index, g.last)
	}
	return fmt.Sprintf("  GPU %d ", g.Index)
}

// alike draws idle neighbours once.
func alike(gpus []pool.GPUPicture) []gpuGroup {
	var out []gpuGroup
	for i := range gpus {
		g := &gpus[i]
		if n := len(out); n > 0 {
			before := &out[n-1]
			if len(g.Spans)+len(before.Spans) == 0 && g.Shares == nil && before.Shares == nil && before.Model == g.Model && before.Offered == g.Offered &&
				before.Reason == g.Reason && before.last+1 == g.Index {
				before.last = g.Index
				continue
			}
		}
		out = append(out, gpuGroup{g, g.Index})
	}
	return out
}

// drawGPU is a map with its label and remarks, and why nothing new is placed there.
func drawGPU(s *screen, g gpuGroup, label int, seen map[pool.SpanState]bool) []line {
	for _, sp := range g.Spans {
		seen[sp.State] = true
	}
	if g.Shares != nil {
		for _, held := range g.Shares.Held {
			seen[held.State] = true
		}
	}
	upper, lower, st := remarks(g.GPUPicture)
	room := s.width - label - remarkColumns
	var third []line
	if room/max(1, g.MemorySlices) < tightSlice && g.Shares == nil {
		room = s.width - label
		third = []line{text(st, "%s%s", pad("", label), strings.TrimSuffix(upper+", "+lower, ", "))}
		upper, lower = "", ""
	}
	profiles, pods := drawMap(g.GPUPicture, room)
	first := append(line{{pad(g.label(), label), plain}}, profiles...).add(st, " %s", upper)
	second := append(line{{pad("", label), plain}}, pods...).add(st, " %s", lower)
	out := append([]line{first, second}, third...)
	if g.Reason != "" {
		out = append(out, s.wrap(pad("", label)+"! ", amber, "%s", g.Reason)...)
	}
	return out
}

// remarks beside a map.
func remarks(g *pool.GPUPicture) (upper, lower string, st style) {
	switch {
	case g.Health != v1alpha1.Healthy:
		return "unhealthy", "", red
	case g.Shares != nil:
		return fmt.Sprintf("%dMi free", g.Shares.FreeMemoryMiB), fmt.Sprintf("%d/%d shares", len(g.Shares.Held), g.Shares.Count), plain
	case !g.Offered:
		return "not offered", "", amber
	case g.LargestFree != "":
		return fmt.Sprintf("%d/%d free", g.FreeSlices, g.MemorySlices), "max " + g.LargestFree, plain
	case g.FreeSlices == 0:
		return "full", "", dim
	default:
		return fmt.Sprintf("%d/%d free", g.FreeSlices, g.MemorySlices), "nothing fits", dim
	}
}

// explainSigns is the legend of the signs that were drawn.
func explainSigns(seen map[pool.SpanState]bool) []string {
	var parts []string
	for _, l := range legend {
		if slices.ContainsFunc(l.states, func(st pool.SpanState) bool { return seen[st] }) {
			parts = append(parts, l.sign+" "+l.means)
		}
	}
	return parts
}

// totals is one sentence for all.
func (st *fleetStatus) totals() string {
	var gpus []pool.GPUPicture
	for _, n := range st.Nodes {
		gpus = append(gpus, n.GPUs...)
	}
	if len(gpus) == 0 && st.hidden > 0 {
		return fmt.Sprintf("No GPUs to show: without %s there would be %d.", strings.Join(st.filters, " and "), st.hidden)
	}
	if len(gpus) == 0 {
		return "No GPUs to show."
	}
	r := roomOf(gpus)
	t := fmt.Sprintf("%s, %s: ", plural(len(st.Nodes), "node"), plural(len(gpus), "GPU"))
	var parts []string
	switch {
	case r.slices == 0 && r.memory == 0:
		parts = append(parts, "none takes new work")
	case r.slices == 0:
	case r.largest == "":
		parts = append(parts, fmt.Sprintf("%d of %d memory slices are free, and nothing more fits", r.free, r.slices))
	default:
		parts = append(parts, fmt.Sprintf("%d of %d memory slices are free, the largest free profile is %s", r.free, r.slices, r.largest))
	}
	if r.memory > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d MiB of shared GPUs are free", r.freeMemory, r.memory))
	}
	return t + strings.Join(parts, "; ") + "."
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// drawWaiting lists the pods that wait, the oldest first.
func (st *fleetStatus) drawWaiting(s *screen) []line {
	if len(st.Waiting) == 0 {
		return nil
	}
	verb := "waits"
	if len(st.Waiting) > 1 {
		verb = "wait"
	}
	out := []line{text(amber, "%s %s; kubectl mig explain pod NAME says why:", plural(len(st.Waiting), "pod"), verb)}
	for i, w := range st.Waiting {
		if i == mostWaiting {
			return append(out, text(dim, "  ... and %d more; kubectl mig status -o yaml lists all", len(st.Waiting)-i))
		}
		out = append(out, line{}.add(plain, "  %s", w.name()).add(dim, "  %s", w.Request))
		if w.Remedy != "" {
			out = append(out, s.wrap("    ! ", amber, "%s", w.Remedy)...)
		}
	}
	return out
}

func (w *waitingPod) name() string {
	if w.Namespace == v1.NamespaceDefault {
		return w.Name
	}
	return w.Namespace + "/" + w.Name
}
