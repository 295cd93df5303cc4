// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"

	v1 "k8s.io/api/core/v1"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/pool"
)

// signature is everything of a pod that Filter and Score depend on.
type signature struct {
	MIG, Share bool
	Devices    []geometry.Want
	Shares     []pool.ShareWant
	Select     pool.Selectors
	Policy     pool.Policy
	Prices     uint64           // the version of the scores
	Containers map[string][]int // the grouping of devices
}

// SignPod lets pods with equal requests share a scheduling result for a moment
// (KEP-5598). Pods without our resources add nothing; a pod that does not parse is
// not signed.
func (pl *Plugin) SignPod(_ context.Context, pod *v1.Pod) ([]fwk.SignFragment, *fwk.Status) {
	request, err := pl.pool.Parse(pod)
	if err != nil {
		return nil, fwk.NewStatus(fwk.Unschedulable, err.Error())
	}
	if request == nil {
		return nil, nil
	}
	return []fwk.SignFragment{{Key: Name, Value: signature{
		MIG: request.MIG, Share: request.Share, Devices: request.Devices, Shares: request.Shares,
		Select: request.Select, Policy: request.Policy, Prices: request.Prices(), Containers: request.Containers,
	}}}, nil
}
