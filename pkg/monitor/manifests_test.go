// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/spf13/pflag"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/monitor"
)

// TestMonitorInternalHasNoNodePort: what the component does to the Service.
func TestMonitorInternalHasNoNodePort(t *testing.T) {
	var after v1.Service
	patched(t, "monitor-internal", "base/scheduler/service.yaml", &after)
	if after.Spec.Type != v1.ServiceTypeClusterIP || len(after.Spec.Ports) != 1 || after.Spec.Ports[0].NodePort != 0 || after.Spec.Ports[0].Port != 9395 {
		t.Errorf("the Service is %+v", after.Spec)
	}
}

// TestMonitorAuthenticationFits: the flags that the component adds are valid together,
// and name files of the Secret that it mounts.
func TestMonitorAuthenticationFits(t *testing.T) {
	var after appsv1.Deployment
	patched(t, "monitor-authentication", "base/scheduler/deployment.yaml", &after)
	pod := &after.Spec.Template.Spec
	var cfg monitor.Config
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true // the scheduler's own
	cfg.AddFlags(flags)
	if err := flags.Parse(pod.Containers[0].Args); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil || !cfg.Authenticate {
		t.Errorf("flags %v: authentication %t, %v", pod.Containers[0].Args, cfg.Authenticate, err)
	}
	secret := ""
	for _, v := range pod.Volumes {
		for _, m := range pod.Containers[0].VolumeMounts {
			if m.Name == v.Name && v.Secret != nil && cfg.CertFile == m.MountPath+"/"+v1.TLSCertKey && cfg.KeyFile == m.MountPath+"/"+v1.TLSPrivateKeyKey {
				secret = v.Secret.SecretName
			}
		}
	}
	if secret != "dynamig-monitor-tls" {
		t.Errorf("%s and %s are in Secret %q", cfg.CertFile, cfg.KeyFile, secret)
	}
}

// patched is an object of the base after the patches of a component, which must all be
// for it.
func patched(t *testing.T, component, file string, into metav1.Object) {
	t.Helper()
	var k struct {
		Patches []struct {
			Target struct{ Kind, Name string }
			Patch  string
		}
	}
	read(t, "components/"+component+"/kustomization.yaml", &k)
	var object json.RawMessage
	read(t, file, &object)
	for _, p := range k.Patches {
		text, err := yaml.YAMLToJSON([]byte(p.Patch))
		if err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(text)
		if err == nil {
			object, err = patch.Apply(object)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := yaml.UnmarshalStrict(object, into); err != nil {
		t.Fatal(err)
	}
	kind := into.(runtime.Object).GetObjectKind().GroupVersionKind().Kind
	for _, p := range k.Patches {
		if p.Target.Name != into.GetName() || p.Target.Kind != kind {
			t.Errorf("component %s patches %+v, not %s %s", component, p.Target, kind, into.GetName())
		}
	}
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile("../../manifests/" + file)
	if err == nil {
		text, err = yaml.YAMLToJSON(text)
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}
