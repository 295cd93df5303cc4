// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"fmt"
	"strings"
)

// Document describes one metric, as docs/metrics.md has it.
type Document struct {
	Name, Type, Help, Unit, Source string
	Labels                         []string
	Group                          Group
}

// Row is the metric's line in the table of docs/metrics.md.
func (d Document) Row() string {
	labels := "none"
	if len(d.Labels) > 0 {
		labels = "`" + strings.Join(d.Labels, "`, `") + "`"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s | %s | %s | %s |", d.Name, d.Type, labels, d.Unit, d.Group, d.Source, d.Help)
}

// Documentation lists every metric that the monitor can serve.
func Documentation() []Document {
	var out []Document
	for i := range families {
		f := &families[i]
		labels := append([]string(nil), f.labels...)
		if f.zone {
			labels = append(labels, "zone")
		}
		group := f.group
		if f.also != "" {
			group += ", " + f.also
		}
		out = append(out, Document{Name: f.name, Type: "gauge", Help: f.help, Unit: f.unit, Source: f.source, Labels: labels, Group: group})
	}
	return append(out,
		Document{
			Name: "dynamig_decisions_total", Type: "counter", Unit: "placements", Source: "Reserve", Group: GroupDecisions,
			Help: "Placements chosen by this process; only the leader chooses.",
		},
		Document{
			Name: "dynamig_decision_duration_seconds", Type: "histogram", Unit: "seconds", Source: "PreFilter to Reserve", Group: GroupDecisions,
			Help: "From a pod's PreFilter to its placement in Reserve.",
		},
		Document{
			Name: "dynamig_refusals_total", Type: "counter", Unit: "reasons", Source: "pods, condition PodScheduled", Group: GroupDecisions, Labels: []string{"reason"},
			Help: "New reasons that waiting pods were given, by kind. Every replica counts what it sees: take the maximum, not the sum.",
		},
		Document{
			Name: "dynamig_pods_refused_total", Type: "counter", Unit: "pods", Source: "GPUNode status.pods", Group: GroupDecisions,
			Help: "Bound pods that their node's agent refused for good. Every replica counts what it sees.",
		},
		Document{
			Name: "dynamig_prepare_duration_seconds", Type: "histogram", Unit: "seconds", Source: "pods, GPUNode status.gpus[].instances", Group: GroupDecisions,
			Help: "From a pod being seen bound to all its instances being reported live; pods with software shares alone are left out. Every replica observes what it sees.",
		},
	)
}
