// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package nodecheck

import (
	"context"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// cluster asks the API server who else wants the node's GPUs.
func (n *Node) cluster(ctx context.Context, r *report) {
	if n.Client == nil {
		r.add(Note, "cluster", "The API server was not asked; give --kubeconfig and --node-name to look for mig-manager, other device plugins and DeviceClasses.")
		return
	}
	node, err := n.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		r.add(Problem, "cluster", "Node %s cannot be read (%v); correct --node-name and --kubeconfig.", n.Name, err)
		return
	}
	before := len(r.findings)
	for _, label := range []string{"nvidia.com/mig.config", "nvidia.com/mig.config.state"} {
		if value, ok := node.Labels[label]; ok {
			r.add(Problem, "mig-manager", "Label %s=%s shows that mig-manager partitions this node's GPUs; label the node nvidia.com/gpu.deploy.mig-manager=false and remove %s.", label, value, label)
			break
		}
	}
	for name := range node.Annotations {
		if strings.HasPrefix(name, "hami.io/node-handshake") {
			r.add(Problem, "HAMi", "Annotation %s shows that HAMi's device plugin serves this node; remove it from this node.", name)
		}
	}
	for name := range node.Status.Capacity {
		if strings.HasPrefix(string(name), "nvidia.com/mig-") {
			r.add(Problem, "device plugin", "The node offers %s, which NVIDIA's device plugin does with the strategy mixed; remove that plugin from this node.", name)
			break
		}
	}
	n.classes(ctx, r)
	if len(r.findings) == before {
		r.add(OK, "cluster", "Nobody else claims the GPUs of node %s.", n.Name)
	}
}

// classes looks for a DeviceClass that takes our resource.
func (n *Node) classes(ctx context.Context, r *report) {
	classes, err := n.Client.ResourceV1().DeviceClasses().List(ctx, metav1.ListOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return // a cluster without DRA
	case err != nil:
		r.add(Note, "DRA", "DeviceClasses cannot be listed (%v); make sure that none has extendedResourceName %s.", err, v1alpha1.ResourceGPU)
		return
	}
	for _, class := range classes.Items {
		if name := class.Spec.ExtendedResourceName; name != nil && *name == string(v1alpha1.ResourceGPU) {
			r.add(Problem, "DRA", "DeviceClass %s maps %s to DRA, so that kube-scheduler leaves it to DRA where this agent is down; delete the class or its extendedResourceName.", class.Name, *name)
		}
	}
}
