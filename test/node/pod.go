// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/kubelet"
)

// retry is how long kubelet waits after a start that failed; the real one waits
// ten seconds.
const retry = 100 * time.Millisecond

// State of a pod as kubelet sees it.
type State string

// States of a pod.
const (
	Waiting State = "waiting" // containers are being started
	Running State = "running" // all containers were created
	Failed  State = "failed"  // was not admitted, for good
	Gone    State = "gone"
)

// Pod is a pod that is bound to the node.
type Pod struct {
	Name string
	UID  types.UID

	node       *Node
	inner      *kubelet.Pod
	object     *v1.Pod
	allocation v1alpha1.Allocation
	work       sync.WaitGroup

	mu      sync.Mutex // guards what follows
	state   State
	reason  string              // why it is not running
	created map[string][]string // by container: UUIDs of its instances
	bound   time.Time           // when it was bound
	ready   time.Time           // when all containers were created
	halted  chan struct{}       // closed when its worker is to end
}

// Bind makes a pod appear on the node and runs it. Containers are written as
// "main=0:2g.10gb@0 1:1g.5gb@3", by GPU, profile and first memory slice, and
// "init:setup=..." is a plain init container, "sidecar:proxy=..." a sidecar that comes
// after those. A name may come again after Delete.
func (n *Node) Bind(name string, containers ...string) *Pod {
	n.T.Helper()
	p := n.BindUnseen(name, containers...)
	p.Run()
	return p
}

// BindUnseen is Bind while kubelet does not see the pod yet: call Run then.
func (n *Node) BindUnseen(name string, containers ...string) *Pod {
	n.T.Helper()
	n.mu.Lock()
	n.pids++
	uid := types.UID(fmt.Sprintf("uid-%s-%d", name, n.pids))
	n.mu.Unlock()
	p := &Pod{
		Name: name, UID: uid, node: n, state: Waiting, halted: make(chan struct{}), created: map[string][]string{},
		inner:      &kubelet.Pod{UID: uid, Namespace: "default", Name: name},
		allocation: v1alpha1.Allocation{Version: v1alpha1.AllocationVersion, Node: Name, PodUID: uid, Containers: map[string][]v1alpha1.Device{}},
		object: &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid, CreationTimestamp: metav1.Now()},
			Spec:       v1.PodSpec{NodeName: Name, SchedulerName: v1alpha1.SchedulerName},
			Status:     v1.PodStatus{Phase: v1.PodPending},
		},
	}
	for _, text := range containers {
		p.add(text)
	}
	annotation, err := p.allocation.Encode()
	if err != nil {
		n.T.Fatal(err)
	}
	p.object.Annotations = map[string]string{v1alpha1.AnnotationAllocation: annotation}
	p.inner.Object = p.object
	n.mu.Lock()
	n.pods[string(p.UID)] = p
	n.mu.Unlock()
	p.bound = time.Now()
	n.API.Put(p.object)
	return p
}

// Run has kubelet see the pod.
func (p *Pod) Run() { p.begin(func() error { return p.node.Kubelet.Admit(p.inner) }) }

// add adds a container.
func (p *Pod) add(text string) {
	n := p.node
	n.T.Helper()
	text, isInit := strings.CutPrefix(text, "init:")
	text, isSidecar := strings.CutPrefix(text, "sidecar:")
	name, places, _ := strings.Cut(text, "=")
	c := kubelet.Container{Name: name}
	for _, place := range strings.Fields(places) {
		c.Devices = append(c.Devices, place)
		p.allocation.Containers[name] = append(p.allocation.Containers[name], n.device(place))
	}
	out := v1.Container{Name: name, Resources: v1.ResourceRequirements{Limits: v1.ResourceList{
		v1alpha1.ResourceGPU: *resource.NewQuantity(int64(len(c.Devices)), resource.DecimalSI),
	}}}
	switch {
	case isInit:
		p.inner.Inits = append(p.inner.Inits, c)
		p.object.Spec.InitContainers = append(p.object.Spec.InitContainers, out)
	case isSidecar:
		p.inner.Apps = append(p.inner.Apps, c)
		out.RestartPolicy = new(v1.ContainerRestartPolicyAlways)
		p.object.Spec.InitContainers = append(p.object.Spec.InitContainers, out)
	default:
		p.inner.Apps = append(p.inner.Apps, c)
		p.object.Spec.Containers = append(p.object.Spec.Containers, out)
	}
}

// device reads a placement.
func (n *Node) device(place string) v1alpha1.Device {
	n.T.Helper()
	var gpu, start int
	index, rest, _ := strings.Cut(place, ":")
	name, at, _ := strings.Cut(rest, "@")
	profile, ok := n.profile[name]
	_, err1 := fmt.Sscan(index, &gpu)
	_, err2 := fmt.Sscan(at, &start)
	if err := errors.Join(err1, err2); err != nil || !ok {
		n.T.Fatalf("%q is no placement: %v", place, err)
	}
	return v1alpha1.Device{GPU: string(n.GPU(gpu)), MIG: &v1alpha1.MIGInstance{
		ProfileID: int32(profile.ID), Profile: name, Start: int32(start), Size: int32(profile.Size), MemoryMiB: int64(profile.MemoryMiB),
	}}
}

// begin starts the pod's worker, which admits the pod at first.
func (p *Pod) begin(admit func() error) {
	p.node.workers.Add(1)
	p.work.Go(func() {
		defer p.node.workers.Done()
		p.worker(admit)
	})
}

// worker does what kubelet's does.
func (p *Pod) worker(admit func() error) {
	if err := admit(); err != nil {
		p.fail(err)
		return
	}
	for i, c := range p.inner.Containers() {
		if !p.start(c.Name) {
			return
		}
		if i < len(p.inner.Inits) {
			p.letGo(c.Name) // it ends at once
		}
	}
	p.mu.Lock()
	p.state, p.reason, p.ready = Running, "", time.Now()
	p.mu.Unlock()
	p.phase(v1.PodRunning)
}

// start starts a container, again and again; false when the pod is to end.
func (p *Pod) start(container string) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-ctx.Done():
		case <-p.halted:
			cancel()
		case <-p.node.closing:
			cancel()
		}
	}()
	for {
		err := p.node.Kubelet.PreStart(ctx, p.inner, container)
		if err == nil {
			if err = p.create(container); err == nil {
				return true
			}
			p.node.T.Errorf("container %s of pod %s: %v\n%s", container, p.Name, err, p.node.tail())
			return false
		}
		p.mu.Lock()
		p.reason = err.Error()
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return false
		case <-time.After(retry):
		}
	}
}

// fail is what becomes of a pod that was not admitted.
func (p *Pod) fail(err error) {
	p.mu.Lock()
	p.state, p.reason = Failed, err.Error()
	p.mu.Unlock()
	p.phase(v1.PodFailed)
}

// phase tells the API server.
func (p *Pod) phase(phase v1.PodPhase) {
	object := p.node.API.Pod(p.UID)
	if object == nil {
		return
	}
	object = object.DeepCopy()
	object.Status.Phase = phase
	p.node.API.Put(object)
}

// State of the pod, and why it is not running.
func (p *Pod) State() (State, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.reason
}

// Took is the time from Bind until all containers were created; zero before.
func (p *Pod) Took() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready.IsZero() {
		return 0
	}
	return p.ready.Sub(p.bound)
}

// UUIDs of the instances that a container was created with.
func (p *Pod) UUIDs(container string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.created[container]
}

// halt ends the pod's processes.
func (p *Pod) halt() {
	p.mu.Lock()
	select {
	case <-p.halted:
	default:
		close(p.halted)
	}
	p.mu.Unlock()
}

// Delete ends the pod's containers and then removes it.
func (p *Pod) Delete() {
	p.node.T.Helper()
	p.halt()
	p.work.Wait()
	for _, c := range p.inner.Containers() {
		p.letGo(c.Name)
	}
	p.mu.Lock()
	p.state = Gone
	p.mu.Unlock()
	p.node.Kubelet.End(p.inner)
	p.node.mu.Lock()
	delete(p.node.pods, string(p.UID))
	p.node.mu.Unlock()
	p.node.API.Delete(p.UID)
}

// DeleteWithForce removes the pod's object at once, as kubectl delete --force does.
// Its containers run on until Delete, and have their GPUs closed for now.
func (p *Pod) DeleteWithForce() {
	p.node.T.Helper()
	for _, c := range p.inner.Containers() {
		if err := p.idle(c.Name); err != nil {
			p.node.T.Fatal(err)
		}
	}
	p.node.API.Delete(p.UID)
}

// Await waits until the pod is in a state.
func (p *Pod) Await(want State) {
	p.node.T.Helper()
	p.node.Await(fmt.Sprintf("pod %s to be %s", p.Name, want), func() error {
		if state, reason := p.State(); state != want {
			return fmt.Errorf("it is %s: %s", state, reason)
		}
		return nil
	})
}

// Resume is what kubelet does with its pods after its own restart, in the order of
// their creation: it admits them again, from its checkpoint, and starts what does
// not run.
func (n *Node) Resume(pods ...*Pod) {
	for _, p := range pods {
		p.mu.Lock()
		p.halted, p.state, p.created = make(chan struct{}), Waiting, map[string][]string{}
		p.mu.Unlock()
		p.begin(func() error { return n.Kubelet.Readmit(p.inner) })
	}
}

// Admitted reports whether kubelet has given the pod its slots.
func (p *Pod) Admitted() bool {
	return len(p.Slots()) > 0
}

// Slots lists the slots that kubelet has given to the pod's containers.
func (p *Pod) Slots() []string {
	var out []string
	for _, c := range p.inner.Containers() {
		out = append(out, p.node.Kubelet.SlotsOf(p.inner, c.Name)...)
	}
	return out
}

// Check compares once more what a running pod's containers were created with: the
// same instances, and the CDI files that a restart of a container would read.
func (p *Pod) Check() error {
	for _, c := range p.inner.Apps {
		for i, d := range p.allocation.Containers[c.Name] {
			in, err := p.node.instance(d)
			if err != nil {
				return err
			}
			if had := p.UUIDs(c.Name)[i]; in.UUID != had {
				return fmt.Errorf("container %s was created with %s, there is %s now", c.Name, had, in.UUID)
			}
		}
		if err := p.compare(c.Name); err != nil {
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	return nil
}

// PhaseOf is what the report says of a pod; empty when it says nothing.
func (n *Node) PhaseOf(p *Pod) v1alpha1.PodPhase {
	if report := n.API.GPUNode(); report != nil {
		for _, pod := range report.Status.Pods {
			if pod.UID == p.UID {
				return pod.Phase
			}
		}
	}
	return ""
}

// Containers lists the names of the pod's app containers.
func (p *Pod) Containers() []string {
	var out []string
	for _, c := range p.inner.Apps {
		out = append(out, c.Name)
	}
	return out
}

// Restart ends a container of a running pod and starts it again, as kubelet does.
func (p *Pod) Restart(container string) error {
	p.letGo(container)
	deadline := time.Now().Add(kubelet.Patience)
	for {
		err := p.node.Kubelet.PreStart(context.Background(), p.inner, container)
		if err == nil {
			return p.create(container)
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(retry)
	}
}

// Readmit is what kubelet does after its own restart with a pod whose containers
// run on.
func (p *Pod) Readmit() error { return p.node.Kubelet.Readmit(p.inner) }
