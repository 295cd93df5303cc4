// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package promql

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Content is what the component prometheus ships, as far as it has PromQL in it.
type Content struct {
	Queries []Query
	Alerts  []Alert
}

// Query is one of the dashboard.
type Query struct {
	Where, Expr string
}

// Alert is a rule.
type Alert struct {
	Alert       string
	Expr        string
	For         string
	Annotations map[string]string
}

// Pending is how long the expression must hold before the alert fires.
func (a *Alert) Pending() (time.Duration, error) {
	if a.For == "" {
		return 0, nil
	}
	return time.ParseDuration(a.For)
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
	var rules struct {
		Spec struct{ Groups []struct{ Rules []Alert } }
	}
	if err := read(dir+"/dashboard.json", &dashboard); err != nil {
		return nil, err
	}
	if err := read(dir+"/rules.yaml", &rules); err != nil {
		return nil, err
	}
	c := &Content{}
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
	for _, g := range rules.Spec.Groups {
		c.Alerts = append(c.Alerts, g.Rules...)
	}
	return c, nil
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
