// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
)

// access is how the cluster is reached: kubectl's own flags, and the clients.
type access struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides

	schedulerNamespace string

	kube kubernetes.Interface // nil until connected; tests set them
	gpus versioned.Interface

	clock serverClock
}

func newAccess() *access {
	return &access{rules: clientcmd.NewDefaultClientConfigLoadingRules()}
}

// addFlags adds the flags that every kubectl command has for reaching a cluster.
func (a *access) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&a.rules.ExplicitPath, "kubeconfig", "", "Path to the kubeconfig file")
	clientcmd.BindOverrideFlags(&a.overrides, flags, clientcmd.RecommendedConfigOverrideFlags(""))
	flags.StringVar(&a.schedulerNamespace, "scheduler-namespace", "dynamig-system", "Namespace of dynamig's scheduler, whose arguments are read there")
}

// hideFlags keeps help short: the rarer of kubectl's flags work, but are not listed.
func hideFlags(flags *pflag.FlagSet) {
	shown := map[string]bool{"kubeconfig": true, "context": true, "namespace": true, "help": true}
	flags.VisitAll(func(f *pflag.Flag) { f.Hidden = !shown[f.Name] })
}

// connect makes the clients, and returns the namespace to look in.
func (a *access) connect() (namespace string, err error) {
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(a.rules, &a.overrides)
	namespace, _, err = config.Namespace()
	if err != nil {
		return "", fmt.Errorf("reading the kubeconfig: %w", err)
	}
	if a.kube != nil {
		return namespace, nil
	}
	rest, err := config.ClientConfig()
	if err != nil {
		return "", fmt.Errorf("reading the kubeconfig: %w; name one with --kubeconfig", err)
	}
	rest.QPS, rest.Burst = 50, 100
	rest.UserAgent = "kubectl-mig"
	rest.Wrap(a.clock.wrap)
	if a.kube, err = kubernetes.NewForConfig(rest); err != nil {
		return "", err
	}
	a.gpus, err = versioned.NewForConfig(rest)
	return namespace, err
}
