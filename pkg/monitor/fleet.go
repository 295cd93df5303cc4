// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Sources are what pictures are drawn from. All are read only.
type Sources struct {
	Pool     *pool.Pool
	GPUNodes cache.SharedInformer
	Pods     cache.SharedIndexInformer
	ByNode   string                 // index of Pods by node name
	Nodes    corelisters.NodeLister // nil where there are none

	ConfigTrouble func() error // why the newest device configuration is not in force; may be nil
}

// View is the fleet at one moment. Immutable.
type View struct {
	Version uint64
	Nodes   []*Drawn      // by name
	Waiting []*WaitingPod // by creation

	waitingJSON func() ([]byte, error) // Waiting encoded, once for all readers
}

// Drawn is a picture with the version that it is of.
type Drawn struct {
	Picture
	Version uint64

	once sync.Once // guards text
	text []byte
	err  error
}

// Picture is what readers get of a node.
type Picture struct {
	*pool.NodePicture
	Kubelet *pool.Kubelet `json:"kubelet,omitempty"` // nil where the cluster has no such Node
	Outage  pool.Outage   `json:"outage,omitempty"`  // the GPUs have nothing free then
}

// JSON is the picture encoded, once for all readers.
func (d *Drawn) JSON() ([]byte, error) {
	d.once.Do(func() { d.text, d.err = json.Marshal(d.Picture) })
	return d.text, d.err
}

// Fleet keeps the newest pictures. Safe for parallel use.
type Fleet struct {
	src Sources

	epochs epochs // pods seen to change, by node

	mu        sync.Mutex // guards what follows
	entries   map[string]*entry
	gone      map[string]uint64 // nodes that are no more, by the version that dropped them
	forgotten uint64            // gone lacks nodes dropped at this version and before
	waiting   uint64            // epoch of the empty name, which pods that wait count under, that view.Waiting is of
	view      *View
	looked    time.Time // when view was last compared with the sources
}

// maxGone is how many nodes that are no more are remembered. A reader who asks for
// what is older is sent everything.
const maxGone = 1000

// entry is a node's picture with everything that it was drawn from.
type entry struct {
	obj    *v1alpha1.GPUNode // the informer replaces objects, so pointers tell versions apart
	node   *pool.Node
	ledger uint64
	pods   uint64
	host   *pool.Kubelet // nil where the cluster has no such Node
	drawn  *Drawn
}

// same reports whether both are drawn from the same.
func (e *entry) same(now *entry) bool {
	return e.obj == now.obj && e.node == now.node && e.ledger == now.ledger && e.pods == now.pods &&
		(e.host == now.host || e.host != nil && now.host != nil && *e.host == *now.host)
}

// epochs counts changes by node name. Safe for parallel use.
type epochs struct {
	mu     sync.Mutex
	counts map[string]uint64
}

func (e *epochs) add(node string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.counts[node]++
}

func (e *epochs) all() map[string]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.counts)
}

// keep drops what is counted for other nodes: a node without a GPUNode has no
// picture that could be of a count, and is drawn anew when it has one.
func (e *epochs) keep(nodes map[string]struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.counts, func(name string, _ uint64) bool {
		_, ok := nodes[name]
		return !ok && name != ""
	})
}

// NewFleet follows the sources from now on.
func NewFleet(src Sources) (*Fleet, error) {
	f := &Fleet{
		src: src, epochs: epochs{counts: map[string]uint64{}},
		entries: map[string]*entry{}, gone: map[string]uint64{}, view: &View{},
	}
	changed := func(obj any) {
		if pod := src.podOf(obj); pod != nil {
			f.epochs.add(pod.Spec.NodeName)
			if src.Pool.Waits(pod) {
				f.epochs.add("")
			}
		}
	}
	if err := src.index(); err != nil {
		return nil, fmt.Errorf("indexing pods for the monitor: %w", err)
	}
	_, err := src.Pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    changed,
		UpdateFunc: func(old, obj any) { changed(old); changed(obj) },
		DeleteFunc: changed,
	})
	if err != nil {
		return nil, fmt.Errorf("watching pods for the monitor: %w", err)
	}
	return f, nil
}

// byWaiting is the index of Pods that has those that wait, under the empty name.
const byWaiting = "dynamig.io/waiting"

// index adds the index byWaiting, unless another fleet has.
func (src *Sources) index() error {
	if _, ok := src.Pods.GetIndexer().GetIndexers()[byWaiting]; ok {
		return nil
	}
	return src.Pods.AddIndexers(cache.Indexers{byWaiting: func(obj any) ([]string, error) {
		if pod, ok := obj.(*v1.Pod); ok && src.Pool.Waits(pod) {
			return []string{""}, nil
		}
		return nil, nil
	}})
}

// podOf is the pod of an informer's event; nil for one without our resources.
func (src *Sources) podOf(obj any) *v1.Pod {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	pod, ok := obj.(*v1.Pod)
	if !ok || !src.Pool.Wants(pod) {
		return nil
	}
	return pod
}

// View is the fleet now. What has not changed since the last call is not drawn
// again: a call on a quiet cluster compares a few values for each node.
func (f *Fleet) View() *View {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.look()
}

// Recent is the fleet as it was at most so long ago, for readers who ask all the
// time: however many they are, the sources are compared no more often than that.
func (f *Fleet) Recent(age time.Duration) *View {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) < age {
		return f.view
	}
	return f.look()
}

// look runs under mu.
func (f *Fleet) look() *View {
	f.looked = time.Now()
	epochs := f.epochs.all()
	next := f.view.Version + 1
	changed := f.draw(epochs, next)
	view := &View{Version: next, Waiting: f.view.Waiting, waitingJSON: f.view.waitingJSON}
	if epoch := epochs[""]; epoch != f.waiting || f.view.Version == 0 {
		f.waiting, changed = epoch, true
		waiting := f.listWaiting()
		view.Waiting = waiting
		view.waitingJSON = sync.OnceValues(func() ([]byte, error) { return json.Marshal(waiting) })
	}
	if !changed {
		return f.view
	}
	f.view, view.Nodes = view, make([]*Drawn, 0, len(f.entries))
	for _, e := range f.entries {
		f.view.Nodes = append(f.view.Nodes, e.drawn)
	}
	slices.SortFunc(f.view.Nodes, func(a, b *Drawn) int { return cmp.Compare(a.Name, b.Name) })
	return f.view
}

// draw brings the entries up to date.
func (f *Fleet) draw(epochs map[string]uint64, version uint64) (changed bool) {
	there, resource := map[string]struct{}{}, f.src.Pool.Names().Count
	for _, obj := range f.src.GPUNodes.GetStore().List() {
		n, ok := obj.(*v1alpha1.GPUNode)
		if !ok {
			continue
		}
		there[n.Name] = struct{}{}
		node, _ := f.src.Pool.Node(n.Name) // its error is drawn
		now := entry{obj: n, node: node, ledger: f.src.Pool.Revision(n.Name), pods: epochs[n.Name]}
		now.host = f.kubelet(n.Name, resource)
		if e := f.entries[n.Name]; e != nil && e.same(&now) {
			continue
		}
		now.drawn = f.drawOne(&now, version)
		f.entries[n.Name], changed = &now, true
		delete(f.gone, n.Name)
	}
	for name := range f.entries {
		if _, ok := there[name]; !ok {
			delete(f.entries, name)
			f.gone[name], changed = version, true
		}
	}
	f.forget()
	f.epochs.keep(there)
	return changed
}

func (f *Fleet) drawOne(e *entry, version uint64) *Drawn {
	picture := f.src.Pool.Draw(e.obj, f.podsOn(e.obj.Name))
	d := &Drawn{Picture: Picture{NodePicture: &picture, Kubelet: e.host}, Version: version}
	if f.src.Nodes == nil {
		return d
	}
	if d.Outage = picture.Outage(e.host); d.Outage != "" {
		picture.Withhold()
	}
	return d
}

// kubelet is what the Node of the name says; nil where there is none.
func (f *Fleet) kubelet(name string, resource v1.ResourceName) *pool.Kubelet {
	if f.src.Nodes == nil {
		return nil
	}
	n, err := f.src.Nodes.Get(name)
	if err != nil {
		return nil
	}
	k := pool.KubeletOf(n, resource)
	return &k
}

// forget drops the older half of the nodes that are no more, when there are too many.
func (f *Fleet) forget() {
	if len(f.gone) <= maxGone {
		return
	}
	versions := slices.Sorted(maps.Values(f.gone))
	f.forgotten = versions[len(versions)/2]
	maps.DeleteFunc(f.gone, func(_ string, version uint64) bool { return version <= f.forgotten })
}

// Gone lists the nodes that went after a version; ok is false where some of them are
// remembered no more.
func (f *Fleet) Gone(since uint64) (names []string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if since < f.forgotten {
		return nil, false
	}
	for name, version := range f.gone {
		if version > since {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, true
}

// podsOn lists the GPU pods of a node.
func (f *Fleet) podsOn(node string) []*v1.Pod { return f.podsBy(f.src.ByNode, node) }

func (f *Fleet) podsBy(index, value string) []*v1.Pod {
	objs, err := f.src.Pods.GetIndexer().ByIndex(index, value)
	if err != nil {
		return nil // not reached: the index is there before the monitor
	}
	pods := make([]*v1.Pod, 0, len(objs))
	for _, obj := range objs {
		pods = append(pods, obj.(*v1.Pod))
	}
	return pods
}

func (f *Fleet) listWaiting() []*WaitingPod {
	out := []*WaitingPod{}
	names := f.src.Pool.Names()
	for _, pod := range f.podsBy(byWaiting, "") {
		out = append(out, waitingPod(pod, &names))
	}
	slices.SortFunc(out, func(a, b *WaitingPod) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}
