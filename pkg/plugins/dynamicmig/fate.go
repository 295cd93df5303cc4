// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/arguments"
	"github.com/dynamig/dynamig/pkg/pool"
)

// A Binding that ends in an error may have been written: its answer is lost with a
// connection, a timeout is an answer too, and the repetition of one whose answer was
// lost is a conflict. To give up the placement then would give it to two pods.

// askAgain is how long to wait before the API server is asked again.
var askAgain = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 10, Cap: 10 * time.Second}

// isBound reports, after an error, whether the pod is bound to the node with this
// allocation. It asks until it has an answer, the pod or that there is none, or ctx ends:
// as long as nobody knows whose the placement is, it stays assumed. That it may not ask
// is no answer: who is refused now, in a hiccup of authentication, is answered later.
func (pl *Plugin) isBound(ctx context.Context, pod *v1.Pod, nodeName, text string) bool {
	bound := false
	_ = askAgain.DelayFunc().Until(ctx, true, true, func(ctx context.Context) (done bool, _ error) {
		now, err := pl.handle.ClientSet().CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			klog.FromContext(ctx).V(2).Info("Asking whether the pod is bound", "pod", klog.KObj(pod), "node", nodeName, "err", err)
			return apierrors.IsNotFound(err), nil
		}
		bound = now.UID == pod.UID && now.Spec.NodeName == nodeName && now.Annotations[v1alpha1.AnnotationAllocation] == text
		return true, nil
	})
	return bound
}

// boundByOthers reports whether the plugin that binds after PreBind has published
// the choice (arguments.WriteAnnotation) has done so, although it ended in an error.
func (pl *Plugin) boundByOthers(ctx context.Context, cs fwk.CycleState, pod *v1.Pod, nodeName string) bool {
	s, err := readState(cs)
	if err != nil || s.chosen == nil || pl.write != arguments.WriteAnnotation {
		return false
	}
	if h, ok := pl.pool.Holder(pod.UID); !ok || h.State != pool.Published {
		return false
	}
	text, err := s.allocation()
	return err == nil && pl.isBound(ctx, pod, nodeName, text)
}
