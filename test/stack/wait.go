// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	clientwatch "k8s.io/client-go/tools/watch"
)

// patience is how long anything may take on a busy machine.
const patience = 3 * time.Minute

// named watches one object and calls done with each state, nil when it is gone,
// until done returns true.
func named[T runtime.Object](ctx context.Context, lw *cache.ListWatch, sample T, done func(obj T, gone bool) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last T
	lists := func(store cache.Store) (bool, error) {
		if len(store.List()) == 0 {
			return done(last, true), nil
		}
		return false, nil
	}
	_, err := clientwatch.UntilWithSync(ctx, lw, sample, lists, func(e watch.Event) (bool, error) {
		obj, ok := e.Object.(T)
		if !ok {
			return false, nil
		}
		last = obj
		return done(obj, e.Type == watch.Deleted), nil
	})
	if err != nil {
		return fmt.Errorf("%w; last seen: %s", err, brief(last))
	}
	return nil
}

// brief is what matters of an object that was waited for in vain.
func brief(obj any) string {
	pod, ok := obj.(*v1.Pod)
	if !ok || pod == nil {
		return "something else"
	}
	text := fmt.Sprintf("%s on node %q %s %s", pod.Status.Phase, pod.Spec.NodeName, pod.Status.Reason, pod.Status.Message)
	for _, c := range pod.Status.Conditions {
		if c.Message != "" {
			text += fmt.Sprintf("; %s: %s", c.Type, c.Message)
		}
	}
	for _, c := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if w := c.State.Waiting; w != nil {
			text += fmt.Sprintf("; container %s: %s: %s", c.Name, w.Reason, w.Message)
		}
	}
	return text
}

func (s *Stack) podWatch(namespace, name string) *cache.ListWatch {
	return cache.NewListWatchFromClient(s.Kube.CoreV1().RESTClient(), "pods", namespace, fields.OneTermEqualSelector("metadata.name", name))
}

// WaitPod waits until a pod satisfies done and returns it. A pod that fails for
// good before that is an error.
func (s *Stack) WaitPod(ctx context.Context, namespace, name string, done func(*v1.Pod) bool) (*v1.Pod, error) {
	var last *v1.Pod
	satisfied := false
	err := named(ctx, s.podWatch(namespace, name), &v1.Pod{}, func(pod *v1.Pod, gone bool) bool {
		last, satisfied = pod, !gone && done(pod)
		return satisfied || gone || pod.Status.Phase == v1.PodFailed
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("waiting for pod %s: %w", name, err)
	case !satisfied:
		return nil, fmt.Errorf("waiting for pod %s: it ended: %s", name, brief(last))
	}
	return last, nil
}

// Running says that all containers of a pod run.
func Running(pod *v1.Pod) bool {
	if pod.Status.Phase != v1.PodRunning {
		return false
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Running == nil {
			return false
		}
	}
	return true
}

// WaitGone waits until a pod's object does not exist.
func (s *Stack) WaitGone(ctx context.Context, namespace, name string) error {
	if _, err := s.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return nil
	}
	err := named(ctx, s.podWatch(namespace, name), &v1.Pod{}, func(_ *v1.Pod, gone bool) bool { return gone })
	if err != nil {
		return fmt.Errorf("waiting for pod %s to go: %w", name, err)
	}
	return nil
}

// Slots is a node's allocatable nvidia.com/gpu.
func Slots(n *v1.Node) int64 {
	q := n.Status.Allocatable["nvidia.com/gpu"]
	return q.Value()
}

// WaitSlots waits until a node offers devices.
func (s *Stack) WaitSlots(ctx context.Context, node string) error {
	lw := cache.NewListWatchFromClient(s.Kube.CoreV1().RESTClient(), "nodes", "", fields.OneTermEqualSelector("metadata.name", node))
	err := named(ctx, lw, &v1.Node{}, func(n *v1.Node, gone bool) bool { return !gone && Slots(n) > 0 })
	if err != nil {
		return fmt.Errorf("waiting for nvidia.com/gpu of node %s: %w", node, err)
	}
	return nil
}

// Event waits for an event of an object by its reason and returns its text.
func (s *Stack) Event(ctx context.Context, namespace, object, reason string) (string, error) {
	var text string
	lw := cache.NewListWatchFromClient(s.Kube.CoreV1().RESTClient(), "events", namespace, fields.AndSelectors(
		fields.OneTermEqualSelector("involvedObject.name", object), fields.OneTermEqualSelector("reason", reason)))
	err := named(ctx, lw, &v1.Event{}, func(e *v1.Event, gone bool) bool {
		if !gone {
			text = e.Message
		}
		return !gone
	})
	if err != nil {
		return "", fmt.Errorf("waiting for event %s of %s: %w", reason, object, err)
	}
	return text, nil
}

// Until polls what has no watch, such as a file.
func Until(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waiting for %s: %w", what, ctx.Err()), err)
		case <-tick.C:
		}
	}
}
