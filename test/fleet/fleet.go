// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package fleet makes up a cluster of any size behind a real pool and a real
// monitor, without an API server: GPUNodes and pods come from memory, placements
// from the same Fit as the scheduler's. It serves tests of the monitor's page and
// metrics, and whoever works on the page (make monitor-dev).
//
// fleet does not know the scheduling framework or the agent: it plays both.
package fleet

import (
	"cmp"
	"context"
	"fmt"
	"math/rand"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	fcache "k8s.io/client-go/tools/cache/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/pool"
)

const byNode = "node"

// Fleet is a made-up cluster. Its methods may run in parallel with the monitor, not
// with each other.
type Fleet struct {
	Pool    *pool.Pool
	Sources monitor.Sources
	Journal *monitor.Journal
	Client  *fake.Clientset
	Random  *rand.Rand

	gpuNodes, pods *fcache.FakeControllerSource
	nodes          cache.Indexer
	reports        map[string]*v1alpha1.GPUNode
	bound          map[types.UID]*v1.Pod
	serial         int
}

// New returns an empty cluster whose requests are read under the options; its
// goroutines end with ctx. Equal seeds give equal clusters.
func New(ctx context.Context, seed int64, opts pool.Options) (*Fleet, error) {
	f := &Fleet{
		Pool: pool.New(opts), Journal: monitor.NewJournal(time.Now), Client: fake.NewClientset(),
		Random: rand.New(rand.NewSource(seed)), gpuNodes: fcache.NewFakeControllerSource(), pods: fcache.NewFakeControllerSource(),
		nodes:   cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
		reports: map[string]*v1alpha1.GPUNode{}, bound: map[types.UID]*v1.Pod{},
	}
	pods := cache.NewSharedIndexInformer(f.pods, &v1.Pod{}, 0, cache.Indexers{byNode: func(obj any) ([]string, error) {
		if pod := obj.(*v1.Pod); f.Pool.Wants(pod) {
			return []string{pod.Spec.NodeName}, nil
		}
		return nil, nil
	}})
	gpuNodes := cache.NewSharedInformer(f.gpuNodes, &v1alpha1.GPUNode{}, 0)
	f.Sources = monitor.Sources{Pool: f.Pool, GPUNodes: gpuNodes, Pods: pods, ByNode: byNode, Nodes: corelisters.NewNodeLister(f.nodes)}
	update := func(obj any) { _ = f.Pool.Update(obj.(*v1alpha1.GPUNode)) } // the monitor shows the error
	if _, err := gpuNodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: update, UpdateFunc: func(_, obj any) { update(obj) },
		DeleteFunc: func(obj any) { f.Pool.Remove(obj.(*v1alpha1.GPUNode).Name) },
	}); err != nil {
		return nil, err
	}
	if err := f.Journal.Follow(f.Sources); err != nil {
		return nil, err
	}
	go pods.RunWithContext(ctx)
	go gpuNodes.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), pods.HasSynced, gpuNodes.HasSynced) {
		return nil, ctx.Err()
	}
	return f, nil
}

// Monitor returns a monitor of the cluster.
func (f *Fleet) Monitor(cfg monitor.Config) (*monitor.Monitor, error) {
	view, err := monitor.NewFleet(f.Sources)
	if err != nil {
		return nil, err
	}
	return monitor.New(cfg, view, f.Journal, f.Client), nil
}

// AddNode adds a node with GPUs of a board, with the templates given as lists of
// profile names, or with rule Hardware.
func (f *Fleet) AddNode(name, board string, gpus int, templates ...[]string) error {
	b, ok := boards.Named(board)
	if !ok {
		return fmt.Errorf("no board is named %s", board)
	}
	m, err := model(b, templates)
	if err != nil {
		return err
	}
	n := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Now()}}
	n.Status = v1alpha1.GPUNodeStatus{DriverVersion: "570.124.06", ConfigGeneration: 1, Models: []v1alpha1.GPUModel{m}}
	for _, c := range []string{
		v1alpha1.ConditionConfigInvalid, v1alpha1.ConditionConfigMismatch, v1alpha1.ConditionConfigRemarks, v1alpha1.ConditionForeignInstances, v1alpha1.ConditionHardwareFailing,
		v1alpha1.ConditionJournalLost, v1alpha1.ConditionLibraryUnusable, v1alpha1.ConditionModePending, v1alpha1.ConditionReady,
	} {
		n.Status.Conditions = append(n.Status.Conditions, metav1.Condition{Type: c, Status: "False", Reason: "None", LastTransitionTime: metav1.Now()})
	}
	ready := &n.Status.Conditions[len(n.Status.Conditions)-1]
	ready.Status, ready.Reason, ready.Message = "True", "Offering", fmt.Sprintf("%d of %d GPUs take new instances.", gpus, gpus)
	for i := range gpus {
		n.Status.GPUs = append(n.Status.GPUs, v1alpha1.GPU{
			UUID: fmt.Sprintf("GPU-%08x-%s-%d", f.Random.Uint32(), name, i), Index: int32(i), Model: m.Model, MemoryMiB: int64(b.MemoryMiB),
			Mode: v1alpha1.GPUMode{Wanted: v1alpha1.ModeMIG, Current: v1alpha1.ModeMIG}, Health: v1alpha1.Healthy, NUMA: int32(i * 2 / gpus),
		})
	}
	f.reports[name] = n
	f.gpuNodes.Add(n.DeepCopy())
	return f.Kubelet(name, pool.Kubelet{Devices: int64(7 * gpus), Ready: true})
}

// Kubelet makes a node's kubelet say something else: no devices are what it says when
// the agent is gone.
func (f *Fleet) Kubelet(node string, says pool.Kubelet) error {
	ready := v1.ConditionUnknown
	if says.Ready {
		ready = v1.ConditionTrue
	}
	return f.nodes.Update(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}, Status: v1.NodeStatus{
		Allocatable: v1.ResourceList{f.Pool.Names().Count: *resource.NewQuantity(says.Devices, resource.DecimalSI)},
		Conditions:  []v1.NodeCondition{{Type: v1.NodeReady, Status: ready}},
	}})
}

func model(b boards.Board, templates [][]string) (v1alpha1.GPUModel, error) {
	hardware, err := b.Model()
	if err != nil {
		return v1alpha1.GPUModel{}, err
	}
	name := b.Key
	if len(b.Products) > 0 {
		name = b.Products[0]
	}
	m := v1alpha1.ModelOf(name, hardware)
	ids := map[string]v1alpha1.Profile{}
	for _, p := range m.Profiles {
		ids[p.Name] = p
	}
	for _, names := range templates {
		m.Rule = v1alpha1.RuleTemplates
		var t v1alpha1.Template
		for _, name := range slices.Compact(slices.Clone(names)) {
			count := int32(0)
			for _, other := range names {
				if other == name {
					count++
				}
			}
			t.Entries = append(t.Entries, v1alpha1.TemplateEntry{ProfileID: ids[name].ID, Count: count, MemoryMiB: ids[name].MemoryMiB})
		}
		m.Templates = append(m.Templates, t)
	}
	return m, nil
}

// Change changes a node's report as its agent would.
func (f *Fleet) Change(node string, change func(*v1alpha1.GPUNodeStatus)) {
	n := f.reports[node]
	change(&n.Status)
	f.gpuNodes.Modify(n.DeepCopy())
}

// Share puts a node's GPUs into mode hami-core.
func (f *Fleet) Share(node string) {
	f.Change(node, func(s *v1alpha1.GPUNodeStatus) {
		for i := range s.GPUs {
			g := &s.GPUs[i]
			g.Mode = v1alpha1.GPUMode{Wanted: v1alpha1.ModeHAMiCore, Current: v1alpha1.ModeHAMiCore}
			g.Shares = &v1alpha1.ShareCapacity{Count: 10, MemoryMiB: g.MemoryMiB, Cores: 100}
		}
	})
}

// RemoveNode takes a node's report away.
func (f *Fleet) RemoveNode(name string) {
	f.gpuNodes.Delete(f.reports[name])
	delete(f.reports, name)
}

// Pod describes a pod to create.
type Pod struct {
	Namespace, Name string
	GPUs            int64
	MemoryMiB       int64  // 0: whole GPUs
	Cores           int64  // percent; 0: not asked for
	Init            bool   // with a plain init container that asks for the same
	Node            string // where somebody else has bound it, without an allocation
}

// Create creates a waiting pod.
func (f *Fleet) Create(p Pod) *v1.Pod {
	pod := f.describe(p)
	f.pods.Add(pod.DeepCopy())
	return pod
}

func (f *Fleet) describe(p Pod) *v1.Pod {
	f.serial++
	names := f.Pool.Names()
	limits := v1.ResourceList{names.Count: *resource.NewQuantity(p.GPUs, resource.DecimalSI)}
	if p.MemoryMiB > 0 {
		limits[names.Memory] = *resource.NewQuantity(p.MemoryMiB, resource.DecimalSI)
	}
	if p.Cores > 0 {
		limits[names.Cores] = *resource.NewQuantity(p.Cores, resource.DecimalSI)
	}
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", f.serial)),
			CreationTimestamp: metav1.Now(), Annotations: map[string]string{},
		},
		Spec:   v1.PodSpec{SchedulerName: v1alpha1.SchedulerName, NodeName: p.Node, Containers: []v1.Container{{Name: "main", Resources: v1.ResourceRequirements{Limits: limits}}}},
		Status: v1.PodStatus{Phase: v1.PodPending},
	}
	if p.Init {
		pod.Spec.InitContainers = []v1.Container{{Name: "setup", Resources: pod.Spec.Containers[0].Resources}}
	}
	return pod
}

// Refuse gives a waiting pod a reason, as kube-scheduler does.
func (f *Fleet) Refuse(pod *v1.Pod, message string) {
	pod.Status.Conditions = []v1.PodCondition{{
		Type: v1.PodScheduled, Status: v1.ConditionFalse, Reason: "Unschedulable", Message: message, LastTransitionTime: metav1.Now(),
	}}
	f.pods.Modify(pod.DeepCopy())
}

// Stop makes a pod's container wait, as kubelet does.
func (f *Fleet) Stop(pod *v1.Pod, reason, message string) {
	pod.Status.ContainerStatuses = []v1.ContainerStatus{{
		Name: "main", State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason, Message: message}},
	}}
	f.pods.Modify(pod.DeepCopy())
}

// Bind places a waiting pod on a node, as the scheduler does; false where it does
// not fit.
func (f *Fleet) Bind(pod *v1.Pod, node string) (bool, error) {
	n, err := f.Pool.Node(node)
	if err != nil || n == nil {
		return false, err
	}
	ok, err := f.place(pod, n)
	if !ok || err != nil {
		return false, err
	}
	f.Journal.Decided(pod.UID, time.Duration(100+f.Random.Intn(400))*time.Microsecond)
	published := pod.DeepCopy()
	published.Spec.NodeName = ""
	f.pods.Modify(published)
	f.pods.Modify(pod.DeepCopy())
	return true, nil
}

// place makes a pod a bound one where it fits.
func (f *Fleet) place(pod *v1.Pod, n *pool.Node) (bool, error) {
	request, err := f.Pool.Parse(pod)
	if err != nil {
		return false, err
	}
	view := f.Pool.FreshView(n, slices.Values([]*v1.Pod(nil)), pool.Scope{Ledger: pool.LedgerAll})
	plan, verdict := view.Fit(request)
	if verdict != nil {
		return false, nil
	}
	text, err := view.Allocation(request, plan).Encode()
	if err != nil {
		return false, err
	}
	pod.Annotations[v1alpha1.AnnotationAllocation] = text
	pod.Spec.NodeName = n.Name
	pod.Status.Conditions = []v1.PodCondition{{Type: v1.PodScheduled, Status: v1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	h, _ := f.Pool.HolderOf(pod)
	f.Pool.Bound(h)
	f.bound[pod.UID] = pod
	return true, nil
}

// Prepare makes a bound pod's instances live and starts it, as agent and kubelet
// do. What is in the way is destroyed.
func (f *Fleet) Prepare(pod *v1.Pod) {
	if pod.Spec.NodeName == "" {
		return
	}
	f.Change(pod.Spec.NodeName, func(s *v1alpha1.GPUNodeStatus) { f.run(pod, s) })
	f.pods.Modify(pod.DeepCopy())
}

func (f *Fleet) run(pod *v1.Pod, s *v1alpha1.GPUNodeStatus) {
	h, ok := f.Pool.HolderOf(pod)
	if !ok {
		return
	}
	for _, span := range h.Spans {
		if span.IsShare() {
			continue
		}
		g := s.GPU(span.GPU)
		g.Instances = slices.DeleteFunc(g.Instances, func(i v1alpha1.Instance) bool {
			end := i.Start + sizeOf(s, g, i.ProfileID)
			return int(i.Start) < span.Start+span.Size && span.Start < int(end)
		})
		g.Instances = append(g.Instances, v1alpha1.Instance{
			ProfileID: int32(span.Profile), Start: int32(span.Start), GI: int32(3 + span.Start), UUID: fmt.Sprintf("MIG-%s-%d", g.UUID[4:], span.Start),
			PodUID: pod.UID, State: v1alpha1.InstanceLive,
		})
		slices.SortFunc(g.Instances, func(a, b v1alpha1.Instance) int { return int(a.Start - b.Start) })
	}
	pod.Status.Phase = v1.PodRunning
	pod.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "main", State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.Now()}}}}
}

func sizeOf(s *v1alpha1.GPUNodeStatus, g *v1alpha1.GPU, id int32) int32 {
	for _, p := range s.Model(g.Model).Profiles {
		if p.ID == id {
			return p.Size
		}
	}
	return 1
}

// Delete ends a pod; its instances become idle.
func (f *Fleet) Delete(pod *v1.Pod) {
	f.pods.Delete(pod.DeepCopy())
	f.Pool.Forget(pod.UID)
	delete(f.bound, pod.UID)
	if f.reports[pod.Spec.NodeName] == nil {
		return
	}
	f.Change(pod.Spec.NodeName, func(s *v1alpha1.GPUNodeStatus) {
		for i := range s.GPUs {
			for j := range s.GPUs[i].Instances {
				if inst := &s.GPUs[i].Instances[j]; inst.PodUID == pod.UID {
					inst.PodUID, inst.State = "", v1alpha1.InstanceIdle
				}
			}
		}
	})
}

// Seize puts an instance of a profile at the first free start of a GPU, in a state
// without a pod.
func (f *Fleet) Seize(node string, gpu int, profile string, state v1alpha1.InstanceState) {
	f.Change(node, func(s *v1alpha1.GPUNodeStatus) {
		g := &s.GPUs[gpu]
		n, err := f.Pool.Node(node)
		if err != nil || n == nil {
			return
		}
		model := n.GPUs[gpu].Catalogue.Model()
		p, ok := model.ByName(profile)
		if !ok {
			return
		}
		view := f.Pool.FreshView(n, slices.Values([]*v1.Pod(nil)), pool.Scope{Ledger: pool.LedgerAll})
		for start := range model.Starts(view.Occupied(gpu), geometry.ProfileID(p.ID)) {
			g.Instances = append(g.Instances, v1alpha1.Instance{
				ProfileID: int32(p.ID), Start: int32(start), GI: int32(3 + start), UUID: fmt.Sprintf("MIG-%s-%d", g.UUID[4:], start), State: state,
			})
			return
		}
	})
}

// Bound lists the bound pods by UID, in their order of creation.
func (f *Fleet) Bound() []*v1.Pod {
	var pods []*v1.Pod
	for _, p := range f.bound {
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b *v1.Pod) int { return cmp.Compare(a.UID, b.UID) })
	return pods
}
