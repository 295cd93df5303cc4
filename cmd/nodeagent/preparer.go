// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/dynamig/dynamig/pkg/agent"
	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/deviceplugin"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// preparer shows the agent to the device plugin.
type preparer struct {
	agent *agent.Agent
}

// Prepare implements deviceplugin.Preparer.
func (p preparer) Prepare(ctx context.Context, c deviceplugin.Container) ([]deviceplugin.Device, error) {
	devices, err := p.agent.Prepare(ctx, agent.Container(c))
	if err != nil {
		return nil, err
	}
	out := make([]deviceplugin.Device, len(devices))
	for i, d := range devices {
		out[i] = deviceplugin.Device{Key: d.Key, Edits: cdi.Edits{DeviceNodes: edits(d.Nodes)}}
	}
	return out, nil
}

// edits gives device nodes to a container, which needs not make any itself.
func edits(nodes []nvml.DeviceNode) []cdi.DeviceNode {
	out := make([]cdi.DeviceNode, len(nodes))
	for i, n := range nodes {
		out[i] = cdi.DeviceNode{
			Path: n.Path, HostPath: n.HostPath, Major: n.Major, Minor: n.Minor, FileMode: n.FileMode, Permissions: "rw",
		}
	}
	return out
}
