// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/dynamig/dynamig/test/node"
)

// TestNobodyEverGetsAnotherPodsInstance starts hundreds of pods on eight GPUs, as
// many at once as there are places, in an order that chance decides, some under the
// name of one that has just ended, with several devices, containers, init containers
// and sidecars. At each creation package node compares what the CDI files give with
// the instances that the pod owns.
func TestNobodyEverGetsAnotherPodsInstance(t *testing.T) {
	const gpus, rounds = 8, 8
	n := newNode(t, gpus)
	n.Args = append(n.Args, "--v=1")
	n.StartAgent(0, false)
	n.Kubelet.AwaitCapacity(7 * gpus)
	var wg sync.WaitGroup
	starts := make([]int, gpus)
	for gpu := range gpus {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(gpu), 0))
			for round := range rounds {
				var pods []*node.Pod
				for i, containers := range shapes(r, gpu, round) {
					pods = append(pods, n.Bind(fmt.Sprintf("p%d-%d", gpu, i), containers...))
				}
				for _, p := range pods {
					p.Await(node.Running)
					if err := p.Check(); err != nil {
						t.Errorf("pod %s: %v", p.Name, err)
					}
				}
				starts[gpu] += len(pods)
				for _, p := range pods {
					p.Delete()
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range starts {
		total += n
	}
	t.Logf("%d pods were started", total)
	if total < 300 {
		t.Errorf("only %d pods were started", total)
	}
}

// shapes fills a GPU with pods in one of some ways, in random order.
func shapes(r *rand.Rand, gpu, round int) [][]string {
	at := func(profile string, start int) string { return fmt.Sprintf("%d:%s@%d", gpu, profile, start) }
	var pods [][]string
	switch round % 5 {
	case 0, 2: // seven equal ones: nothing but the slots tells them apart
		for start := range 7 {
			pods = append(pods, []string{"main=" + at("1g.5gb", start)})
		}
	case 1: // several devices and containers, an init container that shares
		pods = [][]string{
			{"main=" + at("2g.10gb", 0) + " " + at("2g.10gb", 2)},
			{"init:setup=" + at("1g.5gb", 4), "main=" + at("1g.5gb", 4)},
			{"first=" + at("1g.5gb", 5), "second=" + at("1g.5gb", 6)},
		}
	case 3:
		pods = [][]string{
			{"main=" + at("3g.20gb", 4)},
			{"main=" + at("1g.5gb", 0)}, {"main=" + at("1g.5gb", 1)}, {"main=" + at("2g.10gb", 2)},
		}
	case 4: // sidecars: beside the app container, and with the slot of an init container
		pods = [][]string{
			{"sidecar:proxy=" + at("1g.5gb", 0), "main=" + at("1g.5gb", 1)},
			{"init:setup=" + at("2g.10gb", 2), "sidecar:proxy=" + at("2g.10gb", 2), "main=" + at("1g.5gb", 4)},
			{"sidecar:proxy=" + at("1g.5gb", 5)},
			{"main=" + at("1g.5gb", 6)},
		}
	}
	r.Shuffle(len(pods), func(i, j int) { pods[i], pods[j] = pods[j], pods[i] })
	return pods
}
