// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/dynamig/dynamig/test/kubelet"
)

func TestOneContainer(t *testing.T) {
	n := newNode(t)
	n.setCapacity(4)
	a := pod("a", "main=GPU-1/14/0 GPU-1/14/2")
	n.runPod(a)
	slots := n.SlotsOf(a, "main")
	for i, key := range a.Apps[0].Devices {
		if got, want := n.device(slots[i]), editsOf(a, key).Env[0]; got != want {
			t.Errorf("slot %s stands for %s, want %s: the sorted slots take the devices in their order", slots[i], got, want)
		}
	}
	if owner, _, err := n.config.CDI.ReadOwner(slots[0]); owner != "uid-a" || err != nil {
		t.Errorf("ReadOwner = %s, %v", owner, err)
	}
}

// Hundreds of containers start at one time, over kubelet's limit of PodResources
// calls; each must see its own pod's devices.
func TestParallelStartsSeeTheirOwnDevices(t *testing.T) {
	n := newNode(t)
	const pods = 150
	n.setCapacity(5 * pods)
	var all []*kubelet.Pod
	for i := range pods {
		p := pod(fmt.Sprintf("p%03d", i), fmt.Sprintf("one=%d/a", i), fmt.Sprintf("two=%d/b %d/c", i, i))
		if i%3 == 0 {
			p.Inits = pod("", fmt.Sprintf("init:zero=%d/a", i)).Inits
		}
		n.owner.add(p)
		all = append(all, p)
	}
	var running sync.WaitGroup
	begin := time.Now()
	for _, p := range all {
		running.Go(func() {
			if err := n.Admit(p); err != nil {
				t.Errorf("admitting %s: %v", p.Name, err)
				return
			}
			for _, c := range p.Inits {
				n.startContainer(p, c.Name)
			}
			for _, c := range p.Apps {
				running.Go(func() { n.startContainer(p, c.Name) })
			}
		})
	}
	running.Wait()
	n.Mu.Lock()
	defer n.Mu.Unlock()
	t.Logf("350 starts in %v with %d PodResources calls", time.Since(begin), n.ListCalls)
	if n.Rejected > 0 {
		t.Errorf("%d PodResources calls were over kubelet's limit", n.Rejected)
	}
}

// All who ask while a call is under way share the next one, since the one under
// way may be too old for them.
func TestPodResourcesCallsAreShared(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	inCall, goOn := make(chan struct{}), make(chan struct{})
	n.Mu.Lock()
	n.BeforeList = func() { inCall <- struct{}{}; <-goOn }
	n.Mu.Unlock()
	result := make(chan error)
	go func() { _, err := n.plugin.holders.list(context.Background()); result <- err }()
	select {
	case <-inCall:
	case err := <-result:
		t.Fatalf("list returned %v without a call", err)
	}
	impatient, cancel := context.WithCancel(context.Background())
	cancel()
	for range 50 {
		if _, err := n.plugin.holders.list(impatient); !errors.Is(err, context.Canceled) {
			t.Errorf("list without waiting = %v", err)
		}
	}
	goOn <- struct{}{}
	<-inCall
	goOn <- struct{}{}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if _, err := n.plugin.holders.list(impatient); !errors.Is(err, context.Canceled) { // and one more
		t.Errorf("list without waiting = %v", err)
	}
	<-inCall
	goOn <- struct{}{}
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if n.ListCalls > 3 {
		t.Errorf("52 askers made %d calls, want 3", n.ListCalls)
	}
}

// Other callers use up kubelet's limit; the plugin asks again.
func TestStartsSurviveTheRateLimit(t *testing.T) {
	n := newNode(t)
	n.setCapacity(2)
	a := pod("a", "main=1")
	n.owner.add(a)
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	n.Limit.SetLimit(0)
	n.Limit.AllowN(time.Now(), 10) // the burst is gone
	result := make(chan error)
	go func() { result <- n.PreStart(context.Background(), a, "main") }()
	for rejected := 0; rejected == 0; runtime.Gosched() {
		n.Mu.Lock()
		rejected = n.Rejected
		n.Mu.Unlock()
		select {
		case err := <-result:
			t.Fatalf("the start ended before a call was rejected: %v", err)
		default:
		}
	}
	n.Limit.SetLimit(4)
	if err := <-result; err != nil {
		t.Error(err)
	}
	n.checkContainer(a, "main")
}

// Kubelet gives an init container's slots on in random order; every container must
// still get exactly its own devices, and a slot must not change its device.
func TestInitContainersShareSlots(t *testing.T) {
	n := newNode(t)
	n.setCapacity(8)
	for name, shape := range map[string][]string{
		"the same slot":                           {"init:i=a", "m=a"},
		"two slots split between two containers":  {"init:i=a b", "m=a", "n=b"},
		"the same slot through two of them":       {"init:i=a", "init:j=a", "m=a"},
		"fewer slots than the app container has":  {"init:i=a", "m=a b c"},
		"more slots than the app container has":   {"init:i=a b c", "m=a"},
		"three slots split between three of them": {"init:i=a b c", "l=a", "m=b", "n=c"},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range 10 {
				p := pod(fmt.Sprintf("p%d", i), shape...)
				n.runPod(p)
				for _, c := range p.Apps { // a restart
					n.startContainer(p, c.Name)
				}
				n.finish(p)
				n.AwaitCapacity(8)
			}
		})
	}
}

// Kubelet gives up; the work goes on, and the next try joins it.
func TestCancelledStartGoesOn(t *testing.T) {
	t.Parallel() // it waits most of the time
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	n.owner.add(a)
	begun, ready := make(chan struct{}, 1), make(chan struct{})
	n.owner.prepare = func(ctx context.Context, _ Container) error {
		select {
		case begun <- struct{}{}:
		default:
		}
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error)
	go func() { result <- n.PreStart(ctx, a, "main") }()
	<-begun
	cancel()
	if <-result == nil {
		t.Error("a start succeeded without devices")
	}
	ctx, cancel = context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	wantError(t, n.PreStart(ctx, a, "main"), errStillPreparing, "preparing container main of pod default/a: ")
	if got := n.owner.prepared("main"); got != 1 {
		t.Errorf("Prepare was called %d times, want once: later tries do not join", got)
	}
	close(ready)
	n.startContainer(a, "main")
}

// The work that kubelet does not wait for ends by itself and is complete.
func TestWorkEndsWithoutKubelet(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	n.owner.add(a)
	begun, ready := make(chan struct{}), make(chan struct{})
	n.owner.prepare = func(context.Context, Container) error { close(begun); <-ready; return nil }
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() { result <- n.PreStart(context.Background(), a, "main") }()
	<-begun
	n.Stop() // kubelet is gone altogether
	if <-result == nil {
		t.Error("a start succeeded without devices")
	}
	close(ready)
	n.plugin.flights.running.Wait()
	n.Run()
	n.AwaitCapacity(1)
	n.checkContainer(a, "main")
}

// Kubelet wrote an older checkpoint over the one with the pod. Sending the list
// again makes it write a new one.
func TestLostCheckpointIsRepaired(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "init:i=1", "main=1") // PodResources does not know i
	n.owner.add(a)
	n.Mu.Lock()
	n.KeepEmpty = true
	n.Mu.Unlock()
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	n.Mu.Lock()
	n.KeepEmpty = false
	lists := len(n.Past)
	n.Mu.Unlock()
	n.startContainer(a, "i")
	n.Mu.Lock()
	defer n.Mu.Unlock()
	if len(n.Past) == lists {
		t.Error("no list was sent: the test proves nothing")
	}
}

// A checkpoint that is being written, or not there yet, is read again.
func TestCheckpointIsReadAgain(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	n.owner.add(a)
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.PluginDir(), kubeletCheckpoint)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() { result <- n.PreStart(context.Background(), a, "main") }()
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	n.checkContainer(a, "main")
}

// The owner's watch may be a moment behind kubelet's.
func TestOwnerLearnsOfThePodLate(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() { result <- n.PreStart(context.Background(), a, "main") }()
	n.owner.add(a)
	if err := <-result; err != nil {
		t.Error(err)
	}
	n.checkContainer(a, "main")
}

// Allocate must answer while a change of the table is being written (I1).
func TestAllocateDoesNotWaitForTheDisk(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	_, end := n.plugin.slots.begin() // as if the disk hung
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err := n.API.Allocate(ctx, &pluginapi.AllocateRequest{
		ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: []string{"s0000"}}},
	})
	if err != nil {
		t.Error(err)
	}
}

// What Allocate costs, since it blocks the admission of every pod of the node.
func BenchmarkAllocate(b *testing.B) {
	n := newNode(b)
	n.setCapacity(56)
	s := &service{plugin: n.plugin}
	req := &pluginapi.AllocateRequest{ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: []string{"s0003", "s0001"}}}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Allocate(context.Background(), req); err != nil {
			b.Fatal(err)
		}
	}
}
