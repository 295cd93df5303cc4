// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// AllocationVersion is the only version of the annotation so far.
const AllocationVersion = 1

// maxAllocationBytes bounds what Decode reads: annotations of an object may have
// 256 KiB in all (k8s.io/apimachinery/pkg/api/validation/objectmeta.go).
const maxAllocationBytes = 64 << 10

// Allocation is the content of AnnotationAllocation: which placements a pod owns
// on a node. It is written once, by the scheduler, before Bind; it binds nobody
// until the pod is bound to Node, and then only if PodUID is the pod's own.
type Allocation struct {
	Version int       `json:"version"`
	Node    string    `json:"node"`
	PodUID  types.UID `json:"podUID"`

	// Containers by name; the order of a container's devices is the order in
	// which kubelet's sorted slots are bound to them. Plain init containers
	// share devices with app containers.
	Containers map[string][]Device `json:"containers"`
}

// Device is one device of a container: exactly one of MIG and Share is set.
type Device struct {
	GPU   string       `json:"gpu"` // UUID
	MIG   *MIGInstance `json:"mig,omitempty"`
	Share *Share       `json:"share,omitempty"`
}

// MIGInstance is a placement. (GPU, ProfileID, Start) identifies it.
type MIGInstance struct {
	ProfileID int32  `json:"profileID"`
	Profile   string `json:"profile"`   // for people
	Start     int32  `json:"start"`     // first memory slice
	Size      int32  `json:"size"`      // memory slices
	MemoryMiB int64  `json:"memoryMiB"` // what the request was compared with
}

// Share is a software share of a GPU (HAMi-core).
type Share struct {
	// ID numbers the pod's shares from 0. Containers that name one ID have one
	// share in turn (plain init containers with later ones).
	ID        int32 `json:"id"`
	MemoryMiB int64 `json:"memoryMiB"` // > 0: a limit of 0 would mean no limit to the library
	Cores     int32 `json:"cores"`     // percent of the GPU's SMs; 0 = no limit, 100 = nobody else on the GPU
}

// Exclusive reports whether the share's GPU is for it alone.
func (s Share) Exclusive() bool { return s.Cores >= 100 }

// MaxShares is the most shares that one container can have: the library keeps
// limits for that many devices and no more (HAMi-core, CUDA_DEVICE_MAX_COUNT).
const MaxShares = 16

// Encode returns the annotation's value. Equal allocations give equal text.
func (a Allocation) Encode() (string, error) {
	if err := a.check(); err != nil {
		return "", err
	}
	text, err := json.Marshal(a)
	if err != nil {
		return "", fmt.Errorf("encoding allocation of pod %s: %w", a.PodUID, err)
	}
	return string(text), nil
}

// DecodeAllocation parses an annotation's value and checks its form strictly:
// unknown versions, unknown fields and missing ones are errors that name the
// field. Whether it suits a pod and a GPU is said by Owns and Validate.
func DecodeAllocation(text string) (Allocation, error) {
	a, err := decode(text)
	if err == nil {
		err = a.check()
	}
	if err != nil {
		return Allocation{}, wrong(err)
	}
	return a, nil
}

// maxRepeated is how much of an annotation's text an error repeats, in bytes. Whoever
// may create pods writes annotations, and errors go into reports and events.
const maxRepeated = 256

// wrong says what is wrong with an annotation.
func wrong(err error) error {
	return fmt.Errorf("annotation %s: %s", AnnotationAllocation, Shorten(err.Error(), maxRepeated))
}

// Shorten cuts a text off that is longer than so many bytes, which are at least 3.
func Shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most-3], "") + "..."
}

func decode(text string) (Allocation, error) {
	if len(text) > maxAllocationBytes {
		return Allocation{}, fmt.Errorf("%d bytes are more than the %d allowed", len(text), maxAllocationBytes)
	}
	var version struct {
		Version int `json:"version"`
	}
	// Unmarshal also refuses text behind the object, which a Decoder would not see.
	if err := json.Unmarshal([]byte(text), &version); err != nil {
		return Allocation{}, err
	}
	if version.Version != AllocationVersion {
		return Allocation{}, fmt.Errorf("version %d is unknown, this program knows %d", version.Version, AllocationVersion)
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(text)))
	dec.DisallowUnknownFields()
	var a Allocation
	if err := dec.Decode(&a); err != nil {
		return Allocation{}, err
	}
	return a, nil
}

// check tests everything that needs no other object.
func (a Allocation) check() error {
	switch {
	case a.Version != AllocationVersion:
		return fmt.Errorf("version is %d, want %d", a.Version, AllocationVersion)
	case a.Node == "":
		return errors.New("node is empty")
	case a.PodUID == "":
		return errors.New("podUID is empty")
	case len(a.Containers) == 0:
		return errors.New("containers is empty")
	}
	for name, devices := range a.Containers {
		if len(devices) == 0 {
			return fmt.Errorf("containers[%s] is empty", name)
		}
		for i, d := range devices {
			if err := d.check(); err != nil {
				return fmt.Errorf("containers[%s][%d]: %w", name, i, err)
			}
		}
		if err := checkShares(devices); err != nil {
			return fmt.Errorf("containers[%s]: %w", name, err)
		}
	}
	return a.checkIDs()
}

// checkShares tests one container's shares together.
func checkShares(devices []Device) error {
	shares, gpus := 0, map[string]bool{}
	for _, d := range devices {
		if d.Share == nil {
			continue
		}
		if gpus[d.GPU] {
			return fmt.Errorf("two shares of GPU %s in one container", d.GPU)
		}
		gpus[d.GPU] = true
		shares++
	}
	switch {
	case shares > 0 && shares < len(devices):
		return errors.New("mig and share in one container")
	case shares > MaxShares:
		return fmt.Errorf("%d shares, at most %d are possible", shares, MaxShares)
	}
	return nil
}

// checkIDs tests that a share's id names one share.
func (a Allocation) checkIDs() error {
	known := map[int32]Device{}
	for name, devices := range a.Containers {
		for i, d := range devices {
			if d.Share == nil {
				continue
			}
			if other, ok := known[d.Share.ID]; ok && (other.GPU != d.GPU || *other.Share != *d.Share) {
				return fmt.Errorf("containers[%s][%d]: share.id %d names two different shares", name, i, d.Share.ID)
			}
			known[d.Share.ID] = d
		}
	}
	return nil
}

func (d Device) check() error {
	switch {
	case d.GPU == "":
		return errors.New("gpu is empty")
	case (d.MIG == nil) == (d.Share == nil):
		return errors.New("exactly one of mig and share must be set")
	case d.Share != nil && (d.Share.MemoryMiB <= 0 || d.Share.MemoryMiB > math.MaxInt32):
		// Bounded so that sums of a node's shares cannot overflow.
		return fmt.Errorf("share.memoryMiB is %d, want more than 0 and at most %d", d.Share.MemoryMiB, math.MaxInt32)
	case d.Share != nil && d.Share.ID < 0:
		return fmt.Errorf("share.id is %d, want 0 or more", d.Share.ID)
	case d.Share != nil && (d.Share.Cores < 0 || d.Share.Cores > 100):
		return fmt.Errorf("share.cores is %d, want 0 to 100", d.Share.Cores)
	}
	if m := d.MIG; m != nil && (m.ProfileID < 0 || m.Start < 0 || m.Size <= 0 || m.MemoryMiB < 0) {
		return fmt.Errorf("mig has a negative profileID, start or memoryMiB, or no size: %+v", *m)
	}
	return nil
}

// Owns reports whether the allocation is that of this pod on this node, and says
// what differs otherwise. It does not ask whether the pod is bound there.
func (a Allocation) Owns(pod *v1.Pod, node string) error {
	return a.OwnsCounted(pod, node, ResourceGPU)
}

// OwnsCounted is Owns where the resource that counts devices has this name.
func (a Allocation) OwnsCounted(pod *v1.Pod, node string, count v1.ResourceName) error {
	if a.PodUID != pod.UID {
		return wrong(fmt.Errorf("podUID is %s, the pod's is %s", a.PodUID, pod.UID))
	}
	if a.Node != node {
		return wrong(fmt.Errorf("node is %s, want %s", a.Node, node))
	}
	for name, devices := range a.Containers {
		if want, ok := deviceCount(pod, name, count); !ok || want != int64(len(devices)) {
			return wrong(fmt.Errorf("containers[%s] has %d devices, the pod's container asks for %d %s", name, len(devices), want, count))
		}
	}
	return nil
}

// deviceCount is how many devices a container asks for.
func deviceCount(pod *v1.Pod, container string, resource v1.ResourceName) (int64, bool) {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == container {
				count := list[i].Resources.Limits[resource]
				return count.Value(), true
			}
		}
	}
	return 0, false
}

// Span is a placement on a GPU, comparable.
type Span struct {
	GPU       string
	ProfileID int32
	Start     int32
	Size      int32
}

// Spans lists the distinct MIG placements. Containers that share a device
// (plain init containers with app containers) count once.
func (a Allocation) Spans() []Span {
	seen := map[Span]bool{}
	var spans []Span
	for _, devices := range a.Containers {
		for _, d := range devices {
			if d.MIG == nil {
				continue
			}
			s := Span{GPU: d.GPU, ProfileID: d.MIG.ProfileID, Start: d.MIG.Start, Size: d.MIG.Size}
			if !seen[s] {
				seen[s] = true
				spans = append(spans, s)
			}
		}
	}
	return spans
}

// Shares lists the distinct software shares by id, each with its GPU.
func (a Allocation) Shares() []Device {
	byID := map[int32]Device{}
	for _, devices := range a.Containers {
		for _, d := range devices {
			if d.Share != nil {
				byID[d.Share.ID] = d
			}
		}
	}
	return slices.SortedFunc(maps.Values(byID), func(x, y Device) int { return cmp.Compare(x.Share.ID, y.Share.ID) })
}

// Validate checks the placements against the GPUs that status reports: each GPU
// is known, each placement is on its model's grid, no two overlap, and no share has
// more memory than its GPU offers to shares.
func (a Allocation) Validate(status *GPUNodeStatus) error {
	taken := map[string]uint64{}
	for _, s := range a.Spans() {
		profile, err := status.profile(s.GPU, s.ProfileID)
		if err != nil {
			return wrong(err)
		}
		if err := profile.offers(s.Start, s.Size); err != nil {
			return wrong(fmt.Errorf("GPU %s: %w", s.GPU, err))
		}
		mask := (uint64(1)<<s.Size - 1) << s.Start
		if taken[s.GPU]&mask != 0 {
			return wrong(fmt.Errorf("GPU %s: placement %s at %d overlaps another of the same pod", s.GPU, profile.Name, s.Start))
		}
		taken[s.GPU] |= mask
	}
	for _, d := range a.Shares() {
		if err := status.holdsShare(d); err != nil {
			return wrong(err)
		}
	}
	return nil
}

func (s *GPUNodeStatus) holdsShare(d Device) error {
	gpu := s.GPU(d.GPU)
	switch {
	case gpu == nil:
		return fmt.Errorf("GPU %s is not on this node", d.GPU)
	case gpu.Shares == nil:
		return fmt.Errorf("GPU %s takes no software shares", d.GPU)
	case d.Share.MemoryMiB > gpu.Shares.MemoryMiB:
		return fmt.Errorf("GPU %s offers %d MiB to shares, not %d", d.GPU, gpu.Shares.MemoryMiB, d.Share.MemoryMiB)
	}
	return nil
}

// profile finds a profile of the model of a GPU.
func (s *GPUNodeStatus) profile(uuid string, id int32) (*Profile, error) {
	gpu := s.GPU(uuid)
	if gpu == nil {
		return nil, fmt.Errorf("GPU %s is not on this node", uuid)
	}
	model := s.Model(gpu.Model)
	if model == nil {
		return nil, fmt.Errorf("GPU %s has model %q, which is not in models", uuid, gpu.Model)
	}
	for i := range model.Profiles {
		if model.Profiles[i].ID == id {
			return &model.Profiles[i], nil
		}
	}
	return nil, fmt.Errorf("model %s has no profile with id %d", model.Model, id)
}

// GPU finds a GPU by UUID; nil when there is none.
func (s *GPUNodeStatus) GPU(uuid string) *GPU {
	for i := range s.GPUs {
		if s.GPUs[i].UUID == uuid {
			return &s.GPUs[i]
		}
	}
	return nil
}

// Model finds a model by name; nil when there is none.
func (s *GPUNodeStatus) Model(name string) *GPUModel {
	for i := range s.Models {
		if s.Models[i].Model == name {
			return &s.Models[i]
		}
	}
	return nil
}

// offers reports whether the profile may be placed there.
func (p *Profile) offers(start, size int32) error {
	if size != p.Size {
		return fmt.Errorf("profile %s has %d memory slices, not %d", p.Name, p.Size, size)
	}
	for _, s := range p.Starts {
		if s == start {
			return nil
		}
	}
	return fmt.Errorf("profile %s has no placement at %d", p.Name, start)
}
