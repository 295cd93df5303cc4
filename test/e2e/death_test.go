// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/cluster"
	"github.com/dynamig/dynamig/test/stack"
)

// untilKilled is longer than any test: a driver call that takes that long lasts until
// its caller is killed.
const untilKilled = time.Hour

// TestAgentIsKilledOnThePodsWay: the agent is killed at an arrow of a pod's way, and
// the next one ends it. Package crash has every step; this is that real kubelet and
// runtime take it as their model does.
func TestAgentIsKilledOnThePodsWay(t *testing.T) {
	n := node(t, "node1")
	onlyWholeGPUs(t)
	kept := keep(t, "gpu=1 gpumem=4000")
	for _, c := range []struct {
		name, wants string
		holdsAt     string              // the driver call that does not return
		early       bool                // before kubelet has set up the pod's sandbox
		reached     func(creation) bool // says when the agent is killed
	}{
		{
			name: "bound, with nothing created", wants: "gpu=1 gpumem=9000", holdsAt: sim.CallCreateGPUInstance,
			reached: func(c creation) bool { return c.begun },
		},
		{
			name: "between GPU instance and compute instance", wants: "gpu=1 gpumem=19000", holdsAt: sim.CallCreateComputeInstance, early: true,
			reached: func(c creation) bool { return c.halves == 1 },
		},
		{
			name: "created, with no container", wants: "gpu=2 gpumem=19000", early: true,
			reached: func(c creation) bool { return c.begun && c.owned == 2 },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := looked(t, n)
			if c.holdsAt != "" {
				hold(t, n, c.holdsAt, untilKilled)
			}
			pod := create(t, newPod("arrow", c.wants))
			if c.early {
				freeze(t, n.Process("containerd"))
			}
			err := stack.Until(t.Context(), "the arrow", func() (bool, error) {
				return admitted(t, n, pod) && c.reached(creationOf(t, n, pod, before)), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			killAgent(t, n)
			thaw(t, n.Process("containerd"))
			agree(t, waitPod(t, pod.Name, stack.Running))
			tidy(t, n)
		})
	}
	t.Run("a pod's object gone, with nothing released", func(t *testing.T) {
		pod := runs(t, newPod("ended", "gpu=1 gpumem=9000"))
		freeze(t, n.Agent())
		remove(t, pod.Name)
		killAgent(t, n)
		tidy(t, n)
	})
	kept.check(t)
}

// TestRestartsAroundPods: kubelet, containerd and the API server are started again
// under a running pod and one that is starting. The first keeps its instances and its
// process; the second, or the one that its controller makes instead, gets its own.
func TestRestartsAroundPods(t *testing.T) {
	n := node(t, "node1")
	onlyWholeGPUs(t)
	kept := keep(t, "gpu=2 gpumem=4000")
	for _, c := range []struct {
		name, wants string
		restart     func(context.Context) error
	}{
		{"kubelet", "gpu=1 gpumem=9000", n.RestartKubelet},
		{"containerd", "gpu=1 gpumem=19000", n.RestartContainerd},
		{"API server", "gpu=2 gpumem=9000", restartAPIServer},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := looked(t, n)
			hold(t, n, sim.CallCreateComputeInstance, 3*time.Second) // while c restarts
			labels := deploy(t, newPod("starting", c.wants))
			err := stack.Until(t.Context(), "the pod's GPU instance", func() (bool, error) {
				return looked(t, n).halves > before.halves, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			agree(t, podOf(t, labels, stack.Running))
			kept.check(t)
			tidy(t, n)
		})
	}
}

// restartAPIServer also does what a Deployment does with a scheduler that ends since
// it has lost its lease.
func restartAPIServer(ctx context.Context) error {
	if err := st.Cluster.RestartAPIServer(ctx); err != nil {
		return err
	}
	if st.Cluster.Process("scheduler").Running() {
		return nil
	}
	return st.StartScheduler(ctx)
}

// TestAgentStartsWithoutTheAPIServer: it has never seen a pod that kubelet is starting,
// and learns of it by kubelet's own Pods API.
func TestAgentStartsWithoutTheAPIServer(t *testing.T) {
	n := node(t, "node1")
	onlyWholeGPUs(t)
	kept := keep(t, "gpu=1 gpumem=4000") // and makes room beside it
	journal, before := nodePath(t, n, "/var/lib/dynamig/journal.json"), looked(t, n)
	text, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	hold(t, n, sim.CallCreateGPUInstance, untilKilled)
	freeze(t, n.Process("containerd"))
	unseen := newPod("unseen", "gpu=1 gpumem=4000")
	unseen.Spec.AutomountServiceAccountToken = new(false) // kubelet would ask the API server for one
	pod := create(t, unseen)
	err = stack.Until(t.Context(), "the pod to be admitted", func() (bool, error) {
		return admitted(t, n, pod) && looked(t, n).calls > before.calls, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if pod, err = st.Kube.CoreV1().Pods(namespace).Get(t.Context(), pod.Name, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	api := st.Cluster.Process("kube-apiserver")
	t.Cleanup(func() {
		if !api.Running() {
			if err := restartAPIServer(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}
	})
	err = errors.Join(n.Agent().Kill(t.Context()), world(t, n).ClearFaults(), api.Kill(t.Context()),
		os.WriteFile(journal, text, 0o600)) // as if the agent had died before it saw the pod
	if err == nil {
		err = n.Agent().Restart(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	thaw(t, n.Process("containerd"))
	err = stack.Until(t.Context(), "the pod's CDI file, without an API server", func() (bool, error) {
		files, err := filepath.Glob(filepath.Join(nodePath(t, n, "/var/run/cdi"), "dynamig.io-slot_*.json"))
		return slices.ContainsFunc(files, func(file string) bool {
			text, err := os.ReadFile(file)
			return err == nil && bytes.Contains(text, []byte(pod.UID))
		}), err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := uuids(t, pod); len(got) != 1 || got[0] == "" {
		t.Errorf("without an API server the pod has instances %q, want one", got)
	}
	if err := restartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	agree(t, waitPod(t, pod.Name, stack.Running))
	kept.check(t)
	tidy(t, n)
}

// TestFullNodeAtOnce: two controllers fill the node at the same time, and each pod has
// its own instances.
func TestFullNodeAtOnce(t *testing.T) {
	n := node(t, "node1")
	onlyWholeGPUs(t) // so that all are made
	const each = 7   // 14 fit
	owner := map[string]string{}
	var all []map[string]string
	for _, name := range []string{"left", "right"} {
		all = append(all, deployMany(t, newPod(name, "gpu=1 gpumem=4000"), each))
	}
	for _, labels := range all {
		for _, pod := range podsOf(t, labels, each) {
			agree(t, pod)
			for _, uuid := range uuids(t, pod) {
				if other, taken := owner[uuid]; taken {
					t.Errorf("pods %s and %s have the same instance %s", other, pod.Name, uuid)
				}
				owner[uuid] = pod.Name
			}
		}
	}
	if len(owner) != 2*each {
		t.Errorf("%d pods have %d instances", 2*each, len(owner))
	}
	tidy(t, n)
}

// podsOf waits until so many pods with labels run.
func podsOf(t *testing.T, labels map[string]string, count int) []*v1.Pod {
	t.Helper()
	var running []*v1.Pod
	err := stack.Until(t.Context(), "all pods of the deployment", func() (bool, error) {
		list, err := st.Kube.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels})})
		if err != nil {
			return false, err
		}
		running = nil
		for i := range list.Items {
			if pod := &list.Items[i]; pod.DeletionTimestamp == nil && stack.Running(pod) {
				running = append(running, pod)
			}
		}
		return len(running) == count, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return running
}

// onlyWholeGPUs leaves nothing on node1 but idle instances of whole GPUs: smaller ones
// must be created from then on.
func onlyWholeGPUs(t *testing.T) {
	t.Helper()
	whole := runs(t, newPod("whole", "gpu=2"))
	remove(t, whole.Name)
}

// neighbour is a running pod that nothing may disturb.
type neighbour struct {
	pod  *v1.Pod
	life stack.Life
}

func keep(t *testing.T, wants string) neighbour {
	t.Helper()
	pod := runs(t, newPod("kept", wants))
	return neighbour{pod, life(t, pod)}
}

func (n neighbour) check(t *testing.T) {
	t.Helper()
	agree(t, n.pod)
	if diff := cmp.Diff(n.life, life(t, n.pod)); diff != "" {
		t.Errorf("pod %s does not live on as before (-before +now):\n%s", n.pod.Name, diff)
	}
}

func life(t *testing.T, pod *v1.Pod) stack.Life {
	t.Helper()
	l, err := st.Life(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// look is what a node's driver shows.
type look struct {
	calls  int // to create a GPU instance, so far
	halves int // GPU instances without compute instance
}

func looked(t *testing.T, n *stack.Node) look {
	t.Helper()
	state, err := world(t, n).Dump()
	if err != nil {
		t.Fatal(err)
	}
	l := look{calls: state.CallsByName[sim.CallCreateGPUInstance]}
	for _, gpu := range state.GPUs {
		for _, in := range gpu.Instances {
			if in.CI == nvml.NoCI {
				l.halves++
			}
		}
	}
	return l
}

// creation is how far that of a pod's instances is.
type creation struct {
	begun  bool // the driver was asked for a GPU instance
	halves int  // GPU instances without compute instance
	owned  int  // whole instances at the pod's placements
}

func creationOf(t *testing.T, n *stack.Node, pod *v1.Pod, before look) creation {
	t.Helper()
	now := looked(t, n)
	c := creation{begun: now.calls > before.calls, halves: now.halves - before.halves}
	bound, err := st.Kube.CoreV1().Pods(namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, uuid := range uuids(t, bound) {
		if uuid != "" {
			c.owned++
		}
	}
	return c
}

func world(t *testing.T, n *stack.Node) *sim.Node {
	t.Helper()
	world, err := sim.Load(n.SimRoot)
	if err != nil {
		t.Fatal(err)
	}
	return world
}

// hold makes the next such driver call of the agent take that long.
func hold(t *testing.T, n *stack.Node, call string, long time.Duration) {
	t.Helper()
	if err := world(t, n).DelayCall(call, 1, long); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world(t, n).ClearFaults(); err != nil {
			t.Error(err)
		}
	})
}

// admitted reports whether kubelet has given slots to a pod: its checkpoint has them.
func admitted(t *testing.T, n *stack.Node, pod *v1.Pod) bool {
	t.Helper()
	text, err := os.ReadFile(nodePath(t, n, "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(text, []byte(pod.UID))
}

// nodePath is where a file of the node is found.
func nodePath(t *testing.T, n *stack.Node, path string) string {
	t.Helper()
	path, err := n.Path(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// freeze stops a process until it is thawed or killed, at the end of the test at the
// latest.
func freeze(t *testing.T, p *cluster.Process) {
	t.Helper()
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { thaw(t, p) })
}

func thaw(t *testing.T, p *cluster.Process) {
	t.Helper()
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Error(err)
	}
}

// killAgent kills the agent and starts the next one.
func killAgent(t *testing.T, n *stack.Node) {
	t.Helper()
	if err := n.Agent().Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// tidy waits until nothing is lost on the node, and the monitor shows it as it is.
func tidy(t *testing.T, n *stack.Node) {
	t.Helper()
	for what, check := range map[string]func(context.Context, *stack.Node) error{
		"a node where nothing is lost": st.Tidy, "the monitor to agree with NVML": st.MonitorAgrees,
	} {
		err := stack.Until(t.Context(), what, func() (bool, error) {
			err := check(t.Context(), n)
			return err == nil, err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
