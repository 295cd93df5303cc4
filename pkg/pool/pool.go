// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Pool is the cluster's GPU nodes, what pods hold on them, and the views last
// built. Safe for parallel use.
type Pool struct {
	*Ledger

	opts       Options // never changed; for Defaults see options
	defaults   atomic.Pointer[v1alpha1.RequestDefaults]
	catalogues Catalogues
	prices     *pricing

	// reading is a roll of nodes; nil after a change.
	reading atomic.Pointer[roll]

	mu      sync.RWMutex // guards what follows
	nodes   map[string]*shelf
	broken  map[string]error               // GPUNodes that cannot be read
	avoided map[string][]*Holder           // by node: see Avoid
	models  map[*geometry.Catalogue]int    // GPUs offered, by catalogue
	shares  map[v1alpha1.ShareCapacity]int // GPUs offered to shares, by capacity
	sizes   map[size]int                   // nodes, by what they can hold
}

// Key names the content of a NodeInfo. Its generation alone does not: PodGroup
// cycles keep it while pods change (kubernetes pkg/scheduler/backend/cache/
// snapshot.go:592-600, 663-671).
type Key struct {
	Generation int64
	Pods       int
}

// New returns an empty pool.
func New(opts Options) *Pool {
	ledger := NewLedger()
	ledger.opts = opts
	p := &Pool{
		Ledger:  ledger,
		opts:    opts,
		prices:  newPricing(opts),
		nodes:   map[string]*shelf{},
		broken:  map[string]error{},
		avoided: map[string][]*Holder{},
		models:  map[*geometry.Catalogue]int{},
		shares:  map[v1alpha1.ShareCapacity]int{},
		sizes:   map[size]int{},
	}
	p.defaults.Store(&opts.Defaults)
	return p
}

// SetDefaults changes what requests mean that leave amounts open. What pods hold
// stays. The views of nominated pods, which are requests, are built anew.
func (p *Pool) SetDefaults(d v1alpha1.RequestDefaults) {
	p.defaults.Store(&d)
	p.outdate()
}

// options are those in force.
func (p *Pool) options() Options {
	o := p.opts
	o.Defaults = *p.defaults.Load()
	return o
}

// Wants reports whether a pod asks for any of our resources under the pool's
// options.
func (p *Pool) Wants(pod *v1.Pod) bool { return p.opts.Wants(pod) }

// Waits is Options.Waits under the pool's options.
func (p *Pool) Waits(pod *v1.Pod) bool { return p.opts.Waits(pod) }

// HolderOf is what a bound pod's own annotation says under the pool's options.
func (p *Pool) HolderOf(pod *v1.Pod) (Holder, bool) { return p.opts.HolderOf(pod) }

// Names are the resources that requests are made of under the pool's options.
func (p *Pool) Names() v1alpha1.Resources { return p.opts.Resources() }

// Parse reads a pod's request under the pool's options. The prices of the moment
// hold for it from then on.
func (p *Pool) Parse(pod *v1.Pod) (*Request, error) {
	r, err := Parse(pod, p.options())
	if r != nil {
		r.prices = p.prices.now.Load()
	}
	return r, err
}

// Update takes a GPUNode's newest report. The error says what is wrong with it;
// the node offers nothing then. What was avoided on an earlier node of the same name
// is forgotten; what pods hold there stays, since they may go on as they are when
// a Node object is only registered again.
func (p *Pool) Update(obj *v1alpha1.GPUNode) error {
	node, err := NodeOf(obj, &p.catalogues)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.nodes[obj.Name]; ok && s.report.Load().UID != obj.Status.NodeUID {
		delete(p.avoided, obj.Name)
	}
	if err != nil {
		p.remove(obj.Name)
		p.broken[obj.Name] = err
		return err
	}
	delete(p.broken, obj.Name)
	p.put(node)
	return nil
}

// put adds a node, or its newest report.
func (p *Pool) put(node *Node) {
	p.count(node, 1) // before the old report goes: no catalogue is without GPUs between the two
	s, known := p.nodes[node.Name]
	if known {
		p.count(s.report.Load(), -1)
	} else {
		s = p.keep(node.Name)
	}
	s.report.Store(node)
	s.node.Store(node.avoiding(p.avoided[node.Name]))
	if !known {
		p.nodes[node.Name] = s
		p.reading.Store(nil)
	}
}

// Avoid keeps h's placements out of new choices until again is called. A node's
// agent has refused them, so something stands there that no report shows yet.
func (p *Pool) Avoid(h Holder) (again func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.avoided[h.Node] = append(p.avoided[h.Node], &h)
	p.applyAvoided(h.Node)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		left := slices.DeleteFunc(p.avoided[h.Node], func(other *Holder) bool { return other == &h })
		if p.avoided[h.Node] = left; len(left) == 0 {
			delete(p.avoided, h.Node)
		}
		p.applyAvoided(h.Node)
	}
}

// applyAvoided replaces a node after a change of avoided. Its views go with it.
func (p *Pool) applyAvoided(name string) {
	if s, ok := p.nodes[name]; ok {
		s.node.Store(s.report.Load().avoiding(p.avoided[name]))
	}
}

// Remove drops a node and what is avoided there; idempotent.
func (p *Pool) Remove(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.avoided, name)
	p.remove(name)
}

func (p *Pool) remove(name string) {
	delete(p.broken, name)
	if s, ok := p.nodes[name]; ok {
		delete(p.nodes, name)
		p.reading.Store(nil)
		p.count(s.report.Load(), -1)
		s.clear()
		p.release(name)
	}
}

// count keeps the figures that Possible needs, and the catalogues in use.
func (p *Pool) count(node *Node, by int) {
	for _, run := range node.runs {
		p.catalogues.use(run.catalogue, by)
	}
	for i := range node.GPUs {
		if shares := node.GPUs[i].Shares; shares != nil {
			if p.shares[*shares] += by; p.shares[*shares] == 0 {
				delete(p.shares, *shares)
			}
		}
		if !node.GPUs[i].Offered {
			continue
		}
		c := node.GPUs[i].Catalogue
		if p.models[c] == 0 {
			p.prices.outdate()
		}
		if p.models[c] += by; p.models[c] == 0 {
			delete(p.models, c)
		}
	}
	of := size{node.Devices(), node.WholeGPUs()}
	if p.sizes[of] += by; p.sizes[of] == 0 {
		delete(p.sizes, of)
	}
}

// size is what a node can hold at once.
type size struct{ devices, gpus int }

// largest is the most devices, and the most whole GPUs, that any node can hold.
func (p *Pool) largest() (most size) {
	for s := range p.sizes {
		most.devices, most.gpus = max(most.devices, s.devices), max(most.gpus, s.gpus)
	}
	return most
}

// Node returns a node; nil when there is none. The error tells why a GPUNode that
// exists cannot be used.
func (p *Pool) Node(name string) (*Node, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if s, ok := p.nodes[name]; ok {
		return s.node.Load(), nil
	}
	return nil, p.broken[name]
}

// Nodes lists the usable nodes in no order.
func (p *Pool) Nodes() []*Node {
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := make([]*Node, 0, len(p.nodes))
	for _, s := range p.nodes {
		out = append(out, s.node.Load())
	}
	return out
}

// CachedView is View for the content of a NodeInfo of this Node object: built once
// for each key and ledger revision. Nil when the node is not in the pool. Its cost
// counts: Filter and Score ask for each node, of each pod.
func (p *Pool) CachedView(of *v1.Node, key Key, pods iter.Seq[*v1.Pod]) *View {
	s := p.roll().find(of)
	if s == nil {
		return nil
	}
	node, revision := s.node.Load(), s.revision.Load()
	if node == nil {
		return nil // it went a moment ago
	}
	for i := range s.views {
		if kept := s.views[i].Load(); kept != nil && kept.key == key && kept.revision == revision && kept.Node == node {
			return kept
		}
	}
	// A change of the ledger between reading the revision and building makes the
	// view newer than its name: it is then built again for the newer one.
	view := p.View(node, pods, Scope{}, p.options())
	view.replaced = !node.Describes(of)
	view.key, view.revision = key, revision
	s.views[s.next.Add(1)%2].Store(view)
	return view
}

// roll lists the nodes, for reading.
func (p *Pool) roll() *roll {
	if kept := p.reading.Load(); kept != nil {
		return kept
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	made := newRoll(p.nodes)
	p.reading.Store(made) // no writer is between its change and its nil
	return made
}

// FreshView builds a view that is not kept.
func (p *Pool) FreshView(node *Node, pods iter.Seq[*v1.Pod], scope Scope) *View {
	return p.View(node, pods, scope, p.options())
}
