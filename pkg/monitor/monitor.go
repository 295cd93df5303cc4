// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"cmp"
	"compress/gzip"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/time/rate"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
)

// Monitor answers requests. Safe for parallel use.
type Monitor struct {
	cfg     Config
	fleet   *Fleet
	journal *Journal
	client  kubernetes.Interface
	boot    string // tells this process's versions from those of another

	stories  *rate.Limiter // each costs a request to the API server
	watchers *slots        // one for each open stream
	large    *slots        // one for each answer of the fleet's size

	streamAge time.Duration // then a stream ends, and its reader comes again
	patience  time.Duration // how long a reader may take for an answer, or a part of a stream
	queue     time.Duration // how long a reader may wait for a slot of large
}

// maxWatchers is how many streams of updates a replica serves at once.
const maxWatchers = 64

// maxLarge is how many answers of the fleet's size a replica writes at once: of 1000
// half-full nodes the pictures are of some 8 MB, the metrics of 25.
const maxLarge = 8

// maxSmall is how many nodes a stream's message may have that takes no such slot.
const maxSmall = 40

// New returns a monitor of a fleet.
func New(cfg Config, fleet *Fleet, journal *Journal, client kubernetes.Interface) *Monitor {
	return &Monitor{
		cfg: cfg, fleet: fleet, journal: journal, client: client,
		boot:    strconv.FormatInt(journal.now().UnixNano(), 36),
		stories: rate.NewLimiter(10, 20), watchers: newSlots(maxWatchers), large: newSlots(maxLarge),
		streamAge: 10 * time.Minute, patience: time.Minute, queue: 15 * time.Second,
	}
}

//go:embed web
var web embed.FS

// policy lets the page load its own files and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"require-trusted-types-for 'script'; trusted-types 'none'" // text never becomes a script, even by a mistake in the page

// Handler serves everything. Requests for data pass guard, the page's own files do
// not: they hold no data, and a browser could not send a token for them. No data is
// under /api: ClusterRole system:discovery lets everybody read there whom the API
// server knows.
func (m *Monitor) Handler(guard func(http.Handler) http.Handler) http.Handler {
	data := http.NewServeMux()
	data.HandleFunc("GET /metrics", m.slotted(m.serveMetrics))
	data.HandleFunc("GET /monitor/v1/fleet", m.slotted(m.serveFleet))
	data.HandleFunc("GET /monitor/v1/nodes/{name}", m.serveNode)
	data.HandleFunc("GET /monitor/v1/pods/{namespace}/{name}", m.servePod)
	data.HandleFunc("GET /monitor/v1/watch", m.serveWatch)

	files, err := fs.Sub(web, "web")
	if err != nil {
		panic(err) // the directory is part of the program
	}
	all := http.NewServeMux()
	all.Handle("GET /metrics", guard(data))
	all.Handle("GET /monitor/", guard(data))
	all.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	all.Handle("GET /", http.FileServerFS(files))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")
		m.extend(w)
		all.ServeHTTP(w, r)
	})
}

// extend gives the reader the time again that it may take. What is not taken by then
// is cut off, so that readers who stand still hold nothing.
func (m *Monitor) extend(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(m.patience)) // a test's recorder cannot
}

// errCrowded says that a reader has waited in vain for a slot.
var errCrowded = errors.New("too many readers are being answered already, or too many at your address")

// enter waits for a slot, which leave gives back.
func (m *Monitor) enter(r *http.Request, to *slots) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(r.Context(), m.queue)
	defer cancel()
	if leave = to.enter(ctx, r); leave == nil {
		return nil, errCrowded
	}
	return leave, nil
}

// crowded turns a reader away.
func crowded(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "10")
	http.Error(w, errCrowded.Error(), http.StatusServiceUnavailable)
}

// slotted lets so many requests in at once and the others wait.
func (m *Monitor) slotted(serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		leave, err := m.enter(r, m.large)
		if err != nil {
			crowded(w)
			return
		}
		defer leave()
		m.extend(w)
		serve(w, r)
	}
}

// on reports whether a group of families is switched on.
func (m *Monitor) on(g Group) bool {
	switch g {
	case GroupInstance:
		return m.cfg.InstanceMetrics
	case GroupHAMi:
		return m.cfg.HAMiMetrics
	case GroupLegacy:
		return m.cfg.LegacyMetrics
	default:
		return true
	}
}

func (m *Monitor) serveMetrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", contentType)
	out, done := compressed(w, r)
	defer done()
	if err := m.WriteMetrics(out); err != nil {
		panic(http.ErrAbortHandler) // the reader must not take a part for the whole
	}
}

// WriteMetrics writes all families in Prometheus' text format.
func (m *Monitor) WriteMetrics(out io.Writer) error {
	view := m.fleet.View()
	s := &scrape{view: view, now: m.journal.now(), bound: m.journal.Bound}
	if trouble := m.fleet.src.ConfigTrouble; trouble != nil {
		s.configTrouble = trouble()
	}
	t := newText(out)
	s.write(t, m.on)
	if err := t.w.Flush(); err != nil {
		return err
	}
	return writeRegistry(out, m.journal.registry)
}

func writeRegistry(out io.Writer, g prometheus.Gatherer) error {
	all, err := g.Gather()
	if err != nil {
		return fmt.Errorf("collecting counters: %w", err)
	}
	enc := expfmt.NewEncoder(out, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range all {
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

var gzips = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	return w
}}

// compressed is where to write to: the response, compressed if the reader can.
func compressed(w http.ResponseWriter, r *http.Request) (out io.Writer, done func()) {
	w.Header().Add("Vary", "Accept-Encoding")
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		return w, func() {}
	}
	w.Header().Set("Content-Encoding", "gzip")
	z := gzips.Get().(*gzip.Writer)
	z.Reset(w)
	return z, func() {
		z.Close()
		gzips.Put(z)
	}
}

func (m *Monitor) serveFleet(w http.ResponseWriter, r *http.Request) {
	out, done := answering(w, r)
	defer done()
	if err := m.message(m.fleet.View(), 0).write(out); err != nil {
		panic(http.ErrAbortHandler) // as above
	}
}

func (m *Monitor) serveNode(w http.ResponseWriter, r *http.Request) {
	nodes := m.fleet.Recent(updateEvery).Nodes
	at, ok := slices.BinarySearchFunc(nodes, r.PathValue("name"), func(n *Drawn, name string) int { return cmp.Compare(n.Name, name) })
	if !ok {
		http.Error(w, "there is no GPUNode of this name", http.StatusNotFound)
		return
	}
	answer(w, r, nodes[at].Picture)
}

func (m *Monitor) servePod(w http.ResponseWriter, r *http.Request) {
	obj, ok, err := m.fleet.src.Pods.GetStore().GetByKey(r.PathValue("namespace") + "/" + r.PathValue("name"))
	pod, isPod := obj.(*v1.Pod)
	if err != nil || !ok || !isPod || m.fleet.src.podOf(pod) == nil {
		http.Error(w, "there is no GPU pod of this name, or it has ended", http.StatusNotFound)
		return
	}
	if !m.stories.Allow() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many stories are asked for; try again in a second", http.StatusTooManyRequests)
		return
	}
	answer(w, r, m.story(r.Context(), m.fleet.Recent(updateEvery), pod))
}

// answering is where a JSON answer is written to.
func answering(w http.ResponseWriter, r *http.Request) (out io.Writer, done func()) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	return compressed(w, r)
}

func answer(w http.ResponseWriter, r *http.Request, value any) {
	out, done := answering(w, r)
	defer done()
	_ = json.NewEncoder(out).Encode(value) // an error means that the reader is gone
}
