// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package promql

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/template"
)

// situation is what some series are all the time, in the notation of promtool:
// "name{labels} FIRST+STEPx99".
type situation string

// cases are, for each alert, a situation in which it fires with a summary, and some in
// which it must not.
var cases = map[string]struct {
	fires   situation
	summary string
	quiet   []situation
}{
	"DynamigPrepareStuck": {
		fires:   `dynamig_node_oldest_preparation_seconds{node="n1"} 130+30x99`,
		summary: "A pod on n1 has waited",
		quiet:   []situation{`dynamig_node_oldest_preparation_seconds{node="n1"} 119x99`},
	},
	"DynamigAgentDown": {
		fires: `dynamig_node_condition{node="n1",condition="Ready"} 1x99
			dynamig_node_allocatable_devices{node="n1"} 0x99`,
		summary: "The agent of node n1 offered GPUs last, and kubelet counts none",
		quiet: []situation{
			`dynamig_node_condition{node="n1",condition="Ready"} 1x99
			dynamig_node_allocatable_devices{node="n1"} 56x99`,
			// Its agent says that it offers none: all are cordoned or unhealthy.
			`dynamig_node_gpus{node="n1"} 8x99
			dynamig_node_condition{node="n1",condition="Ready"} 0x99
			dynamig_node_allocatable_devices{node="n1"} 0x99`,
			`dynamig_node_gpus{node="without"} 0x99
			dynamig_node_condition{node="without",condition="Ready"} 0x99
			dynamig_node_allocatable_devices{node="without"} 0x99`,
		},
	},
	"DynamigForeignInstance": {
		fires:   `dynamig_node_condition{node="n1",condition="ForeignInstances"} 1x99`,
		summary: "Somebody else has cut MIG instances on n1",
		quiet: []situation{`dynamig_node_condition{node="n1",condition="ForeignInstances"} 0x99
			dynamig_node_condition{node="n1",condition="Ready"} 1x99`},
	},
	"DynamigGPUUnhealthy": {
		fires: `dynamig_gpu_healthy{node="n1",device_uuid="u",device_index="3"} 0x99
			dynamig_gpu_healthy{node="n1",device_uuid="v",device_index="4"} 1x99`,
		summary: "GPU 3 of n1 is unhealthy",
		quiet:   []situation{`dynamig_gpu_healthy{node="n1",device_uuid="u",device_index="3"} 1x99`},
	},
	"DynamigHardwareFailing": {
		fires:   `dynamig_node_condition{node="n1",condition="HardwareFailing"} 1x99`,
		summary: "The driver, a GPU or an instance cannot be used on n1",
		quiet: []situation{
			`dynamig_node_condition{node="n1",condition="HardwareFailing"} 0x99`,
			// DynamigGPUUnhealthy names the GPU.
			`dynamig_node_condition{node="n1",condition="HardwareFailing"} 1x99
			dynamig_gpu_healthy{node="n1",device_uuid="u",device_index="3"} 0x99
			dynamig_gpu_healthy{node="n1",device_uuid="v",device_index="4"} 1x99`,
		},
	},
	"DynamigFragmentationHigh": {
		fires: `dynamig_waiting_pods{reason="no_placement"} 1x99
			dynamig_gpu_fragmentation_slices{device_uuid="u"} 3x99
			dynamig_gpu_memory_slices{device_uuid="u",state="free"} 4x99
			dynamig_gpu_memory_slices{device_uuid="u",state="used"} 4x99`,
		summary: "Pods wait while more than half of the free memory slices are expected to be of no use",
		quiet: []situation{
			// Nobody waits for a placement.
			`dynamig_waiting_pods{reason="no_slot"} 1x99
			dynamig_waiting_pods{reason="no_placement"} 0x99
			dynamig_gpu_fragmentation_slices{device_uuid="u"} 3x99
			dynamig_gpu_memory_slices{device_uuid="u",state="free"} 4x99`,
			// The pool is full, not fragmented.
			`dynamig_waiting_pods{reason="no_placement"} 1x99
			dynamig_gpu_fragmentation_slices{device_uuid="u"} 0x99
			dynamig_gpu_memory_slices{device_uuid="u",state="free"} 0x99`,
			`dynamig_waiting_pods{reason="no_placement"} 1x99
			dynamig_gpu_fragmentation_slices{device_uuid="u"} 1x99
			dynamig_gpu_memory_slices{device_uuid="u",state="free"} 4x99`,
		},
	},
	"DynamigConfigNotInForce": {
		fires:   `dynamig_node_condition{node="n1",condition="ConfigInvalid"} 1x99`,
		summary: "The newest configuration is not in force on n1",
		quiet: []situation{`dynamig_node_condition{node="n1",condition="ConfigInvalid"} 0x99
			dynamig_node_condition{node="n1",condition="ConfigRemarks"} 1x99`},
	},
	"DynamigSchedulerConfigNotInForce": {
		fires:   `dynamig_device_config_stale 1x99`,
		summary: "The scheduler's newest device configuration is not in force",
		quiet:   []situation{`dynamig_device_config_stale 0x99`},
	},
	"DynamigModeChangePending": {
		fires:   `dynamig_node_condition{node="n1",condition="ModePending"} 1x99`,
		summary: "A change of MIG mode waits on n1",
		quiet:   []situation{`dynamig_node_condition{node="n1",condition="ModePending"} 0x99`},
	},
	"DynamigPodsRefused": {
		fires:   `dynamig_pods_refused_total 0+1x99`,
		summary: "Agents have refused pods that were bound to their nodes",
		quiet:   []situation{`dynamig_pods_refused_total 7x99`},
	},
}

// TestAlertsFire: once, though two replicas of the scheduler export the same, with the
// words that people read; not before their time, and not without reason.
func TestAlertsFire(t *testing.T) {
	for _, a := range load(t).Alerts {
		t.Run(a.Alert, func(t *testing.T) {
			c, ok := cases[a.Alert]
			if !ok {
				t.Fatal("no case says when this alert fires")
			}
			pending, err := a.Pending()
			if err != nil {
				t.Fatal(err)
			}
			end := pending + 20*Interval
			s := played(t, c.fires, end)
			alerts := firing(t, s, a, pending, end)
			if len(alerts) != 1 {
				t.Fatalf("%d alerts fire, want one: %v", len(alerts), alerts)
			}
			for name, text := range a.Annotations {
				got := expand(t, s, text, alerts[0])
				if got == "" || strings.ContainsAny(got, "{}") || name == "summary" && !strings.HasPrefix(got, c.summary) {
					t.Errorf("annotation %s is %q, want a beginning %q", name, got, c.summary)
				}
			}
			if pending > 0 {
				if early := firing(t, s, a, pending, pending-Interval); len(early) > 0 {
					t.Errorf("it fires before %s: %v", a.For, early)
				}
			}
			for _, quiet := range c.quiet {
				if alerts := firing(t, played(t, quiet, end), a, pending, end); len(alerts) > 0 {
					t.Errorf("%s fires: %v", quiet, alerts)
				}
			}
		})
	}
}

// played is a situation as two replicas of the scheduler show it until a time.
func played(t *testing.T, what situation, end time.Duration) *Samples {
	t.Helper()
	s := &Samples{}
	for line := range strings.Lines(string(what)) {
		metric, values, err := Parser.ParseSeriesDesc(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		for _, replica := range []string{"a", "b"} {
			set := target("dynamig-scheduler", replica)
			metric.Range(func(l labels.Label) { set[l.Name] = l.Value })
			for i := 0; i < len(values) && time.Duration(i)*Interval <= end; i++ {
				s.Add(Epoch.Add(time.Duration(i)*Interval), values[i].Value, set)
			}
		}
	}
	return s
}

// firing are the alerts that fire at a time after Epoch: those whose expression has had
// a result with the same labels at each evaluation since so long.
func firing(t *testing.T, s *Samples, a Alert, pending, at time.Duration) promql.Vector {
	t.Helper()
	var out promql.Vector
	since := map[string]time.Duration{}
	for now := time.Duration(0); now <= at; now += Interval {
		found, err := s.Query(t.Context(), a.Expr, Epoch.Add(now))
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]time.Duration{}
		out = nil
		for _, sample := range found {
			key := sample.Metric.String()
			there[key] = now
			if began, ok := since[key]; ok {
				there[key] = began
			}
			if now-there[key] >= pending {
				out = append(out, sample)
			}
		}
		since = there
	}
	return out
}

// expand writes an annotation as Prometheus does.
func expand(t *testing.T, s *Samples, text string, alert promql.Sample) string {
	t.Helper()
	const names = "{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}"
	data := template.AlertTemplateData(alert.Metric.Map(), nil, "", alert)
	e := template.NewTemplateExpander(t.Context(), names+text, "annotation", data, model.TimeFromUnixNano(last.UnixNano()), s.Query, &url.URL{}, nil)
	got, err := e.Expand()
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return got
}
