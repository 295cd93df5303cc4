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

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/cluster"
	"github.com/dynamig/dynamig/test/stack"
)

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
			halt(t, n, sim.CallCreateComputeInstance) // while c restarts
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
			letGo(t, n)
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
	halt(t, n, sim.CallCreateGPUInstance)
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
	pod = get(t, pod.Name)
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
	hasFile(t, n, pod) // without an API server
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
	proofs int // calls to list processes, so far
	halves int // GPU instances without compute instance
}

func looked(t *testing.T, n *stack.Node) look {
	t.Helper()
	state, err := world(t, n).Dump()
	if err != nil {
		t.Fatal(err)
	}
	l := look{calls: state.CallsByName[sim.CallCreateGPUInstance], proofs: state.CallsByName[sim.CallProcesses]}
	for _, gpu := range state.GPUs {
		for _, in := range gpu.Instances {
			if in.CI == nvml.NoCI {
				l.halves++
			}
		}
	}
	return l
}

// get reads a pod.
func get(t *testing.T, name string) *v1.Pod {
	t.Helper()
	pod, err := st.Kube.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func world(t *testing.T, n *stack.Node) *sim.Node {
	t.Helper()
	world, err := sim.Load(n.SimRoot)
	if err != nil {
		t.Fatal(err)
	}
	return world
}

// halt has the next such driver call of the agent wait, until letGo or the end of its
// caller.
func halt(t *testing.T, n *stack.Node, call string) {
	t.Helper()
	if err := world(t, n).HaltCall(call, 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { letGo(t, n) })
}

func letGo(t *testing.T, n *stack.Node) {
	t.Helper()
	if err := world(t, n).ClearFaults(); err != nil {
		t.Error(err)
	}
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

// hasFile waits until the CDI file of a slot is there for a pod.
func hasFile(t *testing.T, n *stack.Node, pod *v1.Pod) {
	t.Helper()
	err := stack.Until(t.Context(), "the pod's CDI file", func() (bool, error) {
		files, err := filepath.Glob(filepath.Join(nodePath(t, n, "/var/run/cdi"), "dynamig.io-slot_*.json"))
		return slices.ContainsFunc(files, func(file string) bool {
			text, err := os.ReadFile(file)
			return err == nil && bytes.Contains(text, []byte(pod.UID))
		}), err
	})
	if err != nil {
		t.Fatal(err)
	}
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

// killAgent kills the agent and starts the next one, whose driver calls nothing halts.
func killAgent(t *testing.T, n *stack.Node) {
	t.Helper()
	if err := n.Agent().Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	letGo(t, n)
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
