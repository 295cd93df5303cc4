// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler"
	internalcache "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	internalqueue "k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultbinder"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/queuesort"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
	st "k8s.io/kubernetes/pkg/scheduler/testing"
	tf "k8s.io/kubernetes/pkg/scheduler/testing/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
	gpufake "github.com/dynamig/dynamig/pkg/generated/clientset/versioned/fake"
)

func TestMain(m *testing.M) {
	metrics.Register()
	// The second handler, a rate limiter, compares the time of a bubble with that
	// of the process.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
	// The first Notify of a process starts a goroutine that never ends, and
	// kube-scheduler's debugger would make that one of a bubble.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR2)
	os.Exit(m.Run())
}

// rig is the plugin in a real framework, over kube-scheduler's own cache, snapshot
// and queue. Only the two API servers are fakes. It lives in a synctest bubble:
// settle waits until every handler has run, and time stands still meanwhile.
type rig struct {
	testing.TB
	settle    func()
	ctx       context.Context
	logger    klog.Logger
	client    *fake.Clientset
	handle    kubernetes.Interface // what the plugin writes to
	gpus      *gpufake.Clientset
	factory   *Factory
	args      runtime.Object // DynamicMIGArgs or nil
	bindLast  bool           // the plugin comes after DefaultBinder
	informers informers.SharedInformerFactory
	events    *events.FakeRecorder
	cache     internalcache.Cache
	snapshot  *internalcache.Snapshot
	queue     *internalqueue.PriorityQueue
	framework framework.Framework
	plugin    *Plugin
	activator *recordingActivator
}

// recordingActivator is the queue's Activate, remembering the names.
type recordingActivator struct {
	fwk.PodActivator
	names []string
	then  func() // called once, after the next Activate
}

func (a *recordingActivator) Activate(logger klog.Logger, pods map[string]*v1.Pod) {
	for key := range pods {
		a.names = append(a.names, key)
	}
	a.PodActivator.Activate(logger, pods)
	if then := a.then; then != nil {
		a.then = nil
		then()
	}
}

// taken are the names activated since the last call, sorted and each once.
func (a *recordingActivator) taken() []string {
	names := a.names
	a.names = nil
	slices.Sort(names)
	return slices.Compact(names)
}

// inRig runs a test in a bubble with a rig whose informers have synced.
func inRig(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.start()
		test(r)
	})
}

// newRig builds everything, in kube-scheduler's order, and starts nothing but the
// plugin's own informer. What prepare does to the API comes first.
func newRig(t testing.TB, prepare ...func(*rig)) *rig {
	t.Helper()
	r := &rig{
		TB: t, settle: synctest.Wait, ctx: t.Context(), logger: klog.FromContext(t.Context()),
		client: fake.NewClientset(), gpus: gpufake.NewSimpleClientset(),
		events:   events.NewFakeRecorder(100),
		snapshot: internalcache.NewEmptySnapshot(),
		factory:  &Factory{},
	}
	r.handle = r.client
	r.client.PrependReactor("create", "pods", bindPods(r.client))
	r.factory.connect = func(*rest.Config) (versioned.Interface, error) { return r.gpus, nil }
	r.informers = scheduler.NewInformerFactory(r.client, 0, nil)
	r.cache = internalcache.New(r.ctx, nil, false, false)
	for _, p := range prepare {
		p(r)
	}
	r.framework = r.newFramework("dynamig-scheduler", r.args)
	r.plugin = r.pluginOf(r.framework)
	r.queue = internalqueue.NewPriorityQueue(r.framework.QueueSortFunc(), r.informers,
		internalqueue.WithPodLister(r.informers.Core().V1().Pods().Lister()),
		internalqueue.WithMetricsRecorder(metrics.NewMetricsAsyncRecorder(10, time.Second, r.ctx.Done())),
		internalqueue.WithQueueingHintMapPerProfile(internalqueue.QueueingHintMapPerProfile{
			"dynamig-scheduler": r.hints(r.framework),
		}))
	r.activator = &recordingActivator{PodActivator: r.queue}
	r.framework.SetPodNominator(r.queue)
	r.framework.SetPodActivator(r.activator)
	return r
}

// hints are those that a framework's plugins register.
func (r *rig) hints(f framework.Framework) internalqueue.QueueingHintMap {
	r.Helper()
	hints := internalqueue.QueueingHintMap{}
	for _, plugin := range f.EnqueueExtensions() {
		events, err := plugin.EventsToRegister(r.ctx)
		if err != nil {
			r.Fatal(err)
		}
		for _, e := range events {
			hints[e.Event] = append(hints[e.Event], &internalqueue.QueueingHintFunction{
				PluginName: plugin.Name(), QueueingHintFn: e.QueueingHintFn,
			})
		}
	}
	return hints
}

// newFramework is a profile with DynamicMIG alone, with DynamicMIGArgs or nil.
func (r *rig) newFramework(profile string, args runtime.Object) framework.Framework {
	r.Helper()
	f, err := r.tryFramework(profile, args)
	if err != nil {
		r.Fatal(err)
	}
	return f
}

func (r *rig) tryFramework(profile string, args runtime.Object) (framework.Framework, error) {
	build := func(ctx context.Context, _ runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
		return r.factory.New(ctx, args, handle)
	}
	binders := []tf.RegisterPluginFunc{
		tf.RegisterPluginAsExtensions(Name, build,
			"PreFilter", "Filter", "PreScore", "Score", "Reserve", "PreBind", "Bind", "PostBind"),
		tf.RegisterBindPlugin(defaultbinder.Name, defaultbinder.New),
	}
	if r.bindLast {
		slices.Reverse(binders)
	}
	return tf.NewFramework(r.ctx, append(binders, tf.RegisterQueueSortPlugin(queuesort.Name, queuesort.New)), profile,
		frameworkruntime.WithClientSet(&redirected{Interface: r.client, to: r}),
		frameworkruntime.WithInformerFactory(r.informers),
		frameworkruntime.WithSnapshotSharedLister(r.snapshot),
		frameworkruntime.WithMutableSnapshotLister(r.snapshot),
		frameworkruntime.WithEventRecorder(r.events),
		frameworkruntime.WithWaitingPods(frameworkruntime.NewWaitingPodsMap()),
		frameworkruntime.WithPodsInPreBind(frameworkruntime.NewPodsInPreBindMap()),
		frameworkruntime.WithLogger(r.logger),
	)
}

// redirected is the client that the plugin gets: its core API is that of
// rig.handle, which a test may replace.
type redirected struct {
	kubernetes.Interface
	to *rig
}

func (c *redirected) CoreV1() corev1.CoreV1Interface { return c.to.handle.CoreV1() }

// pluginOf finds the plugin that a framework has built.
func (r *rig) pluginOf(f framework.Framework) *Plugin {
	r.Helper()
	for _, e := range f.EnqueueExtensions() {
		if pl, ok := e.(*Plugin); ok {
			return pl
		}
	}
	r.Fatal("the framework has no DynamicMIG")
	return nil
}

func (r *rig) start() {
	r.informers.Start(r.ctx.Done())
	r.settle()
}

// create puts a pod into the API.
func (r *rig) create(pod *v1.Pod) *v1.Pod {
	r.Helper()
	created, err := r.client.CoreV1().Pods(pod.Namespace).Create(r.ctx, pod, metav1.CreateOptions{})
	if err != nil {
		r.Fatal(err)
	}
	r.settle()
	return created
}

// update changes a pod in the API.
func (r *rig) update(pod *v1.Pod) {
	r.Helper()
	if _, err := r.client.CoreV1().Pods(pod.Namespace).Update(r.ctx, pod, metav1.UpdateOptions{}); err != nil {
		r.Fatal(err)
	}
	r.settle()
}

// delete removes a pod from the API at once.
func (r *rig) delete(pod *v1.Pod) {
	r.Helper()
	if err := r.client.CoreV1().Pods(pod.Namespace).Delete(r.ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
		r.Fatal(err)
	}
	r.settle()
}

// get reads a pod from the API.
func (r *rig) get(pod *v1.Pod) *v1.Pod {
	r.Helper()
	found, err := r.client.CoreV1().Pods(pod.Namespace).Get(r.ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		r.Fatal(err)
	}
	return found
}

// running puts bound pods into API and scheduler cache.
func (r *rig) running(pods ...*v1.Pod) {
	r.Helper()
	for _, pod := range pods {
		r.create(pod)
		if err := r.cache.AddPod(r.logger, pod); err != nil {
			r.Fatal(err)
		}
	}
	r.refresh()
}

// addNode puts a Node into the cache and its report, if any, into the API.
func (r *rig) addNode(node *v1.Node, report *v1alpha1.GPUNode) {
	r.Helper()
	r.cache.AddNode(r.logger, node)
	r.refresh()
	if report != nil {
		r.report(report)
	}
}

// report writes a GPUNode, new or changed.
func (r *rig) report(report *v1alpha1.GPUNode) {
	r.Helper()
	nodes := r.gpus.DynamigV1alpha1().GPUNodes()
	_, err := nodes.Get(r.ctx, report.Name, metav1.GetOptions{})
	if err == nil {
		_, err = nodes.Update(r.ctx, report, metav1.UpdateOptions{})
	} else {
		_, err = nodes.Create(r.ctx, report, metav1.CreateOptions{})
	}
	if err != nil {
		r.Fatal(err)
	}
	r.settle()
}

// refresh takes a new snapshot, as each scheduling cycle does.
func (r *rig) refresh() {
	r.Helper()
	if err := r.cache.UpdateSnapshot(r.logger, r.snapshot); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) nodeInfo(name string) fwk.NodeInfo {
	r.Helper()
	ni, err := r.snapshot.Get(name)
	if err != nil {
		r.Fatal(err)
	}
	return ni
}

// cycle is one pod's scheduling cycle.
type cycle struct {
	*rig
	pod   *v1.Pod
	state *framework.CycleState
}

// begin runs PreFilter.
func (r *rig) begin(pod *v1.Pod) (*cycle, *fwk.Status) {
	c := &cycle{rig: r, pod: pod, state: framework.NewCycleState()}
	_, status, _ := r.framework.RunPreFilterPlugins(r.ctx, c.state, pod)
	return c, status
}

// mustBegin runs PreFilter, which must pass.
func (r *rig) mustBegin(pod *v1.Pod) *cycle {
	r.Helper()
	c, status := r.begin(pod)
	if !status.IsSuccess() {
		r.Fatalf("PreFilter of %s: %v", pod.Name, status)
	}
	return c
}

// filter runs Filter on a node of the snapshot, as the scheduler does.
func (c *cycle) filter(node string) *fwk.Status {
	c.Helper()
	return c.framework.RunFilterPluginsWithNominatedPods(c.ctx, c.state, c.pod, c.nodeInfo(node))
}

// assumed is the pod as the scheduler's cache has it after assume.
func (c *cycle) assumed(node string) *v1.Pod {
	pod := c.pod.DeepCopy()
	pod.Spec.NodeName = node
	return pod
}

// reserve assumes the pod in the cache and runs Reserve; the snapshot stays as it
// was, as in the scheduler.
func (c *cycle) reserve(node string) (*v1.Pod, *fwk.Status) {
	c.Helper()
	pod := c.assumed(node)
	if err := c.cache.AssumePod(c.logger, pod); err != nil {
		c.Fatal(err)
	}
	return pod, c.framework.RunReservePluginsReserve(c.ctx, c.state, pod, node)
}

// unreserve undoes reserve.
func (c *cycle) unreserve(pod *v1.Pod) {
	c.Helper()
	c.framework.RunReservePluginsUnreserve(c.ctx, c.state, pod, pod.Spec.NodeName)
	if err := c.cache.ForgetPod(c.logger, pod); err != nil {
		c.Fatal(err)
	}
}

// mustReserve runs PreFilter, Filter and Reserve, which must pass.
func (r *rig) mustReserve(pod *v1.Pod, node string) (*cycle, *v1.Pod) {
	r.Helper()
	c := r.mustBegin(pod)
	if status := c.filter(node); !status.IsSuccess() {
		r.Fatalf("Filter of %s on %s: %v", pod.Name, node, status)
	}
	assumed, status := c.reserve(node)
	if !status.IsSuccess() {
		r.Fatalf("Reserve of %s on %s: %v", pod.Name, node, status)
	}
	return c, assumed
}

// preBind runs PreBindPreFlight and PreBind.
func (c *cycle) preBind(pod *v1.Pod) *fwk.Status {
	c.Helper()
	if status := c.framework.RunPreBindPreFlights(c.ctx, c.state, pod, pod.Spec.NodeName); !status.IsSuccess() {
		c.Fatalf("PreBindPreFlight of %s: %v", pod.Name, status)
	}
	return c.framework.RunPreBindPlugins(c.ctx, c.state, pod, pod.Spec.NodeName)
}

// bind runs Bind, after PreBind.
func (c *cycle) bind(pod *v1.Pod) *fwk.Status {
	c.Helper()
	return c.framework.RunBindPlugins(c.ctx, c.state, pod, pod.Spec.NodeName)
}

// bindPods is what the API server does with a Binding (kubernetes pkg/registry/core/
// pod/storage/storage.go:213-263).
func bindPods(client *fake.Clientset) clienttesting.ReactionFunc {
	return func(action clienttesting.Action) (bool, runtime.Object, error) {
		if action.GetSubresource() != "binding" {
			return false, nil, nil
		}
		binding := action.(clienttesting.CreateAction).GetObject().(*v1.Binding)
		obj, err := client.Tracker().Get(pods, action.GetNamespace(), binding.Name)
		if err != nil {
			return true, nil, err
		}
		pod := obj.(*v1.Pod).DeepCopy()
		if binding.UID != pod.UID || pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
			return true, nil, apierrors.NewConflict(pods.GroupResource(), binding.Name, errors.New("another pod, bound, or ending"))
		}
		pod.Spec.NodeName = binding.Target.Name
		for key, value := range binding.Annotations {
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, key, value)
		}
		return true, binding, client.Tracker().Update(pods, pod, action.GetNamespace())
	}
}

// held is what the ledger has for a pod: "n: 2g.10gb@0:GPU-0", or "nothing".
func (r *rig) held(pod *v1.Pod) string {
	r.Helper()
	h, ok := r.plugin.pool.Holder(pod.UID)
	if !ok {
		return "nothing"
	}
	node, err := r.plugin.pool.Node(h.Node)
	if err != nil || node == nil {
		r.Fatalf("node %s of pod %s: %v", h.Node, pod.Name, err)
	}
	words := []string{h.Node + ":"}
	for _, span := range h.Spans {
		name := "?"
		for _, g := range node.GPUs {
			if profile, ok := g.Catalogue.Model().Profile(span.Profile); ok && g.ID == span.GPU {
				name = profile.Name
			}
		}
		words = append(words, placement(name, int32(span.Start), span.GPU))
	}
	return strings.Join(words, " ")
}

// patches are the bodies of the patches of pods sent to the API so far.
func (r *rig) patches() []string {
	var bodies []string
	for _, action := range r.client.Actions() {
		if patch, ok := action.(clienttesting.PatchAction); ok {
			bodies = append(bodies, string(patch.GetPatch()))
		}
	}
	return bodies
}

// recorded are the events so far, "Type Reason note".
func (r *rig) recorded() []string {
	var out []string
	for {
		select {
		case e := <-r.events.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}

func newState() *framework.CycleState { return framework.NewCycleState() }

// nominate puts an unbound pod into API and queue, nominated to a node and waiting.
func (r *rig) nominate(pod *st.PodWrapper, node string) *v1.Pod {
	r.Helper()
	return r.unschedulable(r.create(pod.NominatedNodeName(node).Obj()))
}

// unschedulable takes a pod through the queue to where pods wait that our plugin
// has rejected.
func (r *rig) unschedulable(pod *v1.Pod) *v1.Pod {
	r.Helper()
	r.queue.Add(r.ctx, pod)
	r.reject(pod)
	return pod
}

// reject is an attempt at the pod at the head of the queue that our plugin ends.
func (r *rig) reject(pod *v1.Pod) {
	r.Helper()
	entity, err := r.queue.Pop(r.logger)
	if err != nil {
		r.Fatal(err)
	}
	info := entity.(*framework.QueuedPodInfo)
	if info.Pod.UID != pod.UID {
		r.Fatalf("the queue gave pod %s, want %s", info.Pod.Name, pod.Name)
	}
	info.UnschedulablePlugins = sets.New(Name)
	if err := r.queue.AddUnschedulablePodIfNotPresent(r.logger, info, r.queue.SchedulingCycle()); err != nil {
		r.Fatal(err)
	}
	if got := r.whereabouts(pod); got != "unschedulable" {
		r.Fatalf("pod %s is %s, want unschedulable", pod.Name, got)
	}
}

// whereabouts of a pod in the queue.
func (r *rig) whereabouts(pod *v1.Pod) string {
	for where, pods := range map[string][]*v1.Pod{
		"active":        r.queue.PodsInActiveQ(),
		"in backoff":    r.queue.PodsInBackoffQ(),
		"unschedulable": r.queue.UnschedulablePods(),
	} {
		if slices.ContainsFunc(pods, func(p *v1.Pod) bool { return p.UID == pod.UID }) {
			return where
		}
	}
	return "not queued"
}

// waitUntil lets time pass in the bubble until a condition holds.
func (r *rig) waitUntil(what string, condition func() bool) {
	r.Helper()
	for range 600 {
		r.settle()
		if condition() {
			return
		}
		time.Sleep(100 * time.Millisecond) // the bubble's time
	}
	r.Fatalf("after a minute it is still not true that %s", what)
}

// deleteReport removes a GPUNode.
func (r *rig) deleteReport(name string) {
	r.Helper()
	if err := r.gpus.DynamigV1alpha1().GPUNodes().Delete(r.ctx, name, metav1.DeleteOptions{}); err != nil {
		r.Fatal(err)
	}
	r.settle()
}
