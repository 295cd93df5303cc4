// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// What the shell's completion offers of the cluster; nothing where it cannot be read.

// gpuNodesNow lists the GPUNodes.
func (a *access) gpuNodesNow(cmd *cobra.Command) []v1alpha1.GPUNode {
	if _, err := a.connect(); err != nil {
		return nil
	}
	list, err := a.gpus.DynamigV1alpha1().GPUNodes().List(cmd.Context(), metav1.ListOptions{})
	if err != nil {
		return nil
	}
	return list.Items
}

// nodeNames offers the nodes that have a GPUNode.
func (a *access) nodeNames(cmd *cobra.Command) []string {
	var names []string
	for _, n := range a.gpuNodesNow(cmd) {
		names = append(names, n.Name)
	}
	return names
}

// profileNames offers the profiles that GPUs have.
func (a *access) profileNames(cmd *cobra.Command) []string {
	var nodes []*v1alpha1.GPUNode
	list := a.gpuNodesNow(cmd)
	for i := range list {
		nodes = append(nodes, &list[i])
	}
	return profilesOf(nodes)
}

// podNames offers the pods that ask for GPUs.
func (a *access) podNames(cmd *cobra.Command) []string {
	namespace, err := a.connect()
	if err != nil {
		return nil
	}
	list, err := a.kube.CoreV1().Pods(namespace).List(cmd.Context(), metav1.ListOptions{})
	if err != nil {
		return nil
	}
	opts, _, err := a.options(cmd.Context())
	if err != nil {
		return nil
	}
	var names []string
	for i := range list.Items {
		if opts.Wants(&list.Items[i]) {
			names = append(names, list.Items[i].Name)
		}
	}
	return names
}
