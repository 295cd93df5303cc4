// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/klog/v2"
	configv1 "k8s.io/kube-scheduler/config/v1"
	fwk "k8s.io/kube-scheduler/framework"
	v1helper "k8s.io/kubernetes/pkg/apis/core/v1/helper"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/noderesources"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// FitName is the name of the wrapped NodeResourcesFit in a
// KubeSchedulerConfiguration. It replaces NodeResourcesFit in a profile.
const FitName = "DynamicMIGFit"

// Fit is NodeResourcesFit with two differences: the request-only resources are
// ignored by default, and its queueing hints ignore them too. Upstream's hints ask
// Fits() without ignoredResources (kubernetes pkg/scheduler/framework/plugins/
// noderesources/fit.go:541-550, 639-649), so that a pod with nvidia.com/gpumem
// would wait five minutes for a node that suits it.
type Fit struct {
	*noderesources.Fit
	resources sets.Set[string] // ignored, by name
	groups    sets.Set[string] // ignored, by what stands before the slash
}

var (
	_ fwk.PreFilterPlugin   = &Fit{}
	_ fwk.FilterPlugin      = &Fit{}
	_ fwk.PreScorePlugin    = &Fit{}
	_ fwk.ScorePlugin       = &Fit{}
	_ fwk.EnqueueExtensions = &Fit{}
	_ fwk.SignPlugin        = &Fit{}
)

// NewFit is a framework PluginFactory. Its arguments are NodeResourcesFitArgs.
func NewFit(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	args, err := decodeFitArgs(obj)
	if err != nil {
		return nil, err
	}
	inner, err := noderesources.NewFit(ctx, args, handle, feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate))
	if err != nil {
		return nil, err
	}
	return &Fit{
		Fit:       inner.(*noderesources.Fit),
		resources: sets.New(args.IgnoredResources...),
		groups:    sets.New(args.IgnoredResourceGroups...),
	}, nil
}

func decodeFitArgs(obj runtime.Object) (*config.NodeResourcesFitArgs, error) {
	var external configv1.NodeResourcesFitArgs
	if err := frameworkruntime.DecodeInto(obj, &external); err != nil {
		return nil, fmt.Errorf("decoding the arguments of %s: %w", FitName, err)
	}
	scheme.Scheme.Default(&external)
	var args config.NodeResourcesFitArgs
	if err := scheme.Scheme.Convert(&external, &args, nil); err != nil {
		return nil, fmt.Errorf("converting the arguments of %s: %w", FitName, err)
	}
	for _, name := range v1alpha1.RequestOnlyResources() {
		args.IgnoredResources = append(args.IgnoredResources, string(name))
	}
	return &args, nil
}

// Name returns FitName.
func (f *Fit) Name() string { return FitName }

// EventsToRegister is upstream's with each hint wrapped.
func (f *Fit) EventsToRegister(ctx context.Context) ([]fwk.ClusterEventWithHint, error) {
	events, err := f.Fit.EventsToRegister(ctx)
	if err != nil {
		return nil, err
	}
	for i := range events {
		if hint := events[i].QueueingHintFn; hint != nil {
			events[i].QueueingHintFn = func(logger klog.Logger, pod *v1.Pod, oldObj, newObj any) (fwk.QueueingHint, error) {
				return hint(logger, f.without(pod), oldObj, newObj)
			}
		}
	}
	return events, nil
}

// without is the pod without the ignored resources; the pod itself when it has
// none. What it does not change it shares with the pod.
func (f *Fit) without(pod *v1.Pod) *v1.Pod {
	if !slices.ContainsFunc(pod.Spec.Containers, f.asksIgnored) && !slices.ContainsFunc(pod.Spec.InitContainers, f.asksIgnored) {
		return pod
	}
	out := *pod
	out.Spec.Containers = f.stripped(pod.Spec.Containers)
	out.Spec.InitContainers = f.stripped(pod.Spec.InitContainers)
	return &out
}

func (f *Fit) stripped(containers []v1.Container) []v1.Container {
	containers = slices.Clone(containers)
	for i := range containers {
		for _, list := range []*v1.ResourceList{&containers[i].Resources.Requests, &containers[i].Resources.Limits} {
			*list = maps.Clone(*list)
			maps.DeleteFunc(*list, func(name v1.ResourceName, _ resource.Quantity) bool { return f.ignores(name) })
		}
	}
	return containers
}

func (f *Fit) asksIgnored(c v1.Container) bool {
	for name := range c.Resources.Requests {
		if f.ignores(name) {
			return true
		}
	}
	return false
}

// ignores is upstream's rule for extended resources.
func (f *Fit) ignores(name v1.ResourceName) bool {
	group, _, _ := strings.Cut(string(name), "/")
	return v1helper.IsExtendedResourceName(name) && (f.resources.Has(string(name)) || f.groups.Has(group))
}
