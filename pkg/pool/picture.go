// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// NodePicture is one node as plain values, for people: metrics, page, kubectl mig.
// It shows what the decisions see (the same Node and View are behind it) beside
// what the agent reports of the hardware. Equal input gives an equal picture.
type NodePicture struct {
	Name             string             `json:"name"`
	Problem          string             `json:"problem,omitempty"` // why the GPUNode cannot be used; there is nothing else then
	DriverVersion    string             `json:"driverVersion,omitempty"`
	ConfigGeneration int64              `json:"configGeneration,omitempty"`
	Conditions       []metav1.Condition `json:"conditions,omitempty"`
	GPUs             []GPUPicture       `json:"gpus,omitempty"`

	// Preparations are the pods that the agent is not simply done with.
	Preparations []PreparationPicture `json:"preparations,omitempty"`
}

// Wrong reports whether a condition of a GPUNode asks for an operator: Ready where it
// is False, the others where they are True.
func Wrong(c metav1.Condition) bool {
	if c.Type == v1alpha1.ConditionReady {
		return c.Status == metav1.ConditionFalse
	}
	return c.Status == metav1.ConditionTrue && c.Type != v1alpha1.ConditionConfigRemarks
}

// GPUPicture is one GPU. A GPU that is not offered has no free slices: nothing new
// is placed on it.
type GPUPicture struct {
	UUID          string             `json:"uuid"`
	Index         int32              `json:"index"`
	Model         string             `json:"model"`
	MemoryMiB     int64              `json:"memoryMiB,omitempty"`
	NUMA          int32              `json:"numa"`
	Mode          v1alpha1.GPUMode   `json:"mode"`
	Health        v1alpha1.GPUHealth `json:"health"`
	Reason        string             `json:"reason,omitempty"` // why it takes no new work, in the agent's words
	Offered       bool               `json:"offered"`
	MemorySlices  int                `json:"memorySlices"`
	ComputeSlices int                `json:"computeSlices"`
	Rule          geometry.Rule      `json:"rule"`

	// Spans by start. Two overlap only where an idle or leaving instance is in the
	// way of one that is owned: it is destroyed before that one is created.
	Spans []SpanPicture `json:"spans"`

	Shares *SharesPicture `json:"shares,omitempty"` // in mode hami-core

	FreeSlices  int    `json:"freeSlices"`            // memory slices that nothing takes
	LargestFree string `json:"largestFree,omitempty"` // largest profile that fits now

	// LargestFreeSlices is its size in memory slices.
	LargestFreeSlices int `json:"largestFreeSlices,omitempty"`

	Fits          []FitPicture `json:"fits,omitempty"`      // how many of each profile fit now, smallest first
	Fragmentation float64      `json:"fragmentation"`       // geometry.Catalogue.Fragmentation, in memory slices
	Stranded      int          `json:"stranded"`            // geometry.Catalogue.Stranded, in memory slices
	Templates     int          `json:"templates,omitempty"` // how many there are, with rule Templates
	Template      *int         `json:"template,omitempty"`  // the one in force, from 0 in file order
}

// SpanState says what a span is for whom.
type SpanState string

// States of a span. The first four take their slices from new pods' point of
// view, with Foreign and Stuck; Idle and Leaving do not.
const (
	SpanUsed      SpanState = "Used"      // live, and its pod's
	SpanPreparing SpanState = "Preparing" // a bound pod's, not live yet
	SpanPublished SpanState = "Published" // written on its pod, which is not bound yet
	SpanAssumed   SpanState = "Assumed"   // chosen by this scheduler, nothing written
	SpanIdle      SpanState = "Idle"      // live without a pod, kept warm
	SpanLeaving   SpanState = "Leaving"   // live; its pod has ended and the agent has not seen that yet
	SpanForeign   SpanState = "Foreign"   // made by somebody else
	SpanStuck     SpanState = "Stuck"     // ours, without a pod, and could not be destroyed
)

// Owned reports whether a pod holds the span.
func (s SpanState) Owned() bool {
	return s == SpanUsed || s == SpanPreparing || s == SpanPublished || s == SpanAssumed
}

// Takes reports whether the span's slices are taken from new pods.
func (s SpanState) Takes() bool { return s.Owned() || s == SpanForeign || s == SpanStuck }

// SpanPicture is one placement: a pod's, an instance's, or both.
type SpanPicture struct {
	ProfileID int32     `json:"profileID"`
	Profile   string    `json:"profile"`
	Ordinal   int       `json:"ordinal"` // by start among the GPU's spans of this profile, from 0
	Start     int       `json:"start"`
	Size      int       `json:"size"`                // memory slices
	Compute   int       `json:"compute,omitempty"`   // compute slices
	MemoryMiB int       `json:"memoryMiB,omitempty"` // as NVML reports
	State     SpanState `json:"state"`

	// Of the instance in hardware, where there is one.
	Live bool   `json:"live,omitempty"`
	GI   int32  `json:"gi,omitempty"`
	CI   int32  `json:"ci,omitempty"`
	UUID string `json:"uuid,omitempty"`

	Owner *OwnerPicture `json:"owner,omitempty"`
}

// OwnerPicture is the pod that holds a span.
type OwnerPicture struct {
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name,omitempty"`
	UID       types.UID `json:"uid"`

	// Uses says which containers have the span, as which of their devices: those
	// that keep it before plain init containers, which share it. Empty until the
	// allocation is written.
	Uses []UsePicture `json:"uses,omitempty"`
}

// UsePicture is one device of one container.
type UsePicture struct {
	Container string `json:"container"`
	Index     int    `json:"index"`          // of the container in spec.containers, then spec.initContainers
	Init      bool   `json:"init,omitempty"` // a plain init container
	Device    int    `json:"device"`         // from 0, in the order of the allocation
	MemoryMiB int64  `json:"memoryMiB,omitempty"`
}

// FitPicture is how many more of a profile a GPU could get, if it got no others.
type FitPicture struct {
	ProfileID int32  `json:"profileID"`
	Profile   string `json:"profile"`
	Count     int    `json:"count"`
}

// PreparationPicture is the agent's word on one pod.
type PreparationPicture struct {
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name,omitempty"`
	UID       types.UID         `json:"uid"`
	Phase     v1alpha1.PodPhase `json:"phase"`
	Reason    string            `json:"reason,omitempty"`
}
