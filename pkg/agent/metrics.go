// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// metricsPrefix begins the names of all metrics of the agent. What follows it is
// the name that NVIDIA's DRA driver has for the same thing after its own prefix,
// where it has one.
const metricsPrefix = "dynamig_agent_"

// Seconds: driver calls take from milliseconds to some seconds, and a pod's
// preparation as much as several of them.
var (
	callBuckets    = []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	prepareBuckets = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
)

// metrics are what the agent counts as it happens.
type metrics struct {
	calls          *prometheus.HistogramVec // by call
	callErrors     *prometheus.CounterVec   // by call and code
	creates        prometheus.Histogram
	createErrors   *prometheus.CounterVec // by code
	destroys       prometheus.Histogram
	destroyErrors  *prometheus.CounterVec // by code
	reuses         prometheus.Counter
	prepares       prometheus.Histogram
	journalWrites  prometheus.Histogram
	journalErrors  prometheus.Counter
	reportsWritten prometheus.Counter
	reportErrors   prometheus.Counter
	xids           *prometheus.CounterVec // by gpu and xid
}

func newMetrics() *metrics {
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: metricsPrefix + name, Help: help, Buckets: buckets})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help}, labels)
	}
	return &metrics{
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: metricsPrefix + "driver_call_duration_seconds", Help: "Time of one call of NVML that names a GPU.", Buckets: callBuckets,
		}, []string{"call"}),
		callErrors: counters("driver_call_errors_total", "Calls of NVML that failed.", "call", "code"),
		creates: histogram("create_instance_duration_seconds",
			"Time to create a GPU instance and its compute instance, journal included.", callBuckets),
		createErrors: counters("create_instance_errors_total", "Creations that failed; each is tried again or refused.", "code"),
		destroys: histogram("destroy_instance_duration_seconds",
			"Time to prove an idle instance unused and to destroy it, journal included.", callBuckets),
		destroyErrors: counters("destroy_instance_errors_total", "Destructions that failed or were not proven safe.", "code"),
		reuses:        counter("reused_instances_total", "Idle instances that were given to a pod without a creation."),
		prepares: histogram("prepare_duration_seconds",
			"Time from seeing a pod of this node until all of its instances can be used.", prepareBuckets),
		journalWrites:  histogram("journal_write_duration_seconds", "Time to write the journal durably.", callBuckets),
		journalErrors:  counter("journal_write_errors_total", "Writes of the journal that failed; nothing is done until one succeeds."),
		reportsWritten: counter("reports_total", "Writes of the GPUNode's status."),
		reportErrors:   counter("report_errors_total", "Writes of the GPUNode's status that failed."),
		xids:           counters("xid_errors_total", "XID errors of GPUs, also those of applications.", "gpu", "xid"),
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.calls, m.callErrors, m.creates, m.createErrors, m.destroys, m.destroyErrors, m.reuses, m.prepares,
		m.journalWrites, m.journalErrors, m.reportsWritten, m.reportErrors, m.xids,
	}
}

// took observes the time since began.
func took(h prometheus.Observer, began time.Time) { h.Observe(time.Since(began).Seconds()) }

// codeOf names an error in a label: few values, whatever the text.
func codeOf(err error) string {
	for _, c := range []struct {
		err  error
		code string
	}{
		{nvml.ErrInsufficientResources, "insufficient_resources"},
		{nvml.ErrInUse, "in_use"},
		{errInUse, "in_use"},
		{errUnproven, "unproven"},
		{errLingers, "lingers"},
		{nvml.ErrGPULost, "gpu_lost"},
		{nvml.ErrUninitialized, "uninitialized"},
		{nvml.ErrDriverNotLoaded, "driver_not_loaded"},
		{nvml.ErrInvalidArgument, "invalid_argument"},
		{nvml.ErrInvalidState, "invalid_state"},
		{nvml.ErrResetRequired, "reset_required"},
		{nvml.ErrNotSupported, "not_supported"},
		{nvml.ErrNoPermission, "no_permission"},
		{nvml.ErrNotFound, "not_found"},
		{errJournal, "journal"},
		{nvml.ErrUnknown, "unknown"},
	} {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return "other"
}

// Collectors are the agent's metrics, to be registered once.
func (a *Agent) Collectors() []prometheus.Collector {
	return append(a.metrics.collectors(), stateCollector{a})
}

// stateCollector shows what is so at the moment of the scrape.
type stateCollector struct{ agent *Agent }

var (
	descInstances = prometheus.NewDesc(metricsPrefix+"instances", "Instances in the hardware, by GPU and state.", []string{"gpu", "state"}, nil)
	descPrepared  = prometheus.NewDesc(metricsPrefix+"prepared_devices", "Instances that belong to a live pod and are whole.", []string{"device_type"}, nil)
	descPods      = prometheus.NewDesc(metricsPrefix+"pods", "Live pods of this node that dynamig's scheduler placed, by phase.", []string{"phase"}, nil)
	descLag       = prometheus.NewDesc(metricsPrefix+"reconcile_lag_seconds",
		"Age of the oldest pod that waits for its instances and was not refused; 0 when none does.", nil, nil)
	descHealthy = prometheus.NewDesc(metricsPrefix+"gpu_healthy", "1 when the GPU takes work, 0 when it is unhealthy.", []string{"gpu"}, nil)
	descRecords = prometheus.NewDesc(metricsPrefix+"journal_records", "Records in the journal, by kind.", []string{"kind"}, nil)
	descLost    = prometheus.NewDesc(metricsPrefix+"journal_lost", "1 while instances of unknown origin remain after the journal was lost.", nil, nil)
	descSynced  = prometheus.NewDesc(metricsPrefix+"pods_synced", "1 once every pod of the node has been seen; nothing is destroyed before.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c stateCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInstances, descPrepared, descPods, descLag, descHealthy, descRecords, descLost, descSynced} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c stateCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	a := c.agent
	f := a.find()
	prepared := 0
	for i := range f.states {
		counts := map[v1alpha1.InstanceState]int{
			v1alpha1.InstanceLive: 0, v1alpha1.InstanceIdle: 0, v1alpha1.InstanceForeign: 0, v1alpha1.InstanceStuck: 0,
		}
		for _, in := range f.states[i].instances {
			counts[in.State]++
			if in.State == v1alpha1.InstanceLive && in.UUID != "" {
				prepared++
			}
		}
		gpu := f.inventory.gpus[i].ID
		for state, n := range counts {
			gauge(descInstances, float64(n), string(gpu), string(state))
		}
		gauge(descHealthy, boolean(f.states[i].unhealthy == ""), string(gpu))
	}
	gauge(descPrepared, float64(prepared), "mig")
	phases, lag := a.owners.waiting()
	for phase, n := range phases {
		gauge(descPods, float64(n), string(phase))
	}
	gauge(descLag, lag.Seconds())
	instances, pods := 0, 0
	a.journal.read(func(c *content) { instances, pods = len(c.Instances), len(c.Pods) })
	gauge(descRecords, float64(instances), "instance")
	gauge(descRecords, float64(pods), "pod")
	gauge(descLost, boolean(len(f.lostJournal()) > 0))
	gauge(descSynced, boolean(a.owners.isSynced()))
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// waiting counts the placed pods by phase, and says how long the oldest of those
// that are neither prepared nor refused has waited.
func (s *owners) waiting() (phases map[v1alpha1.PodPhase]int, oldest time.Duration) {
	phases = map[v1alpha1.PodPhase]int{
		v1alpha1.PodPreparing: 0, v1alpha1.PodPrepared: 0, v1alpha1.PodFailing: 0, v1alpha1.PodRefused: 0,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.pods {
		if !o.placed() {
			continue
		}
		phase := o.phase()
		phases[phase]++
		if phase == v1alpha1.PodPreparing || phase == v1alpha1.PodFailing {
			oldest = max(oldest, time.Since(o.since))
		}
	}
	return phases, oldest
}
