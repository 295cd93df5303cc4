// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	fwk "k8s.io/kube-scheduler/framework"
)

// BenchmarkFilter asks one node after the other of 1000 with 8 GPUs each, every GPU
// half full, while nothing changes: views are kept from the first round.
func BenchmarkFilter(b *testing.B) {
	const nodes, gpus = 1000, 8
	r := newRig(b, func(r *rig) {
		for i := range nodes {
			if err := r.gpus.Tracker().Add(report(b, nodeName(i), gpus).GPUNode); err != nil {
				b.Fatal(err)
			}
		}
	})
	r.settle = func() {}
	if !cache.WaitForCacheSync(r.ctx.Done(), r.plugin.reports.HasSynced) {
		b.Fatal("the GPUNodes were not read")
	}
	infos := make([]fwk.NodeInfo, nodes)
	for i := range nodes {
		r.cache.AddNode(r.logger, node(nodeName(i)).Obj())
		rb := report(b, nodeName(i), gpus)
		for g := range gpus {
			p := rb.on(pod(fmt.Sprintf("p-%d-%d", i, g), "gpu=1 gpumem=20000"), fmt.Sprintf("3g.20gb@0:GPU-%d", g)).Obj()
			if err := r.cache.AddPod(r.logger, p); err != nil {
				b.Fatal(err)
			}
		}
	}
	r.refresh()
	for i := range nodes {
		infos[i] = r.nodeInfo(nodeName(i))
	}
	for _, wants := range []string{"gpu=1 gpumem=8000", "gpu=1", "gpu=4 gpumem=8000"} {
		b.Run(wants, func(b *testing.B) {
			c := r.mustBegin(pod("p", wants).Obj())
			want := r.plugin.Filter(r.ctx, c.state, c.pod, infos[0]).Code()
			for _, ni := range infos {
				if got := r.plugin.Filter(r.ctx, c.state, c.pod, ni).Code(); got != want {
					b.Fatalf("Filter says %v and %v for equal nodes", want, got)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r.plugin.Filter(r.ctx, c.state, c.pod, infos[i%nodes])
				i++
			}
		})
	}
}

// BenchmarkHints is one of 56 pods on 8 full GPUs ending while 10000 wait, which are all
// asked about under the lock of the scheduler's queue. An operation is one hint.
func BenchmarkHints(b *testing.B) {
	const waiting, gpus = 10000, 8
	r := newRig(b, func(r *rig) {
		if err := r.gpus.Tracker().Add(report(b, "n", gpus).GPUNode); err != nil {
			b.Fatal(err)
		}
		for g := range gpus {
			for at := range 7 {
				p := report(b, "n", gpus).on(pod(fmt.Sprintf("p-%d-%d", g, at), "gpu=1 gpumem=4000"), fmt.Sprintf("1g.5gb@%d:GPU-%d", at, g)).Obj()
				if err := r.client.Tracker().Add(p); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	r.settle = func() {}
	r.start()
	if !cache.WaitForCacheSync(r.ctx.Done(), r.plugin.reports.HasSynced, r.plugin.pods.HasSynced) {
		b.Fatal("GPUNodes and pods were not read")
	}
	ending := r.plugin.podsOn("n")
	for _, priority := range []int32{0, 10} {
		pods := make([]*v1.Pod, waiting)
		for i := range pods {
			pods[i] = pod(fmt.Sprint("w", i), fmt.Sprintf("gpu=1 gpumem=%d", 5000+i%30000)).Priority(priority).Obj()
		}
		b.Run(fmt.Sprintf("priority %d", priority), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := r.plugin.afterPodGone(r.logger, pods[i%waiting], ending[i/waiting%len(ending)], nil); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }
