// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/dynamig/dynamig/pkg/config"
	typed "github.com/dynamig/dynamig/pkg/generated/clientset/versioned/typed/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/hamicore"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// Nodes finds the device nodes of an instance that exists, in the order GPU, GPU
// instance, compute instance, and that of a whole GPU (nvml.Capabilities).
type Nodes interface {
	InstanceNodes(gpuMinor, gi, ci int) ([]nvml.DeviceNode, error)
	GPUNode(gpuMinor int) (nvml.DeviceNode, error)
}

// Slots is kubelet's side of the node: how many devices it may give to pods, and
// which pods are gone (deviceplugin.Plugin).
type Slots interface {
	SetCapacity(devices int) error
	SetUnhealthy(pods []types.UID)
	Release(pod types.UID) error
	Sweep(live func(types.UID) bool) error
}

// Config says what the agent works with. All fields but those that say so must be
// set.
type Config struct {
	Node         string // name of the Node object
	StateDir     string // for the journal; made when it is missing
	DeviceConfig string // file; empty = the defaults
	NodeConfig   string // file; empty = the node is not configured

	MIGPartedConfig string // file; empty = the node configuration may name none of its configurations

	Open    func() (nvml.Driver, error) // opens an NVML session, also after one was lost
	Nodes   Nodes
	Openers func([]DeviceNumber) ([]int, error) // processes that hold devices open; see Openers

	ProcessesOf func(types.UID) ([]int, error) // of a pod's containers; see ProcessesOf

	// Reset resets one GPU, so that a change of its MIG mode comes into force. It is
	// called only for a GPU that nobody uses, while the NVML session is closed. nil:
	// no GPU is ever reset.
	Reset func(context.Context, nvml.GPU) error

	HAMiCore hamicore.Dir // the library for software shares; the zero value is none

	Client   kubernetes.Interface
	GPUNodes typed.GPUNodesGetter

	// KubeletPods lists the pods that kubelet knows, static ones included. It is asked
	// until the API server has answered. nil: never.
	KubeletPods func(context.Context) ([]*v1.Pod, error)

	Timing Timing // zero fields have defaults

	// DryRun: nothing is written, neither to the disk nor to the API server. Open
	// must give sessions that change nothing.
	DryRun bool
}

// Timing are the agent's times and limits.
type Timing struct {
	Check       time.Duration // between looks at the hardware
	RetryLeast  time.Duration // first wait after a failure; doubles
	RetryMost   time.Duration
	Tries       int           // of a creation that the driver refuses for want of room
	GiveUp      time.Duration // the same as a time
	Stuck       time.Duration // until an instance that cannot be destroyed is reported as stuck
	StuckGiveUp time.Duration // until the pod that waits for its place is refused
	Hang        time.Duration // until a driver call that has not returned makes the GPU unhealthy
	Coalesce    time.Duration // between a change and the report of it
	Refresh     time.Duration // between looks at the own Node and GPUNode
	Stop        time.Duration // how long to wait for driver calls at the end
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	def(&t.Check, 10*time.Second)
	def(&t.RetryLeast, 250*time.Millisecond)
	def(&t.RetryMost, 10*time.Second)
	def(&t.GiveUp, 15*time.Second)
	def(&t.Stuck, 30*time.Second)
	def(&t.StuckGiveUp, 5*time.Minute)
	def(&t.Hang, 15*time.Second)
	def(&t.Coalesce, 250*time.Millisecond)
	def(&t.Refresh, time.Minute)
	def(&t.Stop, 5*time.Second)
	if t.Tries == 0 {
		t.Tries = 6
	}
	return t
}

func (c *Config) check() error {
	for field, missing := range map[string]bool{
		"Node": c.Node == "", "StateDir": c.StateDir == "", "Open": c.Open == nil, "Nodes": c.Nodes == nil,
		"Openers": c.Openers == nil, "ProcessesOf": c.ProcessesOf == nil, "Client": c.Client == nil, "GPUNodes": c.GPUNodes == nil,
	} {
		if missing {
			return fmt.Errorf("agent configuration: %s is not set", field)
		}
	}
	return nil
}

// Agent is one node's agent.
type Agent struct {
	config   Config
	resource v1.ResourceName // see Resource
	journal  *journal
	owners   *owners
	events   *events
	session  *session
	metrics  *metrics

	// watch watches the configuration files; config.Watch but for tests.
	watch func(ctx context.Context, files []string, changed func()) error

	sweep func(alive func(podUID string) bool) error // removes homes of shares; HAMiCore.Sweep but for tests

	ready chan struct{} // closed when hardware and journal have been read

	ears    sync.WaitGroup // of what listens to GPUs, which ends with the session, and of sweepHomes
	calls   atomic.Uint64  // driver calls of workers so far
	began   time.Time      // when Run was called
	reloads int            // of the driver, when the GPUs were listed last; manage's own

	// Each has room for one: who sends means "look again".
	rearrange  chan struct{} // what is known of the GPUs
	slotsDirty chan struct{}
	dirty      chan struct{} // the report
	urgent     chan struct{} // the same, at once

	probing sync.Mutex    // guards probed
	probed  chan struct{} // closed when the state was read; nil while nobody reads it

	mu        sync.Mutex // guards what follows
	workers   map[nvml.GPUID]*worker
	retired   map[nvml.GPUID]*worker // stopped, though a driver call may still run
	inventory *inventory             // nil until the GPUs have been listed
	trouble   string                 // why they cannot be listed
	told      bool                   // the report says that they cannot be

	driverFile string    // why containers cannot be given what each needs of the driver
	settings   *settings // nil until a configuration was good
	invalid    string    // what is wrong with the newest configuration
	cordoned   string    // the own Node's annotation AnnotationCordon
}

// New reads the journal. What it learns from it holds until the API server has
// been asked.
func New(settings Config) (*Agent, error) {
	if err := settings.check(); err != nil {
		return nil, err
	}
	settings.Timing = settings.Timing.withDefaults()
	j, err := settings.journal()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		config:     settings,
		resource:   settings.countName(),
		journal:    j,
		events:     newEvents(settings.Node),
		session:    newSession(settings.Open),
		metrics:    j.metrics,
		watch:      config.Watch,
		sweep:      settings.HAMiCore.Sweep,
		ready:      make(chan struct{}),
		rearrange:  make(chan struct{}, 1),
		slotsDirty: make(chan struct{}, 1),
		dirty:      make(chan struct{}, 1),
		urgent:     make(chan struct{}, 1),
		workers:    map[nvml.GPUID]*worker{},
		retired:    map[nvml.GPUID]*worker{},
	}
	a.owners = newOwners(settings.Node, a.resource, j, a.events, a.ownersChanged)
	return a, nil
}

// journal opens the journal.
func (c *Config) journal() (*journal, error) {
	path := filepath.Join(c.StateDir, journalFileName)
	if c.DryRun {
		return peekJournal(path)
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("making state directory: %w; choose another one with --state-dir", err)
	}
	return openJournal(path)
}

// Resource is the name of the resource that counts devices, for as long as the agent
// runs.
func (a *Agent) Resource() v1.ResourceName { return a.resource }

// Ready is closed when the hardware has been looked at and the journal was read,
// so that containers can be prepared. A GPU whose driver calls do not return is
// not waited for.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run works until ctx ends, and then returns nil. It is called once. In a dry run
// there are no slots.
func (a *Agent) Run(ctx context.Context, slots Slots) error {
	a.began = time.Now()
	if !a.config.DryRun {
		defer a.events.start(a.config.Client)()
	}
	g, ctx := errgroup.WithContext(ctx)
	a.firstNode(ctx)
	a.reload(ctx)
	g.Go(func() error { return a.watchPods(ctx) })
	g.Go(func() error {
		a.manage(ctx)
		return nil
	})
	if !a.config.DryRun {
		g.Go(func() error {
			(&slotKeeper{agent: a, slots: slots}).run(ctx)
			return nil
		})
		g.Go(func() error {
			a.reportAll(ctx)
			return nil
		})
	}
	g.Go(func() error {
		a.watchLibrary(ctx)
		return nil
	})
	if !a.config.DryRun {
		a.ears.Go(func() { a.sweepHomes(ctx) })
	}
	if files := a.configFiles(); len(files) > 0 {
		g.Go(func() error {
			if err := a.watch(ctx, files, func() { a.reload(ctx) }); err != nil {
				return fmt.Errorf("%w; make the directory, or correct --device-config and --node-config", err)
			}
			return nil
		})
	}
	err := g.Wait()
	err = errors.Join(err, a.journal.commit(), a.session.close())
	a.waitForEars()
	return err
}

// signal tells a loop to look again; it never waits.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ownersChanged is called after each change of any pod.
func (a *Agent) ownersChanged(urgent bool) {
	a.mu.Lock()
	for _, w := range a.workers {
		w.wake()
	}
	a.mu.Unlock()
	a.changed(urgent)
}

// changed has report and slots look again.
func (a *Agent) changed(urgent bool) {
	signal(a.slotsDirty)
	if urgent {
		signal(a.urgent)
	} else {
		signal(a.dirty)
	}
}

// lookAgain has a GPU's hardware read.
func (a *Agent) lookAgain(gpu string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.workers[nvml.GPUID(gpu)]; w != nil {
		w.lookAgain()
	}
}
