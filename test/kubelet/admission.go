// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"cmp"
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
func (k *Kubelet) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	k.Mu.Lock()
	beforeList := k.BeforeList
	k.Mu.Unlock()
	if beforeList != nil {
		beforeList()
	}
	k.Mu.Lock()
	defer k.Mu.Unlock()
	k.ListCalls++
	k.ForgetEnded()
	response := &podresources.ListPodResourcesResponse{}
	for uid, pod := range k.Active {
		shown := &podresources.PodResources{Name: pod.Name, Namespace: pod.Namespace}
		for _, c := range pod.Apps {
			slots := slices.Clone(k.Holds[uid][c.Name].Slots)
			rand.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
			shown.Containers = append(shown.Containers, &podresources.ContainerResources{
				Name:    c.Name,
				Devices: []*podresources.ContainerDevices{{ResourceName: Resource, DeviceIds: slots}},
			})
		}
		response.PodResources = append(response.PodResources, shown)
	}
	return response, nil
}

// ForgetEnded frees the slots of pods that have ended.
func (k *Kubelet) ForgetEnded() {
	maps.DeleteFunc(k.Holds, func(uid types.UID, _ map[string]Hold) bool { return k.Active[uid] == nil })
}

// Admit gives slots to all containers of a pod, init containers first.
func (k *Kubelet) Admit(pod *Pod) error {
	k.admitted.Lock()
	defer k.admitted.Unlock()
	k.Mu.Lock()
	k.Active[pod.UID] = pod
	k.Holds[pod.UID] = map[string]Hold{}
	k.Mu.Unlock()
	var reusable []string
	for i, c := range pod.Containers() {
		slots, err := k.allocate(pod, c, reusable)
		if err != nil {
			k.End(pod)
			return fmt.Errorf("UnexpectedAdmissionError: %w", err)
		}
		reusable = slices.DeleteFunc(reusable, func(s string) bool { return slices.Contains(slots, s) })
		if i < len(pod.Inits) {
			reusable = append(reusable, slots...)
		}
	}
	return nil
}

func (k *Kubelet) allocate(pod *Pod, c Container, reusable []string) ([]string, error) {
	k.Mu.Lock()
	k.ForgetEnded()
	slots, err := k.pick(len(c.Devices), reusable)
	api := k.API
	k.Mu.Unlock()
	if err != nil {
		return nil, err
	}
	if k.BeforeAllocate != nil {
		k.BeforeAllocate()
	}
	response, err := api.Allocate(context.Background(), &pluginapi.AllocateRequest{
		ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: slots}},
	})
	if err != nil {
		return nil, err
	}
	k.Mu.Lock()
	defer k.Mu.Unlock()
	for _, slot := range slots {
		if !k.all[slot] {
			k.T.Errorf("slot %s was dropped while kubelet allocated it: kubelet crashes", slot)
		}
	}
	hold := Hold{Slots: slots}
	for _, d := range response.ContainerResponses[0].CdiDevices {
		hold.CDI = append(hold.CDI, d.Name)
	}
	k.Holds[pod.UID][c.Name] = hold
	k.WriteCheckpoint()
	return slots, nil
}

func (k *Kubelet) pick(n int, reusable []string) ([]string, error) {
	used := map[string]bool{}
	for _, containers := range k.Holds {
		for _, hold := range containers {
			for _, slot := range hold.Slots {
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

// PreStart is what kubelet calls before each start of a container.
func (k *Kubelet) PreStart(ctx context.Context, pod *Pod, container string) error {
	k.Mu.Lock()
	hold, api := k.Holds[pod.UID][container], k.API
	k.Mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, pluginapi.KubeletPreStartContainerRPCTimeoutInSecs*time.Second)
	defer cancel()
	slots := slices.Clone(hold.Slots)
	rand.Shuffle(len(slots), func(i, j int) { slots[i], slots[j] = slots[j], slots[i] })
	_, err := api.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIds: slots})
	return err
}

// SlotsOf are the slots that a container was given, sorted.
func (k *Kubelet) SlotsOf(pod *Pod, container string) []string {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	return sortSlots(slices.Clone(k.Holds[pod.UID][container].Slots))
}

// Promised are the CDI names that a container was given.
func (k *Kubelet) Promised(pod *Pod, container string) []string {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	return slices.Clone(k.Holds[pod.UID][container].CDI)
}

// End makes a pod inactive; its slots can be given away from now on.
func (k *Kubelet) End(pod *Pod) {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	delete(k.Active, pod.UID)
}

// Slots reports the healthy and the other slots, sorted.
func (k *Kubelet) Slots() (healthy, other []string) {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	return k.slots()
}

// slots is Slots with Mu held.
func (k *Kubelet) slots() (healthy, other []string) {
	for slot := range k.all {
		if k.healthy[slot] {
			healthy = append(healthy, slot)
		} else {
			other = append(other, slot)
		}
	}
	return sortSlots(healthy), sortSlots(other)
}

// Patience is how long anything may take on a busy machine.
const Patience = 2 * time.Minute

// Await waits until kubelet's state is as wanted. What does not last may be missed: see
// Past.
func (k *Kubelet) Await(what string, ok func() bool) {
	k.T.Helper()
	deadline := time.After(Patience)
	for {
		k.Mu.Lock()
		changed := k.changed
		k.Mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			healthy, other := k.Slots()
			k.T.Fatalf("kubelet never had %s; healthy %v, other %v", what, healthy, other)
		}
	}
}

// AwaitSlots waits for exactly these healthy slots, written as "s0000 s0001".
func (k *Kubelet) AwaitSlots(want string) {
	k.T.Helper()
	k.Await("healthy slots "+want, func() bool {
		healthy, _ := k.Slots()
		return strings.Join(healthy, " ") == want
	})
}

// AwaitCapacity waits for this many healthy slots.
func (k *Kubelet) AwaitCapacity(n int) {
	k.T.Helper()
	k.Await(fmt.Sprintf("%d healthy slots", n), func() bool {
		healthy, _ := k.Slots()
		return len(healthy) == n
	})
}

// sortSlots sorts slots by number: s9999 before s10000.
func sortSlots(names []string) []string {
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	return names
}

// Readmit admits a pod that was admitted before kubelet's own restart, from the
// checkpoint: the plugin is not asked, but all slots must be there and healthy.
func (k *Kubelet) Readmit(pod *Pod) error {
	k.admitted.Lock()
	defer k.admitted.Unlock()
	k.Mu.Lock()
	defer k.Mu.Unlock()
	for name, hold := range k.Holds[pod.UID] {
		for _, slot := range hold.Slots {
			if !k.healthy[slot] {
				delete(k.Active, pod.UID)
				return fmt.Errorf("UnexpectedAdmissionError: slot %s of container %s is not healthy", slot, name)
			}
		}
	}
	return nil
}
