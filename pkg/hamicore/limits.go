// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package hamicore

import (
	"errors"
	"fmt"
	"strconv"
)

// Limit of one device.
type Limit struct {
	MemoryMiB int64 // more than 0
	Cores     int32 // percent of the GPU's SMs; 0 = no limit
}

// Home is the container that devices go with, and what its library is told.
type Home struct {
	PodUID    string
	Container string
	Limits    []Limit // by device, in the driver's order

	// Partial: another container with only some of the devices uses the home, too, and
	// numbers these from 0, so that each number has the least limit of all.
	Partial        bool
	Oversubscribed bool   // limits may add up to more than the GPU has
	LogLevel       string // LIBCUDA_LOG_LEVEL; empty = not set
	CorePolicy     string // GPU_CORE_UTILIZATION_POLICY; empty = not set
	Priority       string // CUDA_TASK_PRIORITY; empty = not set
	NoPreload      bool   // the container loads the library itself, or not at all
}

// maxDevices is how many limits the library keeps (CUDA_DEVICE_MAX_COUNT).
const maxDevices = 16

// Env are the variables of a home. All limits are given by device, and once for any
// device that has none by its number: a container that has only some of the
// devices numbers them from 0.
func (h *Home) Env() ([]string, error) {
	if len(h.Limits) == 0 || len(h.Limits) > maxDevices {
		return nil, fmt.Errorf("container %s has %d shares; HAMi-core can limit 1 to %d", h.Container, len(h.Limits), maxDevices)
	}
	var env []string
	set := func(name, value string) { env = append(env, name+"="+value) }
	least, fewest := h.Limits[0].MemoryMiB, percent(h.Limits[0].Cores)
	for _, l := range h.Limits {
		if l.MemoryMiB <= 0 {
			return nil, errors.New("a share without a limit of memory would be unlimited")
		}
		least, fewest = min(least, l.MemoryMiB), min(fewest, percent(l.Cores))
	}
	for i, l := range h.Limits {
		if h.Partial {
			l = Limit{MemoryMiB: least, Cores: int32(fewest)}
		}
		set("CUDA_DEVICE_MEMORY_LIMIT_"+strconv.Itoa(i), fmt.Sprintf("%dm", l.MemoryMiB))
		set("CUDA_DEVICE_SM_LIMIT_"+strconv.Itoa(i), strconv.Itoa(percent(l.Cores)))
	}
	set("CUDA_DEVICE_MEMORY_LIMIT", fmt.Sprintf("%dm", least))
	set("CUDA_DEVICE_SM_LIMIT", strconv.Itoa(fewest))
	set("CUDA_DEVICE_MEMORY_SHARED_CACHE", containerDir+"/"+h.PodUID+".cache")
	if h.Oversubscribed {
		set("CUDA_OVERSUBSCRIBE", "true")
	}
	if h.LogLevel != "" {
		set("LIBCUDA_LOG_LEVEL", h.LogLevel)
	}
	if h.CorePolicy != "" {
		set("GPU_CORE_UTILIZATION_POLICY", h.CorePolicy)
	}
	if h.Priority != "" {
		set("CUDA_TASK_PRIORITY", h.Priority)
	}
	return env, nil
}

// percent is a limit of cores as the library reads it: 100 for none, never 0.
func percent(cores int32) int {
	if cores <= 0 {
		return 100
	}
	return int(min(cores, 100))
}
