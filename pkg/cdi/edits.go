// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"fmt"
	"os"
	"path"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"
)

// charDevice is CDI's type of a character device; no GPU driver has another.
const charDevice = "c"

// DeviceNode is a character device that the container gets.
type DeviceNode struct {
	Path     string // in the container, absolute
	HostPath string // on the host; empty = as Path

	// Major and Minor make the node complete, so that it need not exist on the
	// host. Major 0 = the runtime reads both from the host's node.
	Major, Minor int64

	FileMode    os.FileMode // permission bits; 0 = the host node's, or the runtime's default
	Permissions string      // of the cgroup: some of "rwm"; empty = all
}

// Mount is a file or directory of the host that the container gets.
type Mount struct {
	HostPath      string
	ContainerPath string
	Options       []string // as for mount(8); none = the runtime's default
}

// Hook is a program that the runtime runs at a point of a container's life.
type Hook struct {
	Name string // OCI name, such as "createContainer"
	Path string // on the host
	Args []string
	Env  []string
}

// Edits are what the runtime changes in a container.
type Edits struct {
	DeviceNodes []DeviceNode
	Env         []string // NAME=value
	Mounts      []Mount
	Hooks       []Hook
}

// check returns an error that names the entry and field that no runtime accepts:
// one bad file would make containers fail that have nothing to do with it.
func (e Edits) check() error {
	if len(e.DeviceNodes)+len(e.Env)+len(e.Mounts)+len(e.Hooks) == 0 {
		return fmt.Errorf("the edits are empty, which CDI does not allow; give at least one device node or variable")
	}
	for _, n := range e.DeviceNodes {
		if err := n.check(); err != nil {
			return err
		}
	}
	for _, v := range e.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
			return fmt.Errorf("env %q is not NAME=value", v)
		}
	}
	for _, m := range e.Mounts {
		if !path.IsAbs(m.HostPath) || !path.IsAbs(m.ContainerPath) {
			return fmt.Errorf("mount of %q at %q: both paths must be absolute", m.HostPath, m.ContainerPath)
		}
	}
	for _, h := range e.Hooks {
		if h.Name == "" || !path.IsAbs(h.Path) {
			return fmt.Errorf("hook %q runs %q: it needs a name and an absolute path", h.Name, h.Path)
		}
	}
	return nil
}

func (n DeviceNode) check() error {
	if !path.IsAbs(n.Path) {
		return fmt.Errorf("device node %q: the path must be absolute", n.Path)
	}
	if n.HostPath != "" && !path.IsAbs(n.HostPath) {
		return fmt.Errorf("device node %s: the host path %q must be absolute", n.Path, n.HostPath)
	}
	if n.Major < 0 || n.Minor < 0 {
		return fmt.Errorf("device node %s: major %d and minor %d must not be negative", n.Path, n.Major, n.Minor)
	}
	if strings.Trim(n.Permissions, "rwm") != "" {
		return fmt.Errorf("device node %s: permissions %q may have r, w and m only", n.Path, n.Permissions)
	}
	return nil
}

// containerEdits is the file's form of the edits.
func (e Edits) containerEdits() specs.ContainerEdits {
	out := specs.ContainerEdits{Env: e.Env}
	for _, n := range e.DeviceNodes {
		out.DeviceNodes = append(out.DeviceNodes, n.node())
	}
	for _, m := range e.Mounts {
		out.Mounts = append(out.Mounts, &specs.Mount{
			HostPath: m.HostPath, ContainerPath: m.ContainerPath, Options: m.Options,
		})
	}
	for _, h := range e.Hooks {
		out.Hooks = append(out.Hooks, &specs.Hook{HookName: h.Name, Path: h.Path, Args: h.Args, Env: h.Env})
	}
	return out
}

func (n DeviceNode) node() *specs.DeviceNode {
	out := &specs.DeviceNode{Path: n.Path, HostPath: n.HostPath, Permissions: n.Permissions}
	if n.Major != 0 {
		// Without a type the runtime would look for the host's node and fail
		// when there is none (container-edits_unix.go, fillMissingInfo).
		out.Type, out.Major, out.Minor = charDevice, n.Major, n.Minor
	}
	if mode := n.FileMode.Perm(); mode != 0 {
		out.FileMode = &mode
	}
	return out
}
