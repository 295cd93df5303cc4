// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command nodeagent runs on each GPU node: it creates the MIG instances that the
// node's pods own, hands them to kubelet and the container runtime, and reports
// the node's GPUs. It only wires packages together; decisions are in pkg/agent.
//
//	nodeagent [flags]        serve the node
//	nodeagent check [flags]  say whether this node can do dynamic MIG, and whether
//	                         configuration files are good
//	nodeagent facts [flags]  record what its GPUs are
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/agent"
	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/deviceplugin"
	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
	"github.com/dynamig/dynamig/pkg/hamicore"
	"github.com/dynamig/dynamig/pkg/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	var err error
	if len(os.Args) > 1 && subcommands[os.Args[1]] != nil {
		err = subcommands[os.Args[1]](ctx, os.Args[2:], os.Stdout, os.Stderr)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nodeagent:", err)
		os.Exit(1)
	}
}

// run is the program. It returns nil when ctx ends.
func run(ctx context.Context, args []string, out, usage io.Writer) error {
	o, err := parse(args, usage)
	switch {
	case err != nil:
		return err
	case o.version:
		_, err := fmt.Fprintln(out, "nodeagent", version.Text())
		return err
	case o.dryRun:
		return dryRun(ctx, &o, out)
	}
	unlock, err := lock(o.stateDir)
	if err != nil {
		return err
	}
	defer unlock()
	config, err := o.agentConfig()
	if err != nil {
		return err
	}
	a, err := agent.New(config)
	if err != nil {
		return err
	}
	plugin, err := deviceplugin.New(deviceplugin.Config{
		Resource:     string(a.Resource()),
		PluginDir:    filepath.Join(o.kubeletDir, "device-plugins"),
		PodResources: filepath.Join(o.kubeletDir, "pod-resources", "kubelet.sock"),
		State:        o.slotsFile(),
		CDI:          cdi.Dir{Path: o.cdiDir},
		Preparer:     preparer{a},
		Pods:         a,
	})
	if err != nil {
		return err
	}
	ctx = klog.NewContext(ctx, klog.Background())
	klog.FromContext(ctx).V(2).Info("Starting", "node", o.nodeName)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.Run(ctx, plugin) })
	g.Go(func() error { return serve(ctx, &o, a, plugin) })
	s := status{a, plugin}
	g.Go(func() error { return s.serveStatus(ctx, o.listen) })
	g.Go(func() error { return s.notifySystemd(ctx, readyPatience) })
	return g.Wait()
}

// agentConfig says what the agent works with.
func (o *options) agentConfig() (agent.Config, error) {
	config, err := o.client()
	if err != nil {
		return agent.Config{}, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return agent.Config{}, fmt.Errorf("making client: %w; correct the kubeconfig", err)
	}
	gpuNodes, err := versioned.NewForConfig(config)
	if err != nil {
		return agent.Config{}, fmt.Errorf("making client: %w; correct the kubeconfig", err)
	}
	reset, err := resetCommand(o.resetCommand)
	if err != nil {
		return agent.Config{}, err
	}
	return agent.Config{
		Node: o.nodeName, StateDir: o.stateDir, DeviceConfig: o.deviceConfig, NodeConfig: o.nodeConfig, MIGPartedConfig: o.migParted,
		Open: o.open, Nodes: o.capabilities(), Openers: agent.Openers(o.procDir), ProcessesOf: agent.ProcessesOf(o.procDir), Reset: reset,
		HAMiCore: hamicore.Dir{Path: o.hamiCoreDir, Lock: o.hamiCoreLock},
		Client:   client, GPUNodes: gpuNodes.DynamigV1alpha1(),
		KubeletPods: func(ctx context.Context) ([]*v1.Pod, error) {
			return deviceplugin.ListPods(ctx, filepath.Join(o.kubeletDir, "pods-api", "pods-api.sock"))
		},
	}, nil
}

// serve offers slots to kubelet once containers can be prepared.
func serve(ctx context.Context, o *options, a *agent.Agent, plugin *deviceplugin.Plugin) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.Ready():
	}
	driver := o.driverFile()
	tick := time.NewTicker(driverRetry)
	defer tick.Stop()
	if !driver.first(ctx, tick.C, a.ReportDriverFile) {
		return nil
	}
	tick.Reset(driverCheck)
	var keeping sync.WaitGroup
	defer keeping.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	keeping.Go(func() { driver.keep(ctx, tick.C) })
	klog.FromContext(ctx).V(2).Info("Serving kubelet")
	return plugin.Run(ctx)
}

// lock makes the state directory ours: two agents would undo each other's work.
// The lock ends with the process, however that ends.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w; choose a writable --state-dir", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking state directory: %w; choose a writable --state-dir", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w; another nodeagent works there: stop it, or choose another --state-dir", f.Name(), err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
