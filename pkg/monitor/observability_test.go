// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/monitor"
)

const prometheus = "../../manifests/components/prometheus/"

// known are the metrics with their labels: the monitor's as it exports them, the
// agent's as docs/metrics.md has them, which a test of cmd/nodeagent holds to its
// registry.
func known(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, d := range monitor.Documentation() {
		out[d.Name] = d.Labels
		if d.Type == "histogram" {
			out[d.Name+"_bucket"] = append(slices.Clone(d.Labels), "le")
		}
	}
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(dynamig_agent_\\w+)` \\|([^|]*)\\|")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		labels := strings.Fields(strings.NewReplacer("`", "", ",", " ").Replace(m[2]))
		out[m[1]] = labels
		if strings.HasSuffix(m[1], "_seconds") {
			out[m[1]+"_bucket"] = append(slices.Clone(labels), "le")
		}
	}
	return out
}

// expressions of the dashboard and of the rules, by where they stand.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
	}
	read(t, "dashboard.json", &dashboard)
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			out["panel "+p.Title+" "+q.RefID] = q.Expr
		}
	}
	for _, v := range dashboard.Templating.List {
		if q, ok := v.Query.(map[string]any); ok {
			out["variable "+v.Name], _ = q["query"].(string)
		}
	}
	var rules struct {
		Spec struct {
			Groups []struct {
				Rules []struct{ Alert, Expr string }
			}
		}
	}
	read(t, "rules.yaml", &rules)
	for _, g := range rules.Spec.Groups {
		for _, r := range g.Rules {
			out["alert "+r.Alert] = r.Expr
		}
	}
	return out
}

// TestMonitorInternalHasNoNodePort: what the component does to the Service.
func TestMonitorInternalHasNoNodePort(t *testing.T) {
	var component struct {
		Patches []struct {
			Target struct{ Kind, Name string }
			Patch  string
		}
	}
	read(t, "../monitor-internal/kustomization.yaml", &component)
	var service json.RawMessage
	read(t, "../../base/scheduler/service.yaml", &service)
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
	text, err := os.ReadFile(prometheus + file)
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

// TestDashboardAndRulesAskForWhatIsExported: each metric that they name exists, with
// the labels that they select and group by.
func TestDashboardAndRulesAskForWhatIsExported(t *testing.T) {
	metrics, all := known(t), expressions(t)
	if len(all) < 25 {
		t.Fatalf("only %d expressions were read", len(all))
	}
	selector := regexp.MustCompile(`\b(dynamig_\w+|hami_\w+|nodeGPU\w+)(\{[^}]*\})?`)
	label := regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping := regexp.MustCompile(`\bby \(([^)]*)\)`)
	for where, expr := range all {
		found := selector.FindAllStringSubmatch(expr, -1)
		if len(found) == 0 {
			t.Errorf("%s: %q names no metric", where, expr)
		}
		var labels []string
		for _, m := range found {
			have, ok := metrics[m[1]]
			if !ok {
				t.Errorf("%s: %s is not exported", where, m[1])
			}
			labels = append(labels, have...)
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(have, l[1]) {
					t.Errorf("%s: %s has no label %s", where, m[1], l[1])
				}
			}
		}
		for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
			for _, l := range strings.Split(g[1], ",") {
				if l = strings.TrimSpace(l); !slices.Contains(labels, l) {
					t.Errorf("%s: nothing in %q has the label %s", where, expr, l)
				}
			}
		}
		if strings.Count(expr, "(") != strings.Count(expr, ")") || strings.Count(expr, "{") != strings.Count(expr, "}") {
			t.Errorf("%s: %q has brackets that do not match", where, expr)
		}
	}
}
