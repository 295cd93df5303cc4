// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"encoding/json"
	"os"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestMonitorInternalHasNoNodePort: what the component does to the Service.
func TestMonitorInternalHasNoNodePort(t *testing.T) {
	var component struct {
		Patches []struct {
			Target struct{ Kind, Name string }
			Patch  string
		}
	}
	read(t, "components/monitor-internal/kustomization.yaml", &component)
	var service json.RawMessage
	read(t, "base/scheduler/service.yaml", &service)
	for _, p := range component.Patches {
		text, err := yaml.YAMLToJSON([]byte(p.Patch))
		if err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(text)
		if err == nil {
			service, err = patch.Apply(service)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var after v1.Service
	if err := yaml.UnmarshalStrict(service, &after); err != nil {
		t.Fatal(err)
	}
	if len(component.Patches) != 1 || component.Patches[0].Target.Name != after.Name || component.Patches[0].Target.Kind != after.Kind {
		t.Errorf("the component patches %+v, not Service %s alone", component.Patches, after.Name)
	}
	if after.Spec.Type != v1.ServiceTypeClusterIP || len(after.Spec.Ports) != 1 || after.Spec.Ports[0].NodePort != 0 || after.Spec.Ports[0].Port != 9395 {
		t.Errorf("the Service is %+v", after.Spec)
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
