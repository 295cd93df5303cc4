// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/dynamig/dynamig/pkg/cdi"
)

// Container names one container of a pod of this node.
type Container struct {
	PodUID    types.UID
	Namespace string
	Pod       string
	Name      string
}

// Device is one device of a container.
type Device struct {
	Key   string    // identifies the device for its pod's life, such as "<gpu uuid>/<profile id>/<start>"
	Edits cdi.Edits // what the container gets for it; must not be empty
}

// Preparer makes devices ready.
type Preparer interface {
	// Prepare returns the devices of a container in the order of the pod's
	// annotation, once they can be used. It is called for each start of the
	// container, also in parallel for several, and for containers that share
	// slots with it; it must be idempotent. ctx ends when the pod was released
	// or the program stops, not when kubelet has given up waiting. The error is
	// shown to the pod's user.
	Prepare(ctx context.Context, c Container) ([]Device, error)
}

// Pods is what the owner knows of this node's pods.
type Pods interface {
	// Pod names the pod with this UID; ok is false when there is none or it has
	// ended. It must be quick and is called in parallel.
	Pod(uid types.UID) (namespace, name string, ok bool)
}

// Config says where kubelet is and whom to ask.
type Config struct {
	Resource     string  // extended resource name, such as nvidia.com/gpu
	PluginDir    string  // kubelet's device plugin directory; empty = kubelet's default
	PodResources string  // socket of kubelet's PodResources API; empty = kubelet's default
	State        string  // file that keeps the slots over restarts; its directory must exist
	CDI          cdi.Dir // for slots; the owner writes cdi.DriverDevice itself, before Run
	Preparer     Preparer
	Pods         Pods
}

const (
	defaultPodResources = "/var/lib/kubelet/pod-resources/kubelet.sock"
	kubeletCheckpoint   = "kubelet_internal_checkpoint"
)

func (c Config) withDefaults() (Config, error) {
	if c.PluginDir == "" {
		c.PluginDir = pluginapi.DevicePluginPath
	}
	if c.PodResources == "" {
		c.PodResources = defaultPodResources
	}
	switch {
	case c.Resource == "":
		return c, errors.New("device plugin configuration: Resource is empty")
	case c.State == "":
		return c, errors.New("device plugin configuration: State is empty")
	case c.Preparer == nil || c.Pods == nil:
		return c, errors.New("device plugin configuration: Preparer and Pods must be set")
	}
	return c, nil
}

// timing are the durations that tests shorten.
type timing struct {
	withdraw time.Duration // between listing a slot as unhealthy and dropping it (I6)
	handed   time.Duration // how long a handed slot counts as held though kubelet's checkpoint lacks it
	settle   time.Duration // how long a runtime may still see a CDI file that was removed (I4)
	identify time.Duration // how long to look for the pod before refusing
	margin   time.Duration // how long before kubelet's deadline to answer, so that it shows our sentence
	register time.Duration // limit of one registration
}

func defaultTiming() timing {
	return timing{
		withdraw: 10 * time.Second,
		handed:   time.Minute,
		settle:   time.Second,
		identify: 5 * time.Second,
		margin:   time.Second,
		register: 10 * time.Second,
	}
}

// Plugin offers slots of one resource to kubelet. All methods may be called in
// parallel, before, during and after Run. The owner runs it as soon as it can, sets
// the capacity when it knows its GPUs, and sweeps when it knows its pods.
type Plugin struct {
	config  Config
	timing  timing
	slots   *slots
	holders *podResources
	flights *flights
	metrics *metrics

	connected atomic.Bool // a session holds
}

// New reads the slots that an earlier run left. Where the state file is missing it
// learns from kubelet's checkpoint and the CDI files which numbers were used; a
// state file that cannot be understood is an error.
func New(config Config) (*Plugin, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	t := defaultTiming()
	p := &Plugin{
		config:  config,
		timing:  t,
		holders: newPodResources(config.PodResources, config.Resource),
		flights: newFlights(),
		metrics: newMetrics(),
	}
	p.slots, err = openSlots(config.State, p.usedSlots)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Run serves kubelet until ctx ends, over restarts of kubelet, and then leaves no
// socket and no goroutine behind. It is called once. An error means that it cannot
// notice kubelet any more.
func (p *Plugin) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.serveKubelet(ctx) })
	g.Go(func() error { return p.holders.run(ctx) })
	g.Go(func() error {
		p.dropWithdrawn(ctx)
		return nil
	})
	err := g.Wait()
	p.flights.stop()
	return err
}

// checkpointPath is the file in which kubelet keeps who holds which devices.
func (p *Plugin) checkpointPath() string {
	return filepath.Join(p.config.PluginDir, kubeletCheckpoint)
}
