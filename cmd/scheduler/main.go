// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command scheduler is kube-scheduler with the plugins DynamicMIG and
// DynamicMIGFit, and reaper and monitor beside it. Its flags and configuration are
// those of kube-scheduler, and --monitor-*; manifests/base/scheduler/config.yaml is
// the configuration to use.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // registers client-go's metrics, as kube-scheduler does
	_ "k8s.io/component-base/metrics/prometheus/version"  // registers the version metric, as kube-scheduler does
	"k8s.io/component-base/version/verflag"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"

	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/monitor/serve"
	"github.com/dynamig/dynamig/pkg/plugins/dynamicmig"
	"github.com/dynamig/dynamig/pkg/version"
)

func main() {
	var watch monitor.Config
	cmd := app.NewSchedulerCommand(plugins(&watch)...)
	addFlags(cmd, &watch)
	tellVersion(cmd)
	os.Exit(cli.Run(cmd))
}

// addFlags adds the monitor's flags, and a section of the help for them: the
// command's own help knows kube-scheduler's sections only.
func addFlags(cmd *cobra.Command, watch *monitor.Config) {
	flags := pflag.NewFlagSet("monitor", pflag.ContinueOnError)
	watch.AddFlags(flags)
	cmd.Flags().AddFlagSet(flags)
	help := cmd.HelpFunc()
	cmd.SetHelpFunc(func(c *cobra.Command, args []string) {
		help(c, args)
		fmt.Fprintf(c.OutOrStdout(), "\nMonitor flags:\n\n%s", flags.FlagUsages())
	})
}

// tellVersion has --version say what this program is, too. --version=raw stays what
// kube-scheduler knows of itself.
func tellVersion(cmd *cobra.Command) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flag("version").Value.String() != string(verflag.VersionTrue) {
			return run(cmd, args)
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "dynamig scheduler %s, kube-scheduler %s\n", version.Text(), version.Of("k8s.io/kubernetes"))
		return err
	}
}

// plugins are those that this program has beside kube-scheduler's own. watch is read
// once the first profile is built, after the flags.
func plugins(watch *monitor.Config) []app.Option {
	journal := monitor.NewJournal(time.Now)
	factory := &dynamicmig.Factory{
		Decided: journal.Decided,
		Companion: func(ctx context.Context, shared dynamicmig.Shared) error {
			return errors.Join(startReaper(ctx, shared), startMonitor(ctx, *watch, journal, shared))
		},
	}
	return []app.Option{
		app.WithPlugin(dynamicmig.Name, factory.New),
		app.WithPlugin(dynamicmig.FitName, factory.NewFit),
	}
}

// startMonitor serves the monitor until ctx ends, on every replica.
func startMonitor(ctx context.Context, cfg monitor.Config, journal *monitor.Journal, shared dynamicmig.Shared) error {
	if err := cfg.Validate(); err != nil || cfg.Port == 0 {
		return err
	}
	src := monitor.Sources{
		Pool: shared.Pool, GPUNodes: shared.GPUNodes, Pods: shared.Pods, ByNode: dynamicmig.ByNode,
		Nodes:         shared.Handle.SharedInformerFactory().Core().V1().Nodes().Lister(),
		ConfigTrouble: shared.ConfigTrouble,
	}
	if err := journal.Follow(src); err != nil {
		return err
	}
	fleet, err := monitor.NewFleet(src)
	if err != nil {
		return err
	}
	client := shared.Handle.ClientSet()
	return serve.Serve(ctx, cfg, monitor.New(cfg, fleet, journal, client), client)
}
