// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	internalcache "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultbinder"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/noderesources"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/queuesort"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	tf "k8s.io/kubernetes/pkg/scheduler/testing/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// The tests of this file hold Kubernetes to what the plugin relies on. One that
// fails after an upgrade says what has to change here.

// pool.Key has the number of pods beside the generation, and the ledger's revision
// grows in simulation too, because in a PodGroup cycle the generation stays while
// pods change (pkg/scheduler/backend/cache/snapshot.go:592-600, 663-671).
func TestPinSnapshotKeepsTheGenerationInPodGroupCycles(t *testing.T) {
	logger := klog.FromContext(t.Context())
	snapshot := internalcache.NewSnapshot(nil, []*v1.Node{node("n").Obj()})
	look := func() (generation int64, pods int) {
		t.Helper()
		ni, err := snapshot.Get("n")
		if err != nil {
			t.Fatal(err)
		}
		return ni.GetGeneration(), len(ni.GetPods())
	}
	const remedy = "pool.Key may become the generation alone"
	before, _ := look()
	p := pod("p", "gpu=1").Node("n").Obj()
	if err := snapshot.AssumePod(podInfo(t, p)); err != nil {
		t.Fatal(err)
	}
	if generation, pods := look(); generation != before || pods != 1 {
		t.Errorf("AssumePod: generation %d and %d pods, want %d as before and 1; %s", generation, pods, before, remedy)
	}
	if err := snapshot.ForgetPod(logger, p); err != nil {
		t.Fatal(err)
	}
	if generation, pods := look(); generation != before || pods != 0 {
		t.Errorf("ForgetPod: generation %d and %d pods, want %d as before and 0; %s", generation, pods, before, remedy)
	}
}

// Everywhere else the generation names the content: copies carry it, each change of
// a copy takes a new number of one global counter (pkg/scheduler/framework/
// types.go:316, 481, 519, 532). Were that not so, a dry run would be answered with
// the view of the node as it is.
func TestPinDryRunsTakeNewGenerations(t *testing.T) {
	logger := klog.FromContext(t.Context())
	victim, nominee := pod("victim", "gpu=1").Node("n").Obj(), pod("nominee", "gpu=1").Obj()
	snapshot := internalcache.NewSnapshot([]*v1.Pod{victim}, []*v1.Node{node("n").Obj()})
	base, err := snapshot.Get("n")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int64]string{base.GetGeneration(): "the snapshot"}
	fresh := func(what string, ni fwk.NodeInfo) {
		t.Helper()
		if was, ok := seen[ni.GetGeneration()]; ok {
			t.Errorf("%s has the generation of %s; pool.CachedView would mix them up", what, was)
		}
		seen[ni.GetGeneration()] = what
	}
	dryRun := base.Snapshot()
	if dryRun.GetGeneration() != base.GetGeneration() {
		t.Errorf("a copy has generation %d, the original %d: views are built again for nothing", dryRun.GetGeneration(), base.GetGeneration())
	}
	if err := dryRun.RemovePod(logger, victim); err != nil {
		t.Fatal(err)
	}
	fresh("a copy without the victim", dryRun)
	dryRun.AddPodInfo(podInfo(t, victim))
	fresh("a copy with the victim back", dryRun)
	nominated := base.Snapshot()
	nominated.AddPodInfo(podInfo(t, nominee))
	fresh("a copy with a nominated pod", nominated)

	if err := snapshot.StartMutations(); err != nil {
		t.Fatal(err)
	}
	if err := snapshot.RemovePod(logger, victim, "n"); err != nil {
		t.Fatal(err)
	}
	mutated, err := snapshot.Get("n")
	if err != nil {
		t.Fatal(err)
	}
	fresh("a mutable snapshot without the victim", mutated)
	if err := snapshot.EndMutations(); err != nil {
		t.Fatal(err)
	}
	restored, err := snapshot.Get("n")
	if err != nil {
		t.Fatal(err)
	}
	if restored.GetGeneration() != base.GetGeneration() || len(restored.GetPods()) != 1 {
		t.Errorf("after the mutations generation %d and %d pods, want %d and 1", restored.GetGeneration(), len(restored.GetPods()), base.GetGeneration())
	}
}

// upstreamFit is the stock plugin that ignores our request-only resources and others.
func upstreamFit(t *testing.T, handle fwk.Handle, others ...string) *noderesources.Fit {
	t.Helper()
	args, err := decodeFitArgs(nil)
	if err != nil {
		t.Fatal(err)
	}
	args.IgnoredResources = append(args.IgnoredResources, others...)
	for _, name := range v1alpha1.DefaultResources().RequestOnly() {
		args.IgnoredResources = append(args.IgnoredResources, string(name))
	}
	gates := feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate)
	gates.EnableInPlacePodVerticalScalingSchedulerPreemption = true // alpha: pods that grow are tried again
	plugin, err := noderesources.NewFit(t.Context(), args, handle, gates)
	if err != nil {
		t.Fatal(err)
	}
	return plugin.(*noderesources.Fit)
}

// hintOn is the hint of a plugin for an event of a Node.
func hintOn(t *testing.T, plugin fwk.EnqueueExtensions, action fwk.ActionType, p *v1.Pod, before, after *v1.Node) fwk.QueueingHint {
	t.Helper()
	events, err := plugin.EventsToRegister(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Event.Resource != fwk.Node || e.Event.ActionType&action == 0 {
			continue
		}
		var was any
		if before != nil {
			was = before
		}
		hint, err := e.QueueingHintFn(klog.FromContext(t.Context()), p, was, after)
		if err != nil {
			t.Fatal(err)
		}
		return hint
	}
	t.Fatalf("%s has no event for Node %v", plugin.Name(), action)
	return fwk.QueueSkip
}

// DynamicMIGFit exists for one reason: NodeResourcesFit's hints ask Fits() without
// ignoredResources (pkg/scheduler/framework/plugins/noderesources/fit.go:541-550,
// 639-649, 706-708), so that a pod with gpumem sleeps for five minutes beside a node
// that suits it.
func TestPinUpstreamFitHintForgetsIgnoredResources(t *testing.T) {
	inRig(t, func(r *rig) {
		upstream := upstreamFit(t, r.framework)
		plugin, err := r.factory.NewFit(r.ctx, nil, r.framework)
		if err != nil {
			t.Fatal(err)
		}
		ours := plugin.(*Fit)
		without, with := bare("n"), node("n").Obj()
		asks, asksNot := pod("p", "gpu=1 gpumem=8000").Obj(), pod("p", "gpu=1").Obj()
		tooMuch := pod("p", "gpu=57 gpumem=8000").Obj()
		events := []struct {
			name          string
			action        fwk.ActionType
			before, after *v1.Node
		}{
			{"allocatable nvidia.com/gpu changes from 0 to 56", fwk.UpdateNodeAllocatable, without, with},
			{"a node with 56 nvidia.com/gpu is added", fwk.Add, nil, with},
		}
		for _, e := range events {
			if got := hintOn(t, upstream, e.action, asksNot, e.before, e.after); got != fwk.Queue {
				t.Errorf("%s: NodeResourcesFit gives a pod without gpumem %v, want Queue; this test is no longer about ignoredResources", e.name, got)
			}
			if got := hintOn(t, upstream, e.action, asks, e.before, e.after); got != fwk.QueueSkip {
				t.Errorf("%s: NodeResourcesFit gives a pod with gpumem %v: Kubernetes has fixed its hint. "+
					"Delete DynamicMIGFit (pkg/plugins/dynamicmig/fit.go) and let manifests/base/scheduler/config.yaml use NodeResourcesFit with ignoredResources", e.name, got)
			}
			if got := hintOn(t, ours, e.action, asks, e.before, e.after); got != fwk.Queue {
				t.Errorf("%s: DynamicMIGFit gives a pod with gpumem %v, want Queue", e.name, got)
			}
			if got := hintOn(t, ours, e.action, tooMuch, e.before, e.after); got != fwk.QueueSkip {
				t.Errorf("%s: DynamicMIGFit gives a pod with too many devices %v, want QueueSkip", e.name, got)
			}
		}
		grouped := container("c", "gpu=1")
		grouped.Resources.Requests["example.com/token"] = resource.MustParse("1")
		inGroup := pod("p", "").Containers([]v1.Container{grouped}).Obj()
		groups := must(r.factory.NewFit(r.ctx, &runtime.Unknown{
			ContentType: runtime.ContentTypeJSON, Raw: []byte(`{"ignoredResourceGroups": ["example.com"]}`),
		}, r.framework))
		if got := hintOn(t, groups.(*Fit), fwk.Add, inGroup, nil, with); got != fwk.Queue {
			t.Errorf("DynamicMIGFit gives a pod that asks for a resource of an ignored group %v, want Queue", got)
		}
		if got := asks.Spec.Containers[0].Resources.Requests; len(got) != 2 {
			t.Errorf("the hint changed the pod it was given: requests are %v", got)
		}
	})
}

// The Filter of NodeResourcesFit does respect ignoredResources
// (noderesources/fit.go:771-781); DynamicMIGFit relies on that.
func TestPinFitFilterIgnoresIgnoredResources(t *testing.T) {
	inRig(t, func(r *rig) {
		ni := framework.NewNodeInfo()
		ni.SetNode(node("n").Obj())
		fit := upstreamFit(t, r.framework)
		filter := func(p *v1.Pod) *fwk.Status {
			state := newState()
			if _, status := fit.PreFilter(r.ctx, state, p, nil); !status.IsSuccess() {
				t.Fatal(status)
			}
			return fit.Filter(r.ctx, state, p, ni)
		}
		if status := filter(pod("p", "gpu=1 gpumem=8000 gpumem-percentage=10 gpucores=30 priority=1").Obj()); !status.IsSuccess() {
			t.Errorf("Filter says %v, want success: ignoredResources are not ignored any more", status)
		}
		if status := filter(pod("p", "gpu=57").Obj()); status.IsSuccess() {
			t.Error("Filter finds room for 57 of 56 devices: nvidia.com/gpu must not be ignored")
		}
	})
}

// DynamicMIGFit compares what nodes have with what pods ask for as upstream does, in
// fewer words, and slots first.
func TestFitComparesAsUpstream(t *testing.T) {
	inRig(t, func(r *rig) {
		ours, upstream := must(r.factory.NewFit(r.ctx, &runtime.Unknown{
			ContentType: runtime.ContentTypeJSON, Raw: []byte(`{"ignoredResources": ["nvidia.com/spare"]}`),
		}, r.framework)).(*Fit), upstreamFit(t, r.framework, "nvidia.com/spare")
		ours.Fit = upstream // with its gates
		withInit := pod("p", "gpu=1").Obj()
		withInit.Spec.InitContainers = []v1.Container{container("i", "gpu=2 cpu=3")}
		sidecar := container("s", "gpu=1 cpu=1")
		sidecar.RestartPolicy = new(v1.ContainerRestartPolicyAlways)
		withSidecar := pod("p", "gpu=1 cpu=1").Obj()
		withSidecar.Spec.InitContainers = []v1.Container{sidecar, container("i", "gpu=1 cpu=1")}
		withOverhead := pod("p", "gpu=1 cpu=1").Overhead(v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}).Obj()
		asOne := pod("p", "gpu=1 cpu=1").Obj()
		asOne.Spec.Resources = new(container("", "cpu=3 memory=1Gi").Resources)
		pods := []*v1.Pod{
			pod("p", "gpu=1 gpumem=8000").Obj(), pod("p", "gpu=3 cpu=1").Obj(), pod("p", "cpu=3 gpu=1").Obj(), pod("p", "cpu=1").Obj(),
			pod("p", "gpu=1 memory=2Gi").Obj(), pod("p", "gpu=1 memory=1Gi cpu=1").Obj(), pod("p", "gpu=1 ephemeral-storage=2Gi").Obj(),
			pod("p", "gpu=1 cpu=5 memory=5Gi").Obj(), pod("p", "gpu=1 other=1").Obj(), pod("p", "gpu=1 cpu=0").Obj(),
			pod("p", "gpu=1 cpu=1 spare=1").Obj(), withInit, withSidecar, withOverhead, asOne,
			pod("q", "gpu=2 cpu=3 memory=1Gi").Node("n").Obj(), // grows where it is there already
		}
		seen := map[string]bool{}
		for _, ni := range manyNodes(t) {
			for _, p := range pods {
				got, want := verdictOf(t, ours, p, ni), verdictOf(t, upstream, p, ni)
				seen[want] = true
				if got != want && !(p.Spec.NodeName == "" && strings.HasSuffix(got, insufficient+string(v1alpha1.ResourceGPU)) && strings.Contains(want, insufficient+string(v1alpha1.ResourceGPU))) {
					t.Errorf("a node with %+v of which %+v is taken, and a pod that asks for %v: %s, upstream says %s",
						ni.GetAllocatable(), ni.GetRequested(), p.Spec.Containers[0].Resources.Requests, got, want)
				}
			}
		}
		for _, what := range []string{"Too many pods", "cpu", "memory", "ephemeral-storage", "nvidia.com/gpu", "nvidia.com/other"} {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(verdict string) bool { return strings.HasSuffix(verdict, what) }) {
				t.Errorf("no node lacks only %s", what)
			}
		}
	})
}

// manyNodes have from none to enough of everything, with or without a pod.
func manyNodes(t *testing.T) []fwk.NodeInfo {
	t.Helper()
	var infos []fwk.NodeInfo
	for slots := range 4 {
		for _, has := range []string{"1 1Gi 1Gi 9", "2 2Gi 2Gi 1", "4 4Gi 0 2", "8 8Gi 4Gi 9"} {
			for _, taken := range []string{"", "gpu=1", "gpu=2 cpu=2 memory=1Gi", "cpu=9 memory=9Gi ephemeral-storage=1Gi"} {
				n := node("n").Obj()
				n.Status.Allocatable[v1alpha1.ResourceGPU] = *resource.NewQuantity(int64(slots), resource.DecimalSI)
				for i, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, v1.ResourcePods} {
					n.Status.Allocatable[name] = resource.MustParse(strings.Fields(has)[i])
				}
				ni := framework.NewNodeInfo()
				ni.SetNode(n)
				if taken != "" {
					ni.AddPodInfo(podInfo(t, pod("q", taken).Node("n").Obj()))
				}
				infos = append(infos, ni)
			}
		}
	}
	return infos
}

// verdictOf is what a plugin's Filter says.
func verdictOf(t *testing.T, f interface {
	fwk.PreFilterPlugin
	fwk.FilterPlugin
}, p *v1.Pod, ni fwk.NodeInfo) string {
	t.Helper()
	state := newState()
	if _, status := f.PreFilter(t.Context(), state, p, nil); !status.IsSuccess() {
		t.Fatal(status)
	}
	status := f.Filter(t.Context(), state, p, ni)
	return status.Code().String() + " " + status.Message()
}

// TestFitAsksUpstreamForReasonsOnly: what NodeResourcesFit has read of a pod is where
// it is looked for (noderesources/fit.go:58, 336).
func TestFitAsksUpstreamForReasonsOnly(t *testing.T) {
	inRig(t, func(r *rig) {
		fit := must(r.factory.NewFit(r.ctx, nil, r.framework)).(*Fit)
		state := newState()
		if _, status := fit.PreFilter(t.Context(), state, pod("p", "gpu=1 cpu=3 memory=2Gi").Obj(), nil); !status.IsSuccess() {
			t.Fatal(status)
		}
		data, err := state.Read(askedKey)
		if err != nil {
			t.Fatal(err)
		}
		if a := data.(*asked); a.rest == nil || a.rest.GetMilliCPU() != 3000 || a.rest.GetMemory() != 2<<30 || a.count != 1 {
			t.Errorf("the pod asks for %+v, want 3 CPUs, 2 GiB and a slot", a)
		}
	})
}

// probe is a plugin that skips where it is told to and counts calls of Score.
type probe struct {
	skipPreFilter, skipPreScore bool
	raw                         int64
	normalize                   func(fwk.NodeScoreList)
	scored                      int
}

func (p *probe) Name() string { return "Probe" }

func (p *probe) PreFilter(context.Context, fwk.CycleState, *v1.Pod, []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	return nil, skip(p.skipPreFilter)
}

func (p *probe) PreFilterExtensions() fwk.PreFilterExtensions { return nil }

func (p *probe) PreScore(context.Context, fwk.CycleState, *v1.Pod, []fwk.NodeInfo) *fwk.Status {
	return skip(p.skipPreScore)
}

func (p *probe) Score(context.Context, fwk.CycleState, *v1.Pod, fwk.NodeInfo) (int64, *fwk.Status) {
	p.scored++
	return p.raw, nil
}

func (p *probe) ScoreExtensions() fwk.ScoreExtensions {
	if p.normalize == nil {
		return nil
	}
	return p
}

func (p *probe) NormalizeScore(_ context.Context, _ fwk.CycleState, _ *v1.Pod, scores fwk.NodeScoreList) *fwk.Status {
	p.normalize(scores)
	return nil
}

func skip(yes bool) *fwk.Status {
	if yes {
		return fwk.NewStatus(fwk.Skip)
	}
	return nil
}

// score runs a cycle with the probe on one node.
func (p *probe) score(t *testing.T) ([]fwk.NodePluginScores, *fwk.Status) {
	t.Helper()
	ctx := t.Context()
	snapshot := internalcache.NewSnapshot(nil, []*v1.Node{node("n").Obj()})
	f, err := tf.NewFramework(ctx, []tf.RegisterPluginFunc{
		tf.RegisterQueueSortPlugin(queuesort.Name, queuesort.New),
		tf.RegisterBindPlugin(defaultbinder.Name, defaultbinder.New),
		tf.RegisterPluginAsExtensions(p.Name(), func(context.Context, runtime.Object, fwk.Handle) (fwk.Plugin, error) {
			return p, nil
		}, "PreFilter", "PreScore", "Score"),
	}, "", frameworkruntime.WithSnapshotSharedLister(snapshot))
	if err != nil {
		t.Fatal(err)
	}
	ni, err := snapshot.Get("n")
	if err != nil {
		t.Fatal(err)
	}
	state, pod, nodes := newState(), pod("p", "").Obj(), []fwk.NodeInfo{ni}
	if _, status, _ := f.RunPreFilterPlugins(ctx, state, pod); !status.IsSuccess() {
		t.Fatal(status)
	}
	if status := f.RunPreScorePlugins(ctx, state, pod, nodes); !status.IsSuccess() {
		t.Fatal(status)
	}
	return f.RunScorePlugins(ctx, state, pod, nodes)
}

// PreScore exists because Skip in PreFilter is coupled to Filter only
// (staging/src/k8s.io/kube-scheduler/framework/interface.go:529-530, 637-638).
// Without it Score would be asked for pods that have no state.
func TestPinSkipInPreFilterDoesNotSkipScore(t *testing.T) {
	p := &probe{skipPreFilter: true}
	if _, status := p.score(t); !status.IsSuccess() || p.scored != 1 {
		t.Errorf("Skip in PreFilter: Score was called %d times with %v, want once; PreScore may be unnecessary now", p.scored, status)
	}
	p = &probe{skipPreScore: true}
	if _, status := p.score(t); !status.IsSuccess() || p.scored != 0 {
		t.Errorf("Skip in PreScore: Score was called %d times with %v, want 0; pods without GPUs would now be scored", p.scored, status)
	}
}

// Raw scores of any size are fine as long as NormalizeScore maps them to 0..100
// (pkg/scheduler/framework/runtime/framework.go, normalizeScores).
func TestPinRawScoresMayLeaveTheScale(t *testing.T) {
	p := &probe{raw: -1 << 60, normalize: func(scores fwk.NodeScoreList) { scores[0].Score = 70 }}
	scores, status := p.score(t)
	if !status.IsSuccess() || scores[0].TotalScore != 70 || scores[0].RawScores[0].Score != -1<<60 {
		t.Errorf("scores are %+v with %v, want 70 of a raw score -2^60; Plugin.Score must fit the scale itself now", scores, status)
	}
	p = &probe{raw: -1 << 60}
	if _, status := p.score(t); status.IsSuccess() {
		t.Error("a raw score outside of 0..100 is accepted without NormalizeScore")
	}
}

// Batching (KEP-5598) is on for a profile only if each of its plugins signs pods
// (pkg/scheduler/framework/runtime/framework.go, computeBatchablePlugins, SignPod).
// One that does not, ours or a default one, costs a Filter over all nodes per pod.
func TestPinShippedProfileSignsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWhole(t)
		f := w.scheduler.Profiles[v1alpha1.SchedulerName]
		for name, p := range map[string]*v1.Pod{
			"a GPU pod":   pod("p", "cpu=1 gpu=1 gpumem=8000").Obj(),
			"a plain pod": pod("p", "cpu=1").Obj(),
		} {
			if f.SignPod(t.Context(), p) == nil {
				t.Errorf("%s has no signature in the shipped profile; see the scheduler's log line \"Disabling signatures\", and PodTopologySpread's defaultConstraints in manifests/base/scheduler/config.yaml", name)
			}
		}
	})
}

// core.podsOn trusts that an informer's store has an object before any handler is
// told of it (client-go tools/cache/shared_informer.go, processDeltas). Otherwise a
// pod could be tried and rejected before a report could wake it.
func TestPinInformerStoresBeforeItTells(t *testing.T) {
	inRig(t, func(r *rig) {
		informer := r.informers.Core().V1().Pods().Informer()
		told := false
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
			told = true
			if _, ok, err := informer.GetStore().Get(obj); err != nil || !ok {
				t.Errorf("a handler was told of a pod that the store lacks (%v); keep a list of waiting pods by hand", err)
			}
		}}); err != nil {
			t.Fatal(err)
		}
		r.create(pod("p", "gpu=1").Obj())
		if !told {
			t.Error("the handler was not told of the pod")
		}
	})
}

// When a nominated pod is deleted, kube-scheduler reports it as an assigned one,
// without nodeName (pkg/scheduler/eventhandlers.go:385-391); Plugin.afterPodGone
// reads status.nominatedNodeName then.
func TestPinDeletedNominatedPodIsReportedAsAssigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWhole(t)
		w.createNode(node("n").Obj())
		w.report(report(t, "n", 1))
		w.informers.Start(t.Context().Done())
		w.informers.WaitForCacheSync(t.Context().Done())
		synctest.Wait()
		queue, logger := w.scheduler.SchedulingQueue, klog.FromContext(t.Context())
		defer queue.Close()
		for _, p := range []*v1.Pod{pod("nominee", "gpu=1").NominatedNodeName("n").Obj(), pod("p", "gpu=1 gpumem=4000").Obj()} {
			if _, err := w.client.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			entity, err := queue.Pop(logger)
			if err != nil {
				t.Fatal(err)
			}
			info := entity.(*framework.QueuedPodInfo)
			info.UnschedulablePlugins.Insert(Name)
			if err := queue.AddUnschedulablePodIfNotPresent(logger, info, queue.SchedulingCycle()); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(queue.UnschedulablePods()); got != 2 {
			t.Fatalf("%d pods are unschedulable, want 2", got)
		}
		if err := w.client.CoreV1().Pods("default").Delete(t.Context(), "nominee", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if left := queue.UnschedulablePods(); len(left) != 0 {
			t.Errorf("pod %s still waits after the nominated pod was deleted; which event tells now that its room is free?", left[0].Name)
		}
	})
}
