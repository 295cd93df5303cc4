// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/arguments"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/stack"
)

// arrow is a step of a placement's life (docs/design.md section 3) at which whoever
// takes it is killed. reach goes there with a pod and holds it; what it returns says
// what must be so once the next process has gone on.
type arrow struct {
	name  string
	kill  func(*testing.T, *stack.Node) // and starts the next one
	reach func(way, *testing.T) (goesOn func(*testing.T))
}

// way is where pods go.
type way struct {
	n       *stack.Node
	taken   string // the GPU that the neighbour is on
	gate    *gate
	publish func(pod string) func(*write) bool // the scheduler's first write for a pod
}

// TestKilledAtEachArrow: whoever takes a step of a placement's life is killed at it,
// and the next one goes on: nothing is lost, and a neighbour lives on. Package crash
// has every step of the agent; this is that real scheduler, kubelet and runtime take
// it so.
func TestKilledAtEachArrow(t *testing.T) {
	w := way{n: node(t, "node1"), publish: bindingOf}
	onlyWholeGPUs(t)
	kept := keep(t, "gpu=1 gpumem=4000")
	w.taken, w.gate = allocation(t, kept.pod).Containers["main"][0].GPU, newGate(t)
	walk := func(t *testing.T, all []arrow) {
		for _, a := range all {
			t.Run(a.name, func(t *testing.T) {
				goesOn := a.reach(w, t)
				a.kill(t, w.n)
				goesOn(t)
				kept.check(t)
				tidy(t, w.n)
			})
		}
	}
	t.Run("allocationWrite Binding", func(t *testing.T) {
		walk(t, []arrow{
			{"none to assumed: reserved, nothing written", killScheduler, way.assumed},
			{"assumed to none: the Binding was refused", killScheduler, way.unreserved},
			{"assumed to none: the pod was deleted", killScheduler, way.deleted},
			{"assumed to bound: bound, and the answer lost", killScheduler, way.unanswered},
			{"assumed to bound: bound, and the answer lost with the API server", killAPIServer, way.unanswered},
			{"refused to none: the reaper has not deleted yet", killScheduler, way.reaped},
		})
	})
	t.Run("agent", func(t *testing.T) {
		walk(t, []arrow{
			{"bound to live: nothing done", killAgent, way.bound},
			{"bound to live: between GPU instance and compute instance", killAgent, way.half},
			{"idle to none: in the way, half destroyed", killAgent, way.inTheWay},
			{"idle to live: chosen for the next pod, nothing proven", killAgent, way.reused},
			{"bound to live: created, between Allocate and PreStartContainer", killAgent, way.allocated},
			{"bound to live: prepared, between PreStartContainer and CreateContainer", killAgent, way.prestarted},
			{"live to idle: the pod's object gone, nothing released", killAgent, way.ended},
			{"bound to refused: nobody told", killAgent, way.refused},
		})
	})
	t.Run("allocationWrite Annotation", func(t *testing.T) {
		writeAnnotations(t)
		w.publish = annotationOf
		walk(t, []arrow{
			{"none to assumed: reserved, nothing written", killScheduler, way.assumed},
			{"assumed to published: the annotation on the unbound pod", killScheduler, way.published},
			{"published to bound: bound, and the answer lost", killScheduler, way.unanswered},
		})
	})
}

// assumed: the scheduler has chosen, and its first write is held.
func (w way) assumed(t *testing.T) func(*testing.T) {
	pod := newPod("assumed", "gpu=1 gpumem=9000")
	w.create(t, pod, w.publish)
	return func(t *testing.T) { settled(t, pod) }
}

// published: the annotation is on the pod, which is not bound.
func (w way) published(t *testing.T) func(*testing.T) {
	pod := newPod("published", "gpu=1 gpumem=9000")
	w.create(t, pod, bindingOf)
	if pod := get(t, pod.Name); pod.Annotations[v1alpha1.AnnotationAllocation] == "" || pod.Spec.NodeName != "" {
		t.Errorf("the held pod is on node %q with the allocation %q, want an allocation alone", pod.Spec.NodeName, pod.Annotations[v1alpha1.AnnotationAllocation])
	}
	return func(t *testing.T) { settled(t, pod) }
}

// unreserved: the API server has refused what the scheduler wrote.
func (w way) unreserved(t *testing.T) func(*testing.T) {
	pod := newPod("unreserved", "gpu=1 gpumem=9000")
	w.create(t, pod, w.publish).refuse()
	if why := unscheduled(t, pod.Name); !strings.Contains(why, gateSays) {
		t.Errorf("the pod waits because of %q, want %q", why, gateSays)
	}
	return func(t *testing.T) { settled(t, pod) }
}

// deleted: the pod that was to have all that is left of a GPU is gone before it is
// bound.
func (w way) deleted(t *testing.T) func(*testing.T) {
	pod := newPod("deleted", "gpu=1")
	w.create(t, pod, w.publish)
	remove(t, pod.Name)
	return func(t *testing.T) { runs(t, newPod("instead", "gpu=1")) }
}

// unanswered: the pod is bound, and its scheduler has not heard of it.
func (w way) unanswered(t *testing.T) func(*testing.T) {
	pod := newPod("unanswered", "gpu=1 gpumem=9000")
	binding := w.create(t, pod, bindingOf)
	freeze(t, st.Cluster.Process("scheduler"))
	binding.pass()
	waitPod(t, pod.Name, func(p *v1.Pod) bool { return p.Spec.NodeName != "" })
	return func(t *testing.T) {
		settled(t, pod)
		runs(t, newPod("next", "gpu=1 gpumem=9000")) // elsewhere, which agree sees
	}
}

// bound: the agent was told of the pod, and kubelet waits for its instance.
func (w way) bound(t *testing.T) func(*testing.T) {
	before := looked(t, w.n)
	w.haltPreparation(t)
	pod := create(t, w.alone("bound", "gpu=1"))
	w.until(t, pod, func() bool { return looked(t, w.n) != before })
	return func(t *testing.T) { settled(t, pod) }
}

// half: the instance has no compute instance.
func (w way) half(t *testing.T) func(*testing.T) {
	w.warm(t, "7g.40gb", "gpu=1") // so that it is made
	return w.halved(t, w.alone("half", "gpu=1 gpumem=9000"), sim.CallCreateComputeInstance)
}

// halved halts a driver call on the pod's way that leaves half of an instance.
func (w way) halved(t *testing.T, wanted *v1.Pod, call string) func(*testing.T) {
	t.Helper()
	before := looked(t, w.n)
	halt(t, w.n, call)
	pod := create(t, wanted)
	w.until(t, pod, func() bool { return looked(t, w.n).halves > before.halves })
	return func(t *testing.T) { settled(t, pod) }
}

// inTheWay: of the idle instance that must go, the GPU instance is left.
func (w way) inTheWay(t *testing.T) func(*testing.T) {
	w.warm(t, "2g.10gb", "gpu=1 gpumem=9000")
	return w.halved(t, w.alone("larger", "gpu=1"), sim.CallDestroyGPUInstance)
}

// reused: an idle instance suits the pod, and the agent asks whether it is unused.
func (w way) reused(t *testing.T) func(*testing.T) {
	w.warm(t, "7g.40gb", "gpu=1")
	before := looked(t, w.n)
	halt(t, w.n, sim.CallProcesses)
	pod := create(t, w.alone("reused", "gpu=1"))
	w.until(t, pod, func() bool { return looked(t, w.n).proofs > before.proofs })
	return func(t *testing.T) {
		settled(t, pod)
		if made := looked(t, w.n).calls - before.calls; made > 0 {
			t.Errorf("%d instances were created, want the idle one reused", made)
		}
	}
}

// allocated: kubelet has given slots to the pod, and cannot start a container.
func (w way) allocated(t *testing.T) func(*testing.T) {
	freeze(t, w.n.Process("containerd"))
	pod := create(t, w.alone("allocated", "gpu=2 gpumem=9000"))
	w.until(t, pod, func() bool {
		made := slices.DeleteFunc(uuids(t, get(t, pod.Name)), func(uuid string) bool { return uuid == "" })
		return len(made) == 2
	})
	return func(t *testing.T) {
		thaw(t, w.n.Process("containerd"))
		settled(t, pod)
	}
}

// prestarted: the agent has written the CDI files, and kubelet cannot create the
// container.
func (w way) prestarted(t *testing.T) func(*testing.T) {
	w.haltPreparation(t)
	pod := create(t, newPod("prestarted", "gpu=1 gpumem=9000"))
	event(t, pod.Name, "Pulled") // kubelet asks nothing of the runtime from here to CreateContainer
	freeze(t, w.n.Process("containerd"))
	letGo(t, w.n)
	hasFile(t, w.n, pod)
	return func(t *testing.T) {
		thaw(t, w.n.Process("containerd"))
		settled(t, pod)
	}
}

// ended: the agent has not seen that the pod is gone.
func (w way) ended(t *testing.T) func(*testing.T) {
	pod := runs(t, newPod("ended", "gpu=1 gpumem=9000"))
	freeze(t, w.n.Agent())
	remove(t, pod.Name)
	return func(t *testing.T) {}
}

// refused: the agent knows that the pod can never start, and its report is held.
func (w way) refused(t *testing.T) func(*testing.T) {
	report := w.gate.stop(func(r *write) bool {
		return r.SubResource == "status" && bytes.Contains(r.Object.Raw, []byte(v1alpha1.PodRefused))
	})
	replaced := w.refuse(t)
	report.wait(t)
	return replaced
}

// reaped: the reaper's deletion of a pod that can never start is held.
func (w way) reaped(t *testing.T) func(*testing.T) {
	deletion := w.gate.stop(func(r *write) bool {
		return r.Operation == "DELETE" && strings.HasSuffix(r.UserInfo.Username, ":dynamig-scheduler")
	})
	replaced := w.refuse(t)
	deletion.wait(t)
	return replaced
}

// refuse has somebody else cut a GPU where a bound pod was to be. The agent looks away
// meanwhile. In the end the pod's controller has another in its place.
func (w way) refuse(t *testing.T) (replaced func(*testing.T)) {
	freeze(t, w.n.Agent())
	labels := deploy(t, newPod("refused", "gpu=1 gpumem=9000"))
	first := podOf(t, labels, func(p *v1.Pod) bool { return p.Spec.NodeName != "" })
	destroy := cut(t, w.n, allocation(t, first).Containers["main"][0])
	thaw(t, w.n.Agent())
	return func(t *testing.T) {
		if err := st.WaitGone(t.Context(), namespace, first.Name); err != nil {
			t.Fatal(err)
		}
		agree(t, podOf(t, labels, stack.Running))
		destroy(t)
	}
}

// cut has somebody else make an instance at a placement, in the place of what is idle
// there.
func cut(t *testing.T, n *stack.Node, at v1alpha1.Device) (destroy func(*testing.T)) {
	t.Helper()
	d, _ := opened(t, n)
	t.Cleanup(func() { d.Close() })
	state, err := world(t, n).Dump()
	if err != nil {
		t.Fatal(err)
	}
	gpu, start := nvml.GPUID(at.GPU), int(at.MIG.Start)
	clear := func(t *testing.T, gi, ci int) {
		t.Helper()
		if err := errors.Join(d.DestroyComputeInstance(gpu, gi, ci), d.DestroyGPUInstance(gpu, gi)); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range state.GPUs {
		for _, in := range g.Instances {
			if g.UUID == gpu && in.Start < start+int(at.MIG.Size) && start < in.Start+in.Size {
				clear(t, in.GI, in.CI)
			}
		}
	}
	foreign, err := d.CreateGPUInstance(gpu, nvml.ProfileID(at.MIG.ProfileID), start)
	if err == nil {
		foreign, err = d.CreateComputeInstance(gpu, foreign.GI)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T) {
		t.Helper()
		clear(t, foreign.GI, foreign.CI)
	}
}

// create creates a pod and returns when the first such write for it is held.
func (w way) create(t *testing.T, pod *v1.Pod, of func(name string) func(*write) bool) *stop {
	t.Helper()
	s := w.gate.stop(of(pod.Name))
	create(t, pod)
	s.wait(t)
	return s
}

// until waits for a pod to be admitted by kubelet, and for what else has to be so.
func (w way) until(t *testing.T, pod *v1.Pod, reached func() bool) {
	t.Helper()
	err := stack.Until(t.Context(), "the arrow", func() (bool, error) { return admitted(t, w.n, pod) && reached(), nil })
	if err != nil {
		t.Fatal(err)
	}
}

// haltPreparation stops the agent's next driver call for a pod: it creates an
// instance, or asks whether one is unused that is there.
func (w way) haltPreparation(t *testing.T) {
	t.Helper()
	halt(t, w.n, sim.CallCreateGPUInstance)
	halt(t, w.n, sim.CallProcesses)
}

// warm sees to it that the GPU that the neighbour is not on has such an idle instance.
func (w way) warm(t *testing.T, profile, wants string) {
	t.Helper()
	tidy(t, w.n) // the pod before is seen to be gone
	status := gpuNode(t, w.n.Name).Status
	for _, gpu := range status.GPUs {
		for _, in := range gpu.Instances {
			for _, p := range status.Model(gpu.Model).Profiles {
				if gpu.UUID != w.taken && p.ID == in.ProfileID && p.Name == profile {
					return
				}
			}
		}
	}
	remove(t, runs(t, w.alone("warm", wants)).Name)
}

// alone is a pod for the GPU that the neighbour is not on.
func (w way) alone(name, wants string) *v1.Pod {
	pod := newPod(name, wants)
	pod.Annotations[v1alpha1.AnnotationNoUseUUID] = w.taken
	return pod
}

// bindingOf and annotationOf are the scheduler's writes for a pod.
func bindingOf(name string) func(*write) bool {
	return func(w *write) bool { return w.SubResource == "binding" && w.Name == name }
}

func annotationOf(name string) func(*write) bool {
	return func(w *write) bool {
		return w.Operation == "UPDATE" && w.Name == name && strings.HasSuffix(w.UserInfo.Username, ":dynamig-scheduler")
	}
}

// settled waits until a pod runs, and everybody agrees on it.
func settled(t *testing.T, pod *v1.Pod) *v1.Pod {
	t.Helper()
	pod = waitPod(t, pod.Name, stack.Running)
	agree(t, pod)
	return pod
}

// killScheduler kills the scheduler and starts the next one, which need not wait until
// the leases of the dead one run out.
func killScheduler(t *testing.T, _ *stack.Node) {
	t.Helper()
	p := st.Cluster.Process("scheduler")
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	startScheduler(t)
}

func startScheduler(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	for _, lease := range []string{"dynamig-scheduler", "dynamig-reaper"} {
		err := st.Kube.CoordinationV1().Leases(stack.Namespace).Delete(ctx, lease, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	if err := st.Cluster.Process("scheduler").Restart(ctx); err != nil {
		t.Fatal(err)
	}
}

// killAPIServer does so while the scheduler waits for an answer.
func killAPIServer(t *testing.T, _ *stack.Node) {
	t.Helper()
	err := st.Cluster.Process("kube-apiserver").Kill(t.Context())
	thaw(t, st.Cluster.Process("scheduler"))
	if err := errors.Join(err, restartAPIServer(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// writeAnnotations has the scheduler write allocations as annotations, until the test
// ends.
func writeAnnotations(t *testing.T) {
	t.Helper()
	const rights = "../../manifests/components/allocation-annotation/"
	files := []string{"-f", rights + "clusterrole.yaml", "-f", rights + "clusterrolebinding.yaml"}
	kubectl := func(args ...string) {
		t.Helper()
		if _, err := st.Cluster.Kubectl(context.WithoutCancel(t.Context()), args...); err != nil {
			t.Fatal(err)
		}
	}
	file := st.SchedulerFile("config.yaml")
	shipped, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	configure := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		startScheduler(t)
	}
	t.Cleanup(func() {
		configure(shipped)
		kubectl(append([]string{"delete"}, files...)...)
	})
	kubectl(append([]string{"apply"}, files...)...)
	err = stack.Until(t.Context(), "the scheduler's right to patch pods", func() (bool, error) {
		_, err := st.Cluster.Kubectl(t.Context(), "auth", "can-i", "patch", "pods", "--as=system:serviceaccount:"+stack.Namespace+":dynamig-scheduler")
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	configure(bytes.ReplaceAll(shipped, []byte("allocationWrite: "+arguments.WriteBinding), []byte("allocationWrite: "+arguments.WriteAnnotation)))
}
