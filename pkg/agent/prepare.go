// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/hamicore"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// Container names a container that is about to start.
type Container struct {
	PodUID    types.UID
	Namespace string
	Pod       string
	Name      string
}

// Device is what a container needs of one MIG instance or software share.
type Device struct {
	// Key is <gpu uuid>/<profile id>/<start> or <gpu uuid>/share/<id>, for as long as
	// the pod lives.
	Key    string
	Nodes  []nvml.DeviceNode // GPU, GPU instance, compute instance; of a share the GPU
	Env    []string          // NAME=value; of a share
	Mounts []hamicore.Mount  // of a share
}

// patience is how long Prepare waits before it returns the reason why a pod fails. It is well within kubelet's 30 s, and work goes on after it.
const patience = 20 * time.Second

// Prepare returns the devices of a container in the order of the allocation, once
// every instance of its pod exists and is whole. It works from memory, may be
// called again and in parallel, and waits until ctx ends; an error is a sentence
// for the pod's user.
func (a *Agent) Prepare(ctx context.Context, c Container) ([]Device, error) {
	patient := time.After(patience)
	impatient := false
	for {
		devices, wake, err := a.devices(c, impatient)
		if wake == nil {
			return devices, err
		}
		select {
		case <-wake:
		case <-patient:
			impatient = true
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
}

// devices returns a container's devices, or an error for good; where waiting may
// help, also a channel that is closed when it is worth to look again.
func (a *Agent) devices(c Container, impatient bool) ([]Device, <-chan struct{}, error) {
	p, wake := a.owners.preparation(c)
	switch {
	case p.err == nil:
	case p.wait && !(p.fails && impatient):
		return nil, wake, p.err
	default:
		return nil, nil, p.err
	}
	out := make([]Device, len(p.devices))
	for i, d := range p.devices {
		if d.share != nil {
			var err error
			if out[i], err = a.shareDevice(d.share); err != nil {
				return nil, nil, fmt.Errorf("preparing the share of GPU %s: %w", d.share.device.GPU, err)
			}
			continue
		}
		nodes, err := a.nodesOf(d.made)
		if err != nil && impatient {
			return nil, nil, fmt.Errorf("checking the device nodes of %s: %w", d.text, err)
		}
		if err != nil { // somebody else may have destroyed it
			a.lookAgain(d.span.GPU)
			return nil, wake, err
		}
		out[i] = Device{Key: fmt.Sprintf("%s/%d/%d", d.span.GPU, d.span.ProfileID, d.span.Start), Nodes: nodes}
	}
	return out, nil, nil
}

// nodesOf reads which device nodes an instance has and checks that all are there:
// a container that lacks one starts and fails much later.
func (a *Agent) nodesOf(m made) ([]nvml.DeviceNode, error) {
	nodes, err := a.config.Nodes.InstanceNodes(m.gpuMinor, m.gi, m.ci)
	if err != nil {
		return nil, err
	}
	if len(nodes) != 3 {
		return nil, fmt.Errorf("there are %d, want those of GPU, GPU instance and compute instance", len(nodes))
	}
	return nodes, nil
}

// preparation is what is known of a container's devices.
type preparation struct {
	devices []preparedDevice
	err     error // why there are none
	wait    bool  // waiting may help
	fails   bool  // and has not helped for some time
}

type preparedDevice struct {
	span v1alpha1.Span
	made made
	text string // for people

	share *preparedShare // nil for an instance
}

// preparation looks a container's devices up. The channel is closed with the next
// change of any owner.
func (s *owners) preparation(c Container) (preparation, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.prepare(c), s.wake
}

func (s *owners) prepare(c Container) preparation {
	o := s.pods[c.PodUID]
	if o == nil {
		return preparation{wait: true, err: fmt.Errorf(
			"pod %s/%s (%s) has not been seen in the API server yet, or it has ended", c.Namespace, c.Pod, c.PodUID)}
	}
	if o.Refused != "" {
		return preparation{err: fmt.Errorf("the agent refuses the pod for good: %s", o.Refused)}
	}
	if !o.placed() {
		if o.unplaced == "" { // known from the journal only
			return preparation{wait: true, err: errors.New("the pod has not been seen in the API server yet")}
		}
		return preparation{err: errors.New(o.unplaced)}
	}
	devices, ok := o.allocation.Containers[c.Name]
	if !ok {
		return preparation{err: fmt.Errorf("annotation %s has no container %s; delete the pod to have it placed anew",
			v1alpha1.AnnotationAllocation, c.Name)}
	}
	switch phase, why := o.phase(), s.grounds.excludes(o); {
	case phase == v1alpha1.PodPrepared:
	case why != "":
		return preparation{wait: true, fails: true, err: errors.New(why)}
	case phase == v1alpha1.PodFailing:
		return preparation{wait: true, fails: true, err: errors.New(o.reason())}
	default:
		return preparation{wait: true, err: errors.New("the pod's MIG instances are being created")}
	}
	p := preparation{devices: make([]preparedDevice, len(devices))}
	for i, d := range devices {
		if d.Share != nil {
			if o.pod == nil {
				return preparation{wait: true, err: errors.New("the pod has not been seen in the API server yet")}
			}
			if s.grounds == nil { // the agent has started anew, and without a good configuration
				return preparation{wait: true, err: errWait}
			}
			share, err := s.grounds.shareOf(o, c.Name, d)
			if err != nil {
				return preparation{err: err}
			}
			p.devices[i] = preparedDevice{share: share}
			continue
		}
		span := spanOf(d)
		p.devices[i] = preparedDevice{span: span, made: o.made[span], text: s.grounds.describe(span)}
	}
	return p
}

// Pod names a pod of this node that asks for GPUs; ok is false when there is none
// with this UID or it has ended.
func (a *Agent) Pod(uid types.UID) (namespace, name string, ok bool) {
	return a.owners.name(uid)
}

func (s *owners) name(uid types.UID) (namespace, name string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.pods[uid]
	if o == nil {
		return "", "", false
	}
	return o.Namespace, o.Name, true
}
