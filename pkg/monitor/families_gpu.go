// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"slices"
	"strconv"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// perGPU is a family with one series for each GPU.
func perGPU(value func(g *pool.GPUPicture) float64) func(*scrape, func(float64, ...string)) {
	return func(s *scrape, emit func(float64, ...string)) {
		s.eachGPU(func(n *Drawn, g *pool.GPUPicture, index string) { emit(value(g), n.Name, g.UUID, index) })
	}
}

// slices of one GPU by who has them. An idle instance's slices are free.
func slicesByState(g *pool.GPUPicture) (used, foreign, stuck int) {
	for i := range g.Spans {
		switch s := &g.Spans[i]; {
		case s.State.Owned():
			used += s.Size
		case s.State == pool.SpanForeign:
			foreign += s.Size
		case s.State == pool.SpanStuck:
			stuck += s.Size
		}
	}
	return used, foreign, stuck
}

var gpuFamilies = []family{
	{
		name: "dynamig_gpu_info", unit: "1", group: GroupGPU, labels: append(slices.Clone(gpuLabels), "model", "mode", "rule"),
		help:   "Always 1; names the GPU's model, its mode in force and the rule that chooses its instances.",
		source: "GPUNode status.gpus, status.models",
		each: func(s *scrape, emit func(float64, ...string)) {
			s.eachGPU(func(n *Drawn, g *pool.GPUPicture, index string) {
				emit(1, n.Name, g.UUID, index, g.Model, g.Mode.Current, string(g.Rule))
			})
		},
	}, {
		name: "dynamig_gpu_healthy", unit: "0 or 1", group: GroupGPU, labels: gpuLabels,
		help: "1 where the agent reports the GPU as Healthy.", source: "GPUNode status.gpus[].health",
		each: perGPU(func(g *pool.GPUPicture) float64 { return one(g.Health == v1alpha1.Healthy) }),
	}, {
		name: "dynamig_gpu_offered", unit: "0 or 1", group: GroupGPU, labels: gpuLabels,
		help: "1 where the GPU takes new instances.", source: "node view",
		each: perGPU(func(g *pool.GPUPicture) float64 { return one(g.Offered) }),
	}, {
		name: "dynamig_gpu_memory_slices", unit: "memory slices", group: GroupGPU, labels: append(slices.Clone(gpuLabels), "state"),
		help:   "Memory slices by state: used (a pod's, live or not yet), free (idle instances included), foreign, stuck, withheld (free, on a GPU that is not offered, or a node whose agent or kubelet is down). They add up to the GPU.",
		source: "node view",
		each: func(s *scrape, emit func(float64, ...string)) {
			s.eachGPU(func(n *Drawn, g *pool.GPUPicture, index string) {
				used, foreign, stuck := slicesByState(g)
				rest := float64(g.MemorySlices - used - foreign - stuck)
				withheld := rest - float64(g.FreeSlices)
				emit(float64(used), n.Name, g.UUID, index, "used")
				emit(float64(g.FreeSlices), n.Name, g.UUID, index, "free")
				emit(float64(foreign), n.Name, g.UUID, index, "foreign")
				emit(float64(stuck), n.Name, g.UUID, index, "stuck")
				emit(max(withheld, 0), n.Name, g.UUID, index, "withheld")
			})
		},
	}, {
		name: "dynamig_gpu_fragmentation_slices", unit: "memory slices", group: GroupGPU, labels: gpuLabels,
		help:   "Free memory slices that the next request is expected to find unusable, if all profiles are asked for equally often.",
		source: "node view, geometry.Catalogue.Fragmentation",
		each:   perGPU(func(g *pool.GPUPicture) float64 { return g.Fragmentation }),
	}, {
		name: "dynamig_gpu_stranded_slices", unit: "memory slices", group: GroupGPU, labels: gpuLabels,
		help:   "Free memory slices that no instance of the catalogue can cover as things are.",
		source: "node view, geometry.Catalogue.Stranded",
		each:   perGPU(func(g *pool.GPUPicture) float64 { return float64(g.Stranded) }),
	}, {
		name: "dynamig_gpu_largest_free_profile_slices", unit: "memory slices", group: GroupGPU, labels: append(slices.Clone(gpuLabels), "profile"),
		help:   "Size of the largest profile that still fits, which the label names; 0 and an empty label when none does.",
		source: "node view, geometry.Catalogue.LargestFree",
		each: func(s *scrape, emit func(float64, ...string)) {
			s.eachGPU(func(n *Drawn, g *pool.GPUPicture, index string) {
				emit(float64(g.LargestFreeSlices), n.Name, g.UUID, index, g.LargestFree)
			})
		},
	}, {
		name: "dynamig_gpu_template_in_force", unit: "position in the file, from 0", group: GroupGPU, labels: gpuLabels,
		help:   "The first template that everything in use on the GPU is part of; -1 while nothing is in use. Only GPUs with templates.",
		source: "node view, geometry.Catalogue.TemplateInForce",
		each: func(s *scrape, emit func(float64, ...string)) {
			s.eachGPU(func(n *Drawn, g *pool.GPUPicture, index string) {
				if g.Templates == 0 {
					return
				}
				at := -1
				if g.Template != nil {
					at = *g.Template
				}
				emit(float64(at), n.Name, g.UUID, index)
			})
		},
	},
}

// used reports whether nodeGPUMigInstance shows a span as used: a pod has it, or
// had it when the agent last looked, or somebody else made it.
func used(s *pool.SpanPicture) bool {
	return s.State.Owned() || s.State == pool.SpanForeign || s.State == pool.SpanLeaving
}

var instanceFamilies = []family{
	{
		name: "nodeGPUMigInstance", unit: "0 or 1", group: GroupInstance, zone: true,
		labels: []string{"deviceidx", "deviceuuid", "migname", "nodeid"},
		help:   "MIG instance: 1 where a pod has it (also before it is live) or somebody else made it, 0 where it is there and unused. The suffix of migname counts the GPU's instances of the profile by start.",
		source: "node view, GPUNode status.gpus[].instances",
		each: func(s *scrape, emit func(float64, ...string)) {
			s.eachSpan(func(n *Drawn, g *pool.GPUPicture, index string, span *pool.SpanPicture) {
				emit(one(used(span)), index, g.UUID, span.Profile+"-"+strconv.Itoa(span.Ordinal), n.Name)
			})
		},
	}, {
		name: "dynamig_mig_device_info", unit: "1", group: GroupInstance,
		labels: []string{"UUID", "GPU_I_ID", "GPU_I_PROFILE", "node", "namespace", "pod", "container", "mig_uuid"},
		help:   "Always 1, for each live instance of a pod; joins metrics of dcgm-exporter on UUID and GPU_I_ID with pod, namespace and container.",
		source: "node view, GPUNode status.gpus[].instances",
		each: func(s *scrape, emit func(float64, ...string)) {
			s.eachSpan(func(n *Drawn, g *pool.GPUPicture, _ string, span *pool.SpanPicture) {
				if span.State != pool.SpanUsed {
					return
				}
				container := ""
				if len(span.Owner.Uses) > 0 {
					container = span.Owner.Uses[0].Container
				}
				emit(1, g.UUID, strconv.Itoa(int(span.GI)), span.Profile, n.Name, span.Owner.Namespace, span.Owner.Name, container, span.UUID)
			})
		},
	},
}
