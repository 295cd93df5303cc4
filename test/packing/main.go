// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Packing measures how close to the bound policies pack a fleet, on one protocol:
// the same random requests for all of them, at three loads, for five mixes of
// requests, over many seeds. It writes the figures between two marks of a Markdown
// file, and a plot beside it.
//
//	fleet     100 H100 with 80 GB, in nodes of 8 (the last has 4)
//	loads     0.85 and 1.0: requests come at random (Poisson), live for random times
//	          (exponential), and are lost where they do not fit; the load is offered
//	          memory slices over those there are; the first quarter is not measured.
//	          fill: requests come and none ends, until all slices have been offered
//	regret    utilisation of the bound less that of the policy, in points
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "packing: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	p := protocol{}
	docs := flag.String("docs", "docs", "directory of packing.md and packing.svg")
	openb := flag.String("openb", "", "directory of the openb trace; its figures are left as they are without it")
	templates := flag.Int("templates", 4, "runs for each line of the table with templates; 0 leaves it as it is")
	device := flag.String("device-config", "manifests/base/nodeagent/device-config.yaml", "file with these templates")
	only := flag.Bool("only-templates", false, "measure that table only")
	sample := flag.Bool("sample", false, "measure only what it costs to look at a part of the nodes, on large fleets")
	flag.IntVar(&p.seeds, "seeds", 12, "runs for each mix, load and policy")
	flag.IntVar(&p.fills, "fills", 120, "runs for each mix and policy of a fill")
	flag.IntVar(&p.arrivals, "arrivals", 16000, "requests of a run")
	flag.Parse()

	began := time.Now()
	file := filepath.Join(*docs, "packing.md")
	if *sample {
		text, err := sampleReport(ctx, []int{100, 1000, 5000})
		if err != nil {
			return err
		}
		return replace(file, "sample", text)
	}
	if *templates > 0 {
		text, err := p.templateReport(ctx, *device, *templates)
		if err != nil {
			return err
		}
		if err := replace(file, "templates", text); err != nil {
			return err
		}
		if *only {
			return nil
		}
	}
	m, err := p.measure(ctx, func(done, all int) {
		if done*10/all != (done-1)*10/all {
			fmt.Fprintf(os.Stderr, "%d of %d runs\n", done, all)
		}
	})
	if err != nil {
		return err
	}
	if err := replace(file, "protocol", p.report(m)); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*docs, "packing.svg"), []byte(plot(p.points(m))), 0o644); err != nil {
		return err
	}
	if *openb != "" {
		text, err := openbReport(ctx, *openb)
		if err != nil {
			return err
		}
		if err := replace(file, "openb", text); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "took %s; see %s\n", time.Since(began).Round(time.Second), file)
	return p.targets(m, os.Stdout)
}
