// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/agent"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/whatif"
)

const (
	dryRunQuiet   = time.Second      // without a driver call: nothing more will come
	dryRunTimeout = 30 * time.Second // the API server or a driver call does not answer
)

// dryRun runs the whole agent on drivers that pretend, without kubelet, and says
// what it did and how the node would be then. An agent that runs is not disturbed.
func dryRun(ctx context.Context, o *options, out io.Writer) error {
	config, err := o.agentConfig()
	if err != nil {
		return err
	}
	changes := &whatif.Changes{Say: func(change string) { fmt.Fprintln(out, "would", change) }}
	if config.Reset != nil { // never the real one, even where the pretended driver asks for it
		config.Reset = func(_ context.Context, gpu nvml.GPU) error {
			changes.Say(fmt.Sprintf("reset GPU %d", gpu.Index))
			return nil
		}
	}
	open := config.Open
	config.DryRun = true
	config.Open = func() (nvml.Driver, error) {
		d, err := open()
		if err != nil {
			return nil, err
		}
		return changes.Over(d), nil
	}
	a, err := agent.New(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(klog.NewContext(ctx, klog.Background()), dryRunTimeout)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.Run(ctx, nil) })
	g.Go(func() error {
		defer cancel()
		settled := a.Settled(ctx, dryRunQuiet)
		fmt.Fprint(out, "then:\n", a.Describe())
		if settled != nil {
			return fmt.Errorf("%w; is the API server reachable, and does NVML answer?", settled)
		}
		return nil
	})
	return g.Wait()
}
