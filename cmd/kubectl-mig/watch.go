// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/dynamig/dynamig/pkg/generated/informers/externalversions"
)

// settle is how long changes are gathered before they are drawn.
const settle = 150 * time.Millisecond

// watchStatus draws again whenever a GPUNode or a pod changes, from watches of the
// API server. What may not be watched in all namespaces is watched in one.
func watchStatus(ctx context.Context, s *screen, a *access, namespace string, o statusOptions, selector labels.Selector) error {
	first, err := a.survey(ctx, namespace)
	if err != nil {
		return err
	}
	scope := metav1.NamespaceAll
	if first.hidden {
		scope = namespace
	}
	changed := make(chan struct{}, 1)
	touch := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	gpus := externalversions.NewSharedInformerFactory(a.gpus, 0)
	kube := informers.NewSharedInformerFactoryWithOptions(a.kube, 0, informers.WithNamespace(scope))
	nodes, pods := gpus.Dynamig().V1alpha1().GPUNodes(), kube.Core().V1().Pods()
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { touch() }, UpdateFunc: func(any, any) { touch() }, DeleteFunc: func(any) { touch() },
	}
	for _, informer := range []cache.SharedIndexInformer{nodes.Informer(), pods.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	gpus.Start(ctx.Done())
	kube.Start(ctx.Done())
	defer gpus.Shutdown()
	defer kube.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced, pods.Informer().HasSynced) {
		return ctx.Err()
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	for {
		now := *first
		if now.gpuNodes, err = nodes.Lister().List(labels.Everything()); err != nil {
			return err
		}
		if now.pods, err = pods.Lister().List(labels.Everything()); err != nil {
			return err
		}
		if now.hidden {
			now.pods = append(now.pods, now.strangers()...)
		}
		if err := s.redraw(func() error { return now.showStatus(s, o, selector) }); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil // the user has seen enough
		case <-resized:
		case <-changed:
			if !sleep(ctx, settle) {
				return nil
			}
		}
	}
}

// sleep returns false when the context ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// redraw clears a terminal first; elsewhere pictures follow one another.
func (s *screen) redraw(draw func() error) error {
	s.measure()
	if s.terminal {
		if _, err := fmt.Fprint(s.out, "\x1b[H\x1b[2J"); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(s.out, "--- %s\n", time.Now().Format(time.TimeOnly)); err != nil {
		return err
	}
	return draw()
}

// nodeNames offers GPUNodes to the shell's completion.
func (a *access) nodeNames(cmd *cobra.Command) []string {
	if _, err := a.connect(); err != nil {
		return nil
	}
	list, err := a.gpus.DynamigV1alpha1().GPUNodes().List(cmd.Context(), metav1.ListOptions{})
	if err != nil {
		return nil
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	return names
}

// podNames offers the pods that ask for GPUs.
func (a *access) podNames(cmd *cobra.Command) []string {
	namespace, err := a.connect()
	if err != nil {
		return nil
	}
	list, err := a.kube.CoreV1().Pods(namespace).List(cmd.Context(), metav1.ListOptions{})
	if err != nil {
		return nil
	}
	opts, _, err := a.options(cmd.Context())
	if err != nil {
		return nil
	}
	var names []string
	for i := range list.Items {
		if opts.Wants(&list.Items[i]) {
			names = append(names, list.Items[i].Name)
		}
	}
	return names
}
