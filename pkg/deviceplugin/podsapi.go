// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
	pods "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// ListPods lists the pods that kubelet knows, over the socket of its Pods API, as the
// API server has them but with the status that they have here; static pods are among
// them. Kubelet serves it with the feature gate PodsAPI, which is on since 1.37, and
// refuses until it has heard of its pods itself.
func ListPods(ctx context.Context, socket string) (_ []*v1.Pod, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	response, err := pods.NewPodsClient(conn).ListPods(ctx, &pods.ListPodsRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing kubelet's pods: %w", err)
	}
	out := make([]*v1.Pod, len(response.Pods))
	for i, text := range response.Pods {
		out[i] = &v1.Pod{}
		if err := out[i].Unmarshal(text); err != nil {
			return nil, fmt.Errorf("decoding kubelet's pods: %w", err)
		}
	}
	return out, nil
}
