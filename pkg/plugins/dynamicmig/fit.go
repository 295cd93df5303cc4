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
	resourcehelper "k8s.io/component-helpers/resource"
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
	"github.com/dynamig/dynamig/pkg/pool"
)

// FitName is the name of the wrapped NodeResourcesFit in a
// KubeSchedulerConfiguration. It replaces NodeResourcesFit in a profile.
const FitName = "DynamicMIGFit"

// Fit is NodeResourcesFit with three differences. The request-only resources are
// ignored by default. Its queueing hints ignore them too: upstream's ask Fits()
// without ignoredResources (kubernetes pkg/scheduler/framework/plugins/
// noderesources/fit.go:541-550, 639-649), so that a pod with nvidia.com/gpumem
// would wait five minutes for a node that suits it. And it finds room itself, leaving
// to upstream to say what lacks: upstream allocates a list for the reasons on each
// node, also where there are none (fit.go:711), and matches the name of each extended
// resource with regular expressions (fit.go:771).
type Fit struct {
	*noderesources.Fit
	resources sets.Set[string]          // ignored, by name
	groups    sets.Set[string]          // ignored, by what stands before the slash
	names     func() v1alpha1.Resources // of requests: all but the count are ignored
}

var (
	_ fwk.PreFilterPlugin   = &Fit{}
	_ fwk.FilterPlugin      = &Fit{}
	_ fwk.PreScorePlugin    = &Fit{}
	_ fwk.ScorePlugin       = &Fit{}
	_ fwk.EnqueueExtensions = &Fit{}
	_ fwk.SignPlugin        = &Fit{}
)

// NewFit is a framework PluginFactory. Its arguments are NodeResourcesFitArgs. The
// names of resources are those of the factory's DynamicMIG, whichever the framework
// builds first.
func (f *Factory) NewFit(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
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
		names:     f.resources,
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
	return &args, nil
}

// resources are the names in force, HAMi's where no profile has DynamicMIG.
func (f *Factory) resources() v1alpha1.Resources {
	if names := f.names.Load(); names != nil {
		return *names
	}
	return v1alpha1.DefaultResources()
}

// Name returns FitName.
func (f *Fit) Name() string { return FitName }

// asked is what a pod asks a node for, in the CycleState.
type asked struct {
	slots v1.ResourceName
	count int64
	rest  fwk.Resource // all else, as upstream has read it; nil where only upstream can compare it
}

const (
	askedKey    fwk.StateKey = FitName
	upstreamKey fwk.StateKey = "PreFilter" + noderesources.Name // fit.go:58
)

// Clone returns what was asked: it never changes.
func (a *asked) Clone() fwk.StateData { return a }

// PreFilter is upstream's for the pod without ignored resources and slots. A pod that
// grows on its node is left to upstream, slots as well: what it has already is taken
// there, and only upstream asks for the difference (fit.go:801-844).
func (f *Fit) PreFilter(ctx context.Context, cs fwk.CycleState, pod *v1.Pod, nodes []fwk.NodeInfo) (*fwk.PreFilterResult, *fwk.Status) {
	names := f.names()
	if pod.Spec.NodeName != "" || !(pool.Options{Names: names}).Wants(pod) {
		return f.Fit.PreFilter(ctx, cs, f.without(pod), nodes)
	}
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	count := requests[names.Count]
	result, status := f.Fit.PreFilter(ctx, cs, f.stripped(pod, func(name v1.ResourceName) bool {
		return name == names.Count || f.ignores(name)
	}), nodes)
	cs.Write(askedKey, &asked{slots: names.Count, count: count.Value(), rest: upstreamRequest(cs)})
	return result, status
}

// upstreamRequest is what upstream's PreFilter has read of a pod; nil where there are
// other extended resources, for which it has rules.
func upstreamRequest(cs fwk.CycleState) fwk.Resource {
	data, err := cs.Read(upstreamKey)
	if err != nil {
		return nil
	}
	if r, ok := data.(fwk.Resource); ok && len(r.GetScalarResources()) == 0 {
		return r
	}
	return nil
}

// Filter is upstream's, and compares the slots.
func (f *Fit) Filter(ctx context.Context, cs fwk.CycleState, pod *v1.Pod, ni fwk.NodeInfo) *fwk.Status {
	if data, err := cs.Read(askedKey); err == nil {
		a := data.(*asked)
		if status := a.enough(ni); status != nil || a.fits(ni) {
			return status
		}
	}
	return f.Fit.Filter(ctx, cs, pod, ni)
}

// enough compares slots as upstream compares resources.
func (a *asked) enough(ni fwk.NodeInfo) *fwk.Status {
	offered := ni.GetAllocatable().GetScalarResources()[a.slots]
	switch taken := ni.GetRequested().GetScalarResources()[a.slots]; {
	case a.count > offered:
		return fwk.NewStatus(fwk.UnschedulableAndUnresolvable, insufficient+string(a.slots))
	case a.count > offered-taken:
		return fwk.NewStatus(fwk.Unschedulable, insufficient+string(a.slots))
	default:
		return nil
	}
}

// fits reports whether there is room for the rest; no also where only upstream can tell.
func (a *asked) fits(ni fwk.NodeInfo) bool {
	if a.rest == nil {
		return false
	}
	has, taken := ni.GetAllocatable(), ni.GetRequested()
	room := func(wanted, has, taken int64) bool { return wanted == 0 || wanted <= has-taken }
	return len(ni.GetPods()) < has.GetAllowedPodNumber() &&
		room(a.rest.GetMilliCPU(), has.GetMilliCPU(), taken.GetMilliCPU()) &&
		room(a.rest.GetMemory(), has.GetMemory(), taken.GetMemory()) &&
		room(a.rest.GetEphemeralStorage(), has.GetEphemeralStorage(), taken.GetEphemeralStorage())
}

// insufficient is how upstream begins what the monitor reads.
const insufficient = "Insufficient "

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
	if !slices.ContainsFunc(pod.Spec.Containers, f.asksIgnored) && !slices.ContainsFunc(pod.Spec.InitContainers, f.asksIgnored) {
		return pod
	}
	return f.stripped(pod, f.ignores)
}

// stripped is the pod without some resources. What it does not change it shares with
// the pod.
func (f *Fit) stripped(pod *v1.Pod, drop func(v1.ResourceName) bool) *v1.Pod {
	out := *pod
	for _, containers := range []*[]v1.Container{&out.Spec.Containers, &out.Spec.InitContainers} {
		*containers = slices.Clone(*containers)
		for i := range *containers {
			c := &(*containers)[i]
			for _, list := range []*v1.ResourceList{&c.Resources.Requests, &c.Resources.Limits} {
				*list = maps.Clone(*list)
				maps.DeleteFunc(*list, func(name v1.ResourceName, _ resource.Quantity) bool { return drop(name) })
			}
		}
	}
	return &out
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
	names := f.names()
	return v1helper.IsExtendedResourceName(name) &&
		(f.resources.Has(string(name)) || f.groups.Has(group) || slices.Contains(names.RequestOnly(), name))
}
