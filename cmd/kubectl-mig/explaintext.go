// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/pool"
)

// mostOthers is how many other places are listed.
const mostOthers = 3

// draw is the story for a terminal.
func (st *story) draw(s *screen, v *survey) []line {
	out := s.wrap("", st.style(), "Pod %s/%s %s", st.Namespace, st.Name, st.Sentence)
	if st.Problem != "" {
		out = append(out, s.wrap("  ! ", red, "%s", st.Problem)...)
	}
	if st.Outage != "" {
		out = append(out, s.wrap("  ! ", amber, "%s", st.Outage)...)
	}
	if st.Agent != nil {
		out = append(out, s.wrap("  ! ", amber, "The node's agent says: %s: %s", st.Agent.Phase, st.Agent.Reason)...)
	}
	if st.Why != nil && st.State != stateEnded {
		out = append(out, st.drawPlace(s, v)...)
		if st.State != stateRefused {
			out = append(out, st.drawWhy(s)...)
		}
	}
	if st.Advice != nil {
		out = append(out, st.drawReasons(s)...)
		out = append(out, st.drawHelp(s, &v.opts)...)
	} else if len(st.Remedies) > 0 {
		out = append(out, line{}, text(bold, "What would help"))
		out = append(out, st.drawRemedies(s)...)
	}
	out = append(out, line{}, text(bold, "Steps"))
	out = append(out, drawSteps(s, st.Steps)...)
	return append(out, s.wrap("  ", dim, "%s", keeping)...)
}

func (st *story) style() style {
	switch st.State {
	case stateRunning:
		return green
	case stateWrong, stateRefused:
		return red
	case stateEnded:
		return plain
	}
	return amber
}

// drawPlace shows what the pod has, on its GPUs.
func (st *story) drawPlace(s *screen, v *survey) []line {
	head := "What it has"
	if st.State == stateRefused {
		head = "What it was to have, and has not"
	}
	out := []line{{}, text(bold, "%s", head)}
	gpus := map[string]bool{}
	for i := range st.Why.Devices {
		d := &st.Why.Devices[i]
		gpus[d.GPU] = true
		out = append(out, s.wrap("  • ", plain, "%s", describeDevice(d, len(st.pod.Spec.Containers)+len(st.pod.Spec.InitContainers) > 1))...)
	}
	return append(out, v.mapsOfGPUs(s, st.Why.Node, gpus)...)
}

// describeDevice is one sentence.
func describeDevice(d *pool.WhyDevice, named bool) string {
	t := deviceName(d.Device)
	if m := d.MIG; m != nil {
		t += fmt.Sprintf(" (%d MiB) at slice %d of GPU %d", m.MemoryMiB, m.Start, d.GPUIndex)
	} else {
		t += fmt.Sprintf(" of GPU %d", d.GPUIndex)
	}
	if named {
		t += " for " + strings.Join(d.Containers, ", ")
	}
	switch {
	case d.MIG == nil:
	case d.Exact:
		t += ": nothing smaller would do for " + d.Asked
	case d.Smallest != "":
		t += fmt.Sprintf(": larger than %s needs; %s would do, and could not be had when it was placed", d.Asked, d.Smallest)
	}
	if d.Template != nil {
		t += fmt.Sprintf("; by template %d of the configuration", *d.Template+1)
	}
	return t
}

// mapsOfGPUs draws some GPUs of a node.
func (v *survey) mapsOfGPUs(s *screen, node string, gpus map[string]bool) []line {
	var everything statusOptions
	everything.node = node
	st := v.status(everything, labels.Everything())
	if len(st.Nodes) == 0 {
		return nil
	}
	var out []line
	seen := map[pool.SpanState]bool{}
	for _, g := range st.Nodes[0].GPUs {
		if gpus[g.UUID] {
			group := gpuGroup{&g, g.Index}
			out = append(out, drawGPU(s, group, columns(group.label()), seen)...)
		}
	}
	return append(out, s.flow(dim, explainSigns(seen))...)
}

// drawWhy compares the place with others as things stand now.
func (st *story) drawWhy(s *screen) []line {
	w := st.Why
	out := []line{{}, text(bold, "Why there")}
	own, scored, shares := 0.0, false, false
	withheld := ""
	for _, d := range w.Devices {
		shares = shares || d.Share != nil
		if d.Withheld != "" {
			withheld = fmt.Sprintf("GPU %d takes no new work (%s)", d.GPUIndex, strings.TrimSuffix(d.Withheld, "."))
		}
		if d.Score != nil {
			own, scored = own+*d.Score, true
		}
	}
	switch {
	case shares:
		return append(out, drawOthers(s, w, false)...)
	case withheld != "":
		return append(out, s.wrap("  ", plain, "How good the place is cannot be told: %s.", withheld)...)
	case !scored:
		return append(out, s.wrap("  ", plain, "How good the place is cannot be told: its GPU takes nothing new now, or is not reported, or no configuration gives such a device any more.")...)
	case w.Better == 0 && len(w.Others) == 0:
		out = append(out, s.wrap("  • ", plain, "%s", onlyPlace(w))...)
	case w.Better == 0:
		out = append(out, s.wrap("  • ", plain, "As things stand now it is still the best of %d places: score %.2f.", len(w.Others)+1, own)...)
	default:
		out = append(out, s.wrap("  • ", plain, "As things stand now %d of %d other places would be better than its score of %.2f: pods have come and gone since, and nothing that runs is moved.",
			w.Better, len(w.Others), own)...)
	}
	out = append(out, drawOthers(s, w, true)...)
	if len(w.Others) > 0 {
		out = append(out, s.wrap("    ", dim, "The score is in memory slices, lower is better: what future requests lose in room and in choice, and how empty the GPU was. Of equal places the one on the node with the fewest idle GPUs is taken.")...)
	}
	told := map[string]bool{}
	for _, d := range w.Devices {
		if len(d.Cost) == 0 || told[d.GPU] {
			continue
		}
		told[d.GPU] = true
		out = append(out, s.wrap("  • ", plain, "Without it GPU %d could still take %s.", d.GPUIndex, describeCost(d.Cost))...)
	}
	return out
}

// onlyPlace says that nothing else would do: others are told apart by GPU for a pod with
// one device, and by node for more.
func onlyPlace(w *pool.Why) string {
	if len(w.Devices) == 1 {
		return fmt.Sprintf("As things stand now GPU %d of %s is the only GPU that would do.", w.Devices[0].GPUIndex, w.Node)
	}
	return fmt.Sprintf("As things stand now %s is the only node that would do.", w.Node)
}

// drawOthers lists the best other places. Software shares have no score that could
// be compared with that of instances.
func drawOthers(s *screen, w *pool.Why, scored bool) []line {
	var out []line
	if !scored {
		verdict := "As things stand now no other place would be better: shares fill GPUs up, and an instance is preferred where the request fills half of it."
		switch {
		case len(w.Others) == 0:
			verdict = onlyPlace(w)
		case w.Better > 0:
			verdict = fmt.Sprintf("As things stand now %d of %d other places would be better: pods have come and gone since, and nothing that runs is moved.", w.Better, len(w.Others))
		}
		out = s.wrap("  • ", plain, "%s", verdict)
	}
	for i, o := range w.Others {
		if i == mostOthers {
			return append(out, text(dim, "      ... and %d more", len(w.Others)-i))
		}
		score := ""
		if scored {
			score = fmt.Sprintf(", score %.2f", o.Score)
		}
		out = append(out, s.wrap("      ", dim, "%s: %s%s", o.Node, describeSpots(o.Spots), score)...)
	}
	return out
}

// describeCost is "3 x 2g.10gb (now 1) or 1 x 3g.20gb (now none)".
func describeCost(costs []pool.Cost) string {
	var parts []string
	for _, c := range costs {
		with := fmt.Sprint(c.With)
		if c.With == 0 {
			with = "none"
		}
		parts = append(parts, fmt.Sprintf("%d x %s (now %s)", c.Without, c.Profile, with))
	}
	if n := len(parts); n > 1 {
		return strings.Join(parts[:n-1], ", ") + " or " + parts[n-1]
	}
	return strings.Join(parts, "")
}

// drawReasons says why no node suits.
func (st *story) drawReasons(s *screen) []line {
	a := st.Advice
	var out []line
	if a.Fits != nil {
		out = append(out, line{}, text(bold, "Where it would fit"))
		out = append(out, s.wrap("  • ", plain, "%s: %s", a.Fits.Node, describeSpots(a.Fits.Spots))...)
		if st.Outage == "" && st.pod.Spec.SchedulerName == v1alpha1.SchedulerName && len(st.pod.Spec.SchedulingGates) == 0 {
			out = append(out, s.wrap("    ", dim, "The scheduler tries again when something changes, and waits longer after each failure. What is not looked at here may hold it back: affinity between pods, volumes, topology spread, quotas.")...)
		}
	} else if pool.Remedy(st.pod) == "" { // else room is not what it waits for
		out = append(out, line{}, text(bold, "Why it waits"))
		for _, r := range a.Reasons {
			out = append(out, s.wrap("  • ", plain, "%s", r)...)
		}
		if len(a.Reasons) == 0 {
			out = append(out, s.wrap("  • ", plain, "there is no node with GPUs")...)
		}
	}
	if st.Scheduler != "" {
		out = append(out, s.wrap("    ", dim, "The scheduler said: %s", st.Scheduler)...)
	}
	return out
}

func (st *story) drawRemedies(s *screen) []line {
	var out []line
	for _, r := range st.Remedies {
		out = append(out, s.wrap("  • ", plain, "%s.", r)...)
	}
	return out
}

// nothingAlone says why no one thing would help.
func nothingAlone(reasons []pool.Reason) string {
	if slices.ContainsFunc(reasons, func(r pool.Reason) bool { return r.Barred && r.Room == 0 }) {
		return "More than one thing: nodes that something else keeps the pod off have no room on their GPUs either."
	}
	return "Nothing that GPUs could do: see why it waits."
}

// drawHelp says what would help.
func (st *story) drawHelp(s *screen, opts *pool.Options) []line {
	a := st.Advice
	if a.Fits != nil || pool.Remedy(st.pod) != "" { // room is not what it waits for
		return nil
	}
	out := []line{{}, text(bold, "What would help")}
	nothing := len(out)
	out = append(out, st.drawRemedies(s)...)
	if a.End != nil {
		out = append(out, s.wrap("  • ", plain, "%s", describeEnding(a.End))...)
	}
	if a.Smaller > 0 {
		out = append(out, s.wrap("  • ", plain, "Asking for less: with %s up to %d it would fit now.", opts.Resources().Memory, opts.InUnits(a.Smaller))...)
	}
	if c := a.Templates; c != nil {
		out = append(out, drawTemplate(s, c)...)
	}
	for _, t := range describeModes(a.Modes) {
		out = append(out, s.wrap("  • ", plain, "Another mode: %s.", t)...)
	}
	for _, m := range a.More {
		out = append(out, s.wrap("  • ", plain, "More GPUs: %s.", moreGPUs(m, 1))...)
	}
	if r := a.Repack; r != nil {
		out = append(out, s.wrap("  • ", plain, "%s", describeRepack(r))...)
	}
	if len(out) == nothing {
		out = append(out, s.wrap("  • ", plain, "%s", nothingAlone(a.Reasons))...)
	}
	return out
}

// describeEnding is one or two sentences.
func describeEnding(e *pool.Ending) string {
	var t string
	switch {
	case len(e.Pods) == 0:
		t = fmt.Sprintf("Waiting: %s %s ending already", victims(e.Already), is(e.Already))
	case len(e.Already) > 0:
		t = fmt.Sprintf("The end of %s, besides %s, which %s ending already", victims(e.Pods), victims(e.Already), is(e.Already))
	default:
		t = fmt.Sprintf("The end of %s", victims(e.Pods))
	}
	t += fmt.Sprintf(": then %s on %s.", describeSpots(e.Spots), e.Node)
	switch {
	case len(e.Pods) == 0:
	case !e.Exact:
		t += " None of them can be left out; a smaller set was not looked for to the end."
	case len(e.Pods) == 1:
		t += " No less important pod would do."
	default:
		t += " No smaller set would do."
	}
	it, they := "them", "They have"
	if len(e.Pods) == 1 {
		it, they = "it", "It has"
	}
	if len(e.Pods) > 0 && e.Elsewhere {
		t += fmt.Sprintf(" There is room for %s elsewhere.", it)
	}
	if len(e.Pods) > 0 && e.Preemptable {
		t += fmt.Sprintf(" %s a lower priority, so that the scheduler ends %s by itself unless preemptionPolicy forbids it.", they, it)
	}
	return t
}

func is(v []pool.Victim) string {
	if len(v) == 1 {
		return "is"
	}
	return "are"
}

// victims lists pods with what their end means.
func victims(list []pool.Victim) string {
	var parts []string
	for _, v := range list {
		what := "a bare pod"
		if v.Controller != "" {
			what = "of " + v.Controller
		}
		if v.Name == strangerName {
			what = "of another namespace"
		}
		parts = append(parts, fmt.Sprintf("%s/%s (%s, priority %d, %s)", v.Namespace, v.Name, what, v.Priority, plural(v.Slices, "slice")))
	}
	if n := len(parts); n > 1 {
		return strings.Join(parts[:n-1], ", ") + " and " + parts[n-1]
	}
	return parts[0]
}

// drawTemplate shows what to add to the configuration.
func drawTemplate(s *screen, c *pool.TemplateChange) []line {
	if c.Rule == geometry.RuleAllowlist {
		return s.wrap("  • ", plain, "Another configuration: with %s in migProfileAllowlist of %s it would fit on GPU %d of %s.",
			c.Wanted, shortModel(c.Model), c.GPUIndex, c.Node)
	}
	out := s.wrap("  • ", plain, "Another layout: with this one in knownMigGeometries of %s a %s would fit on GPU %d of %s:",
		shortModel(c.Model), c.Wanted, c.GPUIndex, c.Node)
	for i, e := range c.Layout {
		lead := "          "
		if i == 0 {
			lead = "        - "
		}
		out = append(out, text(plain, "%s- {name: %s, memory: %d, count: %d}", lead, e.Profile, e.MemoryMiB, e.Count))
	}
	return out
}

// describeModes says what the other mode would do, for pod and GPUs.
func describeModes(m *pool.OtherModes) (out []string) {
	if m == nil {
		return nil
	}
	if m.Pod != nil {
		out = append(out, fmt.Sprintf("without annotation %s, or with both modes in it, %s has room for it now: %s",
			v1alpha1.AnnotationMode, m.Pod.Node, describeSpots(m.Pod.Spots)))
	}
	if c := m.GPUs; c != nil {
		var gpus []string
		for _, index := range c.GPUs {
			gpus = append(gpus, fmt.Sprint(index))
		}
		library := ""
		if c.Library {
			library = " and with HAMi-core's library on the node"
		}
		out = append(out, fmt.Sprintf("with GPU %s of %s, which nobody uses, in mode %s by the node configuration%s, it would fit: %s",
			strings.Join(gpus, ", "), c.Node, c.Mode, library, describeSpots(c.Spots)))
	}
	return out
}

// named lists some nodes.
func named(nodes []string) string {
	if n := len(nodes); n > 3 {
		return fmt.Sprintf("%s and %d more nodes", strings.Join(nodes[:3], ", "), n-3)
	}
	return strings.Join(nodes, ", ")
}

func describeRepack(r *pool.Repack) string {
	if r.Node != "" {
		return fmt.Sprintf("Defragmenting: if all GPU pods of %s were placed anew, they and this pod would fit there. Nothing that runs is moved by itself.", r.Node)
	}
	return "Defragmenting: if all GPU pods were placed anew over the nodes, they and this pod would fit. Nothing that runs is moved by itself."
}
