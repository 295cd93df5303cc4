// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package promql

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"sigs.k8s.io/yaml"
)

// Content is what the component prometheus ships, as far as it has PromQL in it.
type Content struct {
	Queries []Query
	Alerts  []rulefmt.Rule
}

// Query is one of the dashboard.
type Query struct {
	Where, Expr string
}

// labelValues is Grafana's own function, in variables.
var labelValues = regexp.MustCompile(`^label_values\((.*), *(\w+)\)$`)

// Load reads the component's directory. Grafana's variables in queries get what Grafana
// would put there: all nodes, and four scrape intervals.
func Load(dir string) (*Content, error) {
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
		Templating struct {
			List []struct {
				Name, Type string
				Query      any
			}
		}
	}
	if err := read(dir+"/dashboard.json", &dashboard); err != nil {
		return nil, err
	}
	c := &Content{}
	if err := c.loadAlerts(dir + "/rules.yaml"); err != nil {
		return nil, err
	}
	grafana := strings.NewReplacer("$node", ".*", "$__rate_interval", fmt.Sprint(4*Interval))
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			c.Queries = append(c.Queries, Query{"panel " + p.Title + " " + q.RefID, grafana.Replace(q.Expr)})
		}
	}
	for _, v := range dashboard.Templating.List {
		if v.Type != "query" {
			continue
		}
		query, _ := v.Query.(map[string]any)
		text, _ := query["query"].(string)
		m := labelValues.FindStringSubmatch(text)
		if m == nil {
			return nil, fmt.Errorf("variable %s asks %q, not label_values(SELECTOR, LABEL)", v.Name, text)
		}
		c.Queries = append(c.Queries, Query{"variable " + v.Name, fmt.Sprintf("count by (%s) (%s)", m[2], m[1])})
	}
	return c, nil
}

// loadAlerts has a PrometheusRule read and checked as Prometheus would its own file of
// rules, which the operator makes of spec.
func (c *Content) loadAlerts(file string) error {
	var rule struct{ Spec json.RawMessage }
	if err := read(file, &rule); err != nil {
		return err
	}
	groups, problems := rulefmt.Parse(rule.Spec, false, model.UTF8Validation, Parser, slog.New(slog.DiscardHandler))
	if len(problems) > 0 {
		return fmt.Errorf("reading %s: %w", file, errors.Join(problems...))
	}
	for _, g := range groups.Groups {
		c.Alerts = append(c.Alerts, g.Rules...)
	}
	return nil
}

func read(file string, into any) error {
	text, err := os.ReadFile(file)
	if err == nil {
		text, err = yaml.YAMLToJSON(text)
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	return nil
}
