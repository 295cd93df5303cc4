// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/arguments"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Name of the plugin in a KubeSchedulerConfiguration.
const Name = "DynamicMIG"

// Plugin is DynamicMIG in one scheduler profile.
type Plugin struct {
	*core
	handle  fwk.Handle
	decided func(pod types.UID, took time.Duration) // nil when nobody asks
	write   arguments.AllocationWrite

	bindOrder   sync.Once
	bindTrouble error // written once, under bindOrder
}

var (
	_ fwk.PreFilterPlugin   = &Plugin{}
	_ fwk.FilterPlugin      = &Plugin{}
	_ fwk.PreScorePlugin    = &Plugin{}
	_ fwk.ScorePlugin       = &Plugin{}
	_ fwk.ScoreExtensions   = &Plugin{}
	_ fwk.ReservePlugin     = &Plugin{}
	_ fwk.PreBindPlugin     = &Plugin{}
	_ fwk.BindPlugin        = &Plugin{}
	_ fwk.PostBindPlugin    = &Plugin{}
	_ fwk.EnqueueExtensions = &Plugin{}
	_ fwk.SignPlugin        = &Plugin{}
)

// Name returns Name.
func (pl *Plugin) Name() string { return Name }

// Shared is what a process has besides its profiles, for companions of the plugin
// such as the reaper.
type Shared struct {
	Handle   fwk.Handle
	Pool     *pool.Pool
	Pods     cache.SharedIndexInformer // has index ByNode
	GPUNodes cache.SharedIndexInformer

	// ConfigTrouble is why the newest device configuration is not in force; nil where
	// it is.
	ConfigTrouble func() error
}

// ByNode is the index of Shared.Pods by spec.nodeName; pods that wait are under
// the empty name. It has pods with our resources only.
const ByNode = "dynamig.io/node"

// Factory builds the plugin for each profile that enables it. All of a process
// share one pool: two pools would give one placement to two pods.
type Factory struct {
	// Companion, if set, is called once, when the first profile is built. It must
	// return soon; what it starts ends with ctx.
	Companion func(ctx context.Context, shared Shared) error

	// Decided, if set, is told of each choice that Reserve records outside of
	// simulations, and of the time since the pod's PreFilter. It must return at once.
	Decided func(pod types.UID, took time.Duration)

	// connect makes the client of GPUNodes from the scheduler's configuration, and
	// follow calls changed whenever files change; the package's own where nil.
	connect func(*rest.Config) (versioned.Interface, error)
	follow  func(ctx context.Context, files []string, changed func()) error

	// names are the resources in force, for NewFit; nil before the first profile with
	// the plugin is built.
	names atomic.Pointer[v1alpha1.Resources]

	mu   sync.Mutex // guards what follows
	args arguments.DynamicMIG
	core *core
}

// New is a framework PluginFactory. The first call starts the informers' handlers;
// the goroutines end with ctx.
func (f *Factory) New(ctx context.Context, obj runtime.Object, handle fwk.Handle) (fwk.Plugin, error) {
	args, err := decodeArgs(obj)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.core == nil {
		if err := f.start(ctx, args, handle); err != nil {
			return nil, err
		}
	}
	if !reflect.DeepEqual(f.args, args) {
		return nil, fmt.Errorf("profile %s: DynamicMIGArgs differ from another profile's; all profiles share one pool of GPUs, so give them equal arguments", handle.ProfileName())
	}
	f.core.profiles.Store(handle.ProfileName(), struct{}{})
	return &Plugin{core: f.core, handle: handle, decided: f.Decided, write: args.AllocationWrite}, nil
}

// decodeArgs reads the arguments as kube-scheduler hands them over.
func decodeArgs(obj runtime.Object) (arguments.DynamicMIG, error) {
	if obj == nil {
		return arguments.Decode(nil)
	}
	raw, ok := obj.(*runtime.Unknown)
	if !ok {
		return arguments.DynamicMIG{}, fmt.Errorf("decoding DynamicMIGArgs: want the type runtime.Unknown, got %T", obj)
	}
	return arguments.Decode(raw.Raw)
}

// start makes what all profiles share.
func (f *Factory) start(ctx context.Context, args arguments.DynamicMIG, handle fwk.Handle) error {
	makeClient := connect
	if f.connect != nil {
		makeClient = f.connect
	}
	client, err := makeClient(handle.KubeConfig())
	if err != nil {
		return err
	}
	c, err := newCore(ctx, args, client, handle)
	if err != nil {
		return err
	}
	names := c.pool.Names()
	f.names.Store(&names)
	if c.device != nil {
		follow := config.Watch
		if f.follow != nil {
			follow = f.follow
		}
		go c.device.run(ctx, follow)
	}
	if f.Companion != nil {
		if err := f.Companion(ctx, c.shared(handle)); err != nil {
			return err
		}
	}
	f.args, f.core = args, c
	return nil
}

// stateKey of the plugin's CycleState.
const stateKey fwk.StateKey = Name

// state of one pod in one scheduling cycle. The request is never changed; chosen
// is written by Reserve and read by later extension points, which run one after
// the other.
type state struct {
	request  *pool.Request
	measured *measured // by Filter
	began    time.Time // PreFilter
	chosen   *choice
}

// choice is what Reserve decided.
type choice struct {
	view   *pool.View
	plan   pool.Plan
	holder pool.Holder
}

// Clone shares the state: a dry run never reaches Reserve.
func (s *state) Clone() fwk.StateData { return s }

// errNoState means that a pod of ours passed no PreFilter.
var errNoState = errors.New("reading the state of DynamicMIG: PreFilter has not written it")

func readState(cs fwk.CycleState) (*state, error) {
	data, err := cs.Read(stateKey)
	if err != nil {
		return nil, errNoState
	}
	s, ok := data.(*state)
	if !ok {
		return nil, errNoState
	}
	return s, nil
}

// podsOf iterates over a NodeInfo's pods. The slice is not kept: the framework
// changes it in place (kubernetes pkg/scheduler/framework/types.go:412-435).
func podsOf(ni fwk.NodeInfo) iter.Seq[*v1.Pod] {
	return func(yield func(*v1.Pod) bool) {
		for _, p := range ni.GetPods() {
			if !yield(p.GetPod()) {
				return
			}
		}
	}
}
