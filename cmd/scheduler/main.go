// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command scheduler is kube-scheduler with the plugins DynamicMIG and
// DynamicMIGFit, and the reaper beside it. Its flags and configuration are those of
// kube-scheduler; manifests/base/scheduler/config.yaml is the configuration to use.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // registers client-go's metrics, as kube-scheduler does
	_ "k8s.io/component-base/metrics/prometheus/version"  // registers the version metric, as kube-scheduler does
	"k8s.io/kubernetes/cmd/kube-scheduler/app"

	"github.com/dynamig/dynamig/pkg/plugins/dynamicmig"
)

func main() {
	os.Exit(cli.Run(app.NewSchedulerCommand(plugins()...)))
}

// plugins are those that this program has beside kube-scheduler's own.
func plugins() []app.Option {
	factory := &dynamicmig.Factory{Companion: startReaper}
	return []app.Option{
		app.WithPlugin(dynamicmig.Name, factory.New),
		app.WithPlugin(dynamicmig.FitName, dynamicmig.NewFit),
	}
}
