// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Pauses between looks for the pod: kubelet answers to resend within
// milliseconds, and the owner's watch is usually as quick.
const (
	firstLook = 2 * time.Millisecond
	lastLook  = 250 * time.Millisecond
)

// held is a container that is about to start and its slots.
type held struct {
	Container
	slots []string  // sorted
	group []holding // the pod's containers that share slots with it, itself among them
}

// identify finds the container that holds exactly these slots (sorted). Kubelet's
// checkpoint tells, PodResources must not contradict, and the owner must know the
// pod. What can be a delay of one of the three is looked at again for a while.
//
// A plain init container and a later container of one pod may hold the same slots;
// which of them starts cannot be known. Both share the same devices, and the one
// that PodResources lists, else the first by name, stands for both.
func (p *Plugin) identify(ctx context.Context, slots []string) (held, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timing.identify)
	defer cancel()
	var reason error
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		h, err := p.look(ctx, slots)
		if err == nil {
			return h, nil
		}
		if reason == nil || ctx.Err() == nil {
			reason = err // a look that the end of ctx cut short says less than the one before
		}
		if errors.Is(err, errNotListed) || errors.Is(err, errDisagree) {
			p.slots.resend() // kubelet may have written an older checkpoint over a newer one
		}
		if errors.Is(err, errAmbiguous) || !pause(ctx, wait) {
			return held{}, fmt.Errorf("finding the pod that holds slots %s: %w", strings.Join(slots, " "), reason)
		}
	}
}

// look tries once.
func (p *Plugin) look(ctx context.Context, slots []string) (held, error) {
	c, err := readCheckpoint(p.checkpointPath(), p.config.Resource)
	if err != nil {
		return held{}, err
	}
	matches, err := p.knownPod(c.of(slots))
	if err != nil {
		return held{}, err
	}
	uid := matches[0].PodUID
	namespace, pod, ok := p.config.Pods.Pod(uid)
	if !ok {
		return held{}, errUnknownPod
	}
	shown, err := p.holders.list(ctx)
	if err != nil {
		return held{}, err
	}
	one, err := choose(matches, slots, inPod(shown, namespace, pod), others(shown, namespace, pod))
	if err != nil {
		return held{}, err
	}
	return held{
		Container: Container{PodUID: uid, Namespace: namespace, Pod: pod, Name: one.Container},
		slots:     slots,
		group:     c.connected(one),
	}, nil
}

// knownPod drops holdings of pods that the owner does not know, such as ended
// ones, and insists that one pod is left.
func (p *Plugin) knownPod(matches []holding) ([]holding, error) {
	if len(matches) == 0 {
		return nil, errNotListed
	}
	pods := map[types.UID]bool{}
	known := slices.DeleteFunc(matches, func(h holding) bool {
		_, _, ok := p.config.Pods.Pod(h.PodUID)
		if ok {
			pods[h.PodUID] = true
		}
		return !ok
	})
	switch len(pods) {
	case 0:
		return nil, errUnknownPod
	case 1:
		return known, nil
	}
	return nil, errAmbiguous
}

// choose takes the container out of matches, all of one pod. own and other are
// what PodResources shows for that pod and for the rest.
func choose(matches []holding, slots []string, own, other []listed) (holding, error) {
	for _, l := range other {
		if overlap(l.slots, slots) {
			return holding{}, errDisagree
		}
	}
	slices.SortFunc(matches, func(a, b holding) int { return cmp.Compare(a.Container, b.Container) })
	chosen, isListed := matches[0], false
	for _, h := range matches {
		i := slices.IndexFunc(own, func(l listed) bool { return l.container == h.Container })
		if i < 0 {
			continue // a plain init container
		}
		if !slices.Equal(own[i].slots, slots) {
			return holding{}, errDisagree
		}
		if !isListed {
			chosen, isListed = h, true
		}
	}
	return chosen, nil
}

func inPod(all []listed, namespace, pod string) []listed {
	return slices.DeleteFunc(slices.Clone(all), func(l listed) bool { return l.namespace != namespace || l.pod != pod })
}

func others(all []listed, namespace, pod string) []listed {
	return slices.DeleteFunc(slices.Clone(all), func(l listed) bool { return l.namespace == namespace && l.pod == pod })
}
