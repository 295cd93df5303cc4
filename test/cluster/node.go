// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"golang.org/x/sys/unix"
)

// NodeConfig describes a node to add.
type NodeConfig struct {
	Name    string // a DNS label
	Labels  map[string]string
	Taints  []corev1.Taint
	Kubelet map[string]any // fields of KubeletConfiguration that replace those of this package
	Private []string       // further directories of which the node has its own, absolute, such as an agent's state
}

// Node is a containerd and a kubelet in namespaces of their own, and what else runs there.
type Node struct {
	Name string
	IP   string // address of kubelet, on the node's bridge

	cluster *Cluster
	index   int
	subnet  netip.Prefix // of its pods, with the node's own address
}

// maxNodes follows from the 15 bytes of an interface's name.
const maxNodes = 99

// AddNode starts a node and returns when it is Ready and has no taint that says
// otherwise. If it fails, nothing but logs is left of the node.
func (c *Cluster) AddNode(ctx context.Context, cfg NodeConfig) (*Node, error) {
	if errs := validation.IsDNS1123Label(cfg.Name); len(errs) > 0 {
		return nil, fmt.Errorf("NodeConfig.Name %q: %s", cfg.Name, strings.Join(errs, "; "))
	}
	var n *Node
	err := c.update(ctx, func(st *state) error {
		if st.Nodes[cfg.Name] != 0 {
			return fmt.Errorf("adding node %s: test cluster %s has one of this name; remove it first", cfg.Name, c.cfg.Name)
		}
		index, err := freeIndex(st.Nodes)
		st.Nodes[cfg.Name] = index
		n = c.node(cfg.Name, index)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := n.start(ctx, cfg); err != nil {
		err = fmt.Errorf("adding node %s: %w", cfg.Name, err)
		return nil, errors.Join(err, c.RemoveNode(context.WithoutCancel(ctx), cfg.Name))
	}
	return n, nil
}

// freeIndex returns the lowest index that no node has.
func freeIndex(nodes map[string]int) (int, error) {
	used := make(map[int]bool)
	for _, i := range nodes {
		used[i] = true
	}
	for i := 1; i <= maxNodes; i++ {
		if !used[i] {
			return i, nil
		}
	}
	return 0, fmt.Errorf("a test cluster has at most %d nodes", maxNodes)
}

func (c *Cluster) node(name string, index int) *Node {
	subnet := c.net.nodePrefix(index)
	return &Node{Name: name, IP: subnet.Addr().String(), cluster: c, index: index, subnet: subnet}
}

func (n *Node) start(ctx context.Context, cfg NodeConfig) error {
	c := n.cluster
	steps := []struct {
		name string
		do   func() error
	}{
		{"namespaces", func() error { return n.prepare(ctx, cfg) }},
		{"containerd", func() error { return n.startContainerd(ctx) }},
		{"images", func() error { return n.importAll(ctx) }},
		{"kubelet", func() error { return n.startKubelet(ctx, cfg) }},
	}
	for _, s := range steps {
		if err := c.step(n.Name+" "+s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes what has to be there before the first program of the node: bridge,
// cgroup, files, and the namespaces with process 1 in them.
func (n *Node) prepare(ctx context.Context, cfg NodeConfig) error {
	if err := addBridge(ctx, n.bridge(), n.subnet); err != nil {
		return err
	}
	if err := makeCgroup(n.cgroup()); err != nil {
		return err
	}
	if err := n.writeFiles(cfg); err != nil {
		return err
	}
	init, err := n.initTracker().launch("init", []string{n.cluster.cfg.bin("pause")}, nil)
	if err != nil {
		return err
	}
	return furnish(init.PID(), n.dir(), slices.Concat(privateDirs, cfg.Private))
}

// RemoveNode kills everything in the node at once, as a loss of power would, and
// deletes its Node object and all other traces but logs.
func (c *Cluster) RemoveNode(ctx context.Context, name string) error {
	n, err := c.Node(name)
	if err != nil {
		return err
	}
	if err := n.clear(ctx); err != nil {
		return fmt.Errorf("removing node %s: %w", name, err)
	}
	err = c.client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing node %s: %w", name, err)
	}
	return c.update(ctx, func(st *state) error {
		delete(st.Nodes, name)
		return nil
	})
}

func (n *Node) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	if err := killMarked(ctx, n.tracker().mark); err != nil {
		return err
	}
	if err := removeBridge(ctx, n.bridge()); err != nil {
		return err
	}
	if err := removeCgroup(ctx, n.cgroup()); err != nil {
		return err
	}
	return errors.Join(removeState(n.dir()), removeState(n.tracker().run))
}

func (n *Node) bridge() string { return fmt.Sprintf("%s-%d", n.cluster.cfg.trace(), n.index) }

func (n *Node) cgroup() string { return n.cluster.cfg.trace() + "/" + n.Name }

// dir is the node's own directory on the host; privateDirs lie below it.
func (n *Node) dir() string { return n.cluster.cfg.path("nodes", n.Name) }

// Path returns where the host finds a file of the node, or would if it existed in
// its existing directory. Symbolic links are followed as inside the node: appended
// to /proc/PID/root, an absolute one such as /var/run would lead back to the host.
// The result is short enough for sockets and valid until the node is removed.
func (n *Node) Path(path string) (string, error) {
	pid := n.Process("init").PID()
	if pid == 0 {
		return "", fmt.Errorf("finding %s of node %s: the node does not run", path, n.Name)
	}
	err := within(pid, func() error {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
			return nil
		}
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		path = filepath.Join(dir, filepath.Base(path))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("finding %s of node %s: %w", path, n.Name, err)
	}
	return fmt.Sprintf("/proc/%d/root%s", pid, path), nil
}

// tracker starts processes inside the node.
func (n *Node) tracker() *tracker {
	c := n.cluster.cfg
	return &tracker{
		run: c.path("run", n.Name), logs: c.path("log", n.Name), mark: c.Name + "/" + n.Name, bin: c.Bin,
		start: n.startInside,
	}
}

// initTracker starts process 1 in fresh namespaces. When it is killed, the kernel
// kills all others in them, and their mounts go too.
func (n *Node) initTracker() *tracker {
	t := n.tracker()
	t.start = func(cmd *exec.Cmd) error {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID
		return cmd.Start()
	}
	return t
}

func (n *Node) startInside(cmd *exec.Cmd) error {
	pid := n.Process("init").PID()
	if pid == 0 {
		return fmt.Errorf("node %s does not run", n.Name)
	}
	return within(pid, cmd.Start)
}

// Start starts a program inside the node, such as an agent, as a tracked process.
// It shares the host's network. It gets PATH, HOME and env, nothing of the caller's
// environment.
func (n *Node) Start(name string, argv, env []string) (*Process, error) {
	return n.tracker().launch(name, argv, env)
}

// Process looks up a process of the node by name: kubelet, containerd, or one that
// was started with Start.
func (n *Node) Process(name string) *Process { return n.tracker().process(name) }

// Exec runs a program inside the node until it ends and returns what it printed on
// standard output and error.
func (n *Node) Exec(ctx context.Context, argv ...string) ([]byte, error) {
	if len(argv) == 0 {
		return nil, errors.New("running a program in a node: no program given")
	}
	cmd := n.tracker().command(argv, nil)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = stopGrace // a child that it left behind may keep the output open
	if err := n.startInside(cmd); err != nil {
		return nil, fmt.Errorf("running %s in node %s: %w", argv[0], n.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return out.Bytes(), fmt.Errorf("running %s in node %s: %w: %s", strings.Join(argv, " "), n.Name, err, strings.TrimSpace(out.String()))
	}
	return out.Bytes(), nil
}

func (n *Node) startContainerd(ctx context.Context) error {
	p, err := n.Start("containerd", []string{n.cluster.cfg.bin("containerd"), "--config", filepath.Join(n.dir(), "containerd.toml")}, nil)
	if err != nil {
		return err
	}
	return n.containerdReady(ctx, p)
}

// containerdReady waits for the socket, which containerd opens when its plugins are loaded.
func (n *Node) containerdReady(ctx context.Context, p *Process) error {
	return p.await(ctx, func(ctx context.Context) error {
		socket, err := n.Path(containerdSocket)
		if err != nil {
			return err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// RestartContainerd stops containerd and starts it again; containers live on.
func (n *Node) RestartContainerd(ctx context.Context) error {
	p := n.Process("containerd")
	if err := p.Restart(ctx); err != nil {
		return err
	}
	return n.containerdReady(ctx, p)
}

func (n *Node) importAll(ctx context.Context) error {
	archives, err := filepath.Glob(n.cluster.cfg.path("images", "*.tar"))
	if err != nil {
		return err
	}
	return n.importImages(ctx, archives...)
}

// importImages loads archives into containerd, all at once.
func (n *Node) importImages(ctx context.Context, archives ...string) error {
	errs := make([]error, len(archives))
	var wg sync.WaitGroup
	for i, archive := range archives {
		wg.Go(func() {
			_, errs[i] = n.Exec(ctx, n.cluster.cfg.bin("ctr"), "--namespace", "k8s.io", "images", "import", archive)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// startKubelet returns when the node is Ready and the controller manager has taken
// away its first taint.
func (n *Node) startKubelet(ctx context.Context, cfg NodeConfig) error {
	argv := []string{n.cluster.cfg.bin("kubelet"),
		"--config", filepath.Join(n.dir(), "kubelet.json"),
		"--kubeconfig", filepath.Join(n.dir(), "kubelet.kubeconfig"),
		"--hostname-override", n.Name, "--node-ip", n.IP,
	}
	if len(cfg.Labels) > 0 {
		argv = append(argv, "--node-labels", joinLabels(cfg.Labels))
	}
	p, err := n.Start("kubelet", argv, nil)
	if err != nil {
		return err
	}
	return p.await(ctx, func(ctx context.Context) error {
		node, err := n.cluster.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return ready(node)
	})
}

// ready returns nil if pods can be scheduled to the node.
func ready(node *corev1.Node) error {
	for _, t := range node.Spec.Taints {
		if t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable {
			return fmt.Errorf("node %s has the taint %s", node.Name, t.Key)
		}
	}
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			if cond.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("node %s is not Ready: %s", node.Name, cond.Message)
		}
	}
	return fmt.Errorf("node %s has no condition Ready yet", node.Name)
}

// RestartKubelet stops kubelet and starts it again; pods live on. It returns when
// kubelet answers, which is before device plugins have registered again.
func (n *Node) RestartKubelet(ctx context.Context) error {
	p := n.Process("kubelet")
	if err := p.Restart(ctx); err != nil {
		return err
	}
	return n.kubeletReady(ctx, p)
}

func (n *Node) kubeletReady(ctx context.Context, p *Process) error {
	return p.await(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return healthy(ctx, fmt.Sprintf("http://%s:%d/healthz", n.IP, kubeletHealthPort))
	})
}
