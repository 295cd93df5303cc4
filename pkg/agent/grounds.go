// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
)

// grounds is the hardware that allocations are judged against: all profiles that
// NVML reports, whatever the configuration offers, since the scheduler has chosen
// already. It does not change; only the health that it asks for does.
type grounds struct {
	configured bool                    // the configuration has an entry for this node
	hardware   v1alpha1.GPUNodeStatus  // gpus and models only
	excluded   map[string]string       // by UUID: why nothing can be had of a GPU of this node
	unread     map[string]bool         // by UUID: profiles are not known yet
	minors     map[string]int          // by UUID: of the GPUs' device nodes
	health     map[string]func() state // by UUID: how the GPU is now
	device     *config.Device          // settings of software shares
}

// judge says why an allocation can never be had here; errWait when that cannot be
// said yet, also of nil grounds.
func (g *grounds) judge(a *v1alpha1.Allocation) error {
	if g == nil {
		return errWait
	}
	for _, devices := range a.Containers {
		for _, d := range devices {
			if why, ok := g.excluded[d.GPU]; ok {
				return fmt.Errorf("GPU %s: %s", d.GPU, why)
			}
			if g.unread[d.GPU] {
				return errWait
			}
		}
	}
	return a.Validate(&g.hardware)
}

// excludes says why placements cannot be had any more, empty when they can. Pods that were prepared before the configuration changed are not refused.
func (g *grounds) excludes(o *owner) string {
	if g == nil {
		return ""
	}
	for _, span := range o.spans {
		if why, ok := g.excluded[span.GPU]; ok {
			return fmt.Sprintf("GPU %s: %s", span.GPU, why)
		}
	}
	for _, d := range o.shares {
		if why, ok := g.excluded[d.GPU]; ok {
			return fmt.Sprintf("GPU %s: %s", d.GPU, why)
		}
	}
	return ""
}

// ailing says what is wrong with a GPU that o has a share of, empty when nothing
// is, and whether that stays so until a reset. Instances are not its business: their
// GPU's worker knows before it makes one.
func (g *grounds) ailing(o *owner) (why string, lasting bool) {
	if g == nil {
		return "", false
	}
	for _, d := range o.shares {
		gpu, health := g.hardware.GPU(d.GPU), g.health[d.GPU]
		if gpu == nil || health == nil {
			continue
		}
		if view := health(); view.unhealthy != "" {
			why, lasting = fmt.Sprintf("GPU %d is unhealthy: %s", gpu.Index, view.unhealthy), view.broken
		}
		if lasting {
			break
		}
	}
	return why, lasting
}

// describe names a placement for people: "2g.10gb on GPU 0 at 0".
func (g *grounds) describe(span v1alpha1.Span) string {
	profile, gpu := fmt.Sprintf("profile %d", span.ProfileID), span.GPU
	if g != nil {
		if p := g.profile(span); p != nil {
			profile = p.Name
		}
		if found := g.hardware.GPU(span.GPU); found != nil {
			gpu = fmt.Sprint(found.Index)
		}
	}
	return fmt.Sprintf("%s on GPU %s at %d", profile, gpu, span.Start)
}

// profile of a placement; nil when it is not known.
func (g *grounds) profile(span v1alpha1.Span) *v1alpha1.Profile {
	gpu := g.hardware.GPU(span.GPU)
	if gpu == nil {
		return nil
	}
	model := g.hardware.Model(gpu.Model)
	if model == nil {
		return nil
	}
	for i := range model.Profiles {
		if model.Profiles[i].ID == span.ProfileID {
			return &model.Profiles[i]
		}
	}
	return nil
}
