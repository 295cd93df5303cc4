// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/dynamig/dynamig/pkg/agent"
	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/deviceplugin"
	"github.com/dynamig/dynamig/pkg/hamicore"
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
		out[i] = deviceplugin.Device{Key: d.Key, Edits: cdi.Edits{DeviceNodes: edits(d.Nodes), Env: d.Env, Mounts: mounts(d.Mounts)}}
	}
	return out, nil
}

// mounts gives files and directories of the host to a container.
func mounts(list []hamicore.Mount) []cdi.Mount {
	var out []cdi.Mount
	for _, m := range list {
		options := []string{"rw", "nosuid", "nodev", "bind"}
		if m.ReadOnly {
			options[0] = "ro"
		}
		out = append(out, cdi.Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath, Options: options})
	}
	return out
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
