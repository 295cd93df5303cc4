// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/dynamig/dynamig/pkg/pool"
)

// totalCores is what HAMi registers for a GPU without scaling, in percent.
const totalCores = 100

// charged is what HAMi would say a GPU has given away: whole instances, and shares
// as they were asked for.
type charged struct {
	bytes float64
	cores int // percent
	count int
}

func chargedOn(g *pool.GPUPicture) charged {
	var c charged
	for i := range g.Spans {
		if s := &g.Spans[i]; s.State.Owned() {
			c.bytes += mib(s.MemoryMiB)
			c.cores += cores(g, s)
			c.count++
		}
	}
	if g.Shares != nil {
		for i := range g.Shares.Held {
			c.bytes += mib(int(g.Shares.Held[i].MemoryMiB))
			c.cores += int(g.Shares.Held[i].Cores)
			c.count++
		}
	}
	return c
}

func mib(n int) float64 { return float64(n) * (1 << 20) }

// cores of an instance in percent of its GPU, as geometry derives them.
func cores(g *pool.GPUPicture, s *pool.SpanPicture) int {
	if g.ComputeSlices == 0 {
		return 0
	}
	return 100 * s.Compute / g.ComputeSlices
}

func ratio(part, whole float64) float64 {
	if whole == 0 {
		return 0
	}
	return part / whole
}

// hamiGPU emits one series for each GPU with HAMi's labels and more.
func hamiGPU(value func(g *pool.GPUPicture, c charged) float64, more ...func(g *pool.GPUPicture, c charged) string) func(*scrape, func(float64, ...string)) {
	return func(s *scrape, emit func(float64, ...string)) {
		s.eachGPU(func(n *Drawn, g *pool.GPUPicture, index string) {
			c := chargedOn(g)
			values := []string{n.Name, g.UUID, index}
			for _, m := range more {
				values = append(values, m(g, c))
			}
			emit(value(g, c), values...)
		})
	}
}

func deviceType(g *pool.GPUPicture, _ charged) string   { return g.Model }
func deviceCores(*pool.GPUPicture, charged) string      { return strconv.Itoa(totalCores) }
func usedCores(_ *pool.GPUPicture, c charged) string    { return strconv.Itoa(c.cores) }
func sharedBy(_ *pool.GPUPicture, c charged) string     { return strconv.Itoa(c.count) }
func memoryLimit(g *pool.GPUPicture, _ charged) string  { return strconv.FormatInt(g.MemoryMiB, 10) }
func totalBytes(g *pool.GPUPicture, _ charged) float64  { return mib(int(g.MemoryMiB)) }
func usedBytes(_ *pool.GPUPicture, c charged) float64   { return c.bytes }
func allCores(*pool.GPUPicture, charged) float64        { return totalCores }
func coresGiven(_ *pool.GPUPicture, c charged) float64  { return float64(c.cores) }
func sharers(_ *pool.GPUPicture, c charged) float64     { return float64(c.count) }
func memoryShare(g *pool.GPUPicture, c charged) float64 { return ratio(c.bytes, mib(int(g.MemoryMiB))) }

// containerShare is what one container has on one GPU.
type containerShare struct {
	namespace, pod string
	index          int
	bytes          float64
	cores          int
}

// containersOn lists what containers have of a GPU, once for each instance and each
// software share. Plain init containers have it in turn with others and do not count.
func containersOn(g *pool.GPUPicture) []containerShare {
	var out []containerShare
	add := func(o *pool.OwnerPicture, bytes float64, cores int) {
		for _, u := range o.Uses {
			if !u.Init {
				out = append(out, containerShare{o.Namespace, o.Name, u.Index, bytes, cores})
			}
		}
	}
	for i := range g.Spans {
		if span := &g.Spans[i]; span.State.Owned() {
			add(span.Owner, mib(span.MemoryMiB), cores(g, span))
		}
	}
	if g.Shares != nil {
		for i := range g.Shares.Held {
			share := &g.Shares.Held[i]
			add(&share.Owner, mib(int(share.MemoryMiB)), int(share.Cores))
		}
	}
	return out
}

// eachContainer adds up, for each GPU, what containers have there.
func (s *scrape) eachContainer(do func(n *Drawn, g *pool.GPUPicture, c *containerShare)) {
	s.eachGPU(func(n *Drawn, g *pool.GPUPicture, _ string) {
		shares := containersOn(g)
		slices.SortFunc(shares, func(a, b containerShare) int {
			return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.pod, b.pod), cmp.Compare(a.index, b.index))
		})
		for i := 0; i < len(shares); {
			sum := shares[i]
			for i++; i < len(shares) && shares[i].namespace == sum.namespace && shares[i].pod == sum.pod && shares[i].index == sum.index; i++ {
				sum.bytes += shares[i].bytes
				sum.cores += shares[i].cores
			}
			do(n, g, &sum)
		}
	})
}

func containers(value func(c *containerShare) float64) func(*scrape, func(float64, ...string)) {
	return func(s *scrape, emit func(float64, ...string)) {
		s.eachContainer(func(n *Drawn, g *pool.GPUPicture, c *containerShare) {
			emit(value(c), c.namespace, n.Name, c.pod, strconv.Itoa(c.index), g.UUID)
		})
	}
}

const hamiSource = "node view; HAMi's meaning, charged with whole instances"

func hami(name, help, unit string, labels []string, each func(*scrape, func(float64, ...string))) family {
	return family{name: name, help: help, unit: unit, source: hamiSource, group: GroupHAMi, zone: true, labels: labels, each: each}
}

var (
	hamiType  = []string{"node", "device_uuid", "device_index", "device_type"}
	hamiCores = []string{"node", "device_uuid", "device_index", "device_cores", "device_type"}
	hamiPod   = []string{"namespace", "node", "pod", "container_index", "device_uuid"}
)

var hamiFamilies = []family{
	hami("hami_gpu_memory_limit_bytes", "Memory of the GPU.", "bytes", hamiType, hamiGPU(totalBytes, deviceType)),
	hami("hami_gpu_core_limit_ratio", "Cores of the GPU in percent: 100.", "percent", hamiType, hamiGPU(allCores, deviceType)),
	hami("hami_gpu_memory_allocated_bytes", "Memory given to pods.", "bytes", hamiCores, hamiGPU(usedBytes, deviceCores, deviceType)),
	hami("hami_gpu_core_allocated_ratio", "Cores given to pods, in percent of the GPU.", "percent", hamiType, hamiGPU(coresGiven, deviceType)),
	hami("hami_gpu_shared_count", "Instances or software shares of the GPU that pods have.", "instances", hamiType, hamiGPU(sharers, deviceType)),
	hami("hami_node_gpu_overview", "Memory given to pods, with the GPU's figures as labels.", "bytes",
		[]string{"node", "device_uuid", "device_index", "device_cores", "device_memory_limit", "device_type"}, hamiGPU(usedBytes, deviceCores, memoryLimit, deviceType)),
	hami("hami_node_gpu_memory_allocated_ratio", "Part of the GPU's memory that is given to pods, 0 to 1.", "ratio", hamiType, hamiGPU(memoryShare, deviceType)),
	instance(hami("hami_node_gpu_mig_instance_info", "Always 1, for each live instance that a pod has.", "1",
		[]string{"node", "device_uuid", "device_index", "mig_uuid", "profile", "gpu_instance_id", "compute_instance_id", "placement_start", "placement_size"},
		func(s *scrape, emit func(float64, ...string)) {
			s.eachSpan(func(n *Drawn, g *pool.GPUPicture, index string, span *pool.SpanPicture) {
				if span.State == pool.SpanUsed {
					emit(1, n.Name, g.UUID, index, span.UUID, span.Profile, strconv.Itoa(int(span.GI)), strconv.Itoa(int(span.CI)),
						strconv.Itoa(span.Start), strconv.Itoa(span.Size))
				}
			})
		})),
	instance(hami("hami_vgpu_memory_allocated_bytes", "Memory that a container has on a GPU.", "bytes", hamiPod,
		containers(func(c *containerShare) float64 { return c.bytes }))),
	instance(hami("hami_vgpu_core_allocated_ratio", "Cores that a container has on a GPU, in percent.", "percent", hamiPod,
		containers(func(c *containerShare) float64 { return float64(c.cores) }))),
}

// instance also needs the switch of per-instance families.
func instance(f family) family {
	f.also = GroupInstance
	return f
}

func legacy(name, help, unit string, labels []string, each func(*scrape, func(float64, ...string))) family {
	return family{name: name, help: help, unit: unit, source: hamiSource, group: GroupLegacy, zone: true, labels: labels, each: each}
}

var (
	legacyGPU  = []string{"nodeid", "deviceuuid", "deviceidx"}
	legacyType = []string{"nodeid", "deviceuuid", "deviceidx", "devicetype"}
	legacyPod  = []string{"podnamespace", "nodename", "podname", "containeridx", "deviceuuid"}
)

var legacyFamilies = []family{
	legacy("GPUDeviceMemoryLimit", "Memory of the GPU.", "bytes", legacyType, hamiGPU(totalBytes, deviceType)),
	legacy("GPUDeviceCoreLimit", "Cores of the GPU in percent: 100.", "percent", legacyType, hamiGPU(allCores, deviceType)),
	legacy("GPUDeviceMemoryAllocated", "Memory given to pods.", "bytes",
		[]string{"nodeid", "deviceuuid", "deviceidx", "devicecores", "devicetype"}, hamiGPU(usedBytes, usedCores, deviceType)),
	legacy("GPUDeviceSharedNum", "Instances or software shares of the GPU that pods have.", "instances", legacyType, hamiGPU(sharers, deviceType)),
	legacy("GPUDeviceCoreAllocated", "Cores given to pods, in percent of the GPU.", "percent", legacyType, hamiGPU(coresGiven, deviceType)),
	legacy("nodeGPUOverview", "Memory given to pods, with the GPU's figures as labels.", "bytes",
		[]string{"nodeid", "deviceuuid", "deviceidx", "devicecores", "sharedcontainers", "devicememorylimit", "devicetype"},
		hamiGPU(usedBytes, usedCores, sharedBy, memoryLimit, deviceType)),
	legacy("nodeGPUMemoryPercentage", "Part of the GPU's memory that is given to pods, 0 to 1.", "ratio", legacyGPU, hamiGPU(memoryShare)),
	instance(legacy("vGPUMemoryAllocated", "Memory that a container has on a GPU.", "bytes", legacyPod,
		containers(func(c *containerShare) float64 { return c.bytes }))),
	instance(legacy("vGPUCoreAllocated", "Cores that a container has on a GPU, in percent.", "percent", legacyPod,
		containers(func(c *containerShare) float64 { return float64(c.cores) }))),
}
