// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import v1 "k8s.io/api/core/v1"

// Resource names of a request, as HAMi documents them. Only ResourceGPU is known
// to kubelet; the others exist in pod specs alone, so NodeResourcesFit ignores
// them (manifests/base/scheduler/config.yaml).
const (
	ResourceGPU              v1.ResourceName = "nvidia.com/gpu"               // number of devices
	ResourceMemory           v1.ResourceName = "nvidia.com/gpumem"            // MiB per device
	ResourceMemoryPercentage v1.ResourceName = "nvidia.com/gpumem-percentage" // 1..100, percent of a GPU's memory per device
	ResourceCores            v1.ResourceName = "nvidia.com/gpucores"          // 0..100, percent of a GPU's compute per device
	ResourcePriority         v1.ResourceName = "nvidia.com/priority"          // in-container priority of HAMi-core; without meaning on MIG
)

// Resources are the names of a request's resources.
type Resources struct {
	Count, Memory, MemoryPercentage, Cores, Priority v1.ResourceName
}

// DefaultResources are HAMi's names.
func DefaultResources() Resources {
	return Resources{ResourceGPU, ResourceMemory, ResourceMemoryPercentage, ResourceCores, ResourcePriority}
}

// RequestOnly are the names that no node advertises.
func (r Resources) RequestOnly() []v1.ResourceName {
	return []v1.ResourceName{r.Memory, r.MemoryPercentage, r.Cores, r.Priority}
}

// RequestDefaults are what the device configuration says of requests, beside the
// names of their resources.
type RequestDefaults struct {
	MemoryMiB    int32 // of a container that asks for GPUs only; 0 = whole GPUs
	Cores        int32 // percent, of one that asks for memory without cores
	MemoryFactor int32 // MiB that one unit of memory asked for is; 0 = 1
}

// Annotations.
const (
	// AnnotationAllocation on a pod says which placements it owns. Only the
	// scheduler writes it; it binds nobody until the pod is bound.
	AnnotationAllocation = "dynamig.io/allocation"

	// AnnotationMode limits the pod to the modes whose name it contains:
	// "mig", "hami-core" or both, separated by a comma. Absent means any.
	AnnotationMode = "nvidia.com/vgpu-mode"

	// AnnotationProfile asks for a MIG profile by its name, such as
	// "1g.10gb+me". It replaces gpumem, gpumem-percentage and gpucores.
	AnnotationProfile = "nvidia.com/mig-profile"

	// Which GPUs a pod accepts: lists with commas, of UUIDs, and of parts of the
	// product's name, which compare without case.
	AnnotationUseUUID   = "nvidia.com/use-gpuuuid"
	AnnotationNoUseUUID = "nvidia.com/nouse-gpuuuid"
	AnnotationUseType   = "nvidia.com/use-gputype"
	AnnotationNoUseType = "nvidia.com/nouse-gputype"

	// AnnotationCordon on a Node: a list with commas of UUIDs of GPUs that take no new
	// pods.
	AnnotationCordon = "hami.io/device-cordon"

	// AnnotationNUMABind, a boolean: the devices of each container must be of one
	// NUMA node.
	AnnotationNUMABind = "nvidia.com/numa-bind"

	// Where a pod should be, "binpack" or "spread": on which node, and there on
	// which GPUs. Absent means as the scheduler's arguments say.
	AnnotationNodePolicy = "hami.io/node-scheduler-policy"
	AnnotationGPUPolicy  = "hami.io/gpu-scheduler-policy"

	// AnnotationWeights says what makes a shared GPU full: its shares, its cores or its
	// memory, as in "slot=1,core=1,memory=3". Absent means its memory alone.
	AnnotationWeights = "hami.io/device-scoring-weights"
)

// Modes of a GPU, as they stand in nodeconfig and in AnnotationMode.
const (
	ModeMIG      = "mig"
	ModeHAMiCore = "hami-core"
)

// Names under which the programs send events. SchedulerName is also the profile that
// places GPU pods.
const (
	SchedulerName = "dynamig-scheduler"
	AgentName     = "dynamig-nodeagent"
)
