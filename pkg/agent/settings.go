// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
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
// last good one in force, and is reported.
func (a *Agent) reload(ctx context.Context) {
	s, digest, err := readSettings(&a.config)
	a.mu.Lock()
	before := a.invalid
	if err != nil {
		a.invalid = err.Error()
	} else {
		a.invalid = ""
		s.generation = a.count(digest)
		a.settings = s
	}
	a.mu.Unlock()
	if err != nil && err.Error() != before {
		var uid types.UID
		a.journal.read(func(c *content) { uid = c.Node.UID })
		a.events.configInvalid(uid, "The last good configuration stays in force: "+err.Error())
		klog.FromContext(ctx).Error(err, "The configuration is invalid")
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
func CheckConfig(deviceConfig, nodeConfig, migParted string) error {
	_, _, err := readSettings(&Config{DeviceConfig: deviceConfig, NodeConfig: nodeConfig, MIGPartedConfig: migParted})
	return err
}

// readSettings reads the files, and returns a digest of them, too. The error joins the
// problems of all.
func readSettings(c *Config) (*settings, string, error) {
	s := &settings{device: config.DefaultDevice()}
	sum := sha256.New()
	var problems []error
	read := func(file string, parse func([]byte) error) {
		if file == "" {
			return
		}
		text, err := os.ReadFile(file)
		if err != nil {
			problems = append(problems, fmt.Errorf("reading configuration: %w", err))
			return
		}
		fmt.Fprintf(sum, "%d ", len(text))
		_, _ = sum.Write(text)
		if err := parse(text); err != nil {
			problems = append(problems, err)
		}
	}
	read(c.DeviceConfig, func(text []byte) (err error) {
		s.device, err = config.ParseDevice(c.DeviceConfig, text)
		return err
	})
	var cuts *config.MIGParted
	read(c.MIGPartedConfig, func(text []byte) (err error) {
		cuts, err = config.ParseMIGParted(c.MIGPartedConfig, text)
		return err
	})
	read(c.NodeConfig, func(text []byte) (err error) {
		s.nodes, err = config.ParseNode(c.NodeConfig, text)
		if err != nil || cuts == nil && c.MIGPartedConfig != "" {
			return err // what a bad file of mig-parted would have cannot be told
		}
		return s.nodes.UseMIGParted(cuts)
	})
	if err := errors.Join(problems...); err != nil {
		return nil, "", err
	}
	return s, hex.EncodeToString(sum.Sum(nil)), nil
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
