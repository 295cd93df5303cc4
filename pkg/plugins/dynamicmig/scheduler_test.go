// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	internalcache "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/profile"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
	gpufake "github.com/dynamig/dynamig/pkg/generated/clientset/versioned/fake"
)

// profiles are the one that users get, read as kube-scheduler reads it, with a device
// configuration, and a stock one.
func profiles(t testing.TB, deviceConfig string) []config.KubeSchedulerProfile {
	t.Helper()
	text, err := os.ReadFile("../../../manifests/base/scheduler/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("/etc/dynamig/device-config.yaml"), []byte(deviceConfig))
	obj, _, err := scheme.Codecs.UniversalDecoder().Decode(text, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	stock, err := latest.Default()
	if err != nil {
		t.Fatal(err)
	}
	return append(obj.(*config.KubeSchedulerConfiguration).Profiles, stock.Profiles...)
}

// whole is kube-scheduler as shipped, with all its own plugins, over a fake API. It
// lives in a synctest bubble.
type whole struct {
	*testing.T
	client    *fake.Clientset
	gpus      *gpufake.Clientset
	informers informers.SharedInformerFactory
	snapshot  *internalcache.Snapshot
	events    *events.FakeRecorder
	scheduler *scheduler.Scheduler
	factory   *Factory
	names     v1alpha1.Resources // that placed reads pods by
	changed   func()             // says that the device configuration has
}

func newWhole(t *testing.T) *whole {
	t.Helper()
	return newWholeWith(t, "../../../manifests/base/nodeagent/device-config.yaml")
}

func newWholeWith(t *testing.T, deviceConfig string) *whole {
	t.Helper()
	w := &whole{
		T: t, client: fake.NewClientset(), gpus: gpufake.NewSimpleClientset(),
		snapshot: internalcache.NewEmptySnapshot(), events: events.NewFakeRecorder(1000),
		names: v1alpha1.DefaultResources(),
	}
	w.client.PrependReactor("create", "pods", bindPods(w.client))
	w.informers = scheduler.NewInformerFactory(w.client, 0, nil)
	w.factory = &Factory{
		connect: func(*rest.Config) (versioned.Interface, error) { return w.gpus, nil },
		follow: func(_ context.Context, _ []string, changed func()) error { // the kernel's events are no part of a bubble
			w.changed = changed
			return nil
		},
	}
	recorders := profile.RecorderFactory(func(string) events.EventRecorderLogger { return w.events })
	var err error
	w.scheduler, err = scheduler.New(t.Context(), w.client, w.informers, nil, recorders,
		scheduler.WithProfiles(profiles(t, deviceConfig)...),
		scheduler.WithFrameworkOutOfTreeRegistry(frameworkruntime.Registry{Name: w.factory.New, FitName: w.factory.NewFit}),
		scheduler.WithNodeInfoSnapshot(w.snapshot))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

var pods = v1.SchemeGroupVersion.WithResource("pods")

// run starts informers and scheduling; both end with the test.
func (w *whole) run() {
	w.Helper()
	ctx := w.Context()
	w.informers.Start(ctx.Done())
	w.informers.WaitForCacheSync(ctx.Done())
	if err := w.scheduler.WaitForHandlersSync(ctx); err != nil {
		w.Fatal(err)
	}
	go w.scheduler.Run(ctx)
	synctest.Wait()
}

func (w *whole) create(p *st.PodWrapper) {
	w.Helper()
	if _, err := w.client.CoreV1().Pods("default").Create(w.Context(), p.Obj(), metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

func (w *whole) delete(name string) {
	w.Helper()
	if err := w.client.CoreV1().Pods("default").Delete(w.Context(), name, metav1.DeleteOptions{}); err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

func (w *whole) createNode(n *v1.Node) {
	w.Helper()
	if _, err := w.client.CoreV1().Nodes().Create(w.Context(), n, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

func (w *whole) updateNode(n *v1.Node) {
	w.Helper()
	if _, err := w.client.CoreV1().Nodes().Update(w.Context(), n, metav1.UpdateOptions{}); err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

func (w *whole) report(b reportBuilder) {
	w.Helper()
	nodes := w.gpus.DynamigV1alpha1().GPUNodes()
	_, err := nodes.Create(w.Context(), b.GPUNode, metav1.CreateOptions{})
	if err != nil {
		_, err = nodes.Update(w.Context(), b.GPUNode, metav1.UpdateOptions{})
	}
	if err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

// get is a pod in the API; nil when there is none.
func (w *whole) get(name string) *v1.Pod {
	pod, err := w.client.CoreV1().Pods("default").Get(w.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pod
}

// placed is where a pod is: "n: 2g.10gb@0:GPU-0", or "unbound", or "gone".
func (w *whole) placed(name string) string {
	pod := w.get(name)
	switch {
	case pod == nil:
		return "gone"
	case pod.Spec.NodeName == "":
		return "unbound"
	}
	a, err := v1alpha1.DecodeAllocation(pod.Annotations[v1alpha1.AnnotationAllocation])
	if err == nil {
		err = a.OwnsCounted(pod, pod.Spec.NodeName, w.names.Count)
	}
	if err != nil {
		return pod.Spec.NodeName + ": " + err.Error()
	}
	text := pod.Spec.NodeName + ":"
	for _, d := range a.Containers["c"] {
		text += " " + placement(d.MIG.Profile, d.MIG.Start, d.GPU)
	}
	return text
}

// within waits, in the bubble's time, until each pod is bound.
func (w *whole) within(limit time.Duration, names ...string) {
	w.Helper()
	start := time.Now()
	for _, name := range names {
		for pod := w.get(name); pod == nil || pod.Spec.NodeName == ""; pod = w.get(name) {
			if time.Since(start) > limit {
				w.Fatalf("%s is not bound after %s; condition: %s", name, limit, condition(pod))
			}
			time.Sleep(10 * time.Millisecond) // the bubble's time
			synctest.Wait()
		}
	}
}

func condition(pod *v1.Pod) string {
	if pod == nil {
		return "gone"
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodScheduled {
			return fmt.Sprintf("%s: %s", c.Reason, c.Message)
		}
	}
	return "none"
}

// Kube-scheduler tries forgotten pods again after five minutes. Nothing here may
// need that.
const soon = 2 * time.Second

// bare is a node whose agent has not registered yet.
func bare(name string) *v1.Node {
	n := node(name).Obj()
	delete(n.Status.Allocatable, v1alpha1.ResourceGPU)
	delete(n.Status.Capacity, v1alpha1.ResourceGPU)
	return n
}

// The pod comes first; node, slots and GPUNode follow in any order, with time
// between them. The pod runs soon after the last.
func TestPodFirstNodeSecond(t *testing.T) {
	steps := map[string]func(w *whole){
		"node":   func(w *whole) { w.createNode(bare("n")) },
		"slots":  func(w *whole) { w.updateNode(node("n").Obj()) },
		"report": func(w *whole) { w.report(report(w.T, "n", 1)) },
	}
	for _, order := range [][]string{{"node", "slots", "report"}, {"node", "report", "slots"}, {"report", "node", "slots"}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWhole(t)
				w.run()
				w.create(pod("p", "gpu=1 gpumem=20000"))
				for _, step := range order {
					time.Sleep(20 * time.Second) // the bubble's time
					if got := w.placed("p"); got != "unbound" {
						t.Fatalf("before step %s the pod is at %s", step, got)
					}
					steps[step](w)
				}
				w.within(soon, "p")
				if got, want := w.placed("p"), "n: 3g.20gb@4:GPU-0"; got != want {
					t.Errorf("the pod is at %s, want %s", got, want)
				}
			})
		})
	}
}

func TestManyPodsFillANodeExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWhole(t)
		w.createNode(node("n").Obj())
		w.report(report(t, "n", 2))
		w.run()
		var names []string
		for i := range 14 {
			name := fmt.Sprintf("p%02d", i)
			names = append(names, name)
			w.create(pod(name, "gpu=1 gpumem=4000"))
		}
		w.within(soon, names...)
		taken := map[string]string{}
		for _, name := range names {
			at := w.placed(name)
			if was, ok := taken[at]; ok {
				t.Errorf("%s and %s are both at %s", was, name, at)
			}
			taken[at] = name
		}
		w.create(pod("late", "gpu=1 gpumem=4000"))
		time.Sleep(time.Minute) // the bubble's time
		if got := w.placed("late"); got != "unbound" {
			t.Errorf("a pod more than there is room for is at %s", got)
		}
		w.delete("p03")
		freed := ""
		for at, name := range taken {
			if name == "p03" {
				freed = at
			}
		}
		w.within(soon, "late")
		if got := w.placed("late"); got != freed {
			t.Errorf("the late pod is at %s, want %s, where a pod has ended", got, freed)
		}
	})
}

// Default preemption evicts one pod, although the agent still reports its instance
// as live and the ledger still has it, and no second one while the first ends.
func TestPreemptionEvictsWhatItNeedsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWhole(t)
		b := report(t, "n", 2)
		w.createNode(node("n").Obj())
		w.report(b)
		w.run()
		w.create(pod("a", "gpu=1"))
		w.create(pod("b", "gpu=1"))
		w.within(soon, "a", "b")
		w.report(b.change(func(s *v1alpha1.GPUNodeStatus) {
			full, _, _ := b.parse("7g.40gb@0")
			for i := range s.GPUs {
				s.GPUs[i].Instances = []v1alpha1.Instance{{ProfileID: full.ID, State: v1alpha1.InstanceLive}}
			}
		}))
		// A victim ends gracefully: it is marked, and gone 30 s later.
		w.client.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
			obj, err := w.client.Tracker().Get(pods, "default", action.(clienttesting.DeleteAction).GetName())
			if err != nil {
				return true, nil, err
			}
			victim := obj.(*v1.Pod).DeepCopy()
			now := metav1.Now()
			victim.DeletionTimestamp, victim.Finalizers = &now, []string{"example.com/wait"}
			time.AfterFunc(30*time.Second, func() { _ = w.client.Tracker().Delete(pods, "default", victim.Name) })
			return true, nil, w.client.Tracker().Update(pods, victim, "default")
		})
		w.create(pod("important", "gpu=1").Priority(100))
		w.within(30*time.Second+soon, "important")
		left := 0
		for _, name := range []string{"a", "b"} {
			if p := w.get(name); p != nil && p.DeletionTimestamp == nil {
				left++
			}
		}
		if left != 1 {
			t.Errorf("%d of two pods are left, want 1", left)
		}
	})
}

// A pod without GPUs is none of our business, in both profiles.
func TestPlainPodsAreScheduledWithoutGPUNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWhole(t)
		w.createNode(bare("n"))
		w.run()
		w.create(pod("ours", "cpu=1"))
		w.create(pod("stock", "cpu=1").SchedulerName("default-scheduler"))
		w.within(soon, "ours", "stock")
		for _, name := range []string{"ours", "stock"} {
			if _, ok := w.get(name).Annotations[v1alpha1.AnnotationAllocation]; ok {
				t.Errorf("pod %s has an allocation", name)
			}
		}
	})
}
