// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/validation"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/plugins/dynamicmig"
)

const shippedConfig = "../../manifests/base/scheduler/config.yaml"

// shipped is the configuration that users get, read by kube-scheduler's own reader.
func shipped(t *testing.T) *config.KubeSchedulerConfiguration {
	t.Helper()
	c, err := options.LoadConfigFromFile(klog.FromContext(t.Context()), shippedConfig)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestShippedConfigIsValid(t *testing.T) {
	c := shipped(t)
	if err := validation.ValidateKubeSchedulerConfiguration(c); err != nil {
		t.Error(err)
	}
	var names []string
	for _, p := range c.Profiles {
		names = append(names, p.SchedulerName)
	}
	// A second scheduler of name default-scheduler would race the cluster's own.
	if diff := cmp.Diff([]string{v1alpha1.SchedulerName}, names); diff != "" {
		t.Errorf("profiles (-want +got):\n%s", diff)
	}
	if c.ClientConnection.QPS != 1000 || c.ClientConnection.Burst != 2000 {
		t.Errorf("clientConnection is %v/%v, want 1000/2000: the default is the bottleneck", c.ClientConnection.QPS, c.ClientConnection.Burst)
	}
}

// The reader is strict, so that a slip in the file is found here and not in a
// cluster.
func TestConfigIsReadStrictly(t *testing.T) {
	text, err := os.ReadFile(shippedConfig)
	if err != nil {
		t.Fatal(err)
	}
	slips := map[string][2]string{
		"an unknown field":         {"schedulerName:", "nameOfScheduler:"},
		"a field twice":            {"  qps: 1000", "  qps: 1000\n  qps: 50"},
		"a field at a wrong level": {"  plugins:", "  multiPoint: {}\n  plugins:"},
	}
	for what, slip := range slips {
		t.Run(what, func(t *testing.T) {
			changed := strings.Replace(string(text), slip[0], slip[1], 1)
			if changed == string(text) {
				t.Fatalf("the file has no %q", slip[0])
			}
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := options.LoadConfigFromFile(klog.FromContext(t.Context()), path); err == nil {
				t.Error("the configuration was read, want an error")
			}
		})
	}
}

// unreachable is an API server that cannot be reached.
type unreachable struct{}

func (unreachable) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("connection refused")
}

// build makes kube-scheduler as main does, with the shipped configuration and a
// stock profile beside it, as a cluster without another scheduler would have.
func build(t *testing.T) profile.Map {
	t.Helper()
	registry := frameworkruntime.Registry{}
	for _, option := range plugins(&monitor.Config{}) {
		if err := option(registry); err != nil {
			t.Fatal(err)
		}
	}
	client := fake.NewClientset()
	recorders := profile.RecorderFactory(func(string) events.EventRecorderLogger { return events.NewFakeRecorder(100) })
	s, err := scheduler.New(t.Context(), client, scheduler.NewInformerFactory(client, 0, nil), nil, recorders,
		scheduler.WithKubeConfig(&rest.Config{Host: "http://api.invalid", Transport: unreachable{}}),
		scheduler.WithProfiles(append(withDeviceConfig(t, shipped(t).Profiles), stock(t))...),
		scheduler.WithFrameworkOutOfTreeRegistry(registry))
	if err != nil {
		t.Fatal(err)
	}
	return s.Profiles
}

// stock is kube-scheduler's own profile.
func stock(t *testing.T) config.KubeSchedulerProfile {
	t.Helper()
	c, err := latest.Default()
	if err != nil {
		t.Fatal(err)
	}
	return c.Profiles[0]
}

func names(set config.PluginSet) []string {
	var out []string
	for _, p := range set.Enabled {
		out = append(out, p.Name)
	}
	return out
}

func TestProgramRunsTheShippedConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		profiles := build(t)
		ours, stock := profiles[v1alpha1.SchedulerName].ListPlugins(), profiles["default-scheduler"].ListPlugins()
		for point, set := range map[string]config.PluginSet{
			"PreFilter": ours.PreFilter, "Filter": ours.Filter, "PreScore": ours.PreScore, "Score": ours.Score,
			"Reserve": ours.Reserve, "PreBind": ours.PreBind, "PostBind": ours.PostBind,
		} {
			if !contains(set, dynamicmig.Name) {
				t.Errorf("%s of our profile has %v, want %s among them", point, names(set), dynamicmig.Name)
			}
		}
		for point, set := range map[string]config.PluginSet{"PreFilter": ours.PreFilter, "Filter": ours.Filter} {
			if !contains(set, dynamicmig.FitName) || contains(set, "NodeResourcesFit") {
				t.Errorf("%s of our profile has %v, want %s in place of NodeResourcesFit", point, names(set), dynamicmig.FitName)
			}
		}
		if got := names(ours.Filter)[0]; got != dynamicmig.Name {
			t.Errorf("the first Filter is %s, want %s: full nodes cost least so", got, dynamicmig.Name)
		}
		if got := names(ours.Bind); len(got) != 2 || got[0] != dynamicmig.Name {
			t.Errorf("Bind has %v, want %s first: the allocation travels in the Binding", got, dynamicmig.Name)
		}
		for _, spreads := range []string{dynamicmig.FitName, "NodeResourcesBalancedAllocation"} {
			if contains(ours.Score, spreads) {
				t.Errorf("Score of our profile has %s, which spreads where GPUs are to be packed", spreads)
			}
		}
		for _, set := range []config.PluginSet{stock.PreFilter, stock.Filter, stock.Score, stock.PreBind} {
			if contains(set, dynamicmig.Name) || contains(set, dynamicmig.FitName) {
				t.Errorf("the stock profile has %v", names(set))
			}
		}
		if !contains(stock.Filter, "NodeResourcesFit") {
			t.Errorf("Filter of the stock profile has %v, want NodeResourcesFit among them", names(stock.Filter))
		}
	})
}

// TestOneStepOfOursIsAboveAllOthersTogether: see NormalizeScore.
func TestOneStepOfOursIsAboveAllOthersTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ours, others int64
		for _, p := range build(t)[v1alpha1.SchedulerName].ListPlugins().Score.Enabled {
			if p.Name == dynamicmig.Name {
				ours = int64(p.Weight)
			} else {
				others += int64(p.Weight)
			}
		}
		if most := others * fwk.MaxScore; ours <= most || others == 0 {
			t.Errorf("a step of DynamicMIG counts %d, all others together up to %d; want more", ours, most)
		}
	})
}

func contains(set config.PluginSet, name string) bool {
	for _, p := range set.Enabled {
		if p.Name == name {
			return true
		}
	}
	return false
}

// withDeviceConfig lets the profiles name the shipped device configuration where it
// is in the repository.
func withDeviceConfig(t *testing.T, profiles []config.KubeSchedulerProfile) []config.KubeSchedulerProfile {
	t.Helper()
	for _, c := range profiles[0].PluginConfig {
		if args, ok := c.Args.(*runtime.Unknown); ok && c.Name == dynamicmig.Name {
			mounted, here := []byte("/etc/dynamig/"), []byte("../../manifests/base/nodeagent/")
			if !bytes.Contains(args.Raw, mounted) {
				t.Errorf("the arguments of %s name no file in %s: %s", dynamicmig.Name, mounted, args.Raw)
			}
			args.Raw = bytes.ReplaceAll(args.Raw, mounted, here)
		}
	}
	return profiles
}

// TestVersion: this program's own, and that of the kube-scheduler in it.
func TestVersion(t *testing.T) {
	var out bytes.Buffer
	cmd := app.NewSchedulerCommand()
	tellVersion(cmd)
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--version"})
	if err := cmd.Execute(); err != nil || !regexp.MustCompile(`^dynamig scheduler .*, go1\..*, kube-scheduler (v1\.\d+\.\d+|unknown)\n$`).MatchString(out.String()) {
		t.Errorf("--version says %q, %v", &out, err)
	}
}
