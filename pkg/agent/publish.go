// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// apiTimeout of one call to the API server.
const apiTimeout = 10 * time.Second

// publisher keeps the own GPUNode in line with the findings.
type publisher struct {
	agent    *Agent
	object   *v1alpha1.GPUNode // as the API server gave it last; nil = ask again
	asked    time.Time         // when it was read last
	failures int               // in a row
}

// reportAll writes the report until ctx ends: soon after a change, at once where it
// is urgent, and again after a failure. Between changes it looks now and then
// whether node and report are still what they were.
func (a *Agent) reportAll(ctx context.Context) {
	p := publisher{agent: a}
	timer := time.NewTimer(0)
	defer timer.Stop()
	pending := true // timer was set by a change or a failure
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.urgent:
			timer.Reset(0)
			pending = true
			continue
		case <-a.dirty:
			if !pending {
				timer.Reset(a.config.Timing.Coalesce)
				pending = true
			}
			continue
		case <-timer.C:
		}
		wait := a.config.Timing.Check // also notices calls that hang
		pending = false
		if err := p.publish(ctx); err != nil && ctx.Err() == nil {
			wait = p.backOff()
			pending = true
			klog.FromContext(ctx).Error(err, "Could not report", "duration", wait)
		}
		timer.Reset(wait)
	}
}

func (p *publisher) backOff() time.Duration {
	p.failures++
	return min(250*time.Millisecond<<min(p.failures, 10), 30*time.Second)
}

// publish writes the report if it differs from what is there.
func (p *publisher) publish(ctx context.Context) error {
	a := p.agent
	if !a.presentable() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if time.Since(p.asked) >= a.config.Timing.Refresh {
		p.object = nil
		if err := a.learnNode(ctx); err != nil {
			klog.FromContext(ctx).V(4).Info("Could not read the own Node", "err", err)
		}
	}
	if p.object == nil {
		if err := p.fetch(ctx); err != nil {
			return err
		}
	}
	f := a.find()
	a.forgetLoss(&f)
	next := p.object.DeepCopy()
	next.Status = f.status()
	next.Status.Conditions = since(p.object.Status.Conditions, next.Status.Conditions)
	if apiequality.Semantic.DeepEqual(p.object.Status, next.Status) {
		p.failures = 0
		a.toldTrouble(f.trouble)
		return nil
	}
	written, err := a.config.GPUNodes.GPUNodes().UpdateStatus(ctx, next, metav1.UpdateOptions{})
	if err != nil {
		p.object = nil // somebody else wrote or deleted it
		a.metrics.reportErrors.Inc()
		return fmt.Errorf("writing status of GPUNode %s: %w", a.config.Node, err)
	}
	p.object, p.failures = written, 0
	a.toldTrouble(f.trouble)
	a.metrics.reportsWritten.Inc()
	klog.FromContext(ctx).V(4).Info("Reported", "node", a.config.Node)
	return nil
}

// presentable reports whether the findings are complete. After a start they are
// not, and an unfinished report would take away for a moment what the last one
// said. What keeps them from being complete for long is to be reported, though.
func (a *Agent) presentable() bool {
	a.mu.Lock()
	bad := a.trouble != "" || a.settings == nil
	a.mu.Unlock()
	if bad || time.Since(a.began) >= a.config.Timing.Hang {
		return true
	}
	select {
	case <-a.ready:
		return a.owners.isSynced()
	default:
		return false
	}
}

// since gives conditions the time of their last transition.
func since(before, now []metav1.Condition) []metav1.Condition {
	out := append([]metav1.Condition(nil), before...)
	for _, c := range now {
		meta.SetStatusCondition(&out, c)
	}
	return out
}

// fetch reads the own GPUNode, and creates it where there is none.
func (p *publisher) fetch(ctx context.Context) error {
	a := p.agent
	client := a.config.GPUNodes.GPUNodes()
	object, err := client.Get(ctx, a.config.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		object, err = p.create(ctx)
	}
	if err != nil {
		return fmt.Errorf("reading GPUNode %s: %w; are the CRD and the agent's RBAC rules installed?", a.config.Node, err)
	}
	p.object, p.asked = object, time.Now()
	return nil
}

// create makes the own GPUNode. It belongs to the Node: the garbage collector
// removes it with the Node, and one of an earlier Node of this name, too.
func (p *publisher) create(ctx context.Context) (*v1alpha1.GPUNode, error) {
	a := p.agent
	var node nodeRecord
	a.journal.read(func(c *content) { node = c.Node })
	if node.UID == "" {
		return nil, errors.New("the UID of the own Node is not known yet")
	}
	return a.config.GPUNodes.GPUNodes().Create(ctx, &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{
		Name: a.config.Node,
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Node", Name: a.config.Node, UID: node.UID,
		}},
	}}, metav1.CreateOptions{})
}

// forgetLoss forgets that the journal was lost once it does not matter any more:
// every GPU was looked at with all pods known, and no instance is of unknown origin.
func (a *Agent) forgetLoss(f *findings) {
	if f.lost == "" || f.inventory == nil || len(f.inventory.gpus) == 0 || len(f.foreign()) > 0 {
		return
	}
	known := true
	a.journal.read(func(c *content) {
		for i := range f.inventory.gpus {
			known = known && c.Adopted[string(f.inventory.gpus[i].ID)] && f.states[i].model != nil && f.states[i].unhealthy == ""
		}
	})
	if known {
		a.journal.change(func(c *content) {
			c.Lost = ""
			clear(c.Adopted)
		})
	}
}
