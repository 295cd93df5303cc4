// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/dynamig/dynamig/pkg/pool"
)

// prospect is a node as informer and ledger show it, without a pod that is gone. Safe
// for parallel use.
type prospect struct {
	core     *core
	node     *pool.Node
	gone     types.UID
	revision uint64 // of the node's ledger, from before the view
	view     *pool.View

	mu     sync.Mutex           // guards lesser
	lesser map[int32]*pool.View // by priority: see withoutLesser
}

// prospect of a node; nil where the pool has no usable node of that name.
func (c *core) prospect(node *pool.Node, gone types.UID) *prospect {
	if node == nil {
		return nil
	}
	p := &prospect{core: c, node: node, gone: gone, revision: c.pool.Revision(node.Name), lesser: map[int32]*pool.View{}}
	p.view = c.pool.FreshView(node, none, pool.Scope{Ledger: pool.LedgerAll, Except: gone})
	return p
}

// lastProspect is prospect, kept until the next one is asked for: for one event each pod
// that waits gets a hint, under the lock of the scheduler's queue.
func (c *core) lastProspect(node *pool.Node, gone types.UID) *prospect {
	if node == nil {
		return nil
	}
	p := c.last.Load()
	if p == nil || p.node != node || p.gone != gone || p.revision != c.pool.Revision(node.Name) {
		p = c.prospect(node, gone)
		c.last.Store(p)
	}
	return p
}

// helps reports whether a pod with a request has a chance there: it fits, or would if
// the pods of lower priority were gone. Whether it will evict them only the framework
// knows, so it must be tried.
func (p *prospect) helps(pod *v1.Pod, request *pool.Request) bool {
	if p == nil || request == nil {
		return false
	}
	if p.view.Fits(request) {
		return true
	}
	without := p.withoutLesser(pod)
	return without != p.view && without.Fits(request)
}

// withoutLesser is the node with only those bound pods that pod may not evict.
func (p *prospect) withoutLesser(pod *v1.Pod) *pool.View {
	if policy := pod.Spec.PreemptionPolicy; policy != nil && *policy == v1.PreemptNever {
		return p.view
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	least := priority(pod)
	if p.lesser[least] == nil {
		p.lesser[least] = p.without(least)
	}
	return p.lesser[least]
}

// without is the node without the pods below a priority.
func (p *prospect) without(least int32) *pool.View {
	there := p.core.podsOn(p.node.Name)
	rest := slices.DeleteFunc(slices.Clone(there), func(other *v1.Pod) bool {
		return other.UID == p.gone || priority(other) < least
	})
	if len(rest) == len(there) {
		return p.view
	}
	return p.core.pool.FreshView(p.node, slices.Values(rest), pool.Scope{})
}

// differs reports whether any pod could find its chance changed from q to p.
func (p *prospect) differs(q *prospect) bool {
	if len(p.node.GPUs) != len(q.node.GPUs) {
		return true
	}
	for i := range p.node.GPUs {
		a, b := &p.node.GPUs[i], &q.node.GPUs[i]
		if a.ID != b.ID || a.Catalogue != b.Catalogue || a.Offered != b.Offered ||
			p.view.Occupied(i) != q.view.Occupied(i) || !slices.Equal(a.Avoided(), b.Avoided()) ||
			!equal(a.Shares, b.Shares) || p.view.Taken(i) != q.view.Taken(i) || a.AvoidsShares() != b.AvoidsShares() {
			return true
		}
	}
	return false
}

// equal compares what two pointers point to.
func equal[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// wake activates the waiting pods that have a chance on a node which is not as it was
// before, nil where there was none. A report comes with each pod that starts, and changes
// nothing; with one that does, also pods are tried that had a chance before: what they
// were turned away for may have been kept for a nominated pod.
func (c *core) wake(before *pool.Node, name string) {
	after, err := c.pool.Node(name)
	if err != nil || after == nil {
		return
	}
	is := c.prospect(after, "")
	if before != nil && before.UID == after.UID && !is.differs(c.prospect(before, "")) {
		return // where the UIDs differ, see pool.ReasonNodeChanged
	}
	c.activate(is)
}

// wakeAll activates the waiting pods that have a chance anywhere.
func (c *core) wakeAll() {
	var all []*prospect
	for _, node := range c.pool.Nodes() {
		all = append(all, c.prospect(node, ""))
	}
	c.activate(all...)
}

// activate moves the waiting pods that any of the prospects helps to the active queue.
func (c *core) activate(prospects ...*prospect) {
	// Before the pod informer has synced, nothing has been tried that could be
	// woken, and the scheduler may not have given the handle its queue yet.
	if !c.pods.HasSynced() {
		return
	}
	pods := map[string]*v1.Pod{}
	for _, pod := range c.podsOn("") {
		request, err := c.pool.Parse(pod)
		helped := func(p *prospect) bool { return p.helps(pod, request) }
		if err == nil && pod.DeletionTimestamp == nil && slices.ContainsFunc(prospects, helped) {
			pods[cache.MetaObjectToName(pod).String()] = pod
		}
	}
	if len(pods) > 0 {
		c.activator.Activate(c.logger, pods)
	}
}

// podsOn are the GPU pods of a node; with the empty name those that wait. The
// index is never behind the scheduler's queue: an informer updates its store
// before it tells anybody.
func (c *core) podsOn(node string) []*v1.Pod {
	objs, err := c.pods.GetIndexer().ByIndex(ByNode, node)
	if err != nil {
		c.logger.Error(err, "Pods cannot be listed by node", "node", node) // not reached: start has added the index
	}
	pods := make([]*v1.Pod, 0, len(objs))
	for _, obj := range objs {
		pods = append(pods, obj.(*v1.Pod))
	}
	return pods
}

// none is no pod at all.
func none(func(*v1.Pod) bool) {}
