// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// figure names one number of a workload.
type figure struct {
	metric, point string // point: of the scheduling framework, where the metric has one
	bucket        string // such as Average
}

var (
	throughput    = figure{metric: "SchedulingThroughput", bucket: "Average"} // pods/s
	throughputP50 = figure{metric: "SchedulingThroughput", bucket: "Perc50"}  // pods/s, of samples of a second
	cpuPerPod     = figure{metric: "CPUPerPod", bucket: "Average"}            // ms, of the whole process
)

// extensionPoint is the mean time that a pod spends there, in ms: in Filter and
// Score that is all nodes together. A pod that is placed from the list of another
// one (batching) has no Score.
func extensionPoint(name string) figure {
	return figure{metric: "scheduler_framework_extension_point_duration_seconds", point: name, bucket: "Average"}
}

// workload is a case at one size.
type workload struct {
	name  string
	nodes int
}

// run is what one process has measured.
type run map[workload]map[figure]float64

// document is the JSON that scheduler_perf writes. Labels that an item does not
// have are there as "not applicable".
type document struct {
	DataItems []struct {
		Data   map[string]float64 `json:"data"`
		Labels struct {
			Metric string `json:"Metric"`
			Name   string `json:"Name"` // BENCHMARK/CASE/SIZE, and more
			Point  string `json:"extension_point"`
			Plugin string `json:"plugin"`
		} `json:"labels"`
	} `json:"dataItems"`
}

const notApplicable = "not applicable"

// readRun reads all JSON files of a directory.
func readRun(dir string) (run, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("listing results: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("reading results: %s has no JSON file; name the directory of one run", dir)
	}
	r := run{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading results: %w", err)
		}
		if err := r.add(text); err != nil {
			return nil, fmt.Errorf("reading results in %s: %w", file, err)
		}
	}
	return r, nil
}

// add adds the items of a document.
func (r run) add(text []byte) error {
	var doc document
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	for i, item := range doc.DataItems {
		l := item.Labels
		if l.Plugin != "" && l.Plugin != notApplicable {
			continue // kept in the file for a closer look
		}
		at, err := parseName(l.Name)
		if err != nil {
			return fmt.Errorf("dataItems[%d]: %w", i, err)
		}
		if l.Point == notApplicable {
			l.Point = ""
		}
		if r[at] == nil {
			r[at] = map[figure]float64{}
		}
		for bucket, value := range item.Data {
			r[at][figure{metric: l.Metric, point: l.Point, bucket: bucket}] = value
		}
	}
	return nil
}

// parseName reads "BenchmarkPerfScheduling/Stock/100Nodes/namespace-1".
func parseName(name string) (workload, error) {
	parts := strings.Split(name, "/")
	if len(parts) < 3 {
		return workload{}, fmt.Errorf("name %q is not of the form BENCHMARK/CASE/NODES", name)
	}
	digits, ok := strings.CutSuffix(parts[2], "Nodes")
	nodes, err := strconv.Atoi(digits)
	if !ok || err != nil {
		return workload{}, fmt.Errorf("name %q: %q is not a number of Nodes", name, parts[2])
	}
	return workload{name: parts[1], nodes: nodes}, nil
}
