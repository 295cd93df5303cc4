// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2/ktesting"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

const renamed = `nvidia:
  resourceCountName: example.com/vgpu
  resourceMemoryName: example.com/mem
  resourceMemoryPercentageName: example.com/mem-percent
  resourceCoreName: example.com/cores
  resourcePriorityName: example.com/prio
`

// asking is a pod with limits by their whole names.
func asking(name string, limits map[v1.ResourceName]string) *st.PodWrapper {
	return pod(name, "").Containers([]v1.Container{st.MakeContainer().Name("c").Resources(limits).Obj()})
}

// Renamed resources hold for all of kube-scheduler: what no node advertises is
// ignored, slots are compared, and hints wake the pod, all by the new names.
func TestRenamedResourcesHoldEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "device-config.yaml")
		writeFile(t, file, renamed)
		w := newWholeWith(t, file)
		w.names.Count = "example.com/vgpu"
		w.run()
		w.create(asking("p", map[v1.ResourceName]string{"example.com/vgpu": "1", "example.com/mem": "8000", "example.com/cores": "20", "example.com/prio": "1"}))
		w.create(pod("hami", "gpu=1 gpumem=8000"))
		w.report(report(t, "n", 1))
		w.createNode(bare("n"))
		time.Sleep(20 * time.Second) // the bubble's time
		if got, want := condition(w.get("p")), "Insufficient example.com/vgpu"; !strings.Contains(got, want) {
			t.Errorf("without slots the pod waits for %q, want %q", got, want)
		}
		n := bare("n")
		n.Status.Allocatable["example.com/vgpu"] = resource.MustParse("2")
		w.updateNode(n)
		w.within(soon, "p")
		if got, want := w.placed("p"), "n: 2g.10gb@4:GPU-0"; got != want {
			t.Errorf("the pod is at %s, want %s", got, want)
		}
		w.create(asking("percent", map[v1.ResourceName]string{"example.com/vgpu": "1", "example.com/mem-percent": "25"}))
		w.within(soon, "percent")
		w.create(asking("third", map[v1.ResourceName]string{"example.com/vgpu": "1", "example.com/mem": "4000"}))
		w.create(asking("huge", map[v1.ResourceName]string{"example.com/vgpu": "1", "example.com/mem": "400000"}))
		time.Sleep(time.Minute) // the bubble's time
		for name, want := range map[string]string{
			"third": "Insufficient example.com/vgpu",
			"huge":  "limit example.com/mem asks for 400000 MiB",
			"hami":  "Insufficient nvidia.com/gpu",
		} {
			if got := condition(w.get(name)); !strings.Contains(got, want) {
				t.Errorf("pod %s waits for %q, want %q", name, got, want)
			}
		}
	})
}

// The device configuration is followed: a good one takes effect at once, also for
// pods that wait; any other leaves the last good one in force and says so once.
func TestDeviceConfigIsFollowed(t *testing.T) {
	t.Setenv("POD_NAMESPACE", "dynamig-system")
	t.Setenv("POD_NAME", "dynamig-scheduler-0")
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "device-config.yaml")
		writeFile(t, file, "nvidia: {}\n")
		w := newWholeWith(t, file)
		w.createNode(node("n").Obj())
		w.report(report(t, "n", 1))
		w.run()
		trouble := func() string {
			if err := w.factory.core.device.Trouble(); err != nil {
				return err.Error()
			}
			return ""
		}
		w.create(pod("half", "gpu=1 gpumem=20000"))
		w.within(soon, "half")
		w.create(pod("whole", "gpu=1"))
		bad := []struct{ text, want string }{
			{"nvidia:\n  defaultMemory: 4Gi\n", file + ":2: nvidia.defaultMemory is \"4Gi\""},
			{renamed + "  defaultMemory: 4000\n", "renames resources, which takes a restart"},
			{"", "has no nvidia block"},
		}
		for _, b := range bad {
			writeFile(t, file, b.text)
			w.changed()
			w.changed()
			time.Sleep(time.Minute) // the bubble's time
			if got := trouble(); !strings.Contains(got, b.want) {
				t.Errorf("trouble = %q, want %q", got, b.want)
			}
			if got := w.placed("whole"); got != "unbound" {
				t.Errorf("after %q the pod is at %s: the last good configuration is not in force", b.text, got)
			}
			if told := w.told("ConfigInvalid"); len(told) != 1 || !strings.Contains(told[0], b.want) {
				t.Errorf("events %q, want one with %q", told, b.want)
			}
		}
		writeFile(t, file, "nvidia:\n  defaultMemory: 4000\n")
		w.changed()
		w.within(soon, "whole")
		if got, want := w.placed("whole"), "n: 1g.5gb@"; !strings.HasPrefix(got, want) {
			t.Errorf("with defaultMemory 4000 the pod is at %s, want %s", got, want)
		}
		if got := trouble(); got != "" {
			t.Errorf("trouble after a good file: %s", got)
		}
	})
}

// told takes the events of a reason that have come so far; others go too.
func (w *whole) told(reason string) (out []string) {
	for {
		select {
		case text := <-w.events.Events:
			if strings.Contains(text, reason) {
				out = append(out, text)
			}
		default:
			return out
		}
	}
}

func writeFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A Fit of a process without DynamicMIG goes by HAMi's names.
func TestFitAloneGoesByHAMisNames(t *testing.T) {
	if got := new(Factory).resources(); got != v1alpha1.DefaultResources() {
		t.Errorf("names are %v", got)
	}
}

// TestFileThatCannotBeFollowedIsTrouble: what is in force may then be old.
func TestFileThatCannotBeFollowedIsTrouble(t *testing.T) {
	logger, ctx := ktesting.NewTestContext(t)
	d := &deviceConfig{file: "f", logger: logger}
	d.run(ctx, func(context.Context, []string, func()) error { return errors.New("too many open files") })
	if err := d.Trouble(); err == nil || !strings.Contains(err.Error(), "f is not followed") {
		t.Errorf("trouble is %v, want that the file is not followed", err)
	}
}
