// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/hamicore"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Software shares: what GPUs offer to them, and what a container with one gets.

// checkLibrary says why no container can have a software share on this node; empty
// when it can.
func (a *Agent) checkLibrary() string {
	if a.config.HAMiCore.Path == "" {
		return "no HAMi-core library is configured; name its directory with --hami-core-dir"
	}
	if err := a.config.HAMiCore.Check(); err != nil {
		return err.Error()
	}
	return ""
}

// watchLibrary has the GPUs put together anew when the library comes, goes or
// breaks, until ctx ends.
func (a *Agent) watchLibrary(ctx context.Context) {
	last := a.checkLibrary()
	ticker := time.NewTicker(a.config.Timing.Check)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if now := a.checkLibrary(); now != last {
			last = now
			signal(a.rearrange)
			a.changed(true)
		}
	}
}

// sweepHomes removes the directories of pods that have ended, now and then until ctx
// ends. It has a goroutine of its own, since a container may have left millions of
// files. A container that is just being prepared may make its own again, which the
// next sweep finds.
func (a *Agent) sweepHomes(ctx context.Context) {
	for failed := ""; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.config.Timing.Check):
		}
		if a.config.HAMiCore.Path == "" || !a.owners.isSynced() {
			continue
		}
		text := ""
		if err := a.sweep(func(uid string) bool { return a.owners.alive(types.UID(uid)) }); err != nil {
			if text = err.Error(); text != failed {
				klog.FromContext(ctx).Error(err, "Could not remove the directories of pods that have ended")
			}
		}
		failed = text
	}
}

// sharesOf is what a GPU offers to software shares under the configuration; nil
// where its memory is not known.
func sharesOf(gpu *managedGPU, d *config.Device) *v1alpha1.ShareCapacity {
	memory := int64(gpu.MemoryMiB)
	if memory <= 0 {
		memory = d.PreConfiguredDeviceMemoryMiB
	}
	memory = int64(math.Floor(float64(memory) * d.DeviceMemoryScaling))
	cores := int32(min(math.Round(100*d.DeviceCoreScaling), math.MaxInt32))
	if memory <= 0 || cores <= 0 {
		return nil
	}
	return &v1alpha1.ShareCapacity{Count: d.DeviceSplitCount, MemoryMiB: memory, Cores: cores}
}

// nothingToCut is the model of a GPU that cannot do MIG.
func nothingToCut(name string) *geometry.Model { return geometry.Nothing(name).Model() }

// offersShares reports whether a GPU takes new software shares, and why not.
func (inv *inventory) offersShares(gpu *managedGPU, view *state) (ok bool, why string) {
	switch {
	case view.modeWhy != "":
		return false, view.modeWhy
	case view.mode.Current:
		return false, "MIG mode is on"
	case inv.library != "":
		return false, inv.library
	case gpu.shares == nil:
		return false, "its memory is not known; set preConfiguredDeviceMemory"
	default:
		return true, ""
	}
}

// holdsShares reports whether a live pod owns a software share of a GPU.
func (s *owners) holdsShares(gpu string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.pods {
		if o.Refused == "" && slices.ContainsFunc(o.shares, func(d v1alpha1.Device) bool { return d.GPU == gpu }) {
			return true
		}
	}
	return false
}

// crowded finds a share of o that does not fit beside those of other owners, which
// came first. mu is held.
func (s *owners) crowded(o *owner) (why string, ok bool) {
	if o.Prepared || s.grounds == nil {
		return "", false
	}
	taken := map[string]pool.Taken{}
	for _, other := range s.pods {
		if other != o && other.holds() {
			for _, d := range other.shares {
				taken[d.GPU] = taken[d.GPU].With(*d.Share)
			}
		}
	}
	for _, d := range o.shares {
		gpu := s.grounds.hardware.GPU(d.GPU)
		if gpu == nil || gpu.Shares == nil {
			continue // judged already
		}
		if !taken[d.GPU].Admits(*d.Share, gpu.Shares) {
			return fmt.Sprintf("GPU %d has not enough left for %d MiB and %d%% of its cores", gpu.Index, d.Share.MemoryMiB, d.Share.Cores), true
		}
		taken[d.GPU] = taken[d.GPU].With(*d.Share)
	}
	return "", false
}

// errHomes: the shares of a container do not go together.
var errHomes = errors.New("its software shares go to different containers after it; delete the pod to have it placed anew")

// home is the container whose directory and limits a container's shares go with:
// the last one, in the order in which kubelet starts them, that has them; nil where
// it has none. Slots are handed on, and what a slot stands for is fixed before the
// first container starts.
func home(pod *v1.Pod, a *v1alpha1.Allocation, container string) (*v1.Container, error) {
	last := map[int32]*v1.Container{}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, d := range a.Containers[list[i].Name] {
				if d.Share != nil {
					last[d.Share.ID] = &list[i]
				}
			}
		}
	}
	var found *v1.Container
	for _, d := range a.Containers[container] {
		if d.Share == nil {
			continue // other containers of the pod may have MIG instances
		}
		c := last[d.Share.ID]
		if c == nil || found != nil && c != found {
			return nil, fmt.Errorf("container %s: %w", container, errHomes)
		}
		found = c
	}
	return found, nil
}

// preparedShare is what is known of a software share and of the home it goes with.
type preparedShare struct {
	device v1alpha1.Device
	minor  int // of the GPU's device node
	home   *hamicore.Home
}

// shareOf prepares one share of a container.
func (g *grounds) shareOf(o *owner, container string, d v1alpha1.Device) (*preparedShare, error) {
	c, err := home(o.pod, &o.allocation, container)
	if err != nil {
		return nil, err
	}
	minor, ok := g.minors[d.GPU]
	if !ok {
		return nil, fmt.Errorf("GPU %s is not on this node any more", d.GPU)
	}
	h := &hamicore.Home{PodUID: string(o.UID), Container: c.Name}
	devices := slices.Clone(o.allocation.Containers[c.Name])
	slices.SortFunc(devices, func(x, y v1alpha1.Device) int { return cmp.Compare(g.index(x.GPU), g.index(y.GPU)) })
	for name, some := range o.allocation.Containers {
		other, err := home(o.pod, &o.allocation, name)
		h.Partial = h.Partial || err == nil && other == c && len(some) < len(devices)
	}
	for _, x := range devices {
		h.Limits = append(h.Limits, hamicore.Limit{MemoryMiB: x.Share.MemoryMiB, Cores: x.Share.Cores})
	}
	g.tell(h, c)
	return &preparedShare{device: d, minor: minor, home: h}, nil
}

// index is a GPU's place in the driver's order, by which a container numbers its
// devices, too; device nodes may be numbered otherwise.
func (g *grounds) index(uuid string) int32 {
	if gpu := g.hardware.GPU(uuid); gpu != nil {
		return gpu.Index
	}
	return math.MaxInt32
}

// librarySettings are the variables by which a container speaks to the library
// itself.
var librarySettings = []string{envNoControl, envLogLevel, envCorePolicy, envPriority}

const (
	envNoControl  = "CUDA_DISABLE_CONTROL"
	envLogLevel   = "LIBCUDA_LOG_LEVEL"
	envCorePolicy = "GPU_CORE_UTILIZATION_POLICY"
	envPriority   = "CUDA_TASK_PRIORITY"
)

// tell fills in what configuration and container say besides the limits. What the
// container sets itself stays.
func (g *grounds) tell(h *hamicore.Home, c *v1.Container) {
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	h.NoPreload, _ = strconv.ParseBool(env[envNoControl])
	if d := g.device; d != nil {
		h.Oversubscribed = d.DeviceMemoryScaling > 1
		if _, own := env[envLogLevel]; !own {
			h.LogLevel = d.LibCUDALogLevel
		}
		if _, own := env[envCorePolicy]; !own {
			switch {
			case d.DisableCoreLimit:
				h.CorePolicy = config.CorePolicyDisable
			case d.GPUCorePolicy != config.CorePolicyDefault:
				h.CorePolicy = d.GPUCorePolicy
			}
		}
	}
	if _, own := env[envPriority]; own {
		return
	}
	name := v1.ResourceName(v1alpha1.ResourcePriority)
	if d := g.device; d != nil {
		name = v1.ResourceName(d.ResourcePriorityName)
	}
	if q, ok := c.Resources.Limits[name]; ok {
		h.Priority = strconv.FormatInt(q.Value(), 10)
	}
}

// shareDevice is what a container needs of one share; it makes the home's directory.
func (a *Agent) shareDevice(s *preparedShare) (Device, error) {
	node, err := a.config.Nodes.GPUNode(s.minor)
	if err != nil {
		return Device{}, err
	}
	out := Device{Key: fmt.Sprintf("%s/share/%d", s.device.GPU, s.device.Share.ID)}
	out.Nodes = append(out.Nodes, node)
	if out.Env, err = s.home.Env(); err != nil {
		return Device{}, err
	}
	out.Mounts, err = a.config.HAMiCore.Make(s.home)
	return out, err
}

// libraryTrouble is said while a GPU is to be shared and the library cannot be used.
func (f *findings) libraryTrouble() []string {
	if f.inventory == nil || f.inventory.library == "" {
		return nil
	}
	for i := range f.inventory.gpus {
		if f.inventory.gpus[i].wanted == v1alpha1.ModeHAMiCore {
			return []string{"GPUs in mode hami-core are not offered: " + f.inventory.library + "."}
		}
	}
	return nil
}
