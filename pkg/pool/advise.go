// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Advice is why a pod does not fit anywhere now, and what would help.
type Advice struct {
	Request string   `json:"request"` // in words
	Fits    *Trial   `json:"fits,omitempty"`
	Reasons []Reason `json:"reasons,omitempty"`

	End       *Ending         `json:"end,omitempty"`       // pods whose end would make room
	Templates *TemplateChange `json:"templates,omitempty"` // what configuration forbids
	Modes     *OtherModes     `json:"modes,omitempty"`     // what the modes forbid
	More      []MoreGPUs      `json:"more,omitempty"`
	Repack    *Repack         `json:"repack,omitempty"`
	Smaller   int             `json:"smallerMiB,omitempty"` // the largest gpumem that would fit now
}

// Reason is why a class of nodes does not suit.
type Reason struct {
	Text  string   `json:"text"`  // "has no free MIG placement for 8000 MiB"; the nodes are the subject
	Nodes []string `json:"nodes"` // those with room first: see Room

	// Of the class's GPUs that take new instances, where the pod may have one: free memory slices, all memory
	// slices, and the largest profile that fits on any.
	Free    int    `json:"free"`
	Slices  int    `json:"slices"`
	Largest string `json:"largest,omitempty"`

	// Shared is what the class's shared GPU with the most memory left has left; nil
	// where none is shared or the pod may not have a share.
	Shared *v1alpha1.ShareCapacity `json:"shared,omitempty"`

	Curable bool `json:"curable"` // removing pods could help
	Barred  bool `json:"barred"`  // something else than GPUs keeps the pod off: see Barred
	Room    int  `json:"room"`    // so many of the nodes have GPUs with room for it
}

// String is one sentence with the nodes as its subject.
func (r Reason) String() string {
	subject, text := "node "+r.Nodes[0], r.Text
	if len(r.Nodes) > 1 {
		subject = fmt.Sprintf("%d nodes (%s)", len(r.Nodes), names(r.Nodes, 3))
		for singular, plural := range map[string]string{"has ": "have ", "is ": "are ", "does ": "do ", "offers ": "offer "} {
			if rest, ok := strings.CutPrefix(text, singular); ok {
				text = plural + rest
				break
			}
		}
	}
	if r.Curable {
		text += " (" + r.room() + ")"
	}
	switch {
	case r.Room == 0:
	case len(r.Nodes) == 1:
		text += "; its GPUs have room"
	default:
		text += fmt.Sprintf("; the GPUs of %d of them have room", r.Room)
	}
	return subject + " " + text
}

// room is what those GPUs still have that the pod may be on.
func (r Reason) room() string {
	var parts []string
	if r.Slices > 0 || r.Shared == nil {
		parts = append(parts, fmt.Sprintf("%d of %d memory slices are free, %s", r.Free, r.Slices, r.largest()))
	}
	if s := r.Shared; s != nil {
		parts = append(parts, fmt.Sprintf("the shared GPU with the most memory left has %d MiB, %d percent of the cores and room for %d shares", s.MemoryMiB, s.Cores, s.Count))
	}
	return strings.Join(parts, "; ")
}

func (r Reason) largest() string {
	if r.Largest == "" {
		return "and nothing more fits"
	}
	return "the largest free profile is " + r.Largest
}

// names lists some of them.
func names(list []string, most int) string {
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return strings.Join(list[:most], ", ") + ", ..."
}

// Ending is a smallest set of pods of one node whose end would make room. Pods that
// are ending already count as gone, and are listed apart where they are needed.
type Ending struct {
	Node    string   `json:"node"`
	Pods    []Victim `json:"pods"`              // the least important first
	Already []Victim `json:"already,omitempty"` // ending already, and waited for
	Spots   []Spot   `json:"devices"`           // what the pod would get

	// Exact: no smaller set exists. Else the search was cut short, and only none of
	// the pods can be left out.
	Exact bool `json:"exact"`
	// Preemptable: all of them have a lower priority, so kube-scheduler preempts
	// them by itself unless the pod's preemptionPolicy forbids it.
	Preemptable bool `json:"preemptable"`
	// Elsewhere: after that there is room for each of the pods elsewhere, so that a
	// controller's replacements would run.
	Elsewhere bool `json:"elsewhere"`
}

// Victim is a pod of an Ending.
type Victim struct {
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	Priority   int32  `json:"priority"`
	Controller string `json:"controller,omitempty"`
	Slices     int    `json:"memorySlices"`
}

// TemplateChange is a layout that the hardware allows and the configuration does
// not.
type TemplateChange struct {
	Node     string        `json:"node"`
	GPUIndex int32         `json:"gpuIndex"`
	Model    string        `json:"model"`
	Rule     geometry.Rule `json:"rule"`  // Templates: add the layout; Allowlist: add the profile
	Wanted   string        `json:"wants"` // profile that the pod would get
	Layout   []LayoutEntry `json:"layout"`
}

// LayoutEntry is so many instances of a profile.
type LayoutEntry struct {
	Profile   string `json:"profile"`
	MemoryMiB int    `json:"memoryMiB"`
	Count     int    `json:"count"`
}

// MoreGPUs is how many idle GPUs of a model would be enough.
type MoreGPUs struct {
	Model string `json:"model"`
	Like  string `json:"like"` // a node that has such GPUs, configured alike
	Count int    `json:"count"`
	// Together: they must be on one node.
	Together bool `json:"together"`
}

// Repack says whether there would be room if what runs could be moved.
type Repack struct {
	Node  string `json:"node,omitempty"` // within one node
	Fleet bool   `json:"fleet"`          // between nodes
}

// Advise says why a pod that waits does not fit, node by node, and what would help.
// Where it fits already, that is all it says.
func (f *Fleet) Advise(pod *v1.Pod, gate Gate) (*Advice, error) {
	r, err := f.request(pod)
	if err != nil {
		return nil, err
	}
	a, barred := &Advice{Request: describeAll(r)}, gate.of(pod)
	prospects := make([]prospect, len(f.sites))
	for i, s := range f.sites {
		prospects[i] = prospectOf(f.view(s, askerOf(pod), nil), r, barred, 0)
	}
	if best := bestOf(prospects); best >= 0 {
		trial := prospects[best].trial(r)
		a.Fits = &trial
		return a, nil
	}
	a.Reasons = reasonsOf(prospects)
	for i := range a.Reasons {
		a.Reasons[i].Text += f.accepted(pod, &a.Reasons[i])
	}
	open := f.open(prospects)
	a.End = f.ending(open, pod, r, gate)
	a.Templates = templateChange(prospects, r)
	a.Modes = f.otherModes(pod, r, barred)
	a.More = f.more(r, 1, barred)
	a.Repack = f.repack(open, r)
	a.Smaller = smaller(prospects, r)
	return a, nil
}

// open lists the sites where the pod may go and where room could be made.
func (f *Fleet) open(prospects []prospect) []*site {
	var open []*site
	for i, p := range prospects {
		if p.barred == "" && p.verdict != nil && p.verdict.Curable {
			open = append(open, f.sites[i])
		}
	}
	return open
}

// reasonsOf gathers nodes by what they answered, the largest class first.
func reasonsOf(prospects []prospect) []Reason {
	at := map[string]int{}
	var out []Reason
	for i := range prospects {
		p := &prospects[i]
		text, curable := p.barred, false
		switch {
		case text == "" && p.verdict == nil:
			continue
		case text == "":
			text, curable = present(p.verdict.Reason), p.verdict.Curable
		}
		k, ok := at[text]
		if !ok {
			k = len(out)
			at[text] = k
			out = append(out, Reason{Text: text, Curable: curable, Barred: p.barred != ""})
		}
		out[k].add(p.view, p.modes)
		if name := p.view.Node.Name; p.verdict == nil {
			out[k].Nodes = slices.Insert(out[k].Nodes, out[k].Room, name)
			out[k].Room++
		} else {
			out[k].Nodes = append(out[k].Nodes, name)
		}
	}
	slices.SortStableFunc(out, func(a, b Reason) int { return cmp.Compare(len(b.Nodes), len(a.Nodes)) })
	return out
}

// accepted says, of a reason that is the pod's annotations, what they are and which
// GPUs the nodes have.
func (f *Fleet) accepted(pod *v1.Pod, r *Reason) string {
	var keys []string
	kind := func(g *GPU) string { return g.Model }
	switch r.Text {
	case present(ReasonNotSelected):
		keys = []string{v1alpha1.AnnotationUseUUID, v1alpha1.AnnotationNoUseUUID, v1alpha1.AnnotationUseType, v1alpha1.AnnotationNoUseType}
	case present(ReasonNoMode):
		keys, kind = []string{v1alpha1.AnnotationMode}, (*GPU).takes
	}
	var parts []string
	for _, key := range keys {
		if value := pod.Annotations[key]; value != "" {
			parts = append(parts, fmt.Sprintf("%s is %q", key, value))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	kinds := map[string]bool{}
	for _, name := range r.Nodes {
		s := f.site(name)
		for i := range s.node.GPUs {
			kinds[kind(&s.node.GPUs[i])] = true
		}
	}
	if delete(kinds, ""); len(kinds) > 0 {
		parts = append(parts, "and the GPUs there are "+names(slices.Sorted(maps.Keys(kinds)), 3))
	}
	return ": " + strings.Join(parts, ", ")
}

// present is a verdict's reason without its subject, in the present.
func present(reason string) string {
	text := strings.TrimPrefix(reason, "node(s) ")
	if rest, ok := strings.CutPrefix(text, "had "); ok {
		return "has " + rest
	}
	return text
}

// add counts what one more node has left on its GPUs that are in the modes.
func (r *Reason) add(v *View, modes mode) {
	largestSize := -1
	for i := range v.Node.GPUs {
		g := &v.Node.GPUs[i]
		if g.Shares != nil && modes&share != 0 {
			if left := v.sharesLeft(i); r.Shared == nil || left.MemoryMiB > r.Shared.MemoryMiB {
				r.Shared = &left
			}
		}
		if !g.Offered || modes == share {
			continue
		}
		model := g.Catalogue.Model()
		r.Free += model.FreeSlices(v.occupied[i])
		r.Slices += model.MemorySlices()
		if p, ok := model.ByName(r.Largest); ok {
			largestSize = max(largestSize, p.MemoryMiB)
		}
		if p, ok := g.Catalogue.LargestFree(v.occupied[i]); ok && p.MemoryMiB > largestSize {
			r.Largest, largestSize = p.Name, p.MemoryMiB
		}
	}
}

// more is how many idle GPUs of each model would hold so many pods, counted with the
// decision code on nodes of such GPUs alone. Of a model that is configured in
// several ways the best way counts. Of nodes that bar the pod more GPUs are no help.
func (f *Fleet) more(r *Request, pods int, barred Barred) []MoreGPUs {
	seen := map[*geometry.Catalogue]bool{}
	best := map[string]MoreGPUs{}
	for _, s := range f.sites {
		if why, counted := barred.on(s.node.Name, 0); why != "" && !counted {
			continue
		}
		for i := range s.node.GPUs {
			g := &s.node.GPUs[i]
			if !g.Offered || seen[g.Catalogue] {
				continue
			}
			seen[g.Catalogue] = true
			model := g.Catalogue.Model().Name()
			n := gpusFor(*g, r, pods)
			if known, ok := best[model]; n > 0 && (!ok || n < known.Count) {
				best[model] = MoreGPUs{Model: model, Like: s.node.Name, Count: n, Together: len(r.Devices) > 1 && n > 1}
			}
		}
	}
	out := slices.Collect(maps.Values(best))
	slices.SortStableFunc(out, func(a, b MoreGPUs) int {
		return cmp.Or(cmp.Compare(a.Count, b.Count), cmp.Compare(a.Model, b.Model))
	})
	return out
}

// gpusFor is how many idle GPUs like g hold so many pods of one request; 0 when no
// number does. A node of one pod's size is filled, then another.
func gpusFor(g GPU, r *Request, pods int) int {
	g.blocked, g.avoided = geometry.Occupancy{}, nil
	for size := 1; size <= len(r.Devices); size++ {
		empty := idleNode(g, size).idle
		held := 0
		for v := empty; held < pods; held++ {
			plan, verdict := v.Fit(r)
			if verdict != nil {
				break
			}
			v = v.with(plan)
		}
		if held > 0 {
			return (pods + held - 1) / held * size
		}
	}
	return 0
}

// idleNode is a node with so many GPUs like g.
func idleNode(g GPU, size int) *Node {
	n := &Node{Name: "idle", index: map[string]int{}}
	for i := range size {
		g.ID = fmt.Sprintf("idle-%d", i)
		n.index[g.ID] = i
		n.GPUs = append(n.GPUs, g)
	}
	n.divide()
	return n
}

// smaller is the largest memory per device that would fit now; 0 when none would,
// or when the request is not by memory alone.
func smaller(prospects []prospect, r *Request) int {
	want := r.Devices[0]
	same := !slices.ContainsFunc(r.Devices, func(w geometry.Want) bool { return w != want })
	if !same || want.MemoryMiB == 0 {
		return 0
	}
	best := 0
	for i := range prospects {
		p := &prospects[i]
		if p.barred != "" {
			continue
		}
		for j := range p.view.Node.GPUs {
			for _, e := range p.view.Node.GPUs[j].Catalogue.Entries() {
				if e.MemoryMiB > best && e.MemoryMiB < want.MemoryMiB && p.view.fitsMemory(r, e.MemoryMiB) {
					best = e.MemoryMiB
				}
			}
		}
	}
	return best
}

// fitsMemory asks for other memory.
func (v *View) fitsMemory(r *Request, memory int) bool {
	other := *r
	other.Devices, other.tables, other.verdicts = slices.Clone(r.Devices), new(tableCache), nil
	for i := range other.Devices {
		other.Devices[i].MemoryMiB = memory
	}
	return v.Fits(&other)
}
