// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/deviceplugin"
)

// TestDocumentedMetricsAreThoseOfTheCode: the table of docs/metrics.md has every
// metric with its labels, and no other.
func TestDocumentedMetricsAreThoseOfTheCode(t *testing.T) {
	dir := t.TempDir()
	a := newAgent(t, dir)
	p, err := deviceplugin.New(deviceplugin.Config{
		Resource: "r", PluginDir: dir, State: filepath.Join(dir, "slots.json"), CDI: cdi.Dir{Path: dir}, Preparer: preparer{a}, Pods: a,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (status{a, p}).registry(); err != nil {
		t.Fatal(err)
	}
	var inCode []string
	desc := regexp.MustCompile(`^Desc\{fqName: "(\w+)", .* variableLabels: \{([\w,]*)\}\}$`)
	for _, c := range append(a.Collectors(), p.Collectors()...) {
		descs := make(chan *prometheus.Desc, 100)
		c.Describe(descs)
		close(descs)
		for d := range descs {
			m := desc.FindStringSubmatch(d.String())
			if m == nil {
				t.Fatalf("%s cannot be read", d)
			}
			inCode = append(inCode, m[1]+" "+strings.ReplaceAll(m[2], ",", " "))
		}
	}
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	row := regexp.MustCompile("(?m)^\\| `(dynamig_agent_\\w+)` \\|([^|]*)\\|")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		labels := strings.Fields(strings.NewReplacer("`", "", ",", " ").Replace(m[2]))
		documented = append(documented, m[1]+" "+strings.Join(labels, " "))
	}
	slices.Sort(inCode)
	if diff := cmp.Diff(inCode, documented); diff != "" {
		t.Errorf("docs/metrics.md, sorted (-code +documented):\n%s", diff)
	}
}
