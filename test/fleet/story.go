// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// kind of node in a filled cluster.
type kind struct {
	board     string
	gpus      int
	templates [][]string
	sizes     []int64 // MiB that pods ask for
}

var kinds = []kind{
	{"A100-80GB", 8, nil, []int64{9000, 9000, 19000, 19000, 38000, 75000}},
	{"H100-80GB", 8, nil, []int64{9000, 18000, 18000, 38000, 38000}},
	{"A100-40GB", 4, [][]string{
		{"1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb"},
		{"2g.10gb", "2g.10gb", "2g.10gb", "1g.5gb"}, {"3g.20gb", "3g.20gb"}, {"7g.40gb"},
	}, []int64{4000, 4000, 9000, 18000}},
	{"A30-24GB", 4, nil, []int64{5000, 11000, 22000}},
}

var (
	namespaces = []string{"research", "inference", "notebooks", "batch"}
	workloads  = []string{"bert-train", "llama-serve", "jupyter-lin", "whisper", "resnet-eval", "sd-turbo", "embed-api", "finetune", "ocr-batch", "rank-v2"}
)

// Fill adds nodes of all kinds and fills about the given part of their memory with
// pods that run.
func (f *Fleet) Fill(ctx context.Context, nodes int, part float64) error {
	type made struct {
		name string
		kind kind
	}
	var all []made
	for i := range nodes {
		k := kinds[i%len(kinds)]
		if nodes <= 3 {
			k = kinds[[]int{0, 2, 3}[i]]
		}
		digits := max(2, len(fmt.Sprint(nodes)))
		all = append(all, made{fmt.Sprintf("gpu-node-%0*d", digits, i+1), k})
	}
	for _, n := range all {
		if err := f.AddNode(n.name, n.kind.board, n.kind.gpus, n.kind.templates...); err != nil {
			return err
		}
	}
	for _, n := range all {
		if err := f.WaitNode(ctx, n.name); err != nil {
			return err
		}
		if err := f.fillNode(n.name, n.kind, part); err != nil {
			return err
		}
	}
	return nil
}

// WaitNode waits until the pool has a node.
func (f *Fleet) WaitNode(ctx context.Context, name string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if n, err := f.Pool.Node(name); n != nil || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// fillNode gives a node pods that run, until the part is taken or ten have not
// fitted. Pods and report are published once each, in their last state.
func (f *Fleet) fillNode(name string, k kind, part float64) error {
	n, err := f.Pool.Node(name)
	if err != nil || n == nil {
		return err
	}
	report := f.reports[name]
	total, taken := 0.0, 0.0
	for i := range report.Status.GPUs {
		total += float64(report.Status.GPUs[i].MemoryMiB)
	}
	for misses := 0; taken < part*total && misses < 10; {
		p := f.RandomPod(k.sizes[f.Random.Intn(len(k.sizes))])
		pod := f.describe(p)
		ok, err := f.place(pod, n)
		if err != nil {
			return err
		}
		if !ok {
			misses++
			continue
		}
		f.run(pod, &report.Status)
		f.pods.Add(pod.DeepCopy())
		taken += float64(p.MemoryMiB)
	}
	f.gpuNodes.Modify(report.DeepCopy())
	return nil
}

// Names lists the nodes.
func (f *Fleet) Names() []string { return slices.Sorted(maps.Keys(f.reports)) }

// RandomPod has a name as people give them.
func (f *Fleet) RandomPod(mib int64) Pod {
	return Pod{
		Namespace: namespaces[f.Random.Intn(len(namespaces))],
		Name:      fmt.Sprintf("%s-%05x", workloads[f.Random.Intn(len(workloads))], f.Random.Intn(1<<20)),
		GPUs:      1, MemoryMiB: mib,
	}
}

// Trouble shows what can be wrong: an unhealthy GPU, instances of others, idle ones,
// pods that wait, prepare and fail. The cluster needs three nodes.
func (f *Fleet) Trouble(names []string) error {
	last := names[len(names)-1]
	f.Seize(names[0], 0, "1g.10gb", v1alpha1.InstanceIdle)
	f.Seize(names[1], 1, "1g.5gb", v1alpha1.InstanceForeign)
	f.Change(names[1], func(s *v1alpha1.GPUNodeStatus) {
		for i := range s.Conditions {
			if c := &s.Conditions[i]; c.Type == v1alpha1.ConditionForeignInstances {
				c.Status, c.Reason, c.Message = "True", "Found", "GPU 1 has 1 instance that dynamig has not made; remove it or leave the GPU to its owner."
			}
		}
	})
	f.Change(last, func(s *v1alpha1.GPUNodeStatus) {
		g := &s.GPUs[len(s.GPUs)-1]
		g.Health, g.Reason = v1alpha1.Unhealthy, "XID 79: the GPU has fallen off the bus; drain the node and reset it"
	})
	for _, w := range []struct {
		pod     Pod
		message string
	}{
		{Pod{Namespace: "research", Name: "llama-70b-train-0", GPUs: 4, MemoryMiB: 0}, "0/3 nodes are available: 3 node(s) had no free MIG placement for 4 whole GPUs. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."},
		{Pod{Namespace: "batch", Name: "ocr-batch-8f1c2", GPUs: 1, MemoryMiB: 90000}, "limit nvidia.com/gpumem asks for 90000 MiB; no GPU in the cluster can be cut into that, the largest profile on offer is 7g.80gb with 81050 MiB"},
		{Pod{Namespace: "notebooks", Name: "jupyter-lin-55aa0", GPUs: 2, MemoryMiB: 30000}, ""},
	} {
		pod := f.Create(w.pod)
		if w.message != "" {
			f.Refuse(pod, w.message)
		}
	}
	if err := f.share(); err != nil {
		return err
	}
	pod := f.Create(Pod{Namespace: "inference", Name: "embed-api-1b77d", GPUs: 1, MemoryMiB: 4000})
	if _, err := f.Bind(pod, names[0]); err != nil {
		return err
	}
	f.Change(names[0], func(s *v1alpha1.GPUNodeStatus) {
		s.Pods = append(s.Pods, v1alpha1.PodPreparation{UID: pod.UID, Phase: v1alpha1.PodPreparing})
	})
	return nil
}

// share adds a node whose GPUs are shared in software, and pods on it.
func (f *Fleet) share() error {
	const name = "gpu-node-shared"
	if err := f.AddNode(name, "A30-24GB", 2); err != nil {
		return err
	}
	f.Share(name)
	for {
		if n, err := f.Pool.Node(name); err != nil || n != nil && n.GPUs[0].Shares != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for _, mib := range []int64{8000, 6000, 4000, 12000, 9000} {
		pod := f.Create(f.RandomPod(mib))
		if ok, err := f.Bind(pod, name); err != nil || !ok {
			return fmt.Errorf("placing a share on %s: %v, %w", name, ok, err)
		}
		f.Prepare(pod)
	}
	return nil
}

// Churn ends a running pod and starts another, every interval, until ctx ends.
func (f *Fleet) Churn(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pods := f.Bound()
		if len(pods) == 0 {
			return
		}
		old := pods[f.Random.Intn(len(pods))]
		f.Delete(old)
		q := old.Spec.Containers[0].Resources.Limits[v1alpha1.ResourceMemory]
		pod := f.Create(f.RandomPod(q.Value()))
		if ok, err := f.Bind(pod, old.Spec.NodeName); err != nil || !ok {
			f.Refuse(pod, "0/1 nodes are available: 1 node(s) had no free MIG placement for "+q.String()+" MiB.")
			continue
		}
		time.Sleep(every / 4)
		f.Prepare(pod)
	}
}
