// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package node is one GPU node without a cluster, on which the real node agent runs
// as a process. Everything around the agent is there and speaks the real protocols,
// but costs milliseconds: many nodes fit on one machine at once.
//
//	API (HTTP) ----pods----> nodeagent (a process) ----> sim: GPUs, /proc, /dev
//	   ^                        |   ^
//	   |                  CDI files |  device plugin, PodResources, checkpoint
//	   |                        v   v
//	   +------ Node: a kubelet, its pod workers, a container runtime
//
// Words: a container is created when the runtime has read its CDI files; from then
// on its pod holds the instance, as a process that NVML shows.
//
// node knows what kubelet and a runtime do with a pod. It knows neither scheduling
// nor what is tested.
package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/kubelet"
	"github.com/dynamig/dynamig/test/steps"
)

// Name of the Node object.
const Name = "node1"

// Node is a node. Its methods may be called in parallel, except those that start
// and stop things.
type Node struct {
	T       kubelet.T
	Dir     string // short, since sockets are below it
	API     *API
	Kubelet *kubelet.Kubelet
	Sim     *sim.Node

	// Program is the nodeagent to run, Args are more flags of it, and Env more of
	// its environment. To be set before the agent starts.
	Program string
	Args    []string
	Env     []string

	driver  nvml.Driver // the runtime's eyes
	gpus    []nvml.GPU
	profile map[string]sim.Profile // of the first GPU's model, by name
	agent   *steps.Process
	workers sync.WaitGroup
	closing chan struct{}

	mu   sync.Mutex // guards what follows
	pods map[string]*Pod
	pids int
}

// New makes a node with these GPUs in a directory, and starts everything but the
// agent.
func New(t kubelet.T, dir, program string, spec sim.Spec) *Node {
	t.Helper()
	n := &Node{T: t, Dir: dir, Program: program, pods: map[string]*Pod{}, pids: 1 << 22, closing: make(chan struct{})}
	spec.PlainDevices = true
	err := sim.Create(n.simRoot(), spec)
	if err == nil {
		n.Sim, err = sim.Load(n.simRoot())
	}
	if err == nil {
		n.driver, err = sim.Open(n.simRoot(), sim.Uncounted())
	}
	if err == nil {
		n.gpus, err = n.driver.GPUs(nil)
	}
	if err == nil {
		n.API, err = newAPI(Name)
	}
	for name, text := range map[string]string{
		"kubeconfig":  kubeconfig(n.API),
		"config.json": fmt.Sprintf(`{"nodeconfig": [{"name": %q, "operatingmode": "mig"}]}`, Name),
	} {
		err = errors.Join(err, os.WriteFile(n.path(name), []byte(text), 0o600))
	}
	// The agent looks for open devices among the processes of this node, which are
	// those of the test: others of this machine may not be readable.
	err = errors.Join(err, os.Mkdir(n.path("proc"), 0o700), os.Symlink(fmt.Sprintf("/proc/%d", os.Getpid()), n.path("proc/"+strconv.Itoa(os.Getpid()))))
	if err != nil {
		t.Fatal(err)
	}
	n.profile = n.profiles()
	n.Kubelet = kubelet.New(t, n.path("kubelet"))
	return n
}

func (n *Node) path(name string) string { return filepath.Join(n.Dir, name) }
func (n *Node) simRoot() string         { return n.path("sim") }

// StateDir, CDIDir and Log are the agent's.
func (n *Node) StateDir() string { return n.path("state") }
func (n *Node) CDIDir() string   { return n.path("cdi") }
func (n *Node) Log() string      { return n.path("agent.log") }

func kubeconfig(a *API) string {
	if a == nil {
		return ""
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://%s"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`, a.address)
}

func (n *Node) profiles() map[string]sim.Profile {
	out := map[string]sim.Profile{}
	s := n.Dump()
	for _, p := range s.Models[s.GPUs[0].Model].Profiles {
		out[p.Name] = p
	}
	return out
}

// Dump is the state of the GPUs.
func (n *Node) Dump() sim.State {
	n.T.Helper()
	s, err := n.Sim.Dump()
	if err != nil {
		n.T.Fatal(err)
	}
	return s
}

// GPU is the UUID of a GPU.
func (n *Node) GPU(index int) nvml.GPUID { return n.gpus[index].ID }

// StartAgent starts the agent, which is killed at a step of its own files (see
// package steps; 0 is never).
func (n *Node) StartAgent(at int, after bool) *steps.Process {
	n.T.Helper()
	log, err := os.OpenFile(n.Log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		n.T.Fatal(err)
	}
	defer log.Close()
	fmt.Fprintln(log, "---- the agent starts")
	cmd := exec.Command(n.Program, n.Flags(n.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), n.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if n.agent, err = steps.Start(cmd, at, after, n.StateDir(), n.CDIDir()); err != nil {
		n.T.Fatal(err)
	}
	return n.agent
}

// Flags are those with which the agent of this node runs, and more.
func (n *Node) Flags(more ...string) []string {
	return append([]string{
		"--node-name=" + Name, "--kubeconfig=" + n.path("kubeconfig"), "--driver=sim", "--sim-root=" + n.simRoot(),
		"--node-config=" + n.path("config.json"), "--state-dir=" + n.StateDir(), "--cdi-dir=" + n.CDIDir(),
		"--kubelet-dir=" + n.Kubelet.Dir, "--proc-dir=" + n.path("proc"), "--v=4",
	}, more...)
}

// Agent is the agent that was started last.
func (n *Node) Agent() *steps.Process { return n.agent }

// KillAgent ends the agent as a power failure would.
func (n *Node) KillAgent() {
	n.agent.Signal(syscall.SIGKILL)
	<-n.agent.Done()
}

// StopAgent ends the agent as kubelet would.
func (n *Node) StopAgent() {
	n.T.Helper()
	n.agent.Signal(syscall.SIGTERM)
	select {
	case <-n.agent.Done():
		if err := n.agent.Err(); err != nil {
			n.T.Errorf("the agent ended with %v", err)
		}
	case <-time.After(kubelet.Patience):
		n.T.Errorf("the agent does not end")
		n.KillAgent()
	}
}

// Reboot is what a reboot leaves: no process, no instance, no CDI file; the disk
// with kubelet's checkpoint and the agent's state. The agent must have been killed.
// Kubelet and agent are started afterwards, in either order.
func (n *Node) Reboot() {
	n.T.Helper()
	n.Kubelet.Stop()
	n.mu.Lock()
	for _, p := range n.pods {
		p.halt()
	}
	n.mu.Unlock()
	n.workers.Wait()
	err := errors.Join(n.Sim.Reboot(), os.RemoveAll(n.CDIDir()), n.endProcesses())
	if err == nil {
		n.driver, err = sim.Open(n.simRoot(), sim.Uncounted())
	}
	if err != nil {
		n.T.Fatal(err)
	}
}

// endProcesses ends those of all containers.
func (n *Node) endProcesses() (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		for _, c := range p.inner.Containers() {
			err = errors.Join(err, os.RemoveAll(p.process(c.Name)))
		}
	}
	return err
}

// Close ends everything. It is called once.
func (n *Node) Close() {
	close(n.closing)
	if n.agent != nil {
		n.KillAgent()
	}
	n.workers.Wait()
	n.Kubelet.Stop()
	n.API.Close()
	_ = n.driver.Close()
}

// Await waits until something is so, and fails the test with its last reason.
func (n *Node) Await(what string, ok func() error) {
	n.T.Helper()
	deadline := time.Now().Add(kubelet.Patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.T.Fatalf("waiting for %s: %v\n%s", what, err, n.tail())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// tail is the end of the agent's log.
func (n *Node) tail() string {
	text, _ := os.ReadFile(n.Log()) // for people
	return string(text[max(0, len(text)-6000):])
}

// Condition is one of the report, as "True Reason: message"; empty when there is none.
func (n *Node) Condition(kind string) string {
	if report := n.API.GPUNode(); report != nil {
		for _, c := range report.Status.Conditions {
			if c.Type == kind {
				return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
			}
		}
	}
	return ""
}

// WriteState replaces a file of the agent's state directory.
func (n *Node) WriteState(file, text string) {
	n.T.Helper()
	if err := os.WriteFile(filepath.Join(n.StateDir(), file), []byte(text), 0o600); err != nil {
		n.T.Fatal(err)
	}
}

// RemoveState removes one.
func (n *Node) RemoveState(file string) {
	n.T.Helper()
	if err := os.Remove(filepath.Join(n.StateDir(), file)); err != nil {
		n.T.Fatal(err)
	}
}
