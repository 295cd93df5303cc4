// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package stack runs dynamig on a test cluster: it applies the manifests, starts
// scheduler and agents as host processes with the arguments of the applied objects,
// and gives nodes simulated GPUs. Demo and end-to-end tests share it.
//
//	manifests/ --kubectl apply -k--> Deployment, DaemonSet, ConfigMaps, RBAC
//	                                      |  arguments, files, ServiceAccounts
//	                                      v
//	                   scheduler (host)   nodeagent (in each node's namespaces)
//
// stack knows the product's programs and manifests. It does not know what is
// tested.
package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
	"github.com/dynamig/dynamig/test/cluster"
)

// Namespace of the product.
const Namespace = "dynamig-system"

// Config says what to run.
type Config struct {
	Cluster  cluster.Config
	Repo     string // root of the repository: manifests are applied from there
	Programs string // directory with scheduler and nodeagent
}

// Stack is dynamig on a running test cluster.
type Stack struct {
	Cluster *cluster.Cluster
	Kube    kubernetes.Interface
	GPUs    versioned.Interface

	cfg Config

	// Count is the resource that counts devices; HAMi's where it is empty.
	Count v1.ResourceName
}

// Up starts the cluster, applies the manifests and starts the scheduler. There are
// no nodes yet: see AddNode.
func Up(ctx context.Context, cfg Config) (*Stack, error) {
	c, err := cluster.Start(ctx, cfg.Cluster)
	if err != nil {
		return nil, err
	}
	s, err := wrap(cfg, c)
	if err == nil {
		err = s.install(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// Open opens a stack that runs.
func Open(cfg Config) (*Stack, error) {
	c, err := cluster.Open(cfg.Cluster)
	if err != nil {
		return nil, err
	}
	return wrap(cfg, c)
}

func wrap(cfg Config, c *cluster.Cluster) (*Stack, error) {
	for _, path := range []*string{&cfg.Repo, &cfg.Programs} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = abs
	}
	gpus, err := versioned.NewForConfig(c.RESTConfig())
	if err != nil {
		return nil, fmt.Errorf("creating the client of GPUNodes: %w", err)
	}
	return &Stack{Cluster: c, Kube: c.Client(), GPUs: gpus, cfg: cfg}, nil
}

// install applies the manifests and starts the scheduler.
func (s *Stack) install(ctx context.Context) error {
	err := s.Step("manifests", func() error {
		if _, err := s.Cluster.Kubectl(ctx, "apply", "-k", filepath.Join(s.cfg.Repo, "test/stack/hostprocess")); err != nil {
			return err
		}
		_, err := s.Cluster.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=60s", "crd/gpunodes.dynamig.io")
		return err
	})
	if err != nil {
		return err
	}
	return s.Step("scheduler", func() error { return s.StartScheduler(ctx) })
}

// Step does something and tells Config.Cluster.Out how long it took.
func (s *Stack) Step(what string, do func() error) error {
	began := time.Now()
	if err := do(); err != nil {
		return err
	}
	if s.cfg.Cluster.Out != nil {
		fmt.Fprintf(s.cfg.Cluster.Out, "%-40s %5.1fs\n", what, time.Since(began).Seconds())
	}
	return nil
}

// StartScheduler starts the scheduler as the Deployment describes it, with more flags.
func (s *Stack) StartScheduler(ctx context.Context, flags ...string) error {
	d, err := s.Kube.AppsV1().Deployments(Namespace).Get(ctx, "dynamig-scheduler", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading the scheduler's Deployment: %w", err)
	}
	kubeconfig, err := s.Cluster.ServiceAccountKubeconfig(ctx, Namespace, d.Spec.Template.Spec.ServiceAccountName, "")
	if err != nil {
		return err
	}
	p, err := s.program(ctx, "scheduler", &d.Spec.Template.Spec, nil)
	if err != nil {
		return err
	}
	if err := p.adapt(filepath.Join(p.dir, "config.yaml"), kubeconfig); err != nil {
		return err
	}
	port := s.Cluster.Port(cluster.FreePort)
	argv := append(p.argv, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port),
		"--monitor-bind-address=127.0.0.1", fmt.Sprintf("--monitor-port=%d", port+monitorOffset),
		"--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig)
	_, err = s.Cluster.StartProcess("scheduler", append(argv, flags...), p.env)
	return err
}

// SchedulerFile is the path of a file of the scheduler's configuration, which it
// follows.
func (s *Stack) SchedulerFile(name string) string {
	return filepath.Join(s.Cluster.Dir(), "config", "scheduler", name)
}

// monitorOffset is from the scheduler's own port to its monitor's.
const monitorOffset = 1

// Monitor is the address of the scheduler's monitor.
func (s *Stack) Monitor() string {
	return fmt.Sprintf("http://127.0.0.1:%d", s.Cluster.Port(cluster.FreePort)+monitorOffset)
}

// adapt fits the scheduler's configuration to the test cluster. It names a
// kubeconfig, since a host process has no ServiceAccount mounted, and adds a stock
// profile, since the cluster has no kube-scheduler of its own. Files are where the
// program's are.
func (p *program) adapt(file, kubeconfig string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(string(text), " "+p.mount+"/", " "+p.dir+"/")), &config); err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	connection, _ := config["clientConnection"].(map[string]any)
	if connection == nil {
		connection = map[string]any{}
	}
	connection["kubeconfig"] = kubeconfig
	config["clientConnection"] = connection
	profiles, _ := config["profiles"].([]any)
	config["profiles"] = append(profiles, map[string]any{"schedulerName": v1.DefaultSchedulerName})
	if text, err = yaml.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// daemonSet is the agent's.
func (s *Stack) daemonSet(ctx context.Context) (*appsv1.DaemonSet, error) {
	d, err := s.Kube.AppsV1().DaemonSets(Namespace).Get(ctx, "dynamig-nodeagent", metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the agent's DaemonSet: %w", err)
	}
	return d, nil
}

// program is how to run a pod's only container as a host process.
type program struct {
	argv  []string
	env   []string
	mount string // where the pod has the files of its ConfigMaps
	dir   string // where the program has them
}

// program translates a pod: the image becomes a file of Config.Programs, the
// ConfigMap's mount a directory, fields of the pod the values given.
func (s *Stack) program(ctx context.Context, name string, pod *v1.PodSpec, fields map[string]string) (program, error) {
	c := pod.Containers[0]
	p := program{argv: []string{filepath.Join(s.cfg.Programs, name)}, dir: filepath.Join(s.Cluster.Dir(), "config", name+fields["spec.nodeName"])}
	var err error
	if p.mount, err = s.writeConfig(ctx, pod, p.dir); err != nil {
		return program{}, err
	}
	values := map[string]string{}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			value = fields[e.ValueFrom.FieldRef.FieldPath]
			if e.ValueFrom.FieldRef.FieldPath == "metadata.namespace" {
				value = Namespace
			}
		}
		values[e.Name] = value
		p.env = append(p.env, e.Name+"="+value)
	}
	for _, arg := range c.Args {
		p.argv = append(p.argv, rebase(expand(arg, values), p.mount, p.dir))
	}
	return p, nil
}

// writeConfig writes the pod's volume of ConfigMaps to dir and returns where the
// container would have it mounted. Of items, all keys keep their names.
func (s *Stack) writeConfig(ctx context.Context, pod *v1.PodSpec, dir string) (mount string, err error) {
	for _, v := range pod.Volumes {
		names := configMapsOf(v)
		if len(names) == 0 {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		for _, name := range names {
			m, err := s.Kube.CoreV1().ConfigMaps(Namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return "", fmt.Errorf("reading the program's ConfigMap: %w", err)
			}
			for key, text := range m.Data {
				if err := os.WriteFile(filepath.Join(dir, key), []byte(text), 0o644); err != nil {
					return "", err
				}
			}
		}
		for _, at := range pod.Containers[0].VolumeMounts {
			if at.Name == v.Name {
				return at.MountPath, nil
			}
		}
	}
	return "", errors.New("reading the program's pod: it has no ConfigMap volume")
}

// configMapsOf lists the ConfigMaps that a volume is made of.
func configMapsOf(v v1.Volume) (names []string) {
	switch {
	case v.ConfigMap != nil:
		names = append(names, v.ConfigMap.Name)
	case v.Projected != nil:
		for _, source := range v.Projected.Sources {
			if source.ConfigMap != nil {
				names = append(names, source.ConfigMap.Name)
			}
		}
	}
	return names
}
