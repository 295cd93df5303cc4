// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/cluster"
)

// Where the DaemonSet of overlay sim keeps its state and the simulated GPUs.
const (
	stateDir = "/var/lib/dynamig"
	simRoot  = "/var/lib/dynamig/sim"

	hamiCoreDir = "/usr/local/vgpu"
)

// agentProcess is the agent's name among a node's processes.
const agentProcess = "nodeagent"

// Node is a node of the cluster with simulated GPUs.
type Node struct {
	*cluster.Node
	SimRoot string // directory of the simulated GPUs, as the host sees it

	stack *Stack
}

// AddNode adds a node with simulated GPUs, one for each board name, in MIG mode,
// and starts its agent.
func (s *Stack) AddNode(ctx context.Context, name string, gpus ...string) (*Node, error) {
	n, err := s.AddNodeWithoutAgent(ctx, name, gpus...)
	if err != nil {
		return nil, err
	}
	return n, s.Step("agent of "+name, func() error { return n.StartAgent(ctx) })
}

// AddNodeWithoutAgent is AddNode without the agent.
func (s *Stack) AddNodeWithoutAgent(ctx context.Context, name string, gpus ...string) (*Node, error) {
	inner, err := s.Cluster.AddNode(ctx, cluster.NodeConfig{Name: name, Private: []string{stateDir, hamiCoreDir}})
	if err != nil {
		return nil, err
	}
	n, err := s.node(inner)
	if err != nil {
		return nil, err
	}
	spec := sim.Spec{Seed: name}
	for _, board := range gpus {
		spec.GPUs = append(spec.GPUs, sim.GPUSpec{Board: board, MIG: true})
	}
	if err := sim.Create(n.SimRoot, spec); err != nil {
		return nil, fmt.Errorf("giving node %s its GPUs: %w", name, err)
	}
	return n, nil
}

// Node opens a node that runs.
func (s *Stack) Node(name string) (*Node, error) {
	inner, err := s.Cluster.Node(name)
	if err != nil {
		return nil, err
	}
	return s.node(inner)
}

func (s *Stack) node(inner *cluster.Node) (*Node, error) {
	root, err := inner.Path(simRoot)
	if err != nil {
		return nil, err
	}
	return &Node{Node: inner, SimRoot: root, stack: s}, nil
}

// StartAgent starts the agent as the DaemonSet describes it, with more flags and a token
// bound to the node. The nodes of a machine share its ports, so the agent's is any.
func (n *Node) StartAgent(ctx context.Context, flags ...string) error {
	d, err := n.stack.daemonSet(ctx)
	if err != nil {
		return err
	}
	pod := &d.Spec.Template.Spec
	kubeconfig, err := n.stack.Cluster.ServiceAccountKubeconfig(ctx, Namespace, pod.ServiceAccountName, n.Name)
	if err != nil {
		return err
	}
	p, err := n.stack.program(ctx, agentProcess, pod, map[string]string{"spec.nodeName": n.Name})
	if err != nil {
		return err
	}
	argv := append(p.argv, "--kubeconfig="+kubeconfig, "--listen=127.0.0.1:0")
	_, err = n.Start(agentProcess, append(argv, flags...), p.env)
	return err
}

// InstallHAMiCore puts a library where HAMi-core's is on a node. It has no code: the
// dynamic linker of a process in a container says that it was told to load it.
func (n *Node) InstallHAMiCore() error {
	dir, err := n.Path(hamiCoreDir)
	if err != nil {
		return err
	}
	machine, ok := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("no machine is known for %s", runtime.GOARCH)
	}
	var file bytes.Buffer
	head := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Shentsize: 64,
	}
	if err := binary.Write(&file, binary.LittleEndian, head); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "libvgpu.so"), file.Bytes(), 0o644)
}

// Homes lists the directories of containers with software shares on a node.
func (n *Node) Homes() ([]string, error) {
	dir, err := n.Path(hamiCoreDir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, "containers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Agent is the agent's process.
func (n *Node) Agent() *cluster.Process { return n.Process(agentProcess) }

// ConfigFile is the path of a file of the agent's configuration.
func (n *Node) ConfigFile(name string) string {
	return filepath.Join(n.stack.Cluster.Dir(), "config", agentProcess+n.Name, name)
}

// WriteConfig replaces a file of the agent's configuration, as kubelet would after
// a change of the ConfigMap.
func (n *Node) WriteConfig(file, text string) error {
	path := n.ConfigFile(file)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// ReadConfig reads a file of the agent's configuration.
func (n *Node) ReadConfig(file string) (string, error) {
	text, err := os.ReadFile(n.ConfigFile(file))
	return string(text), err
}

// expand replaces $(NAME) as kubelet does in arguments.
func expand(arg string, values map[string]string) string {
	for name, value := range values {
		arg = strings.ReplaceAll(arg, "$("+name+")", value)
	}
	return arg
}

// rebase replaces the directory mount by dir in an argument of the form
// --flag=mount/file.
func rebase(arg, mount, dir string) string {
	return strings.Replace(arg, "="+mount+"/", "="+dir+"/", 1)
}
