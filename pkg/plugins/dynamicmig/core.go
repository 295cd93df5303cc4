// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/arguments"
	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
	"github.com/dynamig/dynamig/pkg/generated/informers/externalversions"
	"github.com/dynamig/dynamig/pkg/pool"
)

// core is what all profiles of a process share: the pool, fed by the pod and
// GPUNode informers.
type core struct {
	pool     *pool.Pool
	binding  *bindings
	refusals *refusals
	device   *deviceConfig // nil where the arguments name no file
	logger   klog.Logger

	profiles  sync.Map // names of this process's profiles with the plugin, as keys
	activator fwk.Handle
	pods      cache.SharedIndexInformer
	gpuNodes  cache.SharedIndexInformer
	reports   cache.ResourceEventHandlerRegistration // of onGPUNode
	last      atomic.Pointer[prospect]               // that a hint asked for
	trouble   atomic.Pointer[error]                  // why GPUNodes cannot be read, nil when they can

	// verdicts is held while a report, or a pod seen bound, reaches the pool: what an
	// agent has refused is avoided before either frees it, whichever comes first.
	verdicts sync.Mutex
}

// connect makes the client of GPUNodes.
func connect(config *rest.Config) (versioned.Interface, error) {
	if config == nil {
		return nil, errors.New("creating the client of GPUNodes: the scheduler has no client configuration")
	}
	client, err := versioned.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("creating the client of GPUNodes: %w", err)
	}
	return client, nil
}

func newCore(ctx context.Context, args arguments.DynamicMIG, client versioned.Interface, handle fwk.Handle) (*core, error) {
	opts, err := args.Options(os.ReadFile)
	if err != nil {
		return nil, err
	}
	c := &core{
		pool:      pool.New(opts),
		binding:   newBindings(),
		logger:    klog.FromContext(ctx).WithName(Name),
		activator: handle,
		pods:      handle.SharedInformerFactory().Core().V1().Pods().Informer(),
		gpuNodes:  externalversions.NewSharedInformerFactory(client, 0).Dynamig().V1alpha1().GPUNodes().Informer(),
	}
	c.refusals = newRefusals(c)
	if args.DeviceConfig != "" {
		c.device = &deviceConfig{
			file: args.DeviceConfig, names: opts.Names, defaults: opts.Defaults,
			apply: c.onDefaults, tell: tellOf(handle), logger: c.logger,
		}
	}
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *core) shared(handle fwk.Handle) Shared {
	trouble := func() error { return nil }
	if c.device != nil {
		trouble = c.device.Trouble
	}
	return Shared{Handle: handle, Pool: c.pool, Pods: c.pods, GPUNodes: c.gpuNodes, ConfigTrouble: trouble}
}

// onDefaults takes new defaults of requests. A pod that waits may ask for less now.
func (c *core) onDefaults(d v1alpha1.RequestDefaults) {
	c.pool.SetDefaults(d)
	c.wakeAll()
}

func (c *core) start(ctx context.Context) error {
	if err := c.pods.AddIndexers(Indexers(c.pool)); err != nil {
		return fmt.Errorf("indexing pods by node: %w", err)
	}
	if _, err := c.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.onPod(obj.(*v1.Pod)) },
		UpdateFunc: func(old, obj any) { c.onPodUpdate(old.(*v1.Pod), obj.(*v1.Pod)) },
		DeleteFunc: c.onPodGone,
	}); err != nil {
		return fmt.Errorf("watching pods: %w", err)
	}
	if err := c.gpuNodes.SetTransform(compact); err != nil {
		return fmt.Errorf("watching GPUNodes: %w", err)
	}
	if err := c.gpuNodes.SetWatchErrorHandlerWithContext(c.onWatchError); err != nil {
		return fmt.Errorf("watching GPUNodes: %w", err)
	}
	var err error
	if c.reports, err = c.gpuNodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.onGPUNode(obj.(*v1alpha1.GPUNode)) },
		UpdateFunc: func(_, obj any) { c.onGPUNode(obj.(*v1alpha1.GPUNode)) },
		DeleteFunc: c.onGPUNodeGone,
	}); err != nil {
		return fmt.Errorf("watching GPUNodes: %w", err)
	}
	go c.gpuNodes.RunWithContext(ctx)
	go c.pool.KeepPrices(ctx)
	go func() {
		if cache.WaitFor(ctx, "", c.reports.HasSyncedChecker()) {
			c.wakeAll() // those that ready has turned away
		}
	}()
	return nil
}

// Indexers are those of Shared.Pods.
func Indexers(p *pool.Pool) cache.Indexers {
	return cache.Indexers{ByNode: func(obj any) ([]string, error) { return nodeOf(p, obj) }}
}

// nodeOf is the index function of ByNode. Pods without our resources are left out.
func nodeOf(p *pool.Pool, obj any) ([]string, error) {
	pod, ok := obj.(*v1.Pod)
	if !ok || !p.Wants(pod) {
		return nil, nil
	}
	return []string{pod.Spec.NodeName}, nil
}

// compact drops what neither decisions nor the monitor need before a GPUNode is
// stored.
func compact(obj any) (any, error) {
	if n, ok := obj.(*v1alpha1.GPUNode); ok {
		n.ManagedFields = nil
		n.Status.Summary = v1alpha1.Summary{}
	}
	return obj, nil
}

// ready says why GPU pods cannot be placed at all.
func (c *core) ready() error {
	if c.reports.HasSynced() {
		return nil
	}
	if trouble := c.trouble.Load(); trouble != nil {
		return *trouble
	}
	return errors.New("the GPUNodes are still being read")
}

// onWatchError remembers why GPUNodes cannot be read. Pods without GPUs are
// scheduled all the same.
func (c *core) onWatchError(ctx context.Context, r *cache.Reflector, err error) {
	trouble := fmt.Errorf("reading GPUNodes: %w", err)
	if apierrors.IsNotFound(err) {
		trouble = errors.New("the GPUNode API is not installed; apply the CustomResourceDefinition gpunodes.dynamig.io (manifests/base/crd)")
	}
	c.trouble.Store(&trouble)
	cache.DefaultWatchErrorHandler(ctx, r, err)
}

// onPod keeps the ledger true to a pod seen.
func (c *core) onPod(pod *v1.Pod) {
	switch {
	case !c.pool.Wants(pod):
	case pod.Spec.NodeName != "":
		c.onBound(pod)
	case pod.DeletionTimestamp != nil:
		c.onPodGone(pod)
	default:
		c.learn(pod)
	}
}

// onPodUpdate is onPod, and wakes those that made room for a nominated pod which is now
// bound to another node: kube-scheduler has no event for that (kubernetes
// pkg/scheduler/eventhandlers.go:182-190, 366-371).
func (c *core) onPodUpdate(old, pod *v1.Pod) {
	c.onPod(pod)
	nominated := old.Status.NominatedNodeName
	if old.Spec.NodeName == "" && pod.Spec.NodeName != "" && nominated != "" && nominated != pod.Spec.NodeName && c.pool.Wants(pod) {
		c.wake(nil, nominated)
	}
}

// learn lets a pod speak for those to come, if it is for this process: what others
// place may not be ours to place, although it is asked for by the same names.
func (c *core) learn(pod *v1.Pod) {
	if _, ours := c.profiles.Load(pod.Spec.SchedulerName); ours {
		c.pool.See(pod)
	}
}

// onBound takes over what a pod seen bound holds. Its agent may have refused it
// already: reports and pods come by different watches.
func (c *core) onBound(pod *v1.Pod) {
	if c.pool.IsBound(pod.UID, pod.Spec.NodeName) {
		return // most updates are of its status
	}
	h, ok := c.pool.HolderOf(pod)
	if !ok {
		c.pool.ForgetUnbound(pod.UID)
		return
	}
	c.learn(pod)
	if c.takeOver(h) {
		c.wake(nil, h.Node)
	}
}

// takeOver records a bound pod's holder, and reports whether its agent has refused it.
func (c *core) takeOver(h pool.Holder) (refused bool) {
	c.verdicts.Lock()
	defer c.verdicts.Unlock()
	node, err := c.pool.Node(h.Node)
	if refused = err == nil && node != nil && node.Refused(h.UID); refused {
		c.refusals.avoid(h)
	}
	return c.pool.Bound(h) && refused
}

// onPodGone drops what a pod held. Deleting an unbound pod does not cancel its
// binding cycle (kubernetes pkg/scheduler/eventhandlers.go:264-305); this does.
// The scheduler's informer shows pods in a terminal phase as deleted.
func (c *core) onPodGone(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	pod, ok := obj.(*v1.Pod)
	if !ok || !c.pool.Wants(pod) {
		return
	}
	c.pool.Forget(pod.UID)
	c.pool.Gone(pod.UID)
	c.binding.cancel(pod.UID)
}

// onGPUNode takes a report and wakes the waiting pods that it helps. The inventory
// is newer than the wake-up, so a woken pod cannot be rejected for what has just
// been cured. What the report refuses is avoided before the report frees it, so that
// nobody can choose it in between.
func (c *core) onGPUNode(obj *v1alpha1.GPUNode) {
	c.trouble.Store(nil)
	before, _ := c.pool.Node(obj.Name)
	if err := c.update(obj); err != nil {
		c.logger.Error(err, "GPUNode cannot be used", "node", obj.Name)
		return
	}
	c.wake(before, obj.Name)
}

func (c *core) update(obj *v1alpha1.GPUNode) error {
	c.verdicts.Lock()
	defer c.verdicts.Unlock()
	c.refusals.noteAll(obj)
	return c.pool.Update(obj)
}

func (c *core) onGPUNodeGone(obj any) {
	name, err := cache.DeletionHandlingObjectToName(obj)
	if err != nil {
		c.logger.Error(err, "GPUNode that is gone cannot be named") // not reached: the informer has objects and tombstones only
		return
	}
	c.pool.Remove(name.Name)
	c.refusals.keep(name.Name, nil)
}
