// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/plugins/dynamicmig"
)

// The reaper's lease. Plugins do not know which replica leads, so it has its own.
const (
	reaperLease      = "dynamig-reaper"
	defaultNamespace = "dynamig-system"
)

// reaper ends bound pods that can never start: those that their node's agent
// reports as Refused. A pod with a controller is deleted, with a DisruptionTarget
// condition that says why, and its controller makes a new one; a bare pod is left,
// since nobody would bring it back, with an event.
type reaper struct {
	client   kubernetes.Interface
	recorder events.EventRecorder
	pods     cache.Indexer // with dynamicmig.ByNode
	gpuNodes cache.Store
	queue    workqueue.TypedRateLimitingInterface[string] // GPUNode names

	// term is held while this process works under the lease: the elector does not
	// wait for the end of one term before it begins the next. It guards told.
	term sync.Mutex
	told map[string]map[types.UID]struct{} // bare pods with an event that are refused, by node
}

// startReaper runs the reaper until ctx ends, whenever this process holds its
// lease.
func startReaper(ctx context.Context, shared dynamicmig.Shared) error {
	r := &reaper{
		client:   shared.Handle.ClientSet(),
		recorder: shared.Handle.EventRecorder(),
		pods:     shared.Pods.GetIndexer(),
		gpuNodes: shared.GPUNodes.GetStore(),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](time.Second, time.Minute)),
		told: map[string]map[types.UID]struct{}{},
	}
	if err := r.watch(shared); err != nil {
		return err
	}
	elector, err := r.elector(shared)
	if err != nil {
		return err
	}
	go func() {
		defer r.queue.ShutDown()
		for ctx.Err() == nil {
			elector.Run(ctx) // returns when the lease is lost; then stand again
		}
	}()
	return nil
}

// watch queues a node when its report changes and when a pod is seen bound there:
// the report may tell of a pod that the scheduler has not yet seen bound.
func (r *reaper) watch(shared dynamicmig.Shared) error {
	if _, err := shared.GPUNodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { r.queue.Add(obj.(*v1alpha1.GPUNode).Name) },
		UpdateFunc: func(_, obj any) { r.queue.Add(obj.(*v1alpha1.GPUNode).Name) },
		DeleteFunc: func(obj any) {
			if name, err := cache.DeletionHandlingObjectToName(obj); err == nil {
				r.queue.Add(name.Name)
			}
		},
	}); err != nil {
		return fmt.Errorf("watching GPUNodes for the reaper: %w", err)
	}
	bound := func(pod *v1.Pod) {
		if pod.Spec.NodeName != "" && shared.Pool.Wants(pod) {
			r.queue.Add(pod.Spec.NodeName)
		}
	}
	if _, err := shared.Pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { bound(obj.(*v1.Pod)) },
		UpdateFunc: func(before, after any) {
			if before.(*v1.Pod).Spec.NodeName == "" {
				bound(after.(*v1.Pod))
			}
		},
	}); err != nil {
		return fmt.Errorf("watching pods for the reaper: %w", err)
	}
	return nil
}

func (r *reaper) elector(shared dynamicmig.Shared) (*leaderelection.LeaderElector, error) {
	namespace := os.Getenv("POD_NAMESPACE")
	if namespace == "" {
		namespace = defaultNamespace
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("naming the reaper's candidate: %w", err)
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: reaperLease},
			Client:     r.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())},
		},
		LeaseDuration:   15 * time.Second,
		RenewDeadline:   10 * time.Second,
		RetryPeriod:     2 * time.Second,
		ReleaseOnCancel: true,
		Name:            reaperLease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { r.run(ctx, shared) },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the reaper's lease: %w", err)
	}
	return elector, nil
}

// run works until ctx ends. What was queued while another replica led is looked at
// now, and what could not be finished stays queued for the next term.
func (r *reaper) run(ctx context.Context, shared dynamicmig.Shared) {
	r.term.Lock()
	defer r.term.Unlock()
	if !cache.WaitForCacheSync(ctx.Done(), shared.Pods.HasSynced, shared.GPUNodes.HasSynced) {
		return
	}
	// Get blocks without regard to ctx; a pulse makes the loop look.
	stop := context.AfterFunc(ctx, func() { r.queue.Add("") })
	defer stop()
	for ctx.Err() == nil {
		name, shutdown := r.queue.Get()
		if shutdown {
			return
		}
		if err := r.reap(ctx, name); err != nil {
			klog.FromContext(ctx).Error(err, "Reaping is tried again", "node", name)
			r.queue.AddRateLimited(name)
		} else {
			r.queue.Forget(name)
		}
		r.queue.Done(name)
	}
}

// reap ends the refused pods of one node, as many as it can. Idempotent.
func (r *reaper) reap(ctx context.Context, node string) error {
	obj, ok, err := r.gpuNodes.GetByKey(node)
	if err != nil {
		return err
	}
	var pods []v1alpha1.PodPreparation
	if ok {
		pods = obj.(*v1alpha1.GPUNode).Status.Pods
	}
	refused := map[types.UID]struct{}{}
	defer r.keepTold(node, refused)
	var failed []error
	for _, entry := range pods {
		if entry.Phase != v1alpha1.PodRefused {
			continue
		}
		refused[entry.UID] = struct{}{}
		pod, err := r.pod(node, entry.UID)
		if err == nil && pod != nil && pod.DeletionTimestamp == nil {
			err = r.end(ctx, pod, entry.Reason)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// keepTold forgets those told of a node's pods that are refused no more.
func (r *reaper) keepTold(node string, refused map[types.UID]struct{}) {
	maps.DeleteFunc(r.told[node], func(uid types.UID, _ struct{}) bool {
		_, still := refused[uid]
		return !still
	})
	if len(r.told[node]) == 0 {
		delete(r.told, node)
	}
}

// tell reports whether an event of a bare pod is due, once.
func (r *reaper) tell(pod *v1.Pod) bool {
	node := pod.Spec.NodeName
	if r.told[node] == nil {
		r.told[node] = map[types.UID]struct{}{}
	}
	_, again := r.told[node][pod.UID]
	r.told[node][pod.UID] = struct{}{}
	return !again
}

func (r *reaper) pod(node string, uid types.UID) (*v1.Pod, error) {
	there, err := r.pods.ByIndex(dynamicmig.ByNode, node)
	if err != nil {
		return nil, err
	}
	for _, obj := range there {
		if pod := obj.(*v1.Pod); pod.UID == uid {
			return pod, nil
		}
	}
	return nil, nil
}

func (r *reaper) end(ctx context.Context, pod *v1.Pod, reason string) error {
	if metav1.GetControllerOf(pod) == nil {
		if r.tell(pod) {
			r.recorder.Eventf(pod, nil, v1.EventTypeWarning, "GPUsRefused", "Reaping",
				"The pod can never start on node %s: %s. It has no controller that would replace it, so it is left; delete it and create it again",
				pod.Spec.NodeName, reason)
		}
		return nil
	}
	condition := applycorev1.Pod(pod.Name, pod.Namespace).WithUID(pod.UID).WithStatus(applycorev1.PodStatus().WithConditions(
		applycorev1.PodCondition().WithType(v1.DisruptionTarget).WithStatus(v1.ConditionTrue).
			WithReason("GPUsRefused").WithMessage(reason).WithLastTransitionTime(metav1.Now())))
	_, err := r.client.CoreV1().Pods(pod.Namespace).
		ApplyStatus(ctx, condition, metav1.ApplyOptions{FieldManager: reaperLease, Force: true})
	if err == nil {
		err = r.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &pod.UID},
		})
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // another pod by now
	}
	if err != nil {
		return fmt.Errorf("ending pod %s: %w", klog.KObj(pod), err)
	}
	klog.FromContext(ctx).Info("Deleted a pod that could never start", "pod", klog.KObj(pod), "node", pod.Spec.NodeName, "reason", reason)
	return nil
}
