// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/dynamig/dynamig/pkg/cdi"
)

// service answers kubelet on one session's socket.
type service struct {
	pluginapi.UnimplementedDevicePluginServer
	plugin  *Plugin
	session *session
}

func options() *pluginapi.DevicePluginOptions {
	return &pluginapi.DevicePluginOptions{PreStartRequired: true}
}

// GetDevicePluginOptions is called by kubelet while it serves Register.
func (s *service) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return options(), nil
}

// ListAndWatch sends the slots now and whenever they change, until kubelet or the
// session ends. Changes that come quicker than kubelet reads are sent as one.
func (s *service) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	s.session.open()
	defer s.session.end()
	for {
		devices, changed := s.plugin.slots.list()
		if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: devices}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// Allocate promises CDI names, from memory (I1). Kubelet keeps the answer over its
// restarts and reboots, so it says nothing that could change.
func (s *service) Allocate(ctx context.Context, req *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	response := &pluginapi.AllocateResponse{}
	for _, container := range req.ContainerRequests {
		slots := sortSlots(slices.Clone(container.DevicesIds))
		if err := s.plugin.slots.hand(slots); err != nil {
			return nil, status.Error(codes.NotFound, err.Error())
		}
		names := []*pluginapi.CDIDevice{{Name: cdi.DriverDevice}}
		for _, slot := range slots {
			names = append(names, &pluginapi.CDIDevice{Name: cdi.SlotDevice(slot)})
		}
		response.ContainerResponses = append(response.ContainerResponses, &pluginapi.ContainerAllocateResponse{CdiDevices: names})
		klog.FromContext(ctx).V(4).Info("Handed slots", "slots", slots)
	}
	return response, nil
}

// PreStartContainer is called before each start of a container, restarts included.
func (s *service) PreStartContainer(ctx context.Context, req *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	if deadline, ok := ctx.Deadline(); ok {
		// Kubelet would show its own "context deadline exceeded" to the user.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-min(s.plugin.timing.margin, time.Until(deadline)/2)))
		defer cancel()
	}
	if err := s.plugin.start(ctx, req.DevicesIds); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &pluginapi.PreStartContainerResponse{}, nil
}
