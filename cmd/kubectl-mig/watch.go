// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corev1 "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/dynamig/dynamig/pkg/generated/informers/externalversions"
	dynamigv1alpha1 "github.com/dynamig/dynamig/pkg/generated/listers/api/v1alpha1"
)

// settle is how long changes are gathered before they are drawn.
const settle = 150 * time.Millisecond

// pulseEvery is how often the scheduler's lease is looked at: a watch of it would
// report every renewal.
const pulseEvery = 15 * time.Second

// watchStatus draws again whenever a GPUNode, a pod or a Node changes, or the scheduler
// falls silent, from watches of the API server.
func watchStatus(ctx context.Context, s *screen, a *access, namespace string, o statusOptions, selector labels.Selector) error {
	seen, err := a.survey(ctx, namespace)
	if err != nil {
		return err
	}
	if err := seen.checkFree(o.free); err != nil {
		return err
	}
	w, err := a.watch(ctx, seen, namespace)
	if err != nil {
		return err
	}
	defer w.stop()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	pulse := time.NewTicker(pulseEvery)
	defer pulse.Stop()
	var r redrawing
	for {
		if err := w.renew(seen); err != nil {
			return err
		}
		if err := r.show(s, func(s *screen) error { return seen.showStatus(s, o, selector) }); err != nil {
			return err
		}
		r.remark(s, seen, &o)
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return nil // the user has seen enough
			case <-resized:
				again = true
			case <-w.changed:
				again = sleep(ctx, settle)
			case <-pulse.C:
				again = seen.fellSilent(ctx, a)
			}
		}
	}
}

// fellSilent reports whether the scheduler has stopped or started: how long ago that
// was is no change. Where the lease cannot be read nothing changes: that the API server
// is away shows in the watches. What may not be read has been told once.
func (v *survey) fellSilent(ctx context.Context, a *access) bool {
	before, notes := v.silence, v.notes
	defer func() { v.notes = notes }()
	if err := v.readPulse(ctx, a); err != nil {
		v.silence = before
	}
	return (v.silence == "") != (before == "")
}

// watches keep what a survey has read.
type watches struct {
	changed  chan struct{} // holds one token after a change
	gpuNodes dynamigv1alpha1.GPUNodeLister
	pods     corev1.PodLister
	nodes    corev1.NodeLister // nil where Nodes may not be read
	stop     func()
}

// watch begins with what a survey has read. What may not be read in all namespaces is
// watched in one. The watches end with ctx.
func (a *access) watch(ctx context.Context, seen *survey, namespace string) (*watches, error) {
	if !seen.hidden {
		namespace = metav1.NamespaceAll
	}
	gpus := externalversions.NewSharedInformerFactory(a.gpus, 0)
	kube := informers.NewSharedInformerFactoryWithOptions(a.kube, 0, informers.WithNamespace(namespace))
	reports, pods, nodes := gpus.Dynamig().V1alpha1().GPUNodes(), kube.Core().V1().Pods(), kube.Core().V1().Nodes()
	w := &watches{changed: make(chan struct{}, 1), gpuNodes: reports.Lister(), pods: pods.Lister()}
	all := []cache.SharedIndexInformer{reports.Informer(), pods.Informer()}
	if seen.nodes != nil {
		w.nodes, all = nodes.Lister(), append(all, nodes.Informer())
	}
	touch := func() {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	var synced []cache.InformerSynced
	for _, informer := range all {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { touch() }, UpdateFunc: func(any, any) { touch() }, DeleteFunc: func(any) { touch() },
		}); err != nil {
			return nil, err
		}
		synced = append(synced, informer.HasSynced)
	}
	ctx, cancel := context.WithCancel(ctx)
	gpus.Start(ctx.Done())
	kube.Start(ctx.Done())
	w.stop = func() {
		cancel()
		gpus.Shutdown()
		kube.Shutdown()
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		w.stop()
		return nil, ctx.Err()
	}
	return w, nil
}

// renew puts what is known now into a survey.
func (w *watches) renew(v *survey) (err error) {
	if v.gpuNodes, err = w.gpuNodes.List(labels.Everything()); err != nil {
		return err
	}
	if v.pods, err = w.pods.List(labels.Everything()); err != nil {
		return err
	}
	if v.hidden {
		v.pods = append(v.pods, v.strangers()...)
	}
	if w.nodes == nil {
		return nil
	}
	nodes, err := w.nodes.List(labels.Everything())
	v.nodes = byName(nodes)
	return err
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

// redrawing is one picture after another.
type redrawing struct {
	last   string
	warned bool // of what could not be read
	silent bool // so it was said beside the last table
}

// show clears a terminal first. Elsewhere pictures follow one another, and one that is
// like the last is left out.
func (r *redrawing) show(s *screen, draw func(*screen) error) error {
	s.measure()
	var picture strings.Builder
	to := *s
	to.out = &picture
	if err := draw(&to); err != nil {
		return err
	}
	head := "\x1b[H\x1b[2J"
	if !s.terminal {
		if picture.String() == r.last {
			return nil
		}
		head = fmt.Sprintf("--- %s\n", time.Now().Format(time.TimeOnly))
	}
	r.last = picture.String()
	_, err := fmt.Fprint(s.out, head, r.last)
	return err
}

// remark tells what stands beside pictures: on a terminal, which was cleared, beside
// each, and elsewhere once and when it changes.
func (r *redrawing) remark(s *screen, v *survey, o *statusOptions) {
	if s.terminal || !r.warned {
		v.warn(s)
	}
	silent := v.silence != ""
	switch {
	case s.terminal:
		s.noteIf(o.beside(v.silence))
	case silent != r.silent:
		s.noteIf(o.beside(cmp.Or(v.silence, v.pulse)))
	}
	r.warned, r.silent = true, silent
}
