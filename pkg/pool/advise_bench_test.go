// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// BenchmarkAdvise asks about a fleet of 8-GPU nodes full of 1g.5gb, which is the
// most pods there can be.
func BenchmarkAdvise(b *testing.B) {
	for _, bc := range []struct {
		nodes int
		wants string
	}{{10, "gpu=1 gpumem=15000"}, {1000, "gpu=1 gpumem=15000"}, {1000, "gpu=1"}, {1000, "gpu=4 gpumem=15000"}} {
		b.Run(fmt.Sprintf("%d-nodes/%s", bc.nodes, bc.wants), func(b *testing.B) {
			f := fullFleet(b, bc.nodes)
			waiting := pod("waits").wants("c", bc.wants)
			b.ReportAllocs()
			for b.Loop() {
				a, err := f.Advise(waiting.Pod, nil)
				if err != nil || a.End == nil {
					b.Fatalf("Advise = %+v, %v", a, err)
				}
			}
		})
	}
}

func fullFleet(b *testing.B, n int) *Fleet {
	b.Helper()
	var nodes []*v1alpha1.GPUNode
	var pods []*v1.Pod
	for i := range n {
		node := named(fmt.Sprintf("n%d", i), gpuNode(b, "A100-40GB", 8))
		nodes = append(nodes, node)
		for g := range 8 {
			for start := range 7 {
				p := pod(fmt.Sprintf("p-%d-%d-%d", i, g, start)).wants("c", "gpu=1 gpumem=4000").priority(int32(start % 3))
				p.Spec.NodeName = node.Name
				p.Annotations[v1alpha1.AnnotationAllocation] = fmt.Sprintf(
					`{"version":1,"node":%q,"podUID":%q,"containers":{"c":[{"gpu":%q,"mig":{"profileID":19,"profile":"1g.5gb","start":%d,"size":1,"memoryMiB":4864}}]}}`,
					node.Name, p.UID, node.Status.GPUs[g].UUID, start)
				pods = append(pods, p.Pod)
			}
		}
	}
	f, problems := NewFleet(nodes, pods, Options{})
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	return f
}
