// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// metricsPrefix and what follows it: as in package agent. Requests are named as by
// NVIDIA's DRA driver, whose calls by kubelet they are the counterparts of.
const metricsPrefix = "dynamig_agent_"

var (
	requestBuckets = []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

	descSlots      = prometheus.NewDesc(metricsPrefix+"slots", "Slots that kubelet is told of, by state.", []string{"state"}, nil)
	descRegistered = prometheus.NewDesc(metricsPrefix+"kubelet_connected", "1 while kubelet watches the list of slots.", nil, nil)
)

// metrics are what the plugin counts as it happens.
type metrics struct {
	requests      *prometheus.CounterVec   // by method
	durations     *prometheus.HistogramVec // by method
	inflight      *prometheus.GaugeVec     // by method
	prepareErrors prometheus.Counter
	registrations prometheus.Counter
}

func newMetrics() *metrics {
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricsPrefix + "requests_total", Help: "Calls by kubelet.",
		}, []string{"method"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: metricsPrefix + "request_duration_seconds", Help: "Time to answer a call by kubelet, waiting for NVML included.", Buckets: requestBuckets,
		}, []string{"method"}),
		inflight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: metricsPrefix + "requests_inflight", Help: "Calls by kubelet that are being answered.",
		}, []string{"method"}),
		prepareErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricsPrefix + "node_prepare_errors_total", Help: "Starts of containers that were refused; kubelet tries each again.",
		}),
		registrations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricsPrefix + "kubelet_registrations_total", Help: "Registrations with kubelet, at each start of it and of the agent.",
		}),
	}
}

// observe measures one call.
func (m *metrics) observe(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	method, began := path.Base(info.FullMethod), time.Now()
	m.requests.WithLabelValues(method).Inc()
	m.inflight.WithLabelValues(method).Inc()
	defer m.inflight.WithLabelValues(method).Dec()
	response, err := next(ctx, req)
	m.durations.WithLabelValues(method).Observe(time.Since(began).Seconds())
	if err != nil && method == "PreStartContainer" {
		m.prepareErrors.Inc()
	}
	return response, err
}

// Collectors are the plugin's metrics, to be registered once.
func (p *Plugin) Collectors() []prometheus.Collector {
	m := p.metrics
	return []prometheus.Collector{m.requests, m.durations, m.inflight, m.prepareErrors, m.registrations, slotCollector{p}}
}

// slotCollector shows what is so at the moment of the scrape.
type slotCollector struct{ plugin *Plugin }

// Describe implements prometheus.Collector.
func (c slotCollector) Describe(out chan<- *prometheus.Desc) {
	out <- descSlots
	out <- descRegistered
}

// Collect implements prometheus.Collector.
func (c slotCollector) Collect(out chan<- prometheus.Metric) {
	for state, n := range c.plugin.slots.count() {
		out <- prometheus.MustNewConstMetric(descSlots, prometheus.GaugeValue, float64(n), state)
	}
	connected := 0.0
	if c.plugin.Connected() {
		connected = 1
	}
	out <- prometheus.MustNewConstMetric(descRegistered, prometheus.GaugeValue, connected)
}

// count counts the slots by state: free, handed, bound, withdrawn, unhealthy.
func (s *slots) count() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := map[string]int{"free": 0, "handed": 0, "bound": 0, "unhealthy": 0, "withdrawn": len(s.withdrawn)}
	for name, u := range s.table.Slots {
		_, handed := s.handed[name]
		switch {
		case s.unhealthy[u.PodUID]:
			n["unhealthy"]++
		case u.PodUID != "":
			n["bound"]++
		case handed:
			n["handed"]++
		default:
			n["free"]++
		}
	}
	return n
}

// Connected reports whether kubelet watches the list of slots.
func (p *Plugin) Connected() bool { return p.connected.Load() }

// Settled reports whether kubelet knows all that it has to: it watches the slots, or
// the capacity was set and there are none.
func (p *Plugin) Settled() bool {
	if p.Connected() {
		return true
	}
	p.slots.mu.Lock()
	defer p.slots.mu.Unlock()
	return p.slots.settled && len(p.slots.table.Slots) == 0
}
