// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command serve shows the monitor of a made-up cluster, for work on the page.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/dynamig/dynamig/pkg/monitor"
	"github.com/dynamig/dynamig/pkg/monitor/serve"
	"github.com/dynamig/dynamig/pkg/pool"
	"github.com/dynamig/dynamig/test/fleet"
)

func main() {
	nodes := flag.Int("nodes", 3, "number of nodes")
	port := flag.Int("port", 9395, "port, on loopback")
	part := flag.Float64("full", 0.6, "part of the memory that pods have")
	churn := flag.Duration("churn", time.Second, "time between two changes; 0: none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *nodes, *port, *part, *churn); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, nodes, port int, part float64, churn time.Duration) error {
	f, err := fleet.New(ctx, 1, pool.Options{})
	if err != nil {
		return err
	}
	if err := f.Fill(ctx, nodes, part); err != nil {
		return err
	}
	if err := f.Trouble(f.Names()); err != nil {
		return err
	}
	cfg := monitor.Config{BindAddress: "127.0.0.1", Port: port, InstanceMetrics: true, HAMiMetrics: true}
	m, err := f.Monitor(cfg)
	if err != nil {
		return err
	}
	if err := serve.Serve(ctx, cfg, m, f.Client); err != nil {
		return err
	}
	fmt.Printf("http://127.0.0.1:%d/\n", port)
	if churn > 0 {
		go f.Churn(ctx, churn)
	}
	<-ctx.Done()
	return nil
}
