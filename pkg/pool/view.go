// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"iter"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// View is what is taken and free on one node at one moment. Immutable, so that
// any number of decisions may read it in parallel.
type View struct {
	Node *Node

	key      Key // of a cached one, with revision
	revision uint64

	cut  []geometry.State  // by position in Node.GPUs, what is taken as a state for instances: see stateOf
	idle int64             // see countIdle
	few  [8]geometry.State // cut, where there are no more: beside it, as in Node

	// replaced is set when the report is not of the Node object asked for.
	replaced bool

	// contested is set when a nominated pod found no room: whoever is under test
	// must yield to it.
	contested bool

	// regardless of what is avoided: the view answers what is possible, not what is
	// to be chosen now.
	regardless bool

	occupied []geometry.Occupancy // by position in Node.GPUs
	taken    []Taken              // likewise, by software shares
}

// Scope says what counts besides the pods given.
type Scope struct {
	Ledger LedgerScope
	Except types.UID // left out: the pod under test, or one that is gone
}

// LedgerScope says which ledger entries of the node count although their pods are
// not among those given.
type LedgerScope int

// Scopes.
const (
	LedgerOff     LedgerScope = iota // none: a NodeInfo in Filter is complete
	LedgerUnbound                    // choices of this scheduler that a snapshot may not show yet
	LedgerAll                        // all but simulated ones: outside the scheduling cycle
)

func (s LedgerScope) includes(h *Holder) bool {
	switch s {
	case LedgerUnbound:
		return h.State != Bound && !h.Simulated
	case LedgerAll:
		return !h.Simulated
	default:
		return false
	}
}

// View builds the view of a node from the pods on it, the ledger and the Node. Of a
// pod that is given twice the first counts. Each pod is one of four kinds, in this order: in the ledger for this node;
// hypothetical (no nodeName), placed virtually after all others; bound with a
// valid annotation; or without any, holding slots but no spans.
func (l *Ledger) View(node *Node, pods iter.Seq[*v1.Pod], scope Scope, opts Options) *View {
	b := builder{node: node, state: node.blocked(), opts: opts}
	// The caller's iterator may take locks, such as the scheduling queue's, whose
	// holders wait for this one: nothing foreign runs under it.
	var there []*v1.Pod
	for pod := range pods {
		if pod.UID != scope.Except {
			there = append(there, pod)
		}
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	seen := b.addPods(l.pods, there)
	for uid, h := range l.on(node.Name) {
		if _, ok := seen[uid]; !ok && uid != scope.Except && scope.Ledger.includes(h) && !b.gaveUp(h) {
			b.add(h.Spans)
		}
	}
	return b.finish()
}

// builder collects a view.
type builder struct {
	node *Node
	opts Options
	state
	holders  []placedPod // not in state yet, since hypothetical pods may displace them
	nominees []*v1.Pod
}

// placedPod is a pod with spans.
type placedPod struct {
	priority int32
	ending   bool
	spans    []Held
}

// addPods adds the node's pods and returns their UIDs.
func (b *builder) addPods(ledger map[types.UID]*Holder, pods []*v1.Pod) map[types.UID]struct{} {
	seen := make(map[types.UID]struct{}, len(pods))
	unbound := slices.ContainsFunc(pods, func(pod *v1.Pod) bool { return pod.Spec.NodeName == "" })
	for _, pod := range pods {
		if _, twice := seen[pod.UID]; twice || ledger[pod.UID] == nil && !b.opts.Wants(pod) {
			continue
		}
		seen[pod.UID] = struct{}{}
		spans, hypothetical := b.spansOf(ledger, pod)
		if hypothetical {
			b.nominees = append(b.nominees, pod)
			continue
		}
		if unbound {
			b.holders = append(b.holders, placedPod{priority: priority(pod), ending: pod.DeletionTimestamp != nil, spans: spans})
			continue
		}
		b.add(spans)
	}
	return seen
}

// spansOf is what a pod holds on this node; hypothetical when it is not there.
func (b *builder) spansOf(ledger map[types.UID]*Holder, pod *v1.Pod) (spans []Held, hypothetical bool) {
	if h, ok := ledger[pod.UID]; ok && h.Node == b.node.Name {
		if b.gaveUp(h) {
			return nil, false
		}
		return h.Spans, false
	}
	if pod.Spec.NodeName == "" {
		return nil, true
	}
	h, ok := b.opts.HolderOf(pod)
	if !ok || h.Node != b.node.Name || b.node.Refused(pod.UID) {
		return nil, false
	}
	return h.Spans, false
}

// gaveUp reports whether the node's agent has refused a bound pod (I5).
func (b *builder) gaveUp(h *Holder) bool {
	return h.State == Bound && b.node.Refused(h.UID)
}

// add takes spans. One that the catalogue does not allow, or that overlaps, still
// takes its slices.
func (b *builder) add(spans []Held) {
	for _, s := range spans {
		i, ok := b.node.index[s.GPU]
		if !ok {
			continue // the GPU is gone, and its slices with it
		}
		if s.IsShare() {
			b.taken[i] = b.taken[i].With(s.Share)
			continue
		}
		model := b.node.GPUs[i].Catalogue.Model()
		next, err := model.Occupy(b.occupied[i], s.Placed)
		if err != nil {
			next = model.Block(b.occupied[i], geometry.Placement{Start: s.Start, Size: s.Size})
		}
		b.occupied[i] = next
	}
}

// finish places the hypothetical pods, the most important first, and then adds the pods
// whose spans they may count on.
func (b *builder) finish() *View {
	v := &View{Node: b.node}
	slices.SortStableFunc(b.nominees, func(x, y *v1.Pod) int {
		return cmp.Or(cmp.Compare(priority(y), priority(x)), cmp.Compare(x.UID, y.UID))
	})
	for _, pod := range b.nominees {
		if !b.placeNominee(pod) {
			v.contested = true
			break
		}
	}
	for _, h := range b.holders {
		b.add(h.spans)
	}
	v.hold(b.state)
	return v
}

// placeNominee places one hypothetical pod beside everything; failing that, where
// ending pods of lower priority (its victims) still are; failing that, where any pods of
// lower priority are, because a pod is nominated before its victims are marked.
func (b *builder) placeNominee(pod *v1.Pod) bool {
	r, err := Parse(pod, b.opts)
	if err != nil || r == nil {
		return true // it can never run here; it takes nothing
	}
	lower := func(h placedPod) bool { return h.priority < priority(pod) }
	for _, spared := range []func(placedPod) bool{
		func(placedPod) bool { return false },
		func(h placedPod) bool { return h.ending && lower(h) },
		lower,
	} {
		beside := builder{node: b.node, state: b.clone()}
		for _, h := range b.holders {
			if !spared(h) {
				beside.add(h.spans)
			}
		}
		v := newView(b.node, beside.state)
		if plan, verdict := v.find(r); verdict == nil {
			b.add(v.Holder(r, plan).Spans)
			return true
		}
	}
	return false
}

func priority(pod *v1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// Occupied is the occupancy of the GPU at a position of Node.GPUs.
func (v *View) Occupied(gpu int) geometry.Occupancy { return v.occupied[gpu] }

// newView is a view of what is taken.
func newView(node *Node, s state) *View {
	v := &View{Node: node}
	v.hold(s)
	return v
}

// hold sets what is taken, while the view is built.
func (v *View) hold(s state) {
	v.occupied, v.taken, v.cut = s.occupied, s.taken, v.few[:0]
	for i := range s.occupied {
		v.cut = append(v.cut, v.Node.stateOf(i, &s))
	}
	v.idle = v.countIdle()
}

// stateOf is the state of a GPU for instances: Closed where it takes none.
func (n *Node) stateOf(gpu int, s *state) geometry.State {
	if !s.cuttable(n, gpu) {
		return geometry.Closed
	}
	return n.GPUs[gpu].Catalogue.State(s.occupied[gpu])
}

// blocked is what others have taken.
func (n *Node) blocked() state {
	s := n.nothing()
	for i := range n.GPUs {
		s.occupied[i] = n.GPUs[i].blocked
	}
	return s
}

func (n *Node) nothing() state {
	return state{occupied: make([]geometry.Occupancy, len(n.GPUs)), taken: make([]Taken, len(n.GPUs))}
}

// regardless is a view that answers what is possible.
func regardless(n *Node, s state) *View {
	v := newView(n, s)
	v.regardless = true
	return v
}
