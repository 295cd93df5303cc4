// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pods "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// PodsAPI is the socket of the Pods API.
func (k *Kubelet) PodsAPI() string { return filepath.Join(k.Dir, "pods-api", "pods-api.sock") }

// ListPods shows the pods that were admitted and have not ended.
func (k *Kubelet) ListPods(context.Context, *pods.ListPodsRequest) (*pods.ListPodsResponse, error) {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	k.PodCalls++
	if k.Initializing {
		return nil, status.Error(codes.FailedPrecondition, "Kubelet is initializing")
	}
	response := &pods.ListPodsResponse{}
	for _, pod := range k.Active {
		if pod.Object == nil {
			continue
		}
		text, err := pod.Object.Marshal()
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		response.Pods = append(response.Pods, text)
	}
	return response, nil
}
