// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Fleet is the cluster at one moment, for questions that change nothing: what would
// fit (Try), why a pod waits and what would help (Advise), why it is where it is
// (Why). The answers come from the same Parse, View and Fit as the decisions.
// Immutable, so that questions may be asked in parallel.
//
// It sees GPUs only. What else keeps a pod off a node (taints, selectors, memory)
// is said by whoever asks: see Barred.
type Fleet struct {
	opts  Options
	pool  *Pool   // of the nodes, for Possible; its ledger is empty
	sites []*site // by name
	uid   map[types.UID]*Tenant
}

// site is a node of a fleet.
type site struct {
	node     *Node
	tenants  []*Tenant // by UID
	nominees []*v1.Pod
}

// Tenant is a pod that holds devices on a node.
type Tenant struct {
	Holder
	Priority   int32
	Created    time.Time
	Ending     bool   // deleted, and not gone yet
	Controller string // kind/name of what would make it again; empty for a bare pod

	pod *v1.Pod // nil for a choice whose pod is not seen yet
}

// Barred says why a pod may not go to a node whatever its GPUs hold, given how many
// more like it are there in thought; empty where it may. Counted: no more than kubelet's
// count of devices bars it, which full GPUs tell better. Nil bars nothing.
type Barred func(node string, more int) (why string, counted bool)

func (b Barred) on(node string, more int) (why string, counted bool) {
	if b == nil {
		return "", false
	}
	return b(node, more)
}

// open reports whether the pod may go there.
func (b Barred) open(node string, more int) bool {
	why, _ := b.on(node, more)
	return why == ""
}

// beside is Barred where some more are there already, by node.
func (b Barred) beside(more map[string]int) Barred {
	return func(node string, n int) (string, bool) { return b.on(node, more[node]+n) }
}

// Gate is Barred for any pod. Nil bars nothing.
type Gate func(pod *v1.Pod) Barred

func (g Gate) of(pod *v1.Pod) Barred {
	if g == nil {
		return nil
	}
	return g(pod)
}

// NewFleet is the cluster without any scheduler's ledger, as a client sees it.
// problems are the GPUNodes that cannot be read, by name; their nodes offer nothing.
func NewFleet(nodes []*v1alpha1.GPUNode, pods []*v1.Pod, opts Options) (f *Fleet, problems map[string]error) {
	p := New(opts)
	problems = map[string]error{}
	for _, obj := range nodes {
		if err := p.Update(obj); err != nil {
			problems[obj.Name] = err
		}
	}
	if len(opts.Expected) > 0 { // else all profiles are alike, as without prices
		p.price()
	}
	return p.fleet(pods), problems
}

// fleet is the pool's nodes with the pods that are bound or nominated to them.
func (p *Pool) fleet(pods []*v1.Pod) *Fleet {
	f := &Fleet{opts: p.options(), pool: p, uid: map[types.UID]*Tenant{}}
	bound, nominated := map[string][]*v1.Pod{}, map[string][]*v1.Pod{}
	for _, pod := range pods {
		switch {
		case !p.Wants(pod) || pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed:
		case pod.Spec.NodeName != "":
			bound[pod.Spec.NodeName] = append(bound[pod.Spec.NodeName], pod)
		case pod.Status.NominatedNodeName != "":
			nominated[pod.Status.NominatedNodeName] = append(nominated[pod.Status.NominatedNodeName], pod)
		}
	}
	for _, node := range p.Nodes() {
		s := &site{node: node, tenants: p.tenants(node, bound[node.Name]), nominees: nominated[node.Name]}
		f.sites = append(f.sites, s)
		for _, t := range s.tenants {
			f.uid[t.UID] = t
		}
	}
	slices.SortFunc(f.sites, func(a, b *site) int { return cmp.Compare(a.node.Name, b.node.Name) })
	return f
}

// tenants lists who holds devices on a node, as View counts it.
func (l *Ledger) tenants(node *Node, pods []*v1.Pod) []*Tenant {
	b := builder{node: node, opts: l.opts}
	l.mu.RLock()
	defer l.mu.RUnlock()
	var out []*Tenant
	seen := map[types.UID]struct{}{}
	for _, pod := range pods {
		seen[pod.UID] = struct{}{}
		spans, _ := b.spansOf(l.pods, pod)
		if len(spans) == 0 {
			continue
		}
		t := &Tenant{
			Holder: Holder{
				Pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, UID: pod.UID,
				Node: node.Name, State: Bound, Spans: spans,
			},
			pod: pod, Priority: priority(pod), Created: pod.CreationTimestamp.Time, Ending: pod.DeletionTimestamp != nil,
		}
		if c := metav1.GetControllerOf(pod); c != nil {
			t.Controller = c.Kind + "/" + c.Name
		}
		out = append(out, t)
	}
	for uid, h := range l.on(node.Name) {
		if _, ok := seen[uid]; !ok && LedgerAll.includes(h) && !b.gaveUp(h) {
			out = append(out, &Tenant{Holder: *h})
		}
	}
	slices.SortFunc(out, func(a, b *Tenant) int { return cmp.Compare(a.UID, b.UID) })
	return out
}

// asker is the pod that a question is about: nominated pods of its priority or a
// higher one come before it, itself apart.
type asker struct {
	priority int32
	uid      types.UID
}

func askerOf(pod *v1.Pod) asker { return asker{priority(pod), pod.UID} }

// anybody has nothing to fear from nominated pods.
var anybody = asker{priority: math.MaxInt32}

// view is what a pod would find: everything that tenants hold but those left out, and
// what pods nominated here may count on.
func (f *Fleet) view(s *site, who asker, without func(*Tenant) bool) *View {
	b := builder{node: s.node, state: s.node.blocked(), opts: f.opts}
	for _, t := range s.tenants {
		switch {
		case without != nil && without(t):
		case t.Ending: // a nominated pod may count on its place
			b.holders = append(b.holders, placedPod{priority: t.Priority, spans: t.Spans})
		default:
			b.add(t.Spans)
		}
	}
	for _, n := range s.nominees {
		if priority(n) >= who.priority && n.UID != who.uid {
			b.nominees = append(b.nominees, n)
		}
	}
	return b.finish()
}

// with is the view once the plan is carried out.
func (v *View) with(p Plan) *View {
	b := builder{node: v.Node, state: v.state()}
	for i, d := range p.Devices {
		b.add([]Held{v.held(i, d)})
	}
	out := *v
	out.hold(b.state)
	return &out
}

// Spot is one device of a plan or allocation, as plain values.
type Spot struct {
	v1alpha1.Device
	GPUIndex int32 `json:"gpuIndex"`
	Exact    bool  `json:"exact"`              // nothing smaller in the catalogue would be enough
	Template *int  `json:"template,omitempty"` // that it is of, from 0 in file order

	// Score of the placement, in memory slices, lower is better (geometry.Choice);
	// absent for software shares.
	Score *float64 `json:"score,omitempty"`
}

// spots describes a plan.
func (v *View) spots(p Plan) []Spot {
	out := make([]Spot, len(p.Devices))
	for i, d := range p.Devices {
		out[i] = v.spot(i, d)
	}
	return out
}

func (v *View) spot(position int, d Assigned) Spot {
	s := Spot{Device: v.device(position, d), GPUIndex: v.Node.GPUs[d.GPU].Index, Exact: d.Exact || d.IsShare()}
	if s.MIG == nil {
		return s
	}
	score := float64(d.Score) / geometry.ScoreScale
	s.Score = &score
	if d.Template >= 0 {
		s.Template = &d.Template
	}
	return s
}

// Trial is what would happen to one replica.
type Trial struct {
	Node  string `json:"node,omitempty"` // empty: it would wait
	Spots []Spot `json:"devices,omitempty"`

	// Containers is what the annotation would say.
	Containers map[string][]v1alpha1.Device `json:"-"`
}

// Trials are what would happen to all.
type Trials struct {
	Request string   `json:"request"` // in words
	Placed  []Trial  `json:"placed"`  // one after the other
	Waiting int      `json:"waiting"` // how many would not fit
	Reasons []Reason `json:"reasons,omitempty"`

	// Modes is what the next one would find in the other mode.
	Modes *OtherModes `json:"modes,omitempty"`

	// More is how many GPUs would be needed for those that wait, by model.
	More []MoreGPUs `json:"more,omitempty"`

	// After is the fleet with all that fit in place.
	After *Fleet `json:"-"`
}

// Try places replicas of a pod one after the other, each on the node with the best
// plan; of equal ones the first by name, where kube-scheduler asks its other
// plugins. It stops at the first that does not fit, since the others are like it.
// The error is an *InvalidError, or says that no GPU could ever do.
func (f *Fleet) Try(pod *v1.Pod, replicas int, barred Barred) (*Trials, error) {
	r, err := f.request(pod)
	if err != nil {
		return nil, err
	}
	t := &Trials{Request: describeAll(r), Placed: []Trial{}}
	prospects := make([]prospect, len(f.sites))
	for i, s := range f.sites {
		prospects[i] = prospectOf(f.view(s, askerOf(pod), nil), r, barred, 0)
	}
	more := map[string]int{}
	added := map[string][]*Tenant{}
	for len(t.Placed) < replicas {
		best := bestOf(prospects)
		if best < 0 {
			break
		}
		p := &prospects[best]
		name := p.view.Node.Name
		t.Placed = append(t.Placed, p.trial(r))
		replica := *r
		replica.UID = types.UID(fmt.Sprintf("replica-%d", len(t.Placed)))
		added[name] = append(added[name], &Tenant{Holder: p.view.Holder(&replica, p.plan), Priority: priority(pod)})
		more[name]++
		*p = prospectOf(p.view.with(p.plan), r, barred, more[name])
	}
	t.After = f.with(added)
	if t.Waiting = replicas - len(t.Placed); t.Waiting > 0 {
		t.Reasons = reasonsOf(prospects)
		t.Modes = t.After.otherModes(pod, r, barred.beside(more))
		t.More = t.After.more(r, t.Waiting, barred.beside(more))
	}
	return t, nil
}

// Describe says in words what a request asks for: "2 x 8000 MiB".
func (r *Request) Describe() string { return describeAll(r) }

// request parses a pod and asks whether any GPU could ever do.
func (f *Fleet) request(pod *v1.Pod) (*Request, error) {
	r, err := f.pool.Parse(pod)
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, invalid("the pod asks for no GPU; add the limit %s: 1 to a container", f.opts.Resources().Count)
	}
	if err := f.pool.Possible(r); err != nil {
		return nil, err
	}
	return r, nil
}

// with is the fleet with more tenants.
func (f *Fleet) with(added map[string][]*Tenant) *Fleet {
	out := &Fleet{opts: f.opts, pool: f.pool, uid: maps.Clone(f.uid)}
	for _, s := range f.sites {
		if more := added[s.node.Name]; len(more) > 0 {
			next := *s
			next.tenants = slices.Concat(s.tenants, more)
			s = &next
			for _, t := range more {
				out.uid[t.UID] = t
			}
		}
		out.sites = append(out.sites, s)
	}
	return out
}

// prospect is what one node could do for a request.
type prospect struct {
	view    *View
	plan    Plan
	verdict *Verdict // nil: it fits
	barred  string   // not empty: it may not go there
	modes   mode     // that it may have there
}

// prospectOf is that of a node where so many more of the pod are in thought.
func prospectOf(v *View, r *Request, barred Barred, more int) prospect {
	p := prospect{view: v, modes: v.considered(r)}
	p.plan, p.verdict = v.Fit(r)
	if why, counted := barred.on(v.Node.Name, more); !counted || p.verdict == nil {
		p.barred = why
	}
	return p
}

// trial describes a prospect that fits.
func (p *prospect) trial(r *Request) Trial {
	return Trial{Node: p.view.Node.Name, Spots: p.view.spots(p.plan), Containers: p.view.Allocation(r, p.plan).Containers}
}

// bestOf is the index of the best that fits; -1 when none does. Ties go to the
// first.
func bestOf(prospects []prospect) int {
	best := -1
	for i := range prospects {
		p := &prospects[i]
		if p.barred == "" && p.verdict == nil && (best < 0 || p.plan.Score < prospects[best].plan.Score) {
			best = i
		}
	}
	return best
}
