// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	schedutil "k8s.io/kubernetes/pkg/scheduler/util"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/arguments"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Event reasons of the plugin.
const (
	reasonConfigInvalid = "ConfigInvalid"
	reasonPlaced        = "GPUsPlaced"
	reasonOverwritten   = "AllocationOverwritten"
	reasonUncounted     = "NoGPURequested"
)

// PreBindPreFlight skips where PreBind has no work. The framework leaves out PreBind
// then, so that what Bind needs of the profile is looked at here as well.
func (pl *Plugin) PreBindPreFlight(_ context.Context, cs fwk.CycleState, _ *v1.Pod, _ string) (*fwk.PreBindPreFlightResult, *fwk.Status) {
	if _, err := readState(cs); err != nil {
		return nil, fwk.NewStatus(fwk.Skip)
	}
	if pl.write == arguments.WriteBinding {
		if err := pl.mustBind(); err != nil {
			return nil, fwk.AsStatus(err)
		}
		return nil, fwk.NewStatus(fwk.Skip)
	}
	return &fwk.PreBindPreFlightResult{AllowParallel: true}, nil
}

// PreBind publishes the choice, unless Bind does: one patch of the pod's annotation,
// for this UID only. It ends when ctx is cancelled or the pod is deleted.
//
// It also comes for pods without our resources: the framework asks
// PreBindPreFlight only where NominatedNodeNameForExpectation is on, and we ship it
// off (kubernetes pkg/scheduler/schedule_one.go:412-430).
func (pl *Plugin) PreBind(ctx context.Context, cs fwk.CycleState, pod *v1.Pod, nodeName string) *fwk.Status {
	s, err := readState(cs)
	if err != nil {
		return nil
	}
	if pl.write == arguments.WriteBinding {
		return fwk.AsStatus(pl.mustBind())
	}
	return pl.publish(ctx, s, pod, nodeName, pl.patch)
}

// Bind binds the pod with its allocation in the same write, where the arguments say
// so; otherwise it leaves that to the next plugin. It ends as PreBind does.
func (pl *Plugin) Bind(ctx context.Context, cs fwk.CycleState, pod *v1.Pod, nodeName string) *fwk.Status {
	s, err := readState(cs)
	if err != nil || pl.write != arguments.WriteBinding {
		return fwk.NewStatus(fwk.Skip)
	}
	return pl.publish(ctx, s, pod, nodeName, pl.bind)
}

// publish checks the choice once more and writes it. The pod given is the
// scheduler's cached one and is not written to.
func (pl *Plugin) publish(ctx context.Context, s *state, pod *v1.Pod, nodeName string, write func(ctx context.Context, pod *v1.Pod, nodeName, text string) error) *fwk.Status {
	if s.chosen == nil {
		return fwk.AsStatus(fmt.Errorf("publishing the allocation of pod %s: nothing was reserved", klog.KObj(pod)))
	}
	ctx, done := pl.binding.start(ctx, pod.UID)
	defer done()
	if _, ok := pl.pool.Holder(pod.UID); !ok {
		return fwk.NewStatus(fwk.Unschedulable, "the pod was deleted while it was being bound")
	}
	if !pl.stands(s.chosen) {
		return fwk.NewStatus(fwk.Unschedulable, fmt.Sprintf("node %s no longer offers the chosen MIG placements", nodeName))
	}
	text, err := s.allocation()
	if err != nil {
		return fwk.AsStatus(err)
	}
	pl.warnOfForgery(pod)
	if err := write(ctx, pod, nodeName, text); err != nil {
		return fwk.AsStatus(err)
	}
	pl.pool.Publish(pod.UID)
	if logger := klog.FromContext(ctx).V(2); logger.Enabled() {
		logger.Info("Published allocation", "pod", klog.KObj(pod), "node", nodeName, "placement", s.describe())
	}
	return nil
}

// allocation is the annotation's text for what was chosen.
func (s *state) allocation() (string, error) {
	return s.chosen.view.Allocation(s.request, s.chosen.plan).Encode()
}

// stands reports whether the node still offers what was chosen, and nobody else has
// it: a leader that comes late, or one that a lost Binding has misled, sees by now
// what was bound meanwhile.
func (pl *Plugin) stands(c *choice) bool {
	node, err := pl.pool.Node(c.holder.Node)
	if err != nil || node == nil || node.UID != c.view.Node.UID {
		return false
	}
	others := pool.Scope{Ledger: pool.LedgerUnbound, Except: c.holder.UID}
	return pl.pool.FreshView(node, slices.Values(pl.podsOn(node.Name)), others).Has(c.holder)
}

// patch writes the annotation to the pod.
func (pl *Plugin) patch(ctx context.Context, pod *v1.Pod, _, text string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":         pod.UID,
		"annotations": map[string]string{v1alpha1.AnnotationAllocation: text},
	}})
	if err != nil {
		return err
	}
	_, err = pl.handle.ClientSet().CoreV1().Pods(pod.Namespace).
		Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("writing annotation %s of pod %s: %w", v1alpha1.AnnotationAllocation, klog.KObj(pod), err)
	}
	return nil
}

// bind writes a Binding with the annotation, as kube-scheduler's DefaultBinder does
// without (kubernetes pkg/scheduler/framework/plugins/defaultbinder).
func (pl *Plugin) bind(ctx context.Context, pod *v1.Pod, nodeName, text string) error {
	binding := &v1.Binding{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			Annotations: map[string]string{v1alpha1.AnnotationAllocation: text},
		},
		Target: v1.ObjectReference{Kind: "Node", Name: nodeName},
	}
	if err := pl.send(ctx, binding); err != nil && !pl.isBound(ctx, pod, nodeName, text) {
		return fmt.Errorf("binding pod %s to node %s: %w", klog.KObj(pod), nodeName, err)
	}
	return nil
}

// send goes through kube-scheduler's queue of API calls where it has one (feature
// gate SchedulerAsyncAPICalls).
func (pl *Plugin) send(ctx context.Context, binding *v1.Binding) error {
	calls := pl.handle.APICacher()
	if calls == nil {
		return schedutil.BindPod(ctx, pl.handle.ClientSet(), binding)
	}
	done, err := calls.BindPod(binding)
	if err != nil {
		return err
	}
	return calls.WaitOnFinish(ctx, done)
}

// errBindOrder is the error of a profile that would bind pods without what they need.
var errBindOrder = fmt.Errorf("DynamicMIGArgs have allocationWrite: %s, but plugins.bind of the profile does not have %s first; "+
	"enable it there, as manifests/base/scheduler/config.yaml does", arguments.WriteBinding, Name)

// mustBind is nil if the profile asks this plugin to bind before all others. It is
// not known when the plugin is built.
func (pl *Plugin) mustBind() error {
	pl.bindOrder.Do(func() {
		profile, ok := pl.handle.(interface{ ListPlugins() *config.Plugins })
		if !ok {
			return // not reached: kube-scheduler's handle is its framework
		}
		if enabled := profile.ListPlugins().Bind.Enabled; len(enabled) == 0 || enabled[0].Name != Name {
			pl.bindTrouble = errBindOrder
		}
	})
	return pl.bindTrouble
}

// warnOfForgery tells of an allocation that came with the pod.
func (pl *Plugin) warnOfForgery(pod *v1.Pod) {
	if old, ok := pod.Annotations[v1alpha1.AnnotationAllocation]; ok && !attempted(pod, old) {
		pl.handle.EventRecorder().Eventf(pod, nil, v1.EventTypeWarning, reasonOverwritten, "Scheduling",
			"Annotation %s on the unbound pod binds nobody and was overwritten; remove it from the pod or its template",
			v1alpha1.AnnotationAllocation)
	}
}

// attempted reports whether an annotation can be from an earlier attempt to bind
// this very pod, which needs no warning.
func attempted(pod *v1.Pod, text string) bool {
	a, err := v1alpha1.DecodeAllocation(text)
	return err == nil && a.PodUID == pod.UID
}

// PostBind tells the user of what may surprise: what was placed and why there. What
// was placed as asked for the agent tells, once it is there: an event is a write. Here a
// pod that was to name a number of GPUs is told of once, however often it was tried.
func (pl *Plugin) PostBind(_ context.Context, cs fwk.CycleState, pod *v1.Pod, nodeName string) {
	if lacks := pool.Uncounted(pod, pl.pool.Names()); lacks != "" {
		pl.handle.EventRecorder().Eventf(pod, nil, v1.EventTypeWarning, reasonUncounted, "Scheduling", "Placed without a GPU: %s", lacks)
	}
	s, err := readState(cs)
	if err != nil || s.chosen == nil || s.remark() == "" {
		return
	}
	pl.handle.EventRecorder().Eventf(pod, nil, v1.EventTypeNormal, reasonPlaced, "Scheduling",
		"%s on node %s%s", s.describe(), nodeName, s.remark())
}

// describe lists the devices: "2g.10gb at slice 0, 2 of GPU 0", "8000 MiB and 30%
// of the cores of GPU 1".
func (s *state) describe() string {
	type group struct {
		gpu     int
		profile string
	}
	starts := map[group][]int{}
	var order []group
	var parts []string
	node := s.chosen.view.Node
	for _, d := range s.chosen.plan.Devices {
		if d.IsShare() {
			parts = append(parts, describeShare(d.Share, node.GPUs[d.GPU].Index))
			continue
		}
		profile, _ := node.GPUs[d.GPU].Catalogue.Model().Profile(d.Profile)
		g := group{d.GPU, profile.Name}
		if _, known := starts[g]; !known {
			order = append(order, g)
		}
		starts[g] = append(starts[g], d.Start)
	}
	for _, g := range order {
		slices.Sort(starts[g])
		at := strings.Trim(strings.ReplaceAll(fmt.Sprint(starts[g]), " ", ", "), "[]")
		parts = append(parts, fmt.Sprintf("%s at slice %s of GPU %d", g.profile, at, node.GPUs[g.gpu].Index))
	}
	return strings.Join(parts, "; ")
}

func describeShare(share v1alpha1.Share, gpu int32) string {
	switch {
	case share.Exclusive():
		return fmt.Sprintf("%d MiB of GPU %d for itself", share.MemoryMiB, gpu)
	case share.Cores == 0:
		return fmt.Sprintf("%d MiB of GPU %d", share.MemoryMiB, gpu)
	default:
		return fmt.Sprintf("%d MiB and %d%% of the cores of GPU %d", share.MemoryMiB, share.Cores, gpu)
	}
}

// remark says what a user may wonder about: a larger profile than needed, several
// devices for one process, and what the request may not have meant.
func (s *state) remark() string {
	text := ""
	for _, d := range s.chosen.plan.Devices {
		if !d.Exact && !d.IsShare() {
			text = " (larger than asked for: no smaller adequate profile was free)"
		}
	}
	for _, indexes := range s.request.Containers {
		if len(indexes) > 1 && !s.chosen.plan.Devices[indexes[0]].IsShare() {
			text += "; one CUDA process sees one MIG device, so run one process per device"
			break
		}
	}
	if s.request.Remark != "" {
		text += "; " + s.request.Remark
	}
	return text
}
