// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// annotationConfigSource is set by kubelet to "api" on all pods but static ones;
// their mirror in the API server has the file or URL that they come from
// (k8s.io/kubernetes/pkg/kubelet/types, ConfigSourceAnnotationKey).
const annotationConfigSource = "kubernetes.io/config.source"

// watchPods brings every bound pod of the node to the owners, and tells them when
// a complete list has been seen. It returns when ctx ends.
func (a *Agent) watchPods(ctx context.Context) error {
	informer := coreinformers.NewFilteredPodInformer(a.config.Client, v1.NamespaceAll, 0, cache.Indexers{},
		func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", a.config.Node).String()
		})
	err := informer.SetTransform(func(obj any) (any, error) {
		if pod, ok := obj.(*v1.Pod); ok {
			return compact(pod, a.resource), nil
		}
		return obj, nil
	})
	if err != nil {
		return fmt.Errorf("watching pods: %w", err)
	}
	w := podWatch{node: a.config.Node, count: a.resource, owners: a.owners, begins: make(chan struct{})}
	if _, err := informer.AddEventHandler(&w); err != nil {
		return fmt.Errorf("watching pods: %w", err)
	}
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() { informer.RunWithContext(ctx) })
	if list := a.config.KubeletPods; list != nil && a.journal.whole() {
		done.Go(func() { w.askKubelet(ctx, list) })
	}
	if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		w.begin(informer.GetStore())
	}
	<-ctx.Done()
	return nil
}

// compact keeps of a pod what the agent reads: a node has up to some hundred. count
// is the name of the resource that counts devices; the owners see it under HAMi's name.
func compact(pod *v1.Pod, count v1.ResourceName) *v1.Pod {
	out := &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
	}}
	for _, key := range []string{v1alpha1.AnnotationAllocation, annotationConfigSource} {
		if value, ok := pod.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&out.ObjectMeta, key, value)
		}
	}
	out.Spec.NodeName, out.Spec.SchedulerName = pod.Spec.NodeName, pod.Spec.SchedulerName
	out.Spec.InitContainers = compactContainers(pod.Spec.InitContainers, count)
	out.Spec.Containers = compactContainers(pod.Spec.Containers, count)
	out.Status.Phase = pod.Status.Phase
	return out
}

func compactContainers(in []v1.Container, count v1.ResourceName) []v1.Container {
	out := make([]v1.Container, len(in))
	for i := range in {
		out[i].Name, out[i].RestartPolicy = in[i].Name, in[i].RestartPolicy
		if n, ok := in[i].Resources.Limits[count]; ok {
			out[i].Resources.Limits = maps.Clone(in[i].Resources.Limits) // priority may have any name
			out[i].Resources.Limits[v1alpha1.ResourceGPU] = n
			for _, e := range in[i].Env {
				if slices.Contains(librarySettings, e.Name) {
					out[i].Env = append(out[i].Env, e)
				}
			}
		}
	}
	return out
}

// podWatch passes pods on. Until the first list is complete it drops them: they
// are taken from that list, in an order that does not depend on chance.
type podWatch struct {
	node   string
	count  v1.ResourceName // that counts devices
	owners *owners
	begins chan struct{} // closed when the first list of the API server is complete

	mu    sync.Mutex // guards begun, and keeps begin, events and kubelet's lists apart
	begun bool
}

// begin passes the first list on.
//
// The store changes before an event is passed on, so that with the lock held over
// listing nothing falls between list and events; some pods may come twice.
func (w *podWatch) begin(store cache.Store) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun = true
	close(w.begins)
	var pods []*v1.Pod
	for _, obj := range store.List() {
		if pod, ok := obj.(*v1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	w.owners.sync(w.ordered(pods))
}

// ordered picks the node's pods: those that run first, then the oldest, since where
// the journal is lost nothing else tells who had an instance.
func (w *podWatch) ordered(all []*v1.Pod) []*v1.Pod {
	pods := slices.DeleteFunc(all, func(pod *v1.Pod) bool { return pod.Spec.NodeName != w.node })
	rank := func(p *v1.Pod) int {
		if p.Status.Phase == v1.PodRunning {
			return 0
		}
		return 1
	}
	slices.SortFunc(pods, func(a, b *v1.Pod) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	return pods
}

// Pauses before questions to kubelet. The API server mostly answers before the first.
const (
	firstQuestion = time.Second
	lastQuestion  = 10 * time.Second
)

// askKubelet passes on what kubelet knows of the node's pods until the API server has
// answered, so that an agent which starts without one can prepare them. Pods that
// kubelet does not show are not ended by that: it may not have heard of them yet.
func (w *podWatch) askKubelet(ctx context.Context, list func(context.Context) ([]*v1.Pod, error)) {
	for pause := firstQuestion; ; pause = min(2*pause, lastQuestion) {
		select {
		case <-ctx.Done():
			return
		case <-w.begins:
			return
		case <-time.After(pause):
		}
		pods, err := list(ctx)
		if err != nil {
			klog.FromContext(ctx).V(4).Info("Kubelet does not tell of its pods", "err", err)
			continue
		}
		w.foresee(pods)
	}
}

// foresee passes on what kubelet knows. Once the API server has answered that is
// nothing new.
func (w *podWatch) foresee(pods []*v1.Pod) {
	for i := range pods {
		pods[i] = compact(pods[i], w.count)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.begun {
		w.owners.observe(w.ordered(pods)...)
	}
}

// OnAdd implements cache.ResourceEventHandler.
func (w *podWatch) OnAdd(obj any, _ bool) { w.pass(obj) }

// OnUpdate implements cache.ResourceEventHandler. A pod that was deleted and
// created again under the same name may arrive as an update.
func (w *podWatch) OnUpdate(old, obj any) {
	before, ok := old.(*v1.Pod)
	after, same := obj.(*v1.Pod)
	if ok && same && before.UID != after.UID {
		w.OnDelete(old)
	}
	w.pass(obj)
}

// OnDelete implements cache.ResourceEventHandler.
func (w *podWatch) OnDelete(obj any) {
	if tombstone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tombstone.Obj
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if pod, ok := obj.(*v1.Pod); ok && w.begun {
		w.owners.end(pod.UID)
	}
}

func (w *podWatch) pass(obj any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if pod, ok := obj.(*v1.Pod); ok && w.begun && pod.Spec.NodeName == w.node {
		w.owners.observe(pod)
	}
}

// asksForGPUs reports whether a container of the pod has a limit of GPUs.
func asksForGPUs(pod *v1.Pod) bool { return slotsOf(pod) > 0 }

// slotsOf is how many slots kubelet gives to a pod: all of its app containers and
// sidecars together, or more where a plain init container needs more at its time.
func slotsOf(pod *v1.Pod) int {
	sidecars, most := 0, 0
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			sidecars += limit(c)
			continue
		}
		most = max(most, sidecars+limit(c))
	}
	apps := sidecars
	for i := range pod.Spec.Containers {
		apps += limit(&pod.Spec.Containers[i])
	}
	return max(most, apps)
}

func limit(c *v1.Container) int {
	count := c.Resources.Limits[v1alpha1.ResourceGPU]
	return int(count.Value())
}

// ended reports whether all containers of the pod have ended for good.
func ended(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}
