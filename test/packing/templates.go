// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/replay"
)

// templated are the boards with documented templates, and what can be asked for.
var templated = []struct {
	board string
	kinds []templateKind
}{
	{"A30-24GB", []templateKind{{24576, 4}, {12288, 2}, {6144, 1}}},
	{"A100-40GB", []templateKind{{40960, 8}, {20480, 4}, {10240, 2}, {5120, 1}}},
	{"A100-80GB", []templateKind{{80896, 8}, {40960, 4}, {20480, 2}, {10240, 1}}},
}

type templateKind struct{ memoryMiB, slices int }

// templateMixes are weights from the largest kind down; an A30 has the last three.
var templateMixes = []struct {
	name  string
	parts [4]float64
}{
	{"uniform", [4]float64{1, 1, 1, 1}},
	{"skew-small", [4]float64{.05, .15, .30, .50}},
	{"skew-big", [4]float64{.40, .30, .20, .10}},
	{"two-ends", [4]float64{.30, .07, .08, .55}},
}

// templatePolicies are compared; there is no bound under templates.
var templatePolicies = []string{replay.Ours, replay.BestFit, replay.FirstFit, replay.HAMi, replay.Templates}

// templateReport replays random jobs on fleets with the templates of a file.
func (p protocol) templateReport(ctx context.Context, deviceFile string, seeds int) (string, error) {
	text, err := os.ReadFile(deviceFile)
	if err != nil {
		return "", err
	}
	device, err := config.ParseDevice(deviceFile, text)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Utilisation in percent, mean of %d runs of %d requests.\n\n| GPUs | load | mix | %s |\n| --- | --- | --- |%s\n",
		seeds, p.arrivals, strings.Join(templatePolicies, " | "), strings.Repeat(" ---: |", len(templatePolicies)))
	for i := range templated {
		board := templated[i].board
		fleet, err := replay.ParseFleet([]string{"12x8x" + board, "1x4x" + board}, device)
		if err != nil {
			return "", err
		}
		for _, l := range loads {
			for m := range templateMixes {
				fmt.Fprintf(&b, "| %s | %s | %s |", board, l.name, templateMixes[m].name)
				for _, policy := range templatePolicies {
					sum := 0.0
					for seed := range seeds {
						opts := replay.Options{Policy: policy, Warmup: .25, NoOversize: true}
						if l.rho == 0 {
							opts.Warmup = 0
						}
						r, err := replay.Run(ctx, fleet, p.templateJobs(i, m, l, seed), opts)
						if err != nil {
							return "", err
						}
						sum += utilisation(l, r) / float64(seeds)
					}
					fmt.Fprintf(&b, " %.1f |", sum)
				}
				b.WriteString("\n")
			}
		}
	}
	return b.String(), nil
}

// templateJobs draws requests by memory for one board.
func (p protocol) templateJobs(board, m int, l load, seed int) []replay.Job {
	kinds := templated[board].kinds
	parts := templateMixes[m].parts[4-len(kinds):]
	sum, mean := 0.0, 0.0
	for i, part := range parts {
		sum += part
		mean += part * float64(kinds[i].slices)
	}
	mean /= sum
	capacity := float64(gpus * kinds[0].slices)
	chance := rand.New(rand.NewPCG(uint64(seed), 2027))
	var jobs []replay.Job
	at, offered := 0.0, 0.0
	for l.rho == 0 && offered < capacity || l.rho > 0 && len(jobs) < p.arrivals {
		i, u := 0, chance.Float64()*sum
		for i < len(parts)-1 && u >= parts[i] {
			u -= parts[i]
			i++
		}
		offered += float64(kinds[i].slices)
		job := replay.Job{Arrival: at + 1, Duration: math.Inf(1), Devices: 1, Want: geometry.Want{MemoryMiB: kinds[i].memoryMiB}}
		if l.rho > 0 {
			job.Arrival = at + chance.ExpFloat64()*mean/(l.rho*capacity)
			job.Duration = chance.ExpFloat64()
		}
		at = job.Arrival
		jobs = append(jobs, job)
	}
	return jobs
}
