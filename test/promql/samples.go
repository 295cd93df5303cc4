// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package promql holds the Grafana dashboard and the Prometheus rules to the real
// PromQL parser and engine. Every query is evaluated on scrapes of the real monitor
// and of the real agent, and every alert on what makes it fire and what does not. It
// is a module of its own, so that Prometheus is no dependency of the product.
//
//	monitor of a made-up fleet --scrapes--+
//	nodeagent on a simulated node --------+--> Samples --> engine <-- dashboard, rules
package promql

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// Interval is the time between two scrapes, as ServiceMonitor and PodMonitor have it.
const Interval = 30 * time.Second

// Epoch is the time of the first scrape.
var Epoch = time.Unix(1_700_000_000, 0)

// Samples are what Prometheus would have after some scrapes. The zero value has none.
type Samples struct {
	series map[string]*promql.Series // by labels
}

// Add adds one value.
func (s *Samples) Add(at time.Time, value float64, metric map[string]string) {
	set := labels.FromMap(metric)
	key := set.String()
	if s.series == nil {
		s.series = map[string]*promql.Series{}
	}
	line := s.series[key]
	if line == nil {
		line = &promql.Series{Metric: set}
		s.series[key] = line
	}
	line.Floats = append(line.Floats, promql.FPoint{T: at.UnixMilli(), F: value})
}

// Scrape adds an answer in Prometheus' text format, with the labels that a scrape gives
// each series of a target. A label that the series has wins, as with honorLabels.
func (s *Samples) Scrape(at time.Time, text []byte, target map[string]string) error {
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("reading a scrape: %w", err)
	}
	vector, err := expfmt.ExtractSamples(&expfmt.DecodeOptions{Timestamp: model.TimeFromUnixNano(at.UnixNano())}, slices.Collect(maps.Values(families))...)
	if err != nil {
		return fmt.Errorf("reading a scrape: %w", err)
	}
	for _, sample := range vector {
		metric := maps.Clone(target)
		for name, value := range sample.Metric {
			metric[string(name)] = string(value)
		}
		s.Add(at, float64(sample.Value), metric)
	}
	return nil
}

// Querier implements storage.Queryable.
func (s *Samples) Querier(int64, int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
		set := &seriesSet{at: -1}
		for _, line := range s.series {
			if matches(line.Metric, matchers) {
				set.all = append(set.all, promql.NewStorageSeries(*line))
			}
		}
		slices.SortFunc(set.all, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
		return set
	}}, nil
}

func matches(set labels.Labels, matchers []*labels.Matcher) bool {
	for _, m := range matchers {
		if !m.Matches(set.Get(m.Name)) {
			return false
		}
	}
	return true
}

// seriesSet implements storage.SeriesSet.
type seriesSet struct {
	all []storage.Series
	at  int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.all) }
func (s *seriesSet) At() storage.Series                { return s.all[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// Parser is Prometheus' own, without what is experimental.
var Parser = parser.NewParser(parser.Options{})

// engine has Prometheus' defaults.
var engine = promql.NewEngine(promql.EngineOpts{MaxSamples: 50_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, Parser: Parser})

// Query evaluates an expression at a time. What the engine warns of is an error.
func (s *Samples) Query(ctx context.Context, expr string, at time.Time) (promql.Vector, error) {
	q, err := engine.NewInstantQuery(ctx, s, nil, expr, at)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	r := q.Exec(ctx)
	if r.Err != nil {
		return nil, r.Err
	}
	if warnings, infos := r.Warnings.AsStrings(expr, 0, 0); len(warnings)+len(infos) > 0 {
		return nil, fmt.Errorf("evaluating %q: %s", expr, strings.Join(append(warnings, infos...), "; "))
	}
	vector, err := r.Vector()
	if err != nil {
		return nil, err
	}
	return slices.Clone(vector), nil // the engine takes its own back
}
