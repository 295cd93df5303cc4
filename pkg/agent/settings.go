// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
)

// settings is the configuration in force. It does not change.
type settings struct {
	generation int64 // counts configurations over restarts
	device     *config.Device
	nodes      *config.Node // nil where no file says anything
}

// entry is what the configuration says of this node; ok is false when that is
// nothing.
func (s *settings) entry(node string, labels map[string]string) (e config.NodeEntry, ok bool) {
	if s == nil || s.nodes == nil {
		return config.NodeEntry{}, false
	}
	return s.nodes.For(node, labels)
}

// configFiles lists the files that are watched.
func (a *Agent) configFiles() []string {
	var files []string
	for _, file := range []string{a.config.DeviceConfig, a.config.NodeConfig, a.config.MIGPartedConfig} {
		if file != "" {
			files = append(files, file)
		}
	}
	return files
}

// reload reads the configuration and puts it in force. An invalid one leaves the
// last good one in force, that of an earlier run at the start, and is reported.
func (a *Agent) reload(ctx context.Context) {
	files, problems := readFiles(&a.config)
	s, digest, err := files.settings(&a.config, problems)
	a.mu.Lock()
	before, first := a.invalid, a.settings == nil
	a.mu.Unlock()
	invalid := ""
	switch {
	case err == nil:
		a.keepGood(ctx, &files)
	case first:
		var spoilt error
		if s, digest, spoilt = a.config.lastGood(); spoilt != nil {
			klog.FromContext(ctx).Error(spoilt, "Could not use the last good configuration")
		}
	}
	if err != nil {
		invalid = err.Error()
	}
	a.mu.Lock()
	if a.invalid = invalid; s != nil {
		s.generation = a.count(digest)
		a.settings = s
	}
	inForce := "There is no good configuration, so nothing is offered"
	if a.settings != nil {
		inForce = v1alpha1.LastGoodInForce
	}
	a.mu.Unlock()
	if invalid != "" && invalid != before {
		var uid types.UID
		a.journal.read(func(c *content) { uid = c.Node.UID })
		a.events.configInvalid(uid, inForce+": "+invalid)
		klog.FromContext(ctx).Error(err, "The configuration is invalid. "+inForce)
	}
	signal(a.rearrange)
	a.changed(true)
}

// count returns the number of a configuration: a new one when it is not the one
// that was in force before.
func (a *Agent) count(digest string) int64 {
	var generation int64
	a.journal.change(func(c *content) {
		if c.Config.Digest != digest {
			c.Config = configRecord{Generation: c.Config.Generation + 1, Digest: digest}
		}
		generation = c.Config.Generation
	})
	return generation
}

// CheckConfig says what the agent would say of configuration files, a line for each
// problem; an empty name stands for no file. It asks neither hardware nor cluster.
// The notes are of good files, what may not have been meant.
func CheckConfig(deviceConfig, nodeConfig, migParted string) (notes []string, err error) {
	c := &Config{DeviceConfig: deviceConfig, NodeConfig: nodeConfig, MIGPartedConfig: migParted}
	files, problems := readFiles(c)
	s, _, err := files.settings(c, problems)
	if err == nil && s.nodes != nil && len(s.nodes.Entries) == 0 {
		notes = append(notes, nodeConfig+" selects no node, so that none offers GPUs; add an entry to nodeconfig.")
	}
	return notes, err
}

// firstNode learns who the node is before anything else, where no earlier run has
// left it in the journal. It does not wait long for the API server.
func (a *Agent) firstNode(ctx context.Context) {
	known := false
	a.journal.read(func(c *content) { known = c.Node.UID != "" })
	if known {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := a.learnNode(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Could not read the own Node; going on without its labels for now")
	}
}

// learnNode reads the own Node. Labels choose the configuration's entry, and the
// UID tells a node from a later one of the same name.
func (a *Agent) learnNode(ctx context.Context) error {
	node, err := a.config.Client.CoreV1().Nodes().Get(ctx, a.config.Node, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading node %s: %w", a.config.Node, err)
	}
	cordoned := node.Annotations[v1alpha1.AnnotationCordon]
	a.mu.Lock()
	news := a.cordoned != cordoned
	a.cordoned = cordoned
	a.mu.Unlock()
	if news {
		signal(a.rearrange)
		a.changed(true)
	}
	a.journal.read(func(c *content) {
		news = c.Node.UID != node.UID || !maps.Equal(c.Node.Labels, node.Labels)
	})
	if news {
		a.journal.change(func(c *content) { c.Node = nodeRecord{UID: node.UID, Labels: node.Labels} })
		signal(a.rearrange)
		a.changed(false)
	}
	return nil
}

// unsupported lists what the device configuration asks for and this agent cannot.
func (s *settings) unsupported(used v1.ResourceName) []string {
	if name := s.device.ResourceCountName; name != string(used) {
		return []string{fmt.Sprintf("resourceCountName is %s now, and the agent offers %s until it is restarted.", name, used)}
	}
	return nil
}
