// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
	"github.com/dynamig/dynamig/pkg/generated/informers/externalversions"
	"github.com/dynamig/dynamig/pkg/pool"
)

// core is what all profiles of a process share: the pool, fed by the pod and
// GPUNode informers.
type core struct {
	pool    *pool.Pool
	binding *bindings
	waiting *waiting
	logger  klog.Logger

	activator fwk.Handle
	pods      cache.SharedIndexInformer
	gpuNodes  cache.SharedIndexInformer
	trouble   atomic.Pointer[error] // why GPUNodes cannot be read, nil when they can
}

func newCore(ctx context.Context, args Args, handle fwk.Handle) (*core, error) {
	if handle.KubeConfig() == nil {
		return nil, errors.New("creating DynamicMIG: the scheduler has no client configuration")
	}
	client, err := versioned.NewForConfig(handle.KubeConfig())
	if err != nil {
		return nil, fmt.Errorf("creating the client of GPUNodes: %w", err)
	}
	c := &core{
		pool:      pool.New(args.options()),
		binding:   newBindings(),
		waiting:   newWaiting(),
		logger:    klog.FromContext(ctx).WithName(Name),
		activator: handle,
		pods:      handle.SharedInformerFactory().Core().V1().Pods().Informer(),
		gpuNodes:  externalversions.NewSharedInformerFactory(client, 0).Dynamig().V1alpha1().GPUNodes().Informer(),
	}
	return c, c.start(ctx)
}

func (c *core) shared(handle fwk.Handle) Shared {
	return Shared{Handle: handle, Pool: c.pool, Pods: c.pods, GPUNodes: c.gpuNodes}
}

func (c *core) start(ctx context.Context) error {
	if err := c.pods.AddIndexers(cache.Indexers{ByNode: nodeOf}); err != nil {
		return fmt.Errorf("indexing pods by node: %w", err)
	}
	if _, err := c.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.onPod(obj.(*v1.Pod)) },
		UpdateFunc: func(_, obj any) { c.onPod(obj.(*v1.Pod)) },
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
	if _, err := c.gpuNodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.onGPUNode(obj.(*v1alpha1.GPUNode)) },
		UpdateFunc: func(_, obj any) { c.onGPUNode(obj.(*v1alpha1.GPUNode)) },
		DeleteFunc: c.onGPUNodeGone,
	}); err != nil {
		return fmt.Errorf("watching GPUNodes: %w", err)
	}
	go c.gpuNodes.RunWithContext(ctx)
	return nil
}

// nodeOf is the index function of ByNode. Pods without our resources are left out.
func nodeOf(obj any) ([]string, error) {
	pod, ok := obj.(*v1.Pod)
	if !ok || pod.Spec.NodeName == "" || !pool.Wants(pod) {
		return nil, nil
	}
	return []string{pod.Spec.NodeName}, nil
}

// compact drops what no decision needs before a GPUNode is stored.
func compact(obj any) (any, error) {
	if n, ok := obj.(*v1alpha1.GPUNode); ok {
		n.ManagedFields = nil
		n.Status.Conditions = nil
		n.Status.Summary = v1alpha1.Summary{}
	}
	return obj, nil
}

// ready says why GPU pods cannot be placed at all.
func (c *core) ready() error {
	if trouble := c.trouble.Load(); trouble != nil && !c.gpuNodes.HasSynced() {
		return *trouble
	}
	if !c.gpuNodes.HasSynced() {
		return errors.New("the GPUNodes are still being read")
	}
	return nil
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

// onPod keeps ledger and waiting pods true to a pod seen.
func (c *core) onPod(pod *v1.Pod) {
	if !pool.Wants(pod) {
		return
	}
	if pod.Spec.NodeName == "" {
		c.onUnbound(pod)
		return
	}
	c.waiting.remove(pod.UID)
	if h, ok := pool.HolderOf(pod); ok {
		c.pool.Bound(h)
	} else {
		c.pool.ForgetUnbound(pod.UID)
	}
}

func (c *core) onUnbound(pod *v1.Pod) {
	if pod.DeletionTimestamp == nil {
		c.waiting.add(pod)
		return
	}
	c.onPodGone(pod)
}

// onPodGone drops what a pod held. Deleting an unbound pod does not cancel its
// binding cycle (kubernetes pkg/scheduler/eventhandlers.go:264-305); this does.
// The scheduler's informer shows pods in a terminal phase as deleted.
func (c *core) onPodGone(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	pod, ok := obj.(*v1.Pod)
	if !ok || !pool.Wants(pod) {
		return
	}
	c.waiting.remove(pod.UID)
	c.pool.Forget(pod.UID)
	c.binding.cancel(pod.UID)
}

// onGPUNode takes a report and wakes the waiting pods that now fit there. The
// inventory is newer than the wake-up, so a woken pod cannot be rejected for what
// has just been cured.
func (c *core) onGPUNode(obj *v1alpha1.GPUNode) {
	c.trouble.Store(nil)
	if err := c.pool.Update(obj); err != nil {
		c.logger.Error(err, "GPUNode cannot be used", "node", obj.Name)
		return
	}
	// Before the pod informer has synced, nothing has been tried that could be
	// woken, and the scheduler may not have given the handle its queue yet.
	if !c.pods.HasSynced() {
		return
	}
	node, err := c.pool.Node(obj.Name)
	if err != nil || node == nil {
		return
	}
	view := c.pool.FreshView(node, none, pool.Scope{Ledger: pool.LedgerAll})
	if pods := c.waiting.fitting(view); len(pods) > 0 {
		c.activator.Activate(c.logger, pods)
	}
}

func (c *core) onGPUNodeGone(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		c.pool.Remove(tombstone.Key)
		return
	}
	if n, ok := obj.(*v1alpha1.GPUNode); ok {
		c.pool.Remove(n.Name)
	}
}

// none is no pod at all.
func none(func(*v1.Pod) bool) {}
