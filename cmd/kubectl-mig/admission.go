// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// What comes from a file has not been at the API server yet, which adds to pods and
// refuses some.

// admissionPolicy is that of manifests/components/hami-defaults.
const admissionPolicy = "dynamig-hami-defaults"

// admissionLabel with the value ignore keeps the policy off a pod.
const admissionLabel = "hami.io/webhook"

// readAdmission learns in which of the workloads' namespaces that policy is in force.
// Who may not read the binding is told by the answer that the scheduler's name is
// missing.
func (v *survey) readAdmission(ctx context.Context, a *access, workloads []workload) error {
	v.admits = map[string]bool{}
	binding, err := a.kube.AdmissionregistrationV1().MutatingAdmissionPolicyBindings().Get(ctx, admissionPolicy, metav1.GetOptions{})
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	selector := labels.Everything()
	if m := binding.Spec.MatchResources; m != nil && m.NamespaceSelector != nil {
		if selector, err = metav1.LabelSelectorAsSelector(m.NamespaceSelector); err != nil {
			return err
		}
	}
	for _, w := range workloads {
		name := w.pod.Namespace
		if _, known := v.admits[name]; known {
			continue
		}
		if selector.Empty() {
			v.admits[name] = true
			continue
		}
		ns, err := a.kube.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			v.note("what the component hami-defaults adds to pods of namespace %s is not known: %v", name, err)
		}
		v.admits[name] = err == nil && selector.Matches(labels.Set(ns.Labels))
	}
	return nil
}

// admitted is the pod as the API server leaves it: completed where the policy is in force.
func (v *survey) admitted(pod *v1.Pod) *v1.Pod {
	if !v.admits[pod.Namespace] {
		return pod
	}
	return v.completed(pod)
}

// completed is the pod as the policy leaves it: with our scheduler's name, and one
// device for each container that says how much of one it wants, and not how many.
func (v *survey) completed(pod *v1.Pod) *v1.Pod {
	name := pod.Spec.SchedulerName
	if pod.Labels[admissionLabel] == "ignore" ||
		name != "" && name != v1.DefaultSchedulerName && name != v1alpha1.SchedulerName {
		return pod
	}
	ours := v.opts.Resources()
	sizes := []v1.ResourceName{ours.Memory, ours.MemoryPercentage, ours.Cores} // as in the policy: priority alone asks for nothing
	out, asks := pod.DeepCopy(), false
	for _, list := range [][]v1.Container{out.Spec.Containers, out.Spec.InitContainers} {
		for i := range list {
			limits := list[i].Resources.Limits
			_, counted := limits[ours.Count]
			sized := slices.ContainsFunc(sizes, func(name v1.ResourceName) bool { _, has := limits[name]; return has })
			if sized && !counted {
				limits[ours.Count] = *resource.NewQuantity(1, resource.DecimalSI)
			}
			asks = asks || sized || counted
		}
	}
	if !asks {
		return pod
	}
	out.Spec.SchedulerName = v1alpha1.SchedulerName
	return out
}

// refused is why the API server would not take the pod; empty where it would, as far
// as resources go.
func refused(pod *v1.Pod) string {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, list := range []v1.ResourceList{c.Resources.Limits, c.Resources.Requests} {
			for _, name := range slices.Sorted(maps.Keys(list)) {
				q := list[name]
				limit, limited := c.Resources.Limits[name]
				extended := strings.Contains(string(name), "/")
				problem := ""
				switch {
				case q.Sign() < 0:
					problem = "use 0 or more"
				case extended && q.MilliValue()%1000 != 0:
					problem = "use a whole number"
				case extended && !limited:
					problem = "give it under limits, too"
				case extended && q.Cmp(limit) != 0:
					problem = fmt.Sprintf("the limit is %s, and both must be equal", amount(name, limit))
				case limited && q.Cmp(limit) > 0:
					problem = fmt.Sprintf("the limit is %s, which is less", amount(name, limit))
				default:
					continue
				}
				return fmt.Sprintf("the API server refuses it: container %q: %s is %s; %s", c.Name, name, amount(name, q), problem)
			}
		}
	}
	return ""
}
