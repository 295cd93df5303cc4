// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// kubeletKnows makes kubelet tell of these pods, and counts how often it is asked.
func (b *bench) kubeletKnows(pods ...pod) (asked *int) {
	asked = new(int)
	b.kubeletPods = func(context.Context) ([]*v1.Pod, error) {
		*asked++
		var out []*v1.Pod
		for _, p := range pods {
			out = append(out, b.object(p))
		}
		return out, nil
	}
	return asked
}

func TestKubeletTellsOfPodsWhileTheAPIServerIsAway(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "known", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("known")
		b.stop()
		unseen := pod{name: "unseen", devices: b.on(0, "1g.5gb@2", "1g.5gb@3")}
		b.bind(unseen)
		asked := b.kubeletKnows(unseen)
		reconnect := b.cutOff()
		b.start()
		b.mustPrepare("unseen")
		b.mustPrepare("known") // kubelet not showing it does not end it
		reconnect()
		b.sleep(3 * time.Minute) // client-go waits longer and longer
		b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Live/uid-known 1g.5gb@2:Live/uid-unseen 1g.5gb@3:Live/uid-unseen")
		before := *asked
		b.sleep(time.Minute)
		if *asked != before {
			t.Errorf("kubelet was asked %d times after the API server had answered", *asked-before)
		}
		if n := b.calls(sim.CallDestroyGPUInstance); n != 0 {
			t.Errorf("%d GPU instances were destroyed, want none", n)
		}
	})
}

func TestPodThatHasEndedByKubeletsWordIsReleased(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		p := pod{name: "a", devices: b.on(0, "2g.10gb@0")}
		b.bind(p)
		b.mustPrepare("a")
		b.stop()
		p.mutate = func(pod *v1.Pod) { pod.Status.Phase = v1.PodSucceeded }
		b.kubeletKnows(p)
		b.cutOff()
		b.start()
		b.sleep(2 * firstQuestion)
		if got := b.released(); len(got) != 1 || got[0] != "uid-a" {
			t.Errorf("released pods are %v, want uid-a", got)
		}
		b.expect(0, "2g.10gb@0") // idle
	})
}

// A pod may hold the place of one that ended while no agent ran, which only the API
// server can tell.
func TestPodOfKubeletIsNotRefusedForOneThatOnlyTheJournalKnows(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "gone", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("gone")
		b.stop()
		b.remove("gone")
		next := pod{name: "next", devices: b.on(0, "2g.10gb@0")}
		b.bind(next)
		b.kubeletKnows(next)
		reconnect := b.cutOff()
		b.start()
		b.sleep(time.Minute)
		if _, err := b.prepare("next"); err == nil {
			t.Error("Prepare(next) = nil while another pod may have its instance")
		}
		reconnect()
		b.sleep(3 * time.Minute)
		b.mustPrepare("next")
	})
}

func TestKubeletIsNotAskedWhereTheJournalIsLost(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		p := pod{name: "a", devices: b.on(0, "2g.10gb@0")}
		b.bind(p)
		b.mustPrepare("a")
		b.stop()
		if err := os.Remove(filepath.Join(b.dir, "state", journalFileName)); err != nil {
			t.Fatal(err)
		}
		asked := b.kubeletKnows(p)
		reconnect := b.cutOff()
		b.start()
		b.sleep(time.Minute)
		if *asked != 0 {
			t.Errorf("kubelet was asked %d times", *asked)
		}
		reconnect()
		b.sleep(3 * time.Minute)
		b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Live/uid-a")
	})
}
