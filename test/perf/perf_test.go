// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	benchmark "k8s.io/kubernetes/test/integration/scheduler_perf"
	"k8s.io/kubernetes/test/utils/client-go/ktesting"

	"github.com/dynamig/dynamig/pkg/plugins/dynamicmig"
)

func TestMain(m *testing.M) {
	// Before anything else: it replaces the flags.
	if err := benchmark.InitTests(); err != nil {
		fmt.Fprintf(os.Stderr, "Starting scheduler_perf: %v\n", err)
		os.Exit(1)
	}
	// Whose times are collected one by one, in the workloads that ask for it.
	benchmark.PluginNames = append(benchmark.PluginNames, dynamicmig.Name, dynamicmig.FitName)
	os.Exit(m.Run())
}

// BenchmarkPerfScheduling has the name that upstream's tools look for.
func BenchmarkPerfScheduling(b *testing.B) {
	r := &rig{}
	benchmark.RunBenchmarkPerfScheduling(b, "performance-config.yaml", "dynamig", r.registry(),
		benchmark.WithPreRunFn(r.reset), benchmark.WithPrepareFn(r.prepare), benchmark.WithNodeUpdateFn(r.report))
	if err := r.cpu.write(); err != nil {
		b.Fatal(err)
	}
}

// rig carries the plugin through the workloads, which run one after the other in
// one process: each gets a factory and so a pool of its own.
//
//	reset    a fresh factory               before the scheduler is made
//	prepare  the GPUNode API               before the nodes are
//	report   a GPUNode for each node       before the pods are
type rig struct {
	factory *dynamicmig.Factory
	shared  *dynamicmig.Shared // nil where no profile of the workload has the plugin
	cpu     stopwatch
}

func (r *rig) registry() frameworkruntime.Registry {
	return frameworkruntime.Registry{
		dynamicmig.Name: func(ctx context.Context, args runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
			if raw, ok := args.(*runtime.Unknown); ok { // the shipped one names the file in the container
				raw.Raw = bytes.ReplaceAll(raw.Raw, []byte("/etc/dynamig/"), []byte("../../manifests/base/nodeagent/"))
			}
			return r.factory.New(ctx, args, handle)
		},
		dynamicmig.FitName: func(ctx context.Context, args runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
			return r.factory.NewFit(ctx, args, handle)
		},
	}
}

// announcement begins the line that hack/bench-scheduler.sh shows while it runs.
const announcement = "Workload:"

// reset forgets the last workload and announces the next.
func (r *rig) reset(tCtx ktesting.TContext, w *benchmark.Workload) (func(), error) {
	fmt.Fprintln(os.Stderr, announcement, tCtx.Name())
	r.shared = nil
	r.factory = &dynamicmig.Factory{Companion: func(_ context.Context, shared dynamicmig.Shared) error {
		r.shared = &shared
		return nil
	}}
	pods, err := w.GetParam("pods")
	return func() { r.cpu.stop(tCtx.Name(), pods) }, err
}

// prepare installs the CRD where the plugin runs. The scheduler runs already; its
// informer tries again until the API is there.
func (r *rig) prepare(tCtx ktesting.TContext) error {
	if r.shared == nil {
		return nil
	}
	return installCRD(tCtx, tCtx.Dynamic())
}

// report does what the agents of the nodes would, and waits until the plugin knows
// all nodes with all GPUs. The pods come next.
func (r *rig) report(tCtx ktesting.TContext, _ *scheduler.Scheduler, _ *benchmark.Workload, nodes *v1.NodeList) error {
	defer r.cpu.start()
	if r.shared == nil {
		return nil
	}
	if err := reportGPUs(tCtx, tCtx.RESTConfig(), nodes.Items); err != nil {
		return err
	}
	return waitForGPUs(tCtx, r.shared, len(nodes.Items))
}
