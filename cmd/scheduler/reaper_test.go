// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultbinder"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/queuesort"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
	st "k8s.io/kubernetes/pkg/scheduler/testing"
	tf "k8s.io/kubernetes/pkg/scheduler/testing/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	gpufake "github.com/dynamig/dynamig/pkg/generated/clientset/versioned/fake"
	"github.com/dynamig/dynamig/pkg/generated/informers/externalversions"
	"github.com/dynamig/dynamig/pkg/plugins/dynamicmig"
	"github.com/dynamig/dynamig/pkg/pool"
)

func TestMain(m *testing.M) {
	metrics.Register()
	// The second handler, a rate limiter, compares the time of a synctest bubble
	// with that of the process.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
	// The first Notify of a process starts a goroutine that never ends, and
	// kube-scheduler's debugger would make that one of a bubble.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR2)
	os.Exit(m.Run())
}

// grim is a reaper over fake APIs, in a synctest bubble.
type grim struct {
	*testing.T
	client    *fake.Clientset
	gpus      *gpufake.Clientset
	informers informers.SharedInformerFactory
	events    *events.FakeRecorder
	shared    dynamicmig.Shared
}

// inGrim runs a test with a reaper that is started but whose API is still empty.
func inGrim(t *testing.T, test func(g *grim)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := newGrim(t)
		g.start()
		test(g)
	})
}

func newGrim(t *testing.T) *grim {
	t.Helper()
	g := &grim{T: t, client: fake.NewClientset(), gpus: gpufake.NewSimpleClientset(), events: events.NewFakeRecorder(100)}
	g.informers = scheduler.NewInformerFactory(g.client, 0, nil)
	handle, err := tf.NewFramework(t.Context(), []tf.RegisterPluginFunc{
		tf.RegisterQueueSortPlugin(queuesort.Name, queuesort.New),
		tf.RegisterBindPlugin(defaultbinder.Name, defaultbinder.New),
	}, "", frameworkruntime.WithClientSet(g.client), frameworkruntime.WithEventRecorder(g.events))
	if err != nil {
		t.Fatal(err)
	}
	g.shared = dynamicmig.Shared{
		Handle:   handle,
		Pool:     pool.New(pool.Options{}),
		Pods:     g.informers.Core().V1().Pods().Informer(),
		GPUNodes: externalversions.NewSharedInformerFactory(g.gpus, 0).Dynamig().V1alpha1().GPUNodes().Informer(),
	}
	if err := g.shared.Pods.AddIndexers(dynamicmig.Indexers(g.shared.Pool)); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *grim) start() {
	g.Helper()
	if err := startReaper(g.Context(), g.shared); err != nil {
		g.Fatal(err)
	}
	go g.shared.GPUNodes.RunWithContext(g.Context())
	g.informers.Start(g.Context().Done())
	g.pass(time.Second)
}

// pass lets so much of the bubble's time pass.
func (g *grim) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// pod is a GPU pod bound to node n.
func pod(name string) *st.PodWrapper {
	return st.MakePod().Name(name).Namespace("default").UID("uid-" + name).Node("n").Containers([]v1.Container{
		st.MakeContainer().Name("c").Resources(map[v1.ResourceName]string{v1alpha1.ResourceGPU: "1"}).Obj(),
	})
}

// controlled gives a pod a controller.
func controlled(name string) *st.PodWrapper {
	p := pod(name)
	isController := true
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: "uid-rs", Controller: &isController}}
	return p
}

func (g *grim) create(pods ...*st.PodWrapper) {
	g.Helper()
	for _, p := range pods {
		if _, err := g.client.CoreV1().Pods("default").Create(g.Context(), p.Obj(), metav1.CreateOptions{}); err != nil {
			g.Fatal(err)
		}
	}
	synctest.Wait()
}

// report writes node n's GPUNode with pods in a phase, "name phase".
func (g *grim) report(texts ...string) {
	g.Helper()
	n := &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	for _, text := range texts {
		name, phase, _ := strings.Cut(text, " ")
		p := pod(name)
		n.Status.Pods = append(n.Status.Pods, v1alpha1.PodPreparation{
			UID: p.Obj().UID, Phase: v1alpha1.PodPhase(phase), Reason: "GPU-0 is lost (XID 79)",
		})
	}
	nodes := g.gpus.DynamigV1alpha1().GPUNodes()
	_, err := nodes.Create(g.Context(), n, metav1.CreateOptions{})
	if err != nil {
		_, err = nodes.Update(g.Context(), n, metav1.UpdateOptions{})
	}
	if err != nil {
		g.Fatal(err)
	}
	synctest.Wait()
}

// left are the names of the pods that exist.
func (g *grim) left() []string {
	g.Helper()
	list, err := g.client.CoreV1().Pods("default").List(g.Context(), metav1.ListOptions{})
	if err != nil {
		g.Fatal(err)
	}
	names := []string{}
	for _, p := range list.Items {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}

func (g *grim) wantLeft(when string, want ...string) {
	g.Helper()
	if diff := cmp.Diff(append([]string{}, want...), g.left()); diff != "" {
		g.Errorf("%s, pods left (-want +got):\n%s", when, diff)
	}
}

// writes are the changes of pods asked of the API, creations left out.
func (g *grim) writes() []clienttesting.Action {
	var out []clienttesting.Action
	for _, action := range g.client.Actions() {
		if action.GetResource().Resource == "pods" && !slices.Contains([]string{"get", "list", "watch", "create"}, action.GetVerb()) {
			out = append(out, action)
		}
	}
	return out
}

func (g *grim) recorded() []string {
	var out []string
	for len(g.events.Events) > 0 {
		out = append(out, <-g.events.Events)
	}
	return out
}

func TestReaperDeletesARefusedPodOfAController(t *testing.T) {
	inGrim(t, func(g *grim) {
		// what is deleted is looked at before it is gone
		var last *v1.Pod
		g.client.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
			obj, err := g.client.Tracker().Get(action.GetResource(), "default", "a")
			if err == nil {
				last = obj.(*v1.Pod)
			}
			return false, nil, nil
		})
		g.create(controlled("a"), controlled("b"))
		g.report("a Refused", "b Failing")
		g.wantLeft("after the refusal of a", "b")

		writes := g.writes()
		if len(writes) != 2 {
			t.Fatalf("the reaper asked for %v, want a patch of the status and a deletion", writes)
		}
		patch, ok := writes[0].(clienttesting.PatchAction)
		if !ok || patch.GetSubresource() != "status" || !strings.Contains(string(patch.GetPatch()), `"uid":"uid-a"`) {
			t.Errorf("the first write is %v, want a patch of pods/status for UID uid-a", writes[0])
		}
		options := writes[1].(clienttesting.DeleteActionImpl).DeleteOptions
		if options.Preconditions == nil || options.Preconditions.UID == nil || *options.Preconditions.UID != "uid-a" {
			t.Errorf("the deletion has the preconditions %v, want UID uid-a", options.Preconditions)
		}
		if last == nil || len(last.Status.Conditions) != 1 {
			t.Fatalf("the pod that was deleted is %v, want one with a condition", last)
		}
		got := last.Status.Conditions[0]
		got.LastTransitionTime = metav1.Time{}
		want := v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: "GPUsRefused", Message: "GPU-0 is lost (XID 79)"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("condition (-want +got):\n%s", diff)
		}
		if events := g.recorded(); len(events) != 0 {
			t.Errorf("events %q, want none", events)
		}
	})
}

func TestReaperLeavesABarePodWithOneEvent(t *testing.T) {
	inGrim(t, func(g *grim) {
		g.create(pod("a"))
		g.report("a Refused")
		g.report("a Refused", "b Preparing")
		g.report("a Refused")
		g.wantLeft("after the refusal of a", "a")
		if writes := g.writes(); len(writes) != 0 {
			t.Errorf("the reaper asked for %v, want nothing", writes)
		}
		want := []string{"Warning GPUsRefused The pod can never start on node n: GPU-0 is lost (XID 79). " +
			"It has no controller that would replace it, so it is left; delete it and create it again"}
		if diff := cmp.Diff(want, g.recorded()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

// What it remembers of bare pods goes with the refusal: a process that runs for months
// meets many.
func TestReaperForgetsBarePodsThatAreRefusedNoMore(t *testing.T) {
	inGrim(t, func(g *grim) {
		g.create(pod("a"))
		for _, away := range []func(){
			func() { g.report() },
			func() {
				if err := g.gpus.DynamigV1alpha1().GPUNodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			},
		} {
			g.report("a Refused")
			away()
			g.report("a Refused")
			if got := len(g.recorded()); got != 2 {
				t.Errorf("%d events of a pod that was refused, not refused, and refused again; want 2", got)
			}
			g.report()
		}
	})
}

func TestReaperLooksOnlyAtRefusedPodsOfThatNode(t *testing.T) {
	inGrim(t, func(g *grim) {
		g.create(controlled("prepared"), controlled("elsewhere").Node("m"), controlled("ending").Terminating())
		g.report("prepared Prepared", "elsewhere Refused", "ending Refused", "unknown Refused")
		g.pass(time.Minute)
		g.wantLeft("after a minute", "elsewhere", "ending", "prepared")
		if writes := g.writes(); len(writes) != 0 {
			t.Errorf("the reaper asked for %v, want nothing", writes)
		}
	})
}

// The agent's word may arrive before the scheduler has seen the pod bound. There is
// no heartbeat that would repeat it.
func TestReaperEndsAPodThatItSeesBoundAfterTheRefusal(t *testing.T) {
	inGrim(t, func(g *grim) {
		g.create(controlled("a").Node(""))
		g.report("a Refused")
		g.wantLeft("while the pod is seen unbound", "a")
		if _, err := g.client.CoreV1().Pods("default").Update(t.Context(), controlled("a").Obj(), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		g.wantLeft("after the pod was seen bound")
	})
}

// Another pod of the same name is not ours to end.
func TestReaperTakesAConflictForAnAnswer(t *testing.T) {
	for verb, err := range map[string]error{
		"patch":  apierrors.NewConflict(v1.Resource("pods"), "a", errors.New("the UID in the precondition differs")),
		"delete": apierrors.NewNotFound(v1.Resource("pods"), "a"),
	} {
		t.Run(verb, func(t *testing.T) {
			inGrim(t, func(g *grim) {
				asked := 0
				g.client.PrependReactor(verb, "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
					asked++
					return true, nil, err
				})
				g.create(controlled("a"))
				g.report("a Refused")
				g.pass(10 * time.Minute)
				g.wantLeft("after ten minutes", "a")
				if asked != 1 {
					t.Errorf("the reaper asked %d times, want once", asked)
				}
			})
		})
	}
}

func TestReaperTriesAgainAndGoesOnWithOthers(t *testing.T) {
	inGrim(t, func(g *grim) {
		broken := true
		g.client.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
			stuck := broken && action.(clienttesting.DeleteAction).GetName() == "a"
			return stuck, nil, apierrors.NewInternalError(errors.New("etcd has no leader"))
		})
		g.create(controlled("a"), controlled("b"))
		g.report("a Refused", "b Refused")
		g.wantLeft("while a cannot be deleted", "a")
		g.pass(10 * time.Minute)
		g.wantLeft("ten minutes later", "a")
		broken = false
		g.pass(2 * time.Minute)
		g.wantLeft("two minutes after it can be deleted")
	})
}

// hold renews the reaper's lease as another replica until ctx ends.
func (g *grim) hold(ctx context.Context) {
	g.Helper()
	seconds, holder := int32(15), "another replica"
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: reaperLease, Namespace: defaultNamespace}}
	renew := func() {
		now := metav1.NowMicro()
		lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &now}
	}
	renew()
	leases := g.client.CoordinationV1().Leases(defaultNamespace)
	if _, err := leases.Create(g.Context(), lease.DeepCopy(), metav1.CreateOptions{}); err != nil {
		g.Fatal(err)
	}
	go func() {
		for ctx.Err() == nil {
			time.Sleep(2 * time.Second)
			renew()
			if _, err := leases.Update(g.Context(), lease.DeepCopy(), metav1.UpdateOptions{}); err != nil {
				g.Errorf("renewing the other replica's lease: %v", err)
			}
		}
	}()
}

// While another replica has the lease nothing is done; what was refused meanwhile
// is ended when it stops renewing.
func TestReaperDoesNothingWhileAnotherLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGrim(t)
		ctx, stop := context.WithCancel(t.Context())
		g.hold(ctx)
		g.start()
		g.create(controlled("a"), pod("bare"))
		g.report("a Refused", "bare Refused")
		g.pass(5 * time.Minute)
		g.wantLeft("while another replica leads", "a", "bare")
		if got := append(g.recorded(), fmt.Sprint(g.writes())); len(got) != 1 || got[0] != "[]" {
			t.Errorf("events and writes %q while another replica leads, want none", got)
		}
		stop()
		g.pass(time.Minute)
		g.wantLeft("a minute after the other replica has gone", "bare")
		if events := g.recorded(); len(events) != 1 {
			t.Errorf("events %q, want one for the bare pod", events)
		}
	})
}

// A lost lease is stood for again. A bare pod is not reported twice.
func TestReaperWorksAgainAfterItLostTheLease(t *testing.T) {
	inGrim(t, func(g *grim) {
		g.create(pod("bare"))
		g.report("bare Refused")
		away := true
		g.client.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return away, nil, apierrors.NewInternalError(errors.New("etcd has no leader"))
		})
		g.pass(time.Minute)
		g.create(controlled("a"))
		g.report("bare Refused", "a Refused")
		g.wantLeft("without the lease", "a", "bare")
		away = false
		g.pass(time.Minute)
		g.wantLeft("with the lease again", "bare")
		if events := g.recorded(); len(events) != 1 {
			t.Errorf("events %q, want one for the bare pod", events)
		}
	})
}

func TestReaperLeaseIsInTheProgramsNamespace(t *testing.T) {
	t.Setenv("POD_NAMESPACE", "gpu-things")
	inGrim(t, func(g *grim) {
		lease, err := g.client.CoordinationV1().Leases("gpu-things").Get(t.Context(), reaperLease, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if holder := lease.Spec.HolderIdentity; holder == nil || *holder == "" {
			t.Error("the lease has no holder")
		}
	})
}
