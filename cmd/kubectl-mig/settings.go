// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/arguments"
)

// schedulerDeployment runs the scheduler; its volume names the ConfigMap, whose name
// has a hash in it.
const schedulerDeployment = "dynamig-scheduler"

// readOptions takes the plugin's arguments from the scheduler's ConfigMap. Where it
// cannot be read, the defaults are assumed and that is noted.
func (s *survey) readOptions(ctx context.Context, a *access) error {
	args, err := a.arguments(ctx)
	var api apierrors.APIStatus
	switch {
	case err == nil:
	case errors.As(err, &api) && !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err):
		return fmt.Errorf("reading the scheduler's arguments: %w", err)
	default:
		s.note("the scheduler's arguments are taken to be the defaults (oversize: Allow, strictMemory: false): %v", err)
	}
	if args.DeviceConfig != "" {
		s.note("the scheduler's argument deviceConfig is not looked at here: what other resource names and defaults mean may differ")
		args.DeviceConfig = ""
	}
	s.opts, err = args.Options(nil)
	return err
}

// arguments are those of the scheduler's configuration; the defaults beside an error.
func (a *access) arguments(ctx context.Context) (arguments.DynamicMIG, error) {
	defaults, _ := arguments.Decode(nil) // has no error
	d, err := a.kube.AppsV1().Deployments(a.schedulerNamespace).Get(ctx, schedulerDeployment, metav1.GetOptions{})
	if err != nil {
		return defaults, err
	}
	text, err := a.configuration(ctx, d)
	if err != nil {
		return defaults, err
	}
	args, err := argumentsOf(text)
	if err != nil {
		return defaults, err
	}
	return args, nil
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

// argumentsOf reads the plugin's arguments. The defaults are those of a configuration
// that says nothing of it.
func argumentsOf(configuration string) (arguments.DynamicMIG, error) {
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
		return arguments.DynamicMIG{}, err
	}
	for _, p := range c.Profiles {
		for _, plugin := range p.PluginConfig {
			if p.SchedulerName == v1alpha1.SchedulerName && plugin.Name == "DynamicMIG" {
				return arguments.Decode(plugin.Args)
			}
		}
	}
	return arguments.Decode(nil)
}
