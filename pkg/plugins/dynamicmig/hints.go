// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"cmp"
	"context"
	"reflect"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	schedutil "k8s.io/kubernetes/pkg/scheduler/util"
)

// EventsToRegister pairs each reason for which we reject a pod with the event that
// cures it:
//
//	no free placement         a pod of the node ends
//	a nominated pod's room    the nominated pod ends, or is nominated elsewhere; that it
//	                          is bound elsewhere core.onPodUpdate sees
//	no GPUNode, recreated     the node appears
//	a mistake in the pod      the pod's annotations or labels change
//	GPUNode's own reasons     a GPUNode report, through core.onGPUNode
//
// Only core resources are named: a GPUNode event here would make kube-scheduler
// keep a second, untyped informer, and not start without the CRD.
func (pl *Plugin) EventsToRegister(context.Context) ([]fwk.ClusterEventWithHint, error) {
	return []fwk.ClusterEventWithHint{
		{Event: fwk.ClusterEvent{Resource: fwk.AssignedPod, ActionType: fwk.Delete}, QueueingHintFn: pl.afterPodGone},
		{Event: fwk.ClusterEvent{Resource: fwk.Node, ActionType: fwk.Add}, QueueingHintFn: pl.afterNodeAdded},
		{Event: fwk.ClusterEvent{Resource: fwk.TargetPod, ActionType: fwk.Update}, QueueingHintFn: pl.afterPodChanged},
	}, nil
}

// afterPodGone wakes a pod that has a chance where another has gone. Our own
// handler may not have seen that yet, so the one that is gone is left out. The
// framework reports an unbound pod here that was nominated to a node and is not
// any more (kubernetes pkg/scheduler/eventhandlers.go:347-351, 385-391).
func (pl *Plugin) afterPodGone(_ klog.Logger, pod *v1.Pod, oldObj, _ any) (fwk.QueueingHint, error) {
	gone, _, err := schedutil.As[*v1.Pod](oldObj, nil)
	if err != nil {
		return fwk.Queue, err
	}
	if !pl.pool.Wants(gone) {
		return fwk.QueueSkip, nil
	}
	return pl.hintFor(pod, cmp.Or(gone.Spec.NodeName, gone.Status.NominatedNodeName), gone.UID)
}

func (pl *Plugin) afterNodeAdded(_ klog.Logger, pod *v1.Pod, _, newObj any) (fwk.QueueingHint, error) {
	_, node, err := schedutil.As[*v1.Node](nil, newObj)
	if err != nil {
		return fwk.Queue, err
	}
	return pl.hintFor(pod, node.Name, "")
}

// afterPodChanged wakes a pod whose request has changed. Its own annotation of an
// earlier attempt is not part of the request.
func (pl *Plugin) afterPodChanged(_ klog.Logger, _ *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
	before, after, err := schedutil.As[*v1.Pod](oldObj, newObj)
	if err != nil {
		return fwk.Queue, err
	}
	was, errBefore := pl.pool.Parse(before)
	is, errAfter := pl.pool.Parse(after)
	if errAfter == nil && (errBefore != nil || !reflect.DeepEqual(was, is)) {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}

// hintFor says whether pod has a chance on the node as informer and ledger show
// it, without a pod that is gone.
func (pl *Plugin) hintFor(pod *v1.Pod, nodeName string, gone types.UID) (fwk.QueueingHint, error) {
	node, err := pl.pool.Node(nodeName)
	if err != nil {
		return fwk.QueueSkip, nil
	}
	request, err := pl.pool.Parse(pod)
	if err != nil || !pl.lastProspect(node, gone).helps(pod, request) {
		return fwk.QueueSkip, nil // a pod with a mistake is cured by afterPodChanged
	}
	return fwk.Queue, nil
}
