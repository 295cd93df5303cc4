// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/dynamig/dynamig/test/kubelet"
)

// wantError checks an error's gRPC message, which becomes the pod's event.
func wantError(t *testing.T, err error, want error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want %q", want)
		return
	}
	message := status.Convert(err).Message()
	for _, part := range append(parts, want.Error()) {
		if !strings.Contains(message, part) {
			t.Errorf("error %q lacks %q", message, part)
		}
	}
	if strings.Contains(message, "\n") {
		t.Errorf("error %q is more than one line", message)
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	o := newOwner()
	for field, c := range map[string]Config{
		"Resource": {State: "/x", Preparer: o, Pods: o},
		"State":    {Resource: "r", Preparer: o, Pods: o},
		"Preparer": {Resource: "r", State: "/x", Pods: o},
		"Pods":     {Resource: "r", State: "/x", Preparer: o},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("New without %s = %v", field, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	errOwner := errors.New("GPU GPU-1 is lost; the pod is ended by the reaper")
	for name, tc := range map[string]struct {
		spoil func(n *node, p *kubelet.Pod)
		want  error
		parts []string
	}{
		"a static pod has no pod in the API": {
			spoil: func(n *node, p *kubelet.Pod) { n.owner.remove(p) },
			want:  errUnknownPod,
			parts: []string{"finding the pod that holds slots s0000: ", "static pod"},
		},
		"the owner's reason is passed on": {
			spoil: func(n *node, _ *kubelet.Pod) {
				n.owner.prepare = func(context.Context, Container) error { return errOwner }
			},
			want:  errOwner,
			parts: []string{"preparing container main of pod default/a: GPU GPU-1 is lost"},
		},
		"fewer devices than slots": {
			spoil: func(n *node, p *kubelet.Pod) {
				p.Apps[0].Devices = nil
			},
			want: errors.New("container main holds 1 slots (s0000), its allocation names 0 devices (); delete the pod"),
		},
		"the bound device is no longer in the allocation": {
			spoil: func(n *node, p *kubelet.Pod) {
				n.startContainer(p, "main")
				p.Apps[0].Devices = []string{"2"}
			},
			want: errors.New("container main holds slot s0000, which is bound to device 1, which is not one of its own; delete the pod"),
		},
		"PodResources names another pod": {
			spoil: func(n *node, p *kubelet.Pod) {
				n.Mu.Lock()
				defer n.Mu.Unlock()
				other := pod("other", "x=1")
				n.Active[other.UID] = other
				n.Holds[other.UID] = map[string]kubelet.Hold{"x": n.Holds[p.UID]["main"]}
			},
			want:  errDisagree,
			parts: []string{"finding the pod that holds slots s0000: "},
		},
		"PodResources shows other slots of the container": {
			spoil: func(n *node, p *kubelet.Pod) {
				n.Mu.Lock()
				defer n.Mu.Unlock()
				moved := n.Holds[p.UID]["main"]
				moved.Slots = []string{"s0001"}
				n.Active[p.UID] = pod("a", "main=1")
				n.Holds = map[types.UID]map[string]kubelet.Hold{p.UID: {"main": moved}}
				n.KeepOld = true
			},
			want: errDisagree,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // some wait until it is given up
			n := newNodeWith(t, func(tm *timing) { tm.identify = 5 * time.Second })
			n.setCapacity(1)
			p := pod("a", "main=1")
			n.owner.add(p)
			if err := n.Admit(p); err != nil {
				t.Fatal(err)
			}
			slots := n.SlotsOf(p, "main")
			tc.spoil(n, p)
			wantError(t, n.ask(slots), tc.want, tc.parts...)
		})
	}
}

// ask calls PreStartContainer for slots.
func (n *node) ask(slots []string) error {
	n.Mu.Lock()
	api := n.API
	n.Mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := api.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIds: slots})
	return err
}

func TestUnknownSlots(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	for _, slot := range []string{"s0001", "s1", "GPU-0", ""} {
		wantError(t, n.ask([]string{slot}), errUnknownSlot, fmt.Sprintf("slot %q", slot))
		_, err := n.API.Allocate(context.Background(), &pluginapi.AllocateRequest{
			ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: []string{"s0000", slot}}},
		})
		wantError(t, err, errUnknownSlot, fmt.Sprintf("slot %q", slot))
	}
}

// A disk that refuses the state must not change what kubelet sees.
func TestFailedSaveChangesNothing(t *testing.T) {
	n := newNode(t)
	n.setCapacity(1)
	a := pod("a", "main=1")
	n.owner.add(a)
	if err := n.Admit(a); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(n.config.State+".tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.plugin.SetCapacity(5); err == nil {
		t.Error("SetCapacity succeeded without a disk")
	}
	wantError(t, n.PreStart(context.Background(), a, "main"), errors.New("saving slots: "))
	if got := n.device("s0000"); got != "" {
		t.Errorf("a file was written for a binding that was not saved: %s", got)
	}
	n.AwaitSlots("s0000")
	if err := os.Remove(n.config.State + ".tmp"); err != nil {
		t.Fatal(err)
	}
	n.startContainer(a, "main")
	n.setCapacity(5)
}
