// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Draw is the picture of a node from its GPUNode and the GPU pods bound there,
// without any scheduler: what kubectl mig has. The error is in Problem.
func (o Options) Draw(obj *v1alpha1.GPUNode, pods []*v1.Pod, catalogues *Catalogues) NodePicture {
	node, err := NodeOf(obj, catalogues)
	if err != nil {
		return NodePicture{Name: obj.Name, Problem: err.Error(), Conditions: obj.Status.Conditions}
	}
	ledger := NewLedger()
	ledger.opts = o
	return draw(obj, node, ledger, pods)
}

// Draw is the picture of a node as this scheduler sees it: its ledger counts too,
// so that choices show before they are written.
func (p *Pool) Draw(obj *v1alpha1.GPUNode, pods []*v1.Pod) NodePicture {
	if s := p.roll().byName[obj.Name]; s != nil {
		if node := s.report.Load(); node != nil {
			return draw(obj, node, p.Ledger, pods)
		}
	}
	return p.opts.Draw(obj, pods, &p.catalogues)
}

func draw(obj *v1alpha1.GPUNode, node *Node, ledger *Ledger, pods []*v1.Pod) NodePicture {
	holders := ledger.holders(node, pods)
	view := viewWith(node, holders)
	n := NodePicture{
		Name: obj.Name, DriverVersion: obj.Status.DriverVersion, ConfigGeneration: obj.Status.ConfigGeneration,
		Conditions: obj.Status.Conditions, GPUs: make([]GPUPicture, 0, len(node.GPUs)),
	}
	known := ownersOf(pods, holders)
	spans := spansByGPU(holders)
	for i := range node.GPUs {
		reported := obj.Status.GPU(node.GPUs[i].ID)
		if reported == nil {
			continue // the report is older or newer than the node: the next picture has it
		}
		g := drawGPU(reported, view, i, spans[node.GPUs[i].ID], known)
		g.Shares = drawShares(&obj.Status, view, i, holders, known)
		n.GPUs = append(n.GPUs, g)
	}
	for _, p := range obj.Status.Pods {
		picture := PreparationPicture{UID: p.UID, Phase: p.Phase, Reason: p.Reason}
		if o := known[p.UID]; o != nil {
			picture.Namespace, picture.Name = o.name.Namespace, o.name.Name
		}
		n.Preparations = append(n.Preparations, picture)
	}
	return n
}

// holders lists what is held on the node, as View counts it: each given pod's
// spans, then those of the ledger's other pods there.
func (l *Ledger) holders(node *Node, pods []*v1.Pod) []Holder {
	b := builder{node: node, opts: l.opts}
	l.mu.RLock()
	defer l.mu.RUnlock()
	var out []Holder
	seen := map[types.UID]struct{}{}
	for _, pod := range pods {
		if pod.Spec.NodeName != node.Name || !l.opts.Wants(pod) || terminal(pod) {
			continue // not on the node; its choice, if there is one, is in the ledger
		}
		seen[pod.UID] = struct{}{}
		if spans, _ := b.spansOf(l.pods, pod); len(spans) > 0 {
			h := Holder{Pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, UID: pod.UID, Node: node.Name, State: Bound, Spans: spans}
			out = append(out, h)
		}
	}
	for uid, h := range l.on(node.Name) {
		if _, ok := seen[uid]; !ok && LedgerAll.includes(h) && !b.gaveUp(h) {
			out = append(out, *h)
		}
	}
	slices.SortFunc(out, func(a, b Holder) int { return cmp.Compare(a.UID, b.UID) })
	return out
}

// terminal reports whether a pod has ended: it holds nothing, though its object is
// there. Informers of the scheduler leave such pods out.
func terminal(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}

// viewWith is the view in which exactly these holders are there.
func viewWith(node *Node, holders []Holder) *View {
	b := builder{node: node, state: node.blocked()}
	for i := range holders {
		b.add(holders[i].Spans)
	}
	return b.finish()
}

// owner is what is known of a pod on the node.
type owner struct {
	name types.NamespacedName
	uses map[device][]UsePicture
}

// device is a span, or a software share, which has neither start nor size.
type device struct {
	v1alpha1.Span
	share int32 // its id
}

func ownersOf(pods []*v1.Pod, holders []Holder) map[types.UID]*owner {
	known := make(map[types.UID]*owner, len(pods))
	for _, h := range holders {
		known[h.UID] = &owner{name: h.Pod}
	}
	for _, pod := range pods {
		known[pod.UID] = &owner{
			name: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name},
			uses: usesOf(pod),
		}
	}
	return known
}

// usesOf reads from a pod's annotation which containers have which span or share.
func usesOf(pod *v1.Pod) map[device][]UsePicture {
	text, ok := pod.Annotations[v1alpha1.AnnotationAllocation]
	if !ok {
		return nil
	}
	a, err := v1alpha1.DecodeAllocation(text)
	if err != nil || a.PodUID != pod.UID {
		return nil
	}
	uses := map[device][]UsePicture{}
	add := func(u UsePicture) {
		for i, d := range a.Containers[u.Container] {
			at := device{Span: v1alpha1.Span{GPU: d.GPU}}
			u.Device = i
			if d.MIG != nil {
				at.ProfileID, at.Start, at.Size, u.MemoryMiB = d.MIG.ProfileID, d.MIG.Start, d.MIG.Size, d.MIG.MemoryMiB
			} else {
				at.share, u.MemoryMiB = d.Share.ID, d.Share.MemoryMiB
			}
			uses[at] = append(uses[at], u)
		}
	}
	for i := range pod.Spec.Containers {
		add(UsePicture{Container: pod.Spec.Containers[i].Name, Index: i})
	}
	for _, plain := range []bool{false, true} {
		for i := range pod.Spec.InitContainers {
			if c := &pod.Spec.InitContainers[i]; plain != sidecar(c) {
				add(UsePicture{Container: c.Name, Index: len(pod.Spec.Containers) + i, Init: plain})
			}
		}
	}
	return uses
}

// heldSpan is a span with its holder.
type heldSpan struct {
	Held
	holder *Holder
}

func spansByGPU(holders []Holder) map[string][]heldSpan {
	out := map[string][]heldSpan{}
	for i := range holders {
		for _, s := range holders[i].Spans {
			if !s.IsShare() {
				out[s.GPU] = append(out[s.GPU], heldSpan{s, &holders[i]})
			}
		}
	}
	return out
}

func drawGPU(reported *v1alpha1.GPU, view *View, at int, held []heldSpan, known map[types.UID]*owner) GPUPicture {
	g := &view.Node.GPUs[at]
	model := g.Catalogue.Model()
	out := GPUPicture{
		UUID: g.ID, Index: g.Index, Model: reported.Model, MemoryMiB: reported.MemoryMiB, NUMA: reported.NUMA,
		Mode: reported.Mode, Health: reported.Health, Reason: reported.Reason, Offered: g.Offered,
		MemorySlices: model.Grid().MemorySlices, ComputeSlices: model.Grid().ComputeSlices, Rule: g.Catalogue.Rule(),
		Spans: drawSpans(reported, model, held, known), Templates: len(g.Catalogue.Templates()),
	}
	occupied := view.Occupied(at)
	if i, ok := g.Catalogue.TemplateInForce(occupied); ok {
		out.Template = &i
	}
	if g.Offered {
		out.FreeSlices = model.FreeSlices(occupied)
		out.Fragmentation = g.Catalogue.Fragmentation(occupied)
		out.Stranded = g.Catalogue.Stranded(occupied)
		if p, ok := g.Catalogue.LargestFree(occupied); ok {
			out.LargestFree, out.LargestFreeSlices = p.Name, p.Size
		}
	}
	out.Fits = drawFits(g, occupied)
	return out
}

// drawFits counts each profile of the catalogue once.
func drawFits(g *GPU, occupied geometry.Occupancy) []FitPicture {
	var fits []FitPicture
	for _, e := range g.Catalogue.Entries() {
		id := int32(e.Profile)
		if slices.ContainsFunc(fits, func(f FitPicture) bool { return f.ProfileID == id }) {
			continue
		}
		profile, _ := g.Catalogue.Model().Profile(e.Profile)
		f := FitPicture{ProfileID: id, Profile: profile.Name}
		if g.Offered {
			f.Count = g.Catalogue.Count(occupied, e.Profile)
		}
		fits = append(fits, f)
	}
	return fits
}

// drawSpans joins what pods hold with what is in hardware.
func drawSpans(reported *v1alpha1.GPU, model *geometry.Model, held []heldSpan, known map[types.UID]*owner) []SpanPicture {
	type place struct{ profile, start int32 }
	byPlace := make(map[place]int, len(held)+len(reported.Instances))
	spans := make([]SpanPicture, 0, len(held)+len(reported.Instances))
	for _, h := range held {
		at := place{int32(h.Profile), int32(h.Start)}
		s := spanOf(model, at.profile, h.Start)
		s.Size = h.Size
		s.State = stateOf(h.holder.State)
		owner := known[h.holder.UID].picture(&h.Held, h.holder.UID)
		s.Owner = &owner
		byPlace[at] = len(spans)
		spans = append(spans, s)
	}
	for _, inst := range reported.Instances {
		at := place{inst.ProfileID, inst.Start}
		i, ok := byPlace[at]
		if !ok {
			i = len(spans)
			spans = append(spans, spanOf(model, inst.ProfileID, int(inst.Start)))
			spans[i].State = stateWithoutHolder(inst.State)
			if inst.PodUID != "" {
				spans[i].Owner = &OwnerPicture{UID: inst.PodUID}
				if o := known[inst.PodUID]; o != nil {
					spans[i].Owner.Namespace, spans[i].Owner.Name = o.name.Namespace, o.name.Name
				}
			}
		} else if s := &spans[i]; inst.State == v1alpha1.InstanceLive && s.Owner.UID == inst.PodUID {
			s.State = SpanUsed
		}
		spans[i].Live, spans[i].GI, spans[i].CI, spans[i].UUID = true, inst.GI, inst.CI, inst.UUID
	}
	slices.SortStableFunc(spans, func(a, b SpanPicture) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.ProfileID, b.ProfileID))
	})
	ordinals := map[int32]int{}
	for i := range spans {
		spans[i].Ordinal = ordinals[spans[i].ProfileID]
		ordinals[spans[i].ProfileID]++
	}
	return spans
}

// spanOf is a placement of a model. An instance of a profile that the model does
// not list is drawn as one slice.
func spanOf(model *geometry.Model, id int32, start int) SpanPicture {
	s := SpanPicture{ProfileID: id, Start: start, Size: 1, Profile: "unknown"}
	if p, ok := model.Profile(geometry.ProfileID(id)); ok {
		s.Profile, s.Size, s.Compute, s.MemoryMiB = p.Name, p.Size, p.ComputeSlices, p.MemoryMiB
	}
	return s
}

func stateOf(s State) SpanState {
	switch s {
	case Assumed:
		return SpanAssumed
	case Published:
		return SpanPublished
	default:
		return SpanPreparing
	}
}

func stateWithoutHolder(s v1alpha1.InstanceState) SpanState {
	switch s {
	case v1alpha1.InstanceLive:
		return SpanLeaving
	case v1alpha1.InstanceForeign:
		return SpanForeign
	case v1alpha1.InstanceStuck:
		return SpanStuck
	default:
		return SpanIdle
	}
}

func (o *owner) picture(held *Held, uid types.UID) OwnerPicture {
	at := device{Span: v1alpha1.Span{GPU: held.GPU}}
	if held.IsShare() {
		at.share = held.Share.ID
	} else {
		at.ProfileID, at.Start, at.Size = int32(held.Profile), int32(held.Start), int32(held.Size)
	}
	return OwnerPicture{Namespace: o.name.Namespace, Name: o.name.Name, UID: uid, Uses: o.uses[at]}
}
