// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// inventory is the node's GPUs under the configuration in force. It is replaced,
// never changed.
type inventory struct {
	driverVersion string
	generation    int64 // of the configuration
	configured    bool  // the configuration has an entry for this node
	gpus          []managedGPU
	models        []v1alpha1.GPUModel // by name
	catalogues    map[string]*geometry.Catalogue
	missing       []string // GPUs that do not answer and were never seen, sentences
	mismatches    config.Mismatches
	cordoned      []string // UUIDs of GPUs that take no new pods
	library       string   // why no software share can be had; empty when it can
	device        *config.Device
	resource      v1.ResourceName // that counts devices
}

// managedGPU is a GPU that the agent may touch. Its model is in models, unless its
// profiles have not been read yet.
type managedGPU struct {
	nvml.GPU
	wanted string // mode
	worker *worker
	shares *v1alpha1.ShareCapacity // what it would offer in mode hami-core
}

// manage keeps a worker for each GPU that the configuration lets us touch, until
// ctx ends, and then waits for them.
func (a *Agent) manage(ctx context.Context) {
	logger := klog.FromContext(ctx)
	defer a.waitForWorkers(ctx)
	l := &lister{session: a.session, hang: a.config.Timing.Hang}
	var waiting sync.WaitGroup
	defer waiting.Wait()
	var once sync.Once
	for {
		var retry <-chan time.Time
		err := a.arrange(ctx, l)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			logger.Error(err, "Could not list the GPUs")
			a.setTrouble(err.Error())
			retry = time.After(a.config.Timing.Check)
		} else {
			if l.last != nil && len(l.last.missing) > 0 {
				retry = time.After(a.config.Timing.Check)
			}
			a.setTrouble("")
			once.Do(func() { waiting.Go(func() { a.becomeReady(ctx) }) })
		}
		select {
		case <-ctx.Done():
			return
		case <-a.rearrange:
		case <-retry:
		}
	}
}

// inventoryNow is the newest inventory; nil until the GPUs have been listed.
func (a *Agent) inventoryNow() *inventory {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inventory
}

func (a *Agent) setTrouble(text string) { a.tell(&a.trouble, text) }

// tell replaces a sentence of the report that mu guards, and has news reported at once.
func (a *Agent) tell(sentence *string, text string) {
	a.mu.Lock()
	news := *sentence != text
	*sentence = text
	a.mu.Unlock()
	if news {
		a.changed(true)
	}
}

// becomeReady closes ready once each worker has looked at its GPU, or after a time
// in which every driver call that returns has done so.
func (a *Agent) becomeReady(ctx context.Context) {
	a.mu.Lock()
	workers := slices.Collect(maps.Values(a.workers))
	a.mu.Unlock()
	patient := time.After(a.config.Timing.Hang)
	for _, w := range workers {
		select {
		case <-w.first:
		case <-w.done:
		case <-patient:
			patient = nil
		case <-ctx.Done():
			return
		}
		if patient == nil {
			break
		}
	}
	close(a.ready)
	a.changed(false)
}

// waitForWorkers waits for a reset and for driver calls to end, but not for ever.
func (a *Agent) waitForWorkers(ctx context.Context) {
	a.session.letReset()
	a.mu.Lock()
	workers := slices.AppendSeq(slices.Collect(maps.Values(a.workers)), maps.Values(a.retired))
	a.mu.Unlock()
	patient := time.After(a.config.Timing.Stop)
	for _, w := range workers {
		select {
		case <-w.done:
		case <-patient:
			klog.FromContext(ctx).Info("Stopping although a driver call has not returned", "gpu", w.id)
			return
		}
	}
}

// arrange lists the GPUs, starts and stops workers, and puts the inventory
// together from what they know. Where the GPUs cannot be listed it goes on with
// those that were listed last.
func (a *Agent) arrange(ctx context.Context, l *lister) error {
	a.mu.Lock()
	settings, cordoned := a.settings, a.cordoned
	a.mu.Unlock()
	if settings == nil {
		return nil // nothing may be touched before it is known what is excluded
	}
	entry, configured := a.entry(settings)
	failure := l.list(ctx, func(id nvml.GPUID, index int) bool {
		return !configured || entry.Excludes(string(id), int32(index))
	})
	if l.last == nil {
		return failure
	}
	inv := &inventory{
		driverVersion: l.last.version, missing: l.last.missing,
		generation: settings.generation, catalogues: map[string]*geometry.Catalogue{}, library: a.checkLibrary(), resource: a.resource,
	}
	for uuid := range strings.SplitSeq(cordoned, ",") {
		inv.cordoned = append(inv.cordoned, strings.TrimSpace(uuid))
	}
	inv.configured = configured
	reloads := a.session.reloaded()
	excluded := a.employ(ctx, inv, l.last.gpus, entry, reloads != a.reloads)
	a.reloads = reloads
	inv.resolve(settings, entry)
	if configured {
		inv.mismatches.Remarks = append(inv.mismatches.Remarks, entry.Stray(namesOf(l.last.gpus))...)
		inv.mismatches.Remarks = append(inv.mismatches.Remarks, inv.strayCordon(l.last.gpus)...)
	}
	a.mu.Lock()
	a.inventory = inv
	a.mu.Unlock()
	a.owners.setGrounds(inv.grounds(excluded))
	return failure
}

// strayCordon says what the Node's annotation names that is none of its GPUs.
func (inv *inventory) strayCordon(gpus []nvml.GPU) (remarks []string) {
	for _, uuid := range inv.cordoned {
		if uuid != "" && !slices.ContainsFunc(gpus, func(g nvml.GPU) bool { return string(g.ID) == uuid }) {
			remarks = append(remarks, fmt.Sprintf("annotation %s of the Node names %s, which is the UUID of none of its %d GPUs that answer.",
				v1alpha1.AnnotationCordon, uuid, len(gpus)))
		}
	}
	return remarks
}

// entry is the configuration's entry for this node.
func (a *Agent) entry(s *settings) (config.NodeEntry, bool) {
	var labels map[string]string
	a.journal.read(func(c *content) { labels = c.Node.Labels })
	return s.entry(a.config.Node, labels)
}

// employ gives each GPU that may be touched a worker and takes the others' away.
// It returns why the others cannot be had.
func (a *Agent) employ(ctx context.Context, inv *inventory, gpus []nvml.GPU, entry config.NodeEntry, reloaded bool) map[string]string {
	excluded := map[string]string{}
	employed := map[nvml.GPUID]bool{}
	for _, gpu := range gpus {
		mode, why := entry.ModeOf(configName(gpu))
		switch {
		case !inv.configured:
			excluded[string(gpu.ID)] = "nodeconfig has no entry for this node"
		case why != "":
			excluded[string(gpu.ID)] = why
		case gpu.Name == "":
			excluded[string(gpu.ID)] = "the GPU was not read when the GPUs were listed last"
		case !gpu.MIGCapable && mode == v1alpha1.ModeMIG:
			excluded[string(gpu.ID)] = "the GPU cannot do MIG"
			inv.mismatches.Dropped = append(inv.mismatches.Dropped, fmt.Sprintf("GPU %d (%s) is to be used in mode mig, which it cannot do; it is not offered.", gpu.Index, gpu.Name))
		default:
			w := a.workerFor(ctx, gpu, mode, reloaded)
			inv.gpus = append(inv.gpus, managedGPU{GPU: gpu, wanted: mode, worker: w})
			employed[gpu.ID] = true
		}
	}
	slices.SortFunc(inv.gpus, func(x, y managedGPU) int { return cmp.Compare(x.Index, y.Index) })
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, w := range a.workers {
		if !employed[id] {
			w.stop()
			a.retired[id] = w
			delete(a.workers, id)
		}
	}
	return excluded
}

// configName is what the configuration knows a GPU by.
func configName(gpu nvml.GPU) config.GPUName {
	return config.GPUName{UUID: string(gpu.ID), Index: int32(gpu.Index), PCI: gpu.PCIDeviceID, Board: gpu.PCISubsystem, NoMIG: !gpu.MIGCapable}
}

func namesOf(gpus []nvml.GPU) []config.GPUName {
	names := make([]config.GPUName, len(gpus))
	for i, gpu := range gpus {
		names[i] = configName(gpu)
	}
	return names
}

// workerFor returns the GPU's worker, after starting it where there is none.
func (a *Agent) workerFor(ctx context.Context, gpu nvml.GPU, mode string, reloaded bool) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.workers[gpu.ID]; w != nil {
		w.set(gpu, mode, reloaded)
		return w
	}
	w := a.newWorker(gpu, mode, a.retired[gpu.ID])
	delete(a.retired, gpu.ID)
	ctx, w.stop = context.WithCancel(ctx)
	a.workers[gpu.ID] = w
	go w.run(ctx)
	return w
}

// resolve narrows the hardware down to what the configuration offers.
func (inv *inventory) resolve(s *settings, entry config.NodeEntry) {
	device := s.device.With(entry)
	inv.device = device
	for i := range inv.gpus {
		inv.gpus[i].shares = sharesOf(&inv.gpus[i], device)
	}
	for _, gpu := range inv.gpus {
		view := gpu.worker.view()
		if view.model == nil || len(view.model.Profiles()) == 0 || inv.catalogues[gpu.Name] != nil {
			continue
		}
		cut, remarks := device.Cut(&entry, gpu.Name, inv.toCut(gpu.Name))
		inv.mismatches.Remarks = append(inv.mismatches.Remarks, remarks...)
		hardware := v1alpha1.ModelOf(gpu.Name, view.model)
		model, mismatches := cut.Catalogue(gpu.Name, hardware.Profiles, hardware.Grid)
		catalogue, err := model.Catalogue()
		if err != nil {
			inv.mismatches.Dropped = append(inv.mismatches.Dropped, fmt.Sprintf("%s is not offered: %v.", gpu.Name, err))
			continue
		}
		inv.models = append(inv.models, model)
		inv.catalogues[gpu.Name] = catalogue
		inv.mismatches.Dropped = append(inv.mismatches.Dropped, mismatches.Dropped...)
		inv.mismatches.Remarks = append(inv.mismatches.Remarks, mismatches.Remarks...)
	}
	if inv.configured {
		inv.mismatches.Remarks = append(inv.mismatches.Remarks, device.WithoutEffect(&entry)...)
		inv.mismatches.Dropped = append(inv.mismatches.Dropped, s.unsupported(inv.resource)...)
	}
	slices.SortFunc(inv.models, func(x, y v1alpha1.GPUModel) int { return cmp.Compare(x.Model, y.Model) })
}

// toCut are the GPUs of a model that are wanted in mode mig.
func (inv *inventory) toCut(model string) (names []config.GPUName) {
	for i := range inv.gpus {
		if g := &inv.gpus[i]; g.Name == model && g.wanted == v1alpha1.ModeMIG {
			names = append(names, configName(g.GPU))
		}
	}
	return names
}

// grounds are what allocations are judged against.
func (inv *inventory) grounds(excluded map[string]string) *grounds {
	g := &grounds{configured: inv.configured, excluded: excluded, unread: map[string]bool{}, minors: map[string]int{}, health: map[string]func() state{}, device: inv.device}
	for i := range inv.gpus {
		gpu := &inv.gpus[i]
		view := gpu.worker.view()
		g.minors[string(gpu.ID)], g.health[string(gpu.ID)] = gpu.Minor, gpu.worker.view
		if view.model == nil {
			g.unread[string(gpu.ID)] = true
			continue
		}
		// Models by GPU: what configuration shares by name is judged one by one.
		name := string(gpu.ID)
		hardware := v1alpha1.GPU{UUID: string(gpu.ID), Index: int32(gpu.Index), Model: name}
		if gpu.wanted == v1alpha1.ModeHAMiCore && !view.mode.Current && inv.library == "" {
			hardware.Shares = gpu.shares
		}
		g.hardware.GPUs = append(g.hardware.GPUs, hardware)
		g.hardware.Models = append(g.hardware.Models, v1alpha1.ModelOf(name, view.model))
	}
	return g
}

// offers reports whether a GPU takes new work in its wanted mode, and why not.
func (inv *inventory) offers(gpu *managedGPU, view *state) (ok bool, why string) {
	switch {
	case view.unhealthy != "":
		return false, view.unhealthy
	case slices.Contains(inv.cordoned, string(gpu.ID)):
		return false, "annotation " + v1alpha1.AnnotationCordon + " of the Node keeps new pods away"
	case gpu.wanted == v1alpha1.ModeHAMiCore:
		return inv.offersShares(gpu, view)
	case view.modeWhy != "":
		return false, view.modeWhy
	case view.mode.Current && view.mode.Pending:
		return inv.catalogues[gpu.Name] != nil, ""
	case view.mode.Current:
		return false, "MIG mode will be off after the next reset; turn it on again with nvidia-smi -mig 1"
	default:
		return false, "MIG mode is off"
	}
}
