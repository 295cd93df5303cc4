// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/arguments"
	"github.com/dynamig/dynamig/pkg/pool"
)

// schedulerDeployment runs the scheduler; its volume names the ConfigMap, whose name
// has a hash in it.
const schedulerDeployment = "dynamig-scheduler"

// readOptions takes the plugin's arguments, and the device configuration that they
// name, from the scheduler's ConfigMaps.
func (s *survey) readOptions(ctx context.Context, a *access) (err error) {
	s.opts, s.notes, err = a.options(ctx)
	return err
}

// options are what the scheduler's arguments mean, with notes where the defaults are
// assumed.
func (a *access) options(ctx context.Context) (opts pool.Options, notes []string, err error) {
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	args, readFile, err := a.arguments(ctx)
	var api apierrors.APIStatus
	switch {
	case err == nil:
	case errors.As(err, &api) && !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err):
		return opts, nil, fmt.Errorf("reading the scheduler's arguments: %w", err)
	default:
		note("the scheduler's arguments are taken to be the defaults (oversize: Allow, strictMemory: false): %v", err)
	}
	if opts, err = args.Options(readFile); err != nil {
		note("HAMi's names of resources and defaults of requests are assumed: %v", err)
	}
	return opts, notes, nil
}

// arguments are those of the scheduler's configuration; the defaults beside an error.
// readFile reads what they name.
func (a *access) arguments(ctx context.Context) (args arguments.DynamicMIG, readFile func(string) ([]byte, error), err error) {
	defaults, _ := arguments.Decode(nil) // has no error
	d, err := a.kube.AppsV1().Deployments(a.schedulerNamespace).Get(ctx, schedulerDeployment, metav1.GetOptions{})
	if err != nil {
		return defaults, nil, err
	}
	files, err := a.mounted(ctx, d)
	if err != nil {
		return defaults, nil, err
	}
	text, err := configuration(d, files)
	if err != nil {
		return defaults, nil, err
	}
	if args, err = argumentsOf(text); err != nil {
		return defaults, nil, err
	}
	return args, func(name string) ([]byte, error) {
		if text, ok := files[name]; ok {
			return []byte(text), nil
		}
		return nil, fmt.Errorf("no ConfigMap of deployment %s/%s is mounted as %s", d.Namespace, d.Name, name)
	}, nil
}

// mounted are the files that containers of the Deployment have of ConfigMaps, by path.
func (a *access) mounted(ctx context.Context, d *appsv1.Deployment) (map[string]string, error) {
	files := map[string]string{}
	for _, v := range d.Spec.Template.Spec.Volumes {
		for _, source := range sourcesOf(v) {
			m, err := a.kube.CoreV1().ConfigMaps(d.Namespace).Get(ctx, source.Name, metav1.GetOptions{})
			if err != nil {
				return nil, err
			}
			for name, text := range contentOf(m, source.Items) {
				for _, dir := range mountsOf(d, v.Name) {
					files[path.Join(dir, name)] = text
				}
			}
		}
	}
	return files, nil
}

// sourcesOf are the ConfigMaps that a volume is made of.
func sourcesOf(v v1.Volume) (sources []v1.ConfigMapProjection) {
	if c := v.ConfigMap; c != nil {
		sources = append(sources, v1.ConfigMapProjection{LocalObjectReference: c.LocalObjectReference, Items: c.Items})
	}
	if v.Projected != nil {
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				sources = append(sources, *s.ConfigMap)
			}
		}
	}
	return sources
}

// contentOf are the files that a volume makes of a ConfigMap: all keys, or the items.
func contentOf(m *v1.ConfigMap, items []v1.KeyToPath) map[string]string {
	if len(items) == 0 {
		return m.Data
	}
	out := map[string]string{}
	for _, i := range items {
		out[i.Path] = m.Data[i.Key]
	}
	return out
}

// mountsOf are the directories where containers have a volume.
func mountsOf(d *appsv1.Deployment, volume string) (dirs []string) {
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, m := range c.VolumeMounts {
			if m.Name == volume {
				dirs = append(dirs, m.MountPath)
			}
		}
	}
	return dirs
}

// configuration finds the scheduler's configuration among its files: the one that
// --config names, else the first that looks like one.
func configuration(d *appsv1.Deployment, files map[string]string) (string, error) {
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, arg := range slices.Concat(c.Command, c.Args) {
			if name, ok := strings.CutPrefix(arg, "--config="); ok && files[name] != "" {
				return files[name], nil
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.Contains(files[name], "KubeSchedulerConfiguration") {
			return files[name], nil
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
