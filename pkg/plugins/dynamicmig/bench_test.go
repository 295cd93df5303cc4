// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"fmt"
	"testing"

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

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }
