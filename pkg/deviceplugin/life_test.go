// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/dynamig/dynamig/pkg/cdi"
)

// laggingRuntime reads the CDI files now and then, and creates containers from
// what it has read, as containerd does with inotify.
type laggingRuntime struct {
	mu    sync.Mutex
	cache map[string]string
}

func (r *laggingRuntime) run(ctx context.Context, d cdi.Dir) {
	for ctx.Err() == nil {
		cache := map[string]string{}
		slots, _ := d.Slots()
		for _, slot := range slots {
			if device, err := resolve(d.Path, cdi.SlotDevice(slot)); err == nil {
				cache[cdi.SlotDevice(slot)] = device
			}
		}
		r.mu.Lock()
		r.cache = cache
		r.mu.Unlock()
		pause(ctx, 20*time.Millisecond)
	}
}

// create returns what the container sees, or an error for an unknown name.
func (r *laggingRuntime) create(names []string) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var seen []string
	for _, name := range names[1:] {
		device, ok := r.cache[name]
		if !ok {
			return nil, fmt.Errorf("unresolvable CDI device %s", name)
		}
		seen = append(seen, device)
	}
	return seen, nil
}

// Pods come and go on few slots while the owner learns late of their end and the
// runtime is late to read: kubelet gives slots on before we know. No container may
// ever see another pod's device.
func TestChurnNeverShowsAnotherPodsDevice(t *testing.T) {
	n := newNode(t)
	n.setCapacity(12)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	runtime := &laggingRuntime{}
	var reading, working, releasing sync.WaitGroup
	reading.Go(func() { runtime.run(ctx, n.config.CDI) })
	var retries sync.Map
	for w := range 5 {
		working.Go(func() {
			for i := range 12 {
				p := pod(fmt.Sprintf("w%d-%d", w, i), "main=x y")
				n.owner.add(p)
				for n.Admit(p) != nil {
					pause(ctx, 5*time.Millisecond) // no slots free: the scheduler would wait
				}
				for try := 0; ctx.Err() == nil; try++ {
					if err := n.PreStart(ctx, p, "main"); err != nil {
						retries.Store(p.Name, status.Convert(err).Message())
						pause(ctx, 150*time.Millisecond) // kubelet: 10 s
						continue
					}
					seen, err := runtime.create(n.Promised(p, "main"))
					if err == nil {
						for _, device := range seen {
							if !strings.HasPrefix(device, "DEVICE=uid-"+p.Name+"/") {
								t.Errorf("pod %s sees %s", p.Name, device)
							}
						}
						break
					}
					pause(ctx, 5*time.Millisecond)
				}
				n.End(p)
				late := time.Duration(rand.IntN(30)) * time.Millisecond
				releasing.Go(func() {
					pause(ctx, late)
					n.finish(p)
				})
			}
		})
	}
	working.Wait()
	releasing.Wait()
	if ctx.Err() != nil {
		t.Fatal("pods did not start in time")
	}
	cancel()
	reading.Wait()
	n.AwaitCapacity(12)
	if left, _ := n.config.CDI.Slots(); len(left) > 0 {
		t.Errorf("CDI files are left: %v", left)
	}
	refused := 0
	retries.Range(func(pod, message any) bool {
		refused++
		if !strings.Contains(message.(string), errStaleFile.Error()) {
			t.Errorf("pod %v was refused: %v", pod, message)
		}
		return true
	})
	t.Logf("of 60 pods %d found the file of another", refused)
}

func TestSlotServesOnePod(t *testing.T) {
	n := newNodeWith(t, func(tm *timing) { tm.withdraw = 200 * time.Millisecond })
	n.setCapacity(2)
	n.AwaitSlots("s0000 s0001")
	a := pod("a", "main=1 2")
	n.runPod(a)
	n.finish(a)
	n.Await("the old slots dropped", func() bool {
		healthy, other := n.Slots()
		return slices.Equal(healthy, []string{"s0002", "s0003"}) && len(other) == 0
	})
	n.Mu.Lock()
	past := n.Past
	n.Mu.Unlock()
	if want := "s0002 s0003 | s0000 s0001"; !slices.Contains(past, want) {
		t.Errorf("kubelet was told %q, never %q: the old slots as unhealthy beside the new ones", past, want)
	}
	if left, _ := n.config.CDI.Slots(); len(left) > 0 {
		t.Errorf("CDI files are left: %v", left)
	}
	for _, uid := range []types.UID{a.UID, "uid-never-seen", ""} {
		if err := n.plugin.Release(uid); err != nil {
			t.Errorf("Release(%q) = %v", uid, err)
		}
		if got := n.offered(); got != "s0002 s0003" {
			t.Errorf("after Release(%q) offered slots are %s", uid, got)
		}
	}
}

// Kubelet picks a slot, and before it asks for it the slot is withdrawn. It must
// stay on the list (I6), and the pod that got it must run and keep it.
func TestSlotPickedWhileItIsWithdrawn(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a, b := pod("a", "main=1"), pod("b", "main=2")
	n.runPod(a)
	n.End(a)
	n.owner.add(b)
	n.BeforeAllocate = func() {
		n.finish(a)
		n.Await("the new slot", func() bool {
			healthy, _ := n.Slots()
			return slices.Contains(healthy, "s0001")
		})
	}
	if err := n.Admit(b); err != nil {
		t.Fatal(err)
	}
	n.BeforeAllocate = nil
	if got := n.SlotsOf(b, "main"); !slices.Equal(got, []string{"s0000"}) {
		t.Fatalf("kubelet picked %v: the test proves nothing", got)
	}
	n.AwaitSlots("s0000 s0001")
	n.startContainer(b, "main")
	n.finish(b)
	n.AwaitCapacity(1)
}

// Kubelet gives a slot on before anybody knows that its pod has ended.
func TestSlotHandedOnBeforeRelease(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a, b := pod("a", "main=1"), pod("b", "main=2")
	n.runPod(a)
	n.End(a)
	n.owner.add(b)
	if err := n.Admit(b); err != nil {
		t.Fatal(err)
	}
	n.finish(a)
	if got := n.offered(); got != "s0000" {
		t.Errorf("offered slots are %q; s0000 is b's now and must stay", got)
	}
	n.startContainer(b, "main")
}

// offered are the healthy slots of the list that kubelet gets next.
func (n *node) offered() string {
	devices, _ := n.plugin.slots.list()
	var names []string
	for _, d := range devices {
		if d.Health == pluginapi.Healthy {
			names = append(names, d.ID)
		}
	}
	return strings.Join(names, " ")
}

func TestStaleFileFailsClosed(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a, b := pod("a", "main=1"), pod("b", "main=2")
	n.runPod(a)
	n.End(a) // and nobody releases it
	n.owner.add(b)
	if err := n.Admit(b); err != nil {
		t.Fatal(err)
	}
	err := n.PreStart(context.Background(), b, "main")
	wantError(t, err, errStaleFile, "preparing container main of pod default/b: slot s0000: ")
	if got := n.device("s0000"); got != "" {
		t.Errorf("the file is still there: %s", got)
	}
	n.startContainer(b, "main")
	n.finish(a) // late; b's slot and file stay
	n.checkContainer(b, "main")
	n.startContainer(b, "main")
}

func TestUnreadableFileFailsClosed(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	n.owner.add(a)
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(n.config.CDI.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.config.CDI.Path, "dynamig.io-slot_s0000.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantError(t, n.PreStart(context.Background(), a, "main"), errStaleFile)
	n.startContainer(a, "main")
}

func TestSetCapacity(t *testing.T) {
	n := newNode(t)
	n.setCapacity(4)
	a, b := pod("a", "main=1"), pod("b", "main=2")
	n.runPod(a)
	n.owner.add(b)
	if err := n.Admit(b); err != nil { // handed, not bound
		t.Fatal(err)
	}
	held := sortSlots(append(n.SlotsOf(a, "main"), n.SlotsOf(b, "main")...))
	if err := n.plugin.SetCapacity(0); err != nil {
		t.Fatal(err)
	}
	n.AwaitSlots(strings.Join(held, " ")) // those of pods stay
	n.startContainer(b, "main")
	n.finish(a)
	n.finish(b)
	n.AwaitSlots("")
	n.setCapacity(2)
	n.AwaitSlots("s0004 s0005")
}

// A handed slot whose pod never started is free again for a smaller capacity, once
// kubelet has forgotten the pod.
func TestSetCapacityTakesHandedSlotsInTheEnd(t *testing.T) {
	n := newNodeWith(t, func(tm *timing) { tm.handed = 0 })
	n.setCapacity(1)
	a := pod("a", "main=1")
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	if err := n.plugin.SetCapacity(0); err != nil {
		t.Fatal(err)
	}
	healthy, _ := n.Slots()
	if len(healthy) != 1 {
		t.Errorf("healthy slots are %v while kubelet's checkpoint names s0000", healthy)
	}
	n.End(a)
	n.Mu.Lock()
	n.ForgetEnded()
	n.WriteCheckpoint()
	n.Mu.Unlock()
	if err := n.plugin.SetCapacity(0); err != nil {
		t.Fatal(err)
	}
	n.AwaitSlots("")
}

func TestSetUnhealthy(t *testing.T) {
	n := newNode(t)
	n.setCapacity(2)
	a, b := pod("a", "main=1"), pod("b", "main=2")
	n.runPod(a)
	n.runPod(b)
	n.plugin.SetUnhealthy([]types.UID{a.UID})
	n.AwaitSlots(strings.Join(n.SlotsOf(b, "main"), " "))
	n.plugin.SetUnhealthy(nil)
	n.AwaitSlots("s0000 s0001")
}

func TestReleaseCallsOffPreparation(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	n.owner.add(a)
	begun := make(chan struct{})
	n.owner.prepare = func(ctx context.Context, _ Container) error { close(begun); <-ctx.Done(); return ctx.Err() }
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() { result <- n.PreStart(context.Background(), a, "main") }()
	<-begun
	n.finish(a)
	wantError(t, <-result, errPodEnded)
	if left, _ := n.config.CDI.Slots(); len(left) > 0 {
		t.Errorf("CDI files are left: %v", left)
	}
	if got := n.offered(); got != "s0000" { // never bound, so not used
		t.Errorf("offered slots are %q, want s0000", got)
	}
}

// Not even when Release comes at the last moment.
func TestNothingIsPublishedAfterRelease(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	h := held{Container: Container{PodUID: "uid-a", Name: "main"}, slots: []string{"s0000"}}
	demands := []demand{{"main", h.slots, []string{"1"}}}
	devices := map[string]Device{"1": {Key: "1", Edits: editsOf(pod("a"), "1")}}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errPodEnded)
	if err := n.plugin.publish(ctx, h, demands, devices); !errors.Is(err, errPodEnded) {
		t.Errorf("publish = %v, want %v", err, errPodEnded)
	}
	if len(n.plugin.slots.pods()) > 0 || n.device("s0000") != "" {
		t.Error("the slot is bound to an ended pod")
	}
}

// A preparation that finishes just after Release must not bind anything.
func TestPreparationFinishesAfterRelease(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	n.owner.add(a)
	n.owner.prepare = func(context.Context, Container) error { n.finish(a); return nil }
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	wantError(t, n.PreStart(context.Background(), a, "main"), errPodEnded)
	if left, _ := n.config.CDI.Slots(); len(left) > 0 || len(n.plugin.slots.pods()) > 0 {
		t.Errorf("an ended pod has CDI files %v and slots of %v", left, n.plugin.slots.pods())
	}
}

func TestSweep(t *testing.T) {
	n := newNode(t)
	n.setCapacity(3)
	a, b := pod("a", "main=1"), pod("b", "main=2")
	n.runPod(a)
	n.runPod(b)
	stray := cdi.Edits{Env: []string{"A=b"}}
	for slot, owner := range map[string]string{"s0900": string(b.UID), "s0901": "uid-gone"} {
		if err := n.config.CDI.WriteSlot(slot, owner, stray); err != nil {
			t.Fatal(err)
		}
	}
	n.finishWhileDown(a)
	keep, lost := n.SlotsOf(b, "main")[0], n.SlotsOf(a, "main")[0]
	if n.device(lost) == "" || n.device("s0901") == "" {
		t.Error("files went before Sweep")
	}
	if err := n.plugin.Sweep(n.owner.live); err != nil {
		t.Fatal(err)
	}
	left, err := n.config.CDI.Slots()
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{keep, "s0900"}; !slices.Equal(left, want) {
		t.Errorf("files after Sweep are of %v, want %v", left, want)
	}
	n.Await("the ended pod's slot withdrawn", func() bool {
		healthy, _ := n.Slots()
		return len(healthy) == 3 && !slices.Contains(healthy, lost)
	})
}
