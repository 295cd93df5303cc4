// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"reflect"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	schedutil "k8s.io/kubernetes/pkg/scheduler/util"

	"github.com/dynamig/dynamig/pkg/pool"
)

// EventsToRegister pairs each reason for which we reject a pod with the event that
// cures it:
//
//	no free placement         a pod of the node ends
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

// afterPodGone wakes a pod that fits where another has gone. Our own handler may
// not have seen that yet, so the one that is gone is left out.
func (pl *Plugin) afterPodGone(_ klog.Logger, pod *v1.Pod, oldObj, _ any) (fwk.QueueingHint, error) {
	gone, _, err := schedutil.As[*v1.Pod](oldObj, nil)
	if err != nil {
		return fwk.Queue, err
	}
	if !pool.Wants(gone) {
		return fwk.QueueSkip, nil
	}
	return pl.hintFor(pod, gone.Spec.NodeName, pool.Scope{Ledger: pool.LedgerAll, Except: gone.UID})
}

func (pl *Plugin) afterNodeAdded(_ klog.Logger, pod *v1.Pod, _, newObj any) (fwk.QueueingHint, error) {
	_, node, err := schedutil.As[*v1.Node](nil, newObj)
	if err != nil {
		return fwk.Queue, err
	}
	return pl.hintFor(pod, node.Name, pool.Scope{Ledger: pool.LedgerAll})
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

// hintFor says whether pod would fit the node as informer and ledger show it.
func (pl *Plugin) hintFor(pod *v1.Pod, nodeName string, scope pool.Scope) (fwk.QueueingHint, error) {
	node, err := pl.pool.Node(nodeName)
	if err != nil || node == nil {
		return fwk.QueueSkip, nil
	}
	if pl.pool.FreshView(node, none, scope).FitsPod(pod) {
		return fwk.Queue, nil
	}
	return fwk.QueueSkip, nil
}
