// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package promql

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/template"
)

// situation is what some series are at each evaluation, in the notation of promtool:
// "name{labels} FIRST+STEPx99".
type situation string

// alertCase says when an alert fires. What it says is on no account read from the rule.
type alertCase struct {
	fires   situation
	from    time.Duration // when it fires first, after the situation has begun
	until   time.Duration // when it fires no more; zero where the situation ends before
	summary string        // what its summary begins with
	quiet   []situation   // in these it never fires
}

var cases = map[string]*alertCase{
	"DynamigPrepareStuck": {
		fires:   `dynamig_node_oldest_preparation_seconds{node="n1"} 121x99`,
		from:    time.Minute,
		summary: "A pod on n1 has waited",
		quiet:   []situation{`dynamig_node_oldest_preparation_seconds{node="n1"} 120x99`},
	},
	"DynamigAgentDown": {
		fires: `dynamig_node_condition{node="n1",condition="Ready"} 1x99
			dynamig_node_allocatable_devices{node="n1"} 0x99`,
		from:    3 * time.Minute,
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
		from:    10 * time.Minute,
		summary: "Somebody else has cut MIG instances on n1",
		quiet: []situation{`dynamig_node_condition{node="n1",condition="ForeignInstances"} 0x99
			dynamig_node_condition{node="n1",condition="Ready"} 1x99`},
	},
	"DynamigGPUUnhealthy": {
		fires: `dynamig_gpu_healthy{node="n1",device_uuid="u",device_index="3"} 0x99
			dynamig_gpu_healthy{node="n1",device_uuid="v",device_index="4"} 1x99`,
		from:    2 * time.Minute,
		summary: "GPU 3 of n1 is unhealthy",
		quiet:   []situation{`dynamig_gpu_healthy{node="n1",device_uuid="u",device_index="3"} 1x99`},
	},
	"DynamigHardwareFailing": {
		fires:   `dynamig_node_condition{node="n1",condition="HardwareFailing"} 1x99`,
		from:    5 * time.Minute,
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
			dynamig_gpu_fragmentation_slices{device_uuid="u"} 2.1x99
			dynamig_gpu_memory_slices{device_uuid="u",state="free"} 4x99
			dynamig_gpu_memory_slices{device_uuid="u",state="used"} 4x99`,
		from:    15 * time.Minute,
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
			dynamig_gpu_fragmentation_slices{device_uuid="u"} 2x99
			dynamig_gpu_memory_slices{device_uuid="u",state="free"} 4x99`,
		},
	},
	"DynamigConfigNotInForce": {
		fires:   `dynamig_node_condition{node="n1",condition="ConfigInvalid"} 1x99`,
		from:    time.Minute,
		summary: "The newest configuration is not in force on n1",
		quiet: []situation{`dynamig_node_condition{node="n1",condition="ConfigInvalid"} 0x99
			dynamig_node_condition{node="n1",condition="ConfigRemarks"} 1x99`},
	},
	"DynamigSchedulerConfigNotInForce": {
		fires:   `dynamig_device_config_stale 1x99`,
		from:    time.Minute,
		summary: "The scheduler's newest device configuration is not in force",
		quiet:   []situation{`dynamig_device_config_stale 0x99`},
	},
	"DynamigModeChangePending": {
		fires:   `dynamig_node_condition{node="n1",condition="ModePending"} 1x99`,
		from:    30 * time.Minute,
		summary: "A change of MIG mode waits on n1",
		quiet:   []situation{`dynamig_node_condition{node="n1",condition="ModePending"} 0x99`},
	},
	"DynamigPodsRefused": {
		fires:   `dynamig_pods_refused_total 0x9 1x89`,
		from:    5 * time.Minute,
		until:   14*time.Minute + 30*time.Second,
		summary: "Agents have refused pods that were bound to their nodes",
		quiet:   []situation{`dynamig_pods_refused_total 7x99`},
	},
}

// TestAlertsFire: once, though two replicas of the scheduler export the same, with the
// words that people read; not before their time, not after it, and not without reason.
func TestAlertsFire(t *testing.T) {
	alerts := load(t).Alerts
	if len(alerts) != len(cases) {
		t.Errorf("there are %d alerts, and cases for %d", len(alerts), len(cases))
	}
	for _, a := range alerts {
		t.Run(a.Alert, func(t *testing.T) {
			c, ok := cases[a.Alert]
			if !ok {
				t.Fatal("no case says when this alert fires")
			}
			if problem := c.problem(t, &a); problem != "" {
				t.Fatal(problem)
			}
			s := played(t, c.fires)
			alert := fired(t, s, &a)[c.from/Interval][0]
			for name, text := range a.Annotations {
				got := expand(t, s, text, alert)
				if got == "" || strings.ContainsAny(got, "{}") || name == "summary" && !strings.HasPrefix(got, c.summary) {
					t.Errorf("annotation %s is %q, want a beginning %q", name, got, c.summary)
				}
			}
		})
	}
}

// TestCasesPinEveryNumber: no number of a rule, be it a limit, a range or how long it
// waits, can change by a tenth or an evaluation without a case that notices.
func TestCasesPinEveryNumber(t *testing.T) {
	for _, a := range load(t).Alerts {
		c, all := cases[a.Alert], mutants(t, &a)
		if len(all) < 3 {
			t.Errorf("%s has only %d numbers: this test does not see them", a.Alert, len(all))
		}
		for _, m := range all {
			if c.problem(t, &m) == "" {
				t.Errorf("%s could as well be for %s: %s", a.Alert, m.For, m.Expr)
			}
		}
	}
}

// mutants are rules with one number that is another.
func mutants(t *testing.T, a *rulefmt.Rule) (out []rulefmt.Rule) {
	t.Helper()
	for _, d := range []time.Duration{-Interval, Interval} {
		if m := *a; time.Duration(m.For)+d >= 0 {
			m.For += model.Duration(d)
			out = append(out, m)
		}
	}
	expr, err := Parser.ParseExpr(a.Expr)
	if err != nil {
		t.Fatal(err)
	}
	written := func() {
		m := *a
		m.Expr = expr.String()
		out = append(out, m)
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.NumberLiteral:
			was := n.Val
			for _, n.Val = range []float64{cmp.Or(0.9*was, -2), cmp.Or(1.1*was, 2)} {
				written()
			}
			n.Val = was
		case *parser.MatrixSelector:
			was := n.Range
			for _, n.Range = range []time.Duration{was - Interval, was + Interval} {
				written()
			}
			n.Range = was
		}
		return nil
	})
	return out
}

// lasts is how many evaluations situations last after the first, Interval apart.
const lasts = 99

// played is a situation as two replicas of the scheduler show it.
func played(t *testing.T, what situation) *Samples {
	t.Helper()
	s := &Samples{}
	for line := range strings.Lines(string(what)) {
		metric, values, err := Parser.ParseSeriesDesc(strings.TrimSpace(line))
		if err != nil || len(values) != lasts+1 {
			t.Fatalf("%q has %d values, want %d: %v", line, len(values), lasts+1, err)
		}
		for _, replica := range []string{"a", "b"} {
			set := target("dynamig-scheduler", replica)
			metric.Range(func(l labels.Label) { set[l.Name] = l.Value })
			for i := range values {
				s.Add(Epoch.Add(time.Duration(i)*Interval), values[i].Value, set)
			}
		}
	}
	return s
}

// problem is how a rule does not fit the case; empty where it does.
func (c *alertCase) problem(t *testing.T, a *rulefmt.Rule) string {
	t.Helper()
	for i, alerts := range fired(t, played(t, c.fires), a) {
		at := time.Duration(i) * Interval
		want := 0
		if at >= c.from && (c.until == 0 || at < c.until) {
			want = 1
		}
		if len(alerts) != want {
			return fmt.Sprintf("after %s %d alerts fire, want %d: %v", at, len(alerts), want, alerts)
		}
	}
	for _, quiet := range c.quiet {
		for i, alerts := range fired(t, played(t, quiet), a) {
			if len(alerts) > 0 {
				return fmt.Sprintf("%s fires after %s: %v", quiet, time.Duration(i)*Interval, alerts)
			}
		}
	}
	return ""
}

// fired are the alerts that fire at each evaluation: those whose expression has had a
// result with the same labels at every one for as long as the rule says. Prometheus'
// own package of rules does the same, and links the libraries of three clouds.
func fired(t *testing.T, s *Samples, a *rulefmt.Rule) (out [lasts + 1]promql.Vector) {
	t.Helper()
	since := map[string]time.Duration{}
	for i := range out {
		now := time.Duration(i) * Interval
		found, err := s.Query(t.Context(), a.Expr, Epoch.Add(now))
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]time.Duration{}
		for _, sample := range found {
			key := sample.Metric.String()
			there[key] = now
			if began, ok := since[key]; ok {
				there[key] = began
			}
			if now-there[key] >= time.Duration(a.For) {
				out[i] = append(out[i], sample)
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
