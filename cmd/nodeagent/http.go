// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/agent"
	"github.com/dynamig/dynamig/pkg/deviceplugin"
)

// aliveTimeout is how long the agent may take to show its state.
const aliveTimeout = 10 * time.Second

// status answers who asks how the agent is.
type status struct {
	agent  *agent.Agent
	plugin *deviceplugin.Plugin
}

// registry has all metrics of the program.
func (s status) registry() (*prometheus.Registry, error) {
	r := prometheus.NewRegistry()
	all := append(s.agent.Collectors(), s.plugin.Collectors()...)
	all = append(all, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return r, nil
}

// alive says what is wrong with the program so that a restart would help.
func (s status) alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, aliveTimeout)
	defer cancel()
	if err := s.agent.Alive(ctx); err != nil {
		return fmt.Errorf("the agent does not show its state in %s: %w", aliveTimeout, err)
	}
	return nil
}

// ready says what keeps containers from being started and may pass.
func (s status) ready() error {
	if err := s.agent.Unready(); err != nil {
		return err
	}
	select {
	case <-s.agent.Ready():
		if !s.plugin.Settled() {
			return errors.New("kubelet does not watch the slots")
		}
	default: // no driver, so no slots
	}
	return nil
}

// mux answers /metrics, /healthz and /readyz.
func (s status) mux(r *prometheus.Registry) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { say(w, s.alive(r.Context())) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { say(w, s.ready()) })
	return mux
}

// maxConnections and maxScrapes bound what strangers can take of the agent, which needs
// its file descriptors for the journal. More connections wait, more scrapes are told to
// come back. There is room for many, since kubelet's probes wait, too.
const (
	maxConnections = 256
	maxScrapes     = 4
)

// serveStatus serves /metrics, /healthz and /readyz until ctx ends.
func (s status) serveStatus(ctx context.Context, address string) error {
	r, err := s.registry()
	if err != nil || address == "" {
		return err
	}
	listener := listen(ctx, address)
	if listener == nil {
		return nil
	}
	server := &http.Server{
		Handler: s.mux(r), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 2 * aliveTimeout, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // nobody waits for a scrape
	defer stop()
	klog.FromContext(ctx).V(2).Info("Serving metrics", "address", listener.Addr().String())
	if err := server.Serve(netutil.LimitListener(listener, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}

// listenRetry is the time between tries to have the address.
const listenRetry = 2 * time.Second

// listen waits until it has the address: pods do not wait for metrics. nil when ctx
// has ended.
func listen(ctx context.Context, address string) net.Listener {
	for tries := 0; ; tries++ {
		listener, err := net.Listen("tcp", address)
		if err == nil {
			return listener
		}
		if tries == 0 {
			klog.FromContext(ctx).Error(err, "Could not serve metrics; free the address, or choose another --listen", "address", address)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(listenRetry):
		}
	}
}

func say(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
