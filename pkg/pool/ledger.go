// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"sync"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Held is one device of a Holder: a span, or a software share.
type Held struct {
	GPU string // UUID
	geometry.Placed
	Size  int            // memory slices; 0 for a share
	Share v1alpha1.Share // zero for a span
}

// IsShare tells a software share from a span.
func (h Held) IsShare() bool { return h.Share.MemoryMiB > 0 }

// State of a Holder.
//
//	         Assume              Publish              Bound
//	(none) ----------> assumed ----------> published -------> bound
//	   ^                  |                    |                |
//	   +---- Forget ------+--------------------+----------------+
type State int

// States of a Holder.
const (
	Assumed   State = iota // chosen by this scheduler, nothing written
	Published              // annotation written, not yet bound
	Bound                  // seen bound
)

// Holder is what one pod holds on one node. Immutable once in a Ledger.
type Holder struct {
	Pod   types.NamespacedName
	UID   types.UID
	Node  string
	State State
	Spans []Held

	// Simulated holders exist only inside a PodGroup cycle; nobody outside the
	// scheduling of that group may see them.
	Simulated bool
}

// HolderOf is the Holder that a bound pod's own annotation describes; ok is false
// when it has none that is valid for this pod and node.
func (o Options) HolderOf(pod *v1.Pod) (h Holder, ok bool) {
	text, found := pod.Annotations[v1alpha1.AnnotationAllocation]
	if !found || pod.Spec.NodeName == "" {
		return Holder{}, false
	}
	a, err := v1alpha1.DecodeAllocation(text)
	if err != nil || a.OwnsCounted(pod, pod.Spec.NodeName, o.Resources().Count) != nil {
		return Holder{}, false
	}
	return Holder{
		Pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, UID: pod.UID,
		Node: a.Node, State: Bound, Spans: spansOf(&a),
	}, true
}

func spansOf(a *v1alpha1.Allocation) []Held {
	spans := a.Spans()
	held := make([]Held, len(spans))
	for i, s := range spans {
		held[i] = Held{
			GPU:    s.GPU,
			Placed: geometry.Placed{Profile: geometry.ProfileID(s.ProfileID), Start: int(s.Start)},
			Size:   int(s.Size),
		}
	}
	for _, d := range a.Shares() {
		held = append(held, Held{GPU: d.GPU, Share: *d.Share})
	}
	return held
}

// Ledger knows what each pod holds, from the moment it is chosen until the pod is
// gone. It is rebuilt from pods alone, so any replica has the same. Safe for
// parallel use.
//
// A bound pod stays in it: kube-scheduler's cached copy of an assumed pod lacks
// the annotation until the scheduler's own handler has seen the pod bound, which
// may be after ours has.
type Ledger struct {
	opts Options // how pods are read; never changed

	mu      sync.RWMutex // guards what follows
	pods    map[types.UID]*Holder
	nodes   map[string]*shelf // where pods hold something, or that are kept
	changes uint64            // of all nodes: the last revision of any
}

// shelf is what a ledger has for one node, and the Pool beside it: what a look at a
// node needs stands together.
type shelf struct {
	holders  map[types.UID]*Holder // guarded by Ledger.mu
	kept     bool                  // likewise: also without holders
	revision atomic.Uint64         // see change

	// What follows is the Pool's. Views are the two newest: nominated pods make
	// kube-scheduler ask for each node twice, with them and without.
	object atomic.Pointer[v1.Node] // that was asked for last; see roll
	node   atomic.Pointer[Node]    // nil while the pool has none
	views  [2]atomic.Pointer[View]
	next   atomic.Uint32 // counts the views that were built

	report atomic.Pointer[Node] // node without what is avoided
}

// clear empties what the Pool has of a node.
func (s *shelf) clear() {
	s.node.Store(nil)
	s.report.Store(nil)
	s.object.Store(nil)
	for i := range s.views {
		s.views[i].Store(nil)
	}
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{
		pods:  map[types.UID]*Holder{},
		nodes: map[string]*shelf{},
	}
}

// Assume records a choice. An earlier one of the same pod is replaced.
func (l *Ledger) Assume(h Holder) {
	h.State = Assumed
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(&h)
}

// Publish notes that the pod's annotation is written. It does nothing when the
// ledger does not hold the pod. What the pod holds stays, and so does the revision.
func (l *Ledger) Publish(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.pods[uid]; ok && old.State == Assumed {
		h := *old
		h.State = Published
		l.pods[uid], l.nodes[h.Node].holders[uid] = &h, &h
	}
}

// Bound records what a pod seen bound holds. It returns false, and changes
// nothing, when the ledger has the same already.
func (l *Ledger) Bound(h Holder) bool {
	h.State = Bound
	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.pods[h.UID]; ok && old.State == Bound && old.Node == h.Node {
		return false
	}
	l.put(&h)
	return true
}

// Forget drops a pod; idempotent.
func (l *Ledger) Forget(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(uid)
}

// ForgetUnbound drops a pod unless it was seen bound; idempotent.
func (l *Ledger) ForgetUnbound(uid types.UID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h, ok := l.pods[uid]; ok && h.State != Bound {
		l.drop(uid)
	}
}

// Holder returns what a pod holds.
func (l *Ledger) Holder(uid types.UID) (Holder, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	h, ok := l.pods[uid]
	if !ok {
		return Holder{}, false
	}
	return *h, true
}

// IsBound reports whether the pod was seen bound to the node.
func (l *Ledger) IsBound(uid types.UID, node string) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	h, ok := l.pods[uid]
	return ok && h.State == Bound && h.Node == node
}

// Revision of a node: it grows with each change of what the ledger holds there.
func (l *Ledger) Revision(node string) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s := l.nodes[node]; s != nil {
		return s.revision.Load()
	}
	return l.changes // no less than what it was
}

// keep returns the shelf of a node, which stays until it is released.
func (l *Ledger) keep(node string) *shelf {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.make(node)
	s.kept = true
	return s
}

// release lets the shelf of a node go with the last holder; idempotent.
func (l *Ledger) release(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.nodes[node]; s != nil {
		s.kept = false
		l.tidy(node, s)
	}
}

// tidy drops a shelf that nobody needs, for those that hold the lock.
func (l *Ledger) tidy(node string, s *shelf) {
	if !s.kept && len(s.holders) == 0 {
		delete(l.nodes, node)
	}
}

// change gives a shelf a revision that none has had, for those that hold the lock: one
// that is made anew must not begin anew.
func (l *Ledger) change(s *shelf) {
	l.changes++
	s.revision.Store(l.changes)
}

// make finds or makes a shelf, for those that hold the lock.
func (l *Ledger) make(node string) *shelf {
	s := l.nodes[node]
	if s == nil {
		s = &shelf{holders: map[types.UID]*Holder{}}
		l.nodes[node] = s
		l.change(s)
	}
	return s
}

// on is what pods hold on a node, for those that hold the lock.
func (l *Ledger) on(node string) map[types.UID]*Holder {
	if s := l.nodes[node]; s != nil {
		return s.holders
	}
	return nil
}

func (l *Ledger) put(h *Holder) {
	l.drop(h.UID)
	l.pods[h.UID] = h
	s := l.make(h.Node)
	s.holders[h.UID] = h
	l.change(s)
}

// outdate makes every view of before older than the ledger.
func (l *Ledger) outdate() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.nodes {
		l.change(s)
	}
}

func (l *Ledger) drop(uid types.UID) {
	old, ok := l.pods[uid]
	if !ok {
		return
	}
	delete(l.pods, uid)
	s := l.nodes[old.Node]
	delete(s.holders, uid)
	l.change(s)
	l.tidy(old.Node, s)
}
