// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import "errors"

// Reasons to refuse a container's start. Kubelet shows the text as an event of
// the pod and tries again.
var (
	errUnknownSlot = errors.New("the slot is not one of this agent's; delete the pod so that it gets new ones")

	// While finding the pod.
	errNotListed  = errors.New("kubelet's checkpoint names no container with exactly these slots")
	errAmbiguous  = errors.New("kubelet's checkpoint names several pods with these slots")
	errUnknownPod = errors.New("the pod that holds them is not known here: it has just ended, or it is a static pod, " +
		"which cannot use this resource; use a Deployment or a DaemonSet instead")
	errDisagree = errors.New("kubelet's PodResources names another holder than its checkpoint")

	// While preparing it.
	errPodEnded       = errors.New("the pod has ended")
	errStopping       = errors.New("the agent is stopping; the next one goes on")
	errStillPreparing = errors.New("the devices are not ready in the time that kubelet allows; " +
		"work on them goes on and kubelet will ask again")
	errStaleFile = errors.New("the slot still had the CDI file of another pod, which is now removed; " +
		"the next try is safe")
	errNoAssignment = errors.New("no assignment of its slots to its devices suits all containers that share them; delete the pod")
)
