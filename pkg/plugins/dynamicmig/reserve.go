// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/pool"
)

// Reserve takes the choice and records it in the ledger. A conflict is an Error:
// Unschedulable would park the pod until an event that may never come.
//
// In a PodGroup cycle only the snapshot counts, Reserve and Unreserve also run in
// simulation, and the choice is kept for when Reserve comes again for real.
func (pl *Plugin) Reserve(_ context.Context, cs fwk.CycleState, pod *v1.Pod, nodeName string) *fwk.Status {
	s, err := readState(cs)
	if err != nil {
		return nil // not a pod of ours
	}
	simulated := cs.IsPodGroupSchedulingCycle()
	view, err := pl.reserveView(pod, nodeName, simulated)
	if err != nil {
		return fwk.AsStatus(err)
	}
	chosen, err := choose(s, view)
	if err != nil {
		return fwk.AsStatus(fmt.Errorf("reserving GPUs on node %s: %w", nodeName, err))
	}
	chosen.holder.Simulated = simulated
	s.chosen = chosen
	pl.pool.Assume(chosen.holder)
	if pl.decided != nil && !simulated {
		pl.decided(pod.UID, time.Since(s.began))
	}
	return nil
}

// choose keeps an earlier choice for the node where it still holds, and decides
// otherwise. A plan counts GPUs as its own view does, so the two stay together.
func choose(s *state, view *pool.View) (*choice, error) {
	if c := s.chosen; c != nil && c.holder.Node == view.Node.Name && view.Has(c.holder) {
		kept := *c
		return &kept, nil
	}
	plan, verdict := view.Fit(s.request)
	if verdict != nil {
		return nil, fmt.Errorf("the choice of Filter is gone: %s", verdict.Reason)
	}
	return &choice{view: view, plan: plan, holder: view.Holder(s.request, plan)}, nil
}

// reserveView is the node as Reserve must see it: the snapshot's pods; outside a
// PodGroup cycle also what this scheduler has chosen since, including what is bound
// already, and the nominated pods that the pod must yield to. A PodGroup's members
// are reserved one after the other over one snapshot.
func (pl *Plugin) reserveView(pod *v1.Pod, nodeName string, simulated bool) (*pool.View, error) {
	ni, err := pl.handle.SnapshotSharedLister().NodeInfos().Get(nodeName)
	if err != nil {
		return nil, fmt.Errorf("reading node %s from the snapshot: %w", nodeName, err)
	}
	node, err := pl.pool.Node(nodeName)
	if err != nil {
		return nil, err
	}
	if node == nil {
		return nil, fmt.Errorf("node %s has no GPUNode any more", nodeName)
	}
	if !node.Describes(ni.Node()) {
		return nil, fmt.Errorf("node %s has a GPUNode of another node of the same name", nodeName)
	}
	scope := pool.Scope{Except: pod.UID}
	pods := podsOf(ni)
	if !simulated {
		scope.Ledger = pool.LedgerUnbound
		pods = concat(pods, slices.Values(pl.podsOn(nodeName)), pl.nominated(pod, nodeName))
	}
	return pl.pool.FreshView(node, pods, scope), nil
}

// nominated are the pods nominated to the node that pod must yield to.
func (pl *Plugin) nominated(pod *v1.Pod, nodeName string) iter.Seq[*v1.Pod] {
	return func(yield func(*v1.Pod) bool) {
		for _, p := range pl.handle.NominatedPodsForNode(nodeName) {
			other := p.GetPod()
			if other.UID != pod.UID && priority(other) >= priority(pod) && !yield(other) {
				return
			}
		}
	}
}

func priority(pod *v1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

func concat[T any](parts ...iter.Seq[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, part := range parts {
			for v := range part {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// Unreserve forgets the choice, unless the pod has been bound with it all the same.
// Idempotent; it may come without Reserve. What PreBind may have written stays: an
// annotation on an unbound pod binds nobody, and removing it could remove the next
// leader's.
func (pl *Plugin) Unreserve(ctx context.Context, cs fwk.CycleState, pod *v1.Pod, nodeName string) {
	if !pl.boundByOthers(ctx, cs, pod, nodeName) {
		pl.pool.ForgetUnbound(pod.UID)
	}
}
