// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/klog/v2"
	configv1 "k8s.io/kube-scheduler/config/v1"
	fwk "k8s.io/kube-scheduler/framework"
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
	ignored sets.Set[string]
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
	return &Fit{Fit: inner.(*noderesources.Fit), ignored: sets.New(args.IgnoredResources...)}, nil
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
// none.
func (f *Fit) without(pod *v1.Pod) *v1.Pod {
	if !f.hasIgnored(pod.Spec.Containers) && !f.hasIgnored(pod.Spec.InitContainers) {
		return pod
	}
	pod = pod.DeepCopy()
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			for name := range f.ignored {
				delete(list[i].Resources.Limits, v1.ResourceName(name))
				delete(list[i].Resources.Requests, v1.ResourceName(name))
			}
		}
	}
	return pod
}

func (f *Fit) hasIgnored(containers []v1.Container) bool {
	for i := range containers {
		for name := range containers[i].Resources.Requests {
			if f.ignored.Has(string(name)) {
				return true
			}
		}
	}
	return false
}
