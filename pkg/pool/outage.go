// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// Outage is why a node takes no pods and starts none, whatever its GPUNode says: that
// stays as it was when an agent or a kubelet is dead. It shows on the Node.
type Outage string

// Outages.
const (
	NodeGone Outage = "NodeGone" // the cluster has no such Node
	NotReady Outage = "NotReady" // kubelet does not report
	NoAgent  Outage = "NoAgent"  // the agent offered GPUs, and kubelet counts no devices
)

// Kubelet is what a node's kubelet says.
type Kubelet struct {
	Devices int64 `json:"devices"` // allocatable, of the resource that devices are counted by
	Ready   bool  `json:"ready"`   // unless the Node's condition says otherwise
}

// KubeletOf reads a Node. count is the resource that devices are counted by.
func KubeletOf(node *v1.Node, count v1.ResourceName) Kubelet {
	devices := node.Status.Allocatable[count]
	silent := slices.ContainsFunc(node.Status.Conditions, func(c v1.NodeCondition) bool {
		return c.Type == v1.NodeReady && c.Status != v1.ConditionTrue
	})
	return Kubelet{Devices: devices.Value(), Ready: !silent}
}

// Outage is what is amiss by what kubelet says, nil where there is no Node; empty where
// nothing is. Kubelet drops the devices at once when the agent's connection ends, so that
// there are none beside a report that offers GPUs. An agent that offers none says so in
// its condition Ready, and is there.
func (n *NodePicture) Outage(k *Kubelet) Outage {
	offers := slices.ContainsFunc(n.Conditions, func(c metav1.Condition) bool {
		return c.Type == v1alpha1.ConditionReady && c.Status == metav1.ConditionTrue
	})
	switch {
	case k == nil:
		return NodeGone
	case !k.Ready:
		return NotReady
	case offers && k.Devices == 0:
		return NoAgent
	}
	return ""
}

// Withhold draws the GPUs as what they are during an outage: nothing new is placed there.
func (n *NodePicture) Withhold() {
	for i := range n.GPUs {
		g := &n.GPUs[i]
		g.Offered, g.FreeSlices, g.LargestFree, g.LargestFreeSlices, g.Fragmentation, g.Stranded = false, 0, "", 0, 0, 0
		for j := range g.Fits {
			g.Fits[j].Count = 0
		}
		if g.Shares != nil {
			g.Shares.FreeCount, g.Shares.FreeMemoryMiB, g.Shares.FreeCores = 0, 0, 0
		}
	}
}
