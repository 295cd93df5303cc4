// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// List shows active pods without plain init containers and without UIDs.
func (k *testKubelet) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	k.mu.Lock()
	beforeList := k.beforeList
	k.mu.Unlock()
	if beforeList != nil {
		beforeList()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listCalls++
	k.forgetEnded()
	response := &podresources.ListPodResourcesResponse{}
	for uid, pod := range k.active {
		shown := &podresources.PodResources{Name: pod.name, Namespace: pod.namespace}
		for _, c := range pod.apps {
			slots := slices.Clone(k.holds[uid][c.name].slots)
			rand.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
			shown.Containers = append(shown.Containers, &podresources.ContainerResources{
				Name:    c.name,
				Devices: []*podresources.ContainerDevices{{ResourceName: testResource, DeviceIds: slots}},
			})
		}
		response.PodResources = append(response.PodResources, shown)
	}
	return response, nil
}

// forgetEnded frees the slots of pods that have ended.
func (k *testKubelet) forgetEnded() {
	maps.DeleteFunc(k.holds, func(uid types.UID, _ map[string]testHold) bool { return k.active[uid] == nil })
}

// admit gives slots to all containers of a pod, init containers first.
func (k *testKubelet) admit(pod *testPod) error {
	k.admitted.Lock()
	defer k.admitted.Unlock()
	k.mu.Lock()
	k.active[pod.uid] = pod
	k.holds[pod.uid] = map[string]testHold{}
	k.mu.Unlock()
	var reusable []string
	for i, c := range pod.containers() {
		slots, err := k.allocate(pod, c, reusable)
		if err != nil {
			k.end(pod)
			return fmt.Errorf("UnexpectedAdmissionError: %w", err)
		}
		reusable = slices.DeleteFunc(reusable, func(s string) bool { return slices.Contains(slots, s) })
		if i < len(pod.inits) {
			reusable = append(reusable, slots...)
		}
	}
	return nil
}

func (k *testKubelet) allocate(pod *testPod, c testContainer, reusable []string) ([]string, error) {
	k.mu.Lock()
	k.forgetEnded()
	slots, err := k.pick(len(c.devices), reusable)
	api := k.api
	k.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if k.beforeAllocate != nil {
		k.beforeAllocate()
	}
	response, err := api.Allocate(context.Background(), &pluginapi.AllocateRequest{
		ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: slots}},
	})
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, slot := range slots {
		if !k.all[slot] {
			k.t.Errorf("slot %s was dropped while kubelet allocated it: kubelet crashes", slot)
		}
	}
	hold := testHold{slots: slots}
	for _, d := range response.ContainerResponses[0].CdiDevices {
		hold.cdi = append(hold.cdi, d.Name)
	}
	k.holds[pod.uid][c.name] = hold
	k.writeCheckpoint()
	return slots, nil
}

func (k *testKubelet) pick(n int, reusable []string) ([]string, error) {
	used := map[string]bool{}
	for _, containers := range k.holds {
		for _, hold := range containers {
			for _, slot := range hold.slots {
				used[slot] = true
			}
		}
	}
	reusable = slices.Clone(reusable)
	rand.Shuffle(len(reusable), func(i, j int) { reusable[i], reusable[j] = reusable[j], reusable[i] })
	picked := reusable[:min(n, len(reusable))]
	for slot := range k.healthy { // in random order
		if len(picked) < n && !used[slot] {
			picked = append(picked, slot)
		}
	}
	if len(picked) < n {
		return nil, fmt.Errorf("requested number of devices unavailable: %d of %d", len(picked), n)
	}
	return picked, nil
}

// preStart is what kubelet calls before each start of a container.
func (k *testKubelet) preStart(ctx context.Context, pod *testPod, container string) error {
	k.mu.Lock()
	hold, api := k.holds[pod.uid][container], k.api
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, pluginapi.KubeletPreStartContainerRPCTimeoutInSecs*time.Second)
	defer cancel()
	slots := slices.Clone(hold.slots)
	rand.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
	_, err := api.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIds: slots})
	return err
}

// slotsOf are the slots that a container was given, sorted.
func (k *testKubelet) slotsOf(pod *testPod, container string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return sortSlots(slices.Clone(k.holds[pod.uid][container].slots))
}

// promised are the CDI names that a container was given.
func (k *testKubelet) promised(pod *testPod, container string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.holds[pod.uid][container].cdi)
}

// end makes a pod inactive; its slots can be given away from now on.
func (k *testKubelet) end(pod *testPod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.active, pod.uid)
}

// slots reports the healthy and the other slots, sorted.
func (k *testKubelet) slots() (healthy, other []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for slot := range k.all {
		if k.healthy[slot] {
			healthy = append(healthy, slot)
		} else {
			other = append(other, slot)
		}
	}
	return sortSlots(healthy), sortSlots(other)
}

// await waits until kubelet's state is as wanted.
func (k *testKubelet) await(what string, ok func() bool) {
	k.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		k.mu.Lock()
		changed := k.changed
		k.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			healthy, other := k.slots()
			k.t.Fatalf("kubelet never had %s; healthy %v, other %v", what, healthy, other)
		}
	}
}

// awaitSlots waits for exactly these healthy slots, written as "s0000 s0001".
func (k *testKubelet) awaitSlots(want string) {
	k.t.Helper()
	k.await("healthy slots "+want, func() bool {
		healthy, _ := k.slots()
		return strings.Join(healthy, " ") == want
	})
}

// awaitCapacity waits for this many healthy slots.
func (k *testKubelet) awaitCapacity(n int) {
	k.t.Helper()
	k.await(fmt.Sprintf("%d healthy slots", n), func() bool {
		healthy, _ := k.slots()
		return len(healthy) == n
	})
}
