// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/pool"
)

// schedulerDeployment runs the scheduler; its volume names the ConfigMap, whose name
// has a hash in it.
const schedulerDeployment = "dynamig-scheduler"

// readOptions takes the plugin's arguments from the scheduler's ConfigMap. Where it
// is not found or may not be read, the defaults are assumed and that is noted.
func (s *survey) readOptions(ctx context.Context, a *access) error {
	d, err := a.kube.AppsV1().Deployments(a.schedulerNamespace).Get(ctx, schedulerDeployment, metav1.GetOptions{})
	if err == nil {
		var text string
		if text, err = a.configuration(ctx, d); err == nil {
			s.opts, s.partly, err = optionsOf(text)
		}
	}
	if s.partly {
		s.note("the scheduler's arguments mix and deviceConfig are not looked at here: which of several places is best, and what other resource names and defaults mean, may differ")
	}
	switch {
	case apierrors.IsForbidden(err), apierrors.IsNotFound(err):
		s.note("the scheduler's arguments are taken to be the defaults (oversize: Allow, strictMemory: false): %v", err)
	case err != nil:
		return fmt.Errorf("reading the scheduler's arguments: %w", err)
	}
	return nil
}

// configuration finds the scheduler's configuration file among the ConfigMaps that
// the Deployment mounts.
func (a *access) configuration(ctx context.Context, d *appsv1.Deployment) (string, error) {
	for _, v := range d.Spec.Template.Spec.Volumes {
		if v.ConfigMap == nil {
			continue
		}
		m, err := a.kube.CoreV1().ConfigMaps(d.Namespace).Get(ctx, v.ConfigMap.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		for _, text := range m.Data {
			if strings.Contains(text, "KubeSchedulerConfiguration") {
				return text, nil
			}
		}
	}
	return "", fmt.Errorf("no ConfigMap of deployment %s/%s has a KubeSchedulerConfiguration", d.Namespace, d.Name)
}

// optionsOf reads what concerns decisions of the plugin's arguments. The plugin
// itself has checked them: a scheduler with others does not start.
// partly says that there are arguments about decisions that are not read here.
func optionsOf(configuration string) (opts pool.Options, partly bool, err error) {
	var c struct {
		Profiles []struct {
			SchedulerName string `json:"schedulerName"`
			PluginConfig  []struct {
				Name string          `json:"name"`
				Args json.RawMessage `json:"args"`
			} `json:"pluginConfig"`
		} `json:"profiles"`
	}
	if err := yaml.Unmarshal([]byte(configuration), &c); err != nil {
		return opts, false, err
	}
	var args struct {
		Oversize            string            `json:"oversize"`
		StrictMemory        bool              `json:"strictMemory"`
		NodeSchedulerPolicy geometry.Policy   `json:"nodeSchedulerPolicy"`
		GPUSchedulerPolicy  geometry.Policy   `json:"gpuSchedulerPolicy"`
		Mix                 []json.RawMessage `json:"mix"`
		DeviceConfig        string            `json:"deviceConfig"`
	}
	for _, p := range c.Profiles {
		for _, plugin := range p.PluginConfig {
			if p.SchedulerName == v1alpha1.SchedulerName && plugin.Name == "DynamicMIG" {
				if err := json.Unmarshal(plugin.Args, &args); err != nil {
					return opts, false, err
				}
			}
		}
	}
	opts = pool.Options{
		NoOversize: args.Oversize == "Never", StrictMemory: args.StrictMemory,
		Policy: pool.Policy{Node: args.NodeSchedulerPolicy, GPU: args.GPUSchedulerPolicy},
	}
	return opts, len(args.Mix) > 0 || args.DeviceConfig != "", nil
}
