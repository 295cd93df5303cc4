// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package nvml is what the node agent needs of NVIDIA's management library, as
// an interface, plain values and typed errors. It is pure Go: pkg/nvml/native
// implements it over go-nvml, pkg/nvml/sim over a strict simulation, and both
// obey the contract tests of pkg/nvml/nvmltest.
//
// Words: a GPU instance (GI) is a span of memory slices with its compute
// slices; a compute instance (CI) makes it usable; an instance that is whole
// has one GI, one CI that spans it, and a MIG UUID. Profiles are named by the
// reported id (nvmlGpuInstanceProfileInfo_t.id), never by the enum and never by
// the name.
//
// nvml knows GPUs. It does not know pods, kubelet or Kubernetes.
package nvml

import "time"

// GPUID is a GPU's UUID as NVML prints it, "GPU-<uuid>".
type GPUID string

// ProfileID is the reported id of a GPU instance profile. It is unique within
// one model only: 14 is 2g on an A100 and 1g on an A30.
type ProfileID int

// Architecture is a GPU generation as NVML numbers them (nvml.h:
// NVML_DEVICE_ARCH_*).
type Architecture string

// Generations that can do MIG.
const (
	Ampere    Architecture = "Ampere"
	Hopper    Architecture = "Hopper"
	Blackwell Architecture = "Blackwell"
)

// GPU is what does not change while the driver is loaded.
type GPU struct {
	ID           GPUID
	Index        int    // NVML's enumeration order; for people, never an identity
	Minor        int    // N of /dev/nvidiaN
	Name         string // NVML product name, such as "NVIDIA A100-SXM4-40GB"
	Architecture Architecture
	PCIBusID     string // "00000000:07:00.0"
	PCIDeviceID  string // device and vendor, "0x20B010DE"; empty where unknown
	PCISubsystem string // the same of the board, "0x134F10DE"; empty where unknown
	MemoryMiB    int    // total
	NUMANode     int    // -1 where unknown
	MIGCapable   bool   // nvmlDeviceGetMigMode is supported
	VGPU         bool   // the machine is a guest and the GPU a part that its host gave it
}

// ComputeProfile is a compute instance profile that a GPU instance offers.
type ComputeProfile struct {
	ID            int // reported
	Enum          int // nvml.h: NVML_COMPUTE_INSTANCE_PROFILE_*
	ComputeSlices int
	SMs           int
	Max           int // of them in the GPU instance, as reported
}

// MIGMode says whether a GPU is in MIG mode. Current and Pending differ while a
// change waits for a GPU reset. Read it live: a cached mode is a known bug class.
type MIGMode struct {
	Current bool
	Pending bool
}

// Profile is one GPU instance profile of a GPU with its possible placements.
// Starts and Size are memory slices and do not depend on what is occupied.
type Profile struct {
	ID            ProfileID
	Name          string // the driver's own, "1g.10gb+me"
	MemoryMiB     int    // nvmlGpuInstanceProfileInfo_t.memorySizeMB, which is MiB
	SMs           int    // multiprocessors
	ComputeSlices int
	Size          int   // memory slices
	Starts        []int // first memory slices, ascending
	Max           int   // instances of this profile at once, as reported (A30 reports wrongly)

	// Enum is the number that NVML's calls take for the profile. It is for records
	// of hardware; everybody else uses ID.
	Enum    int
	Engines Engines
}

// Engines are those that one instance has; all 0 where unknown.
type Engines struct {
	Copy    int `json:"copy"`
	Decoder int `json:"decoder"`
	Encoder int `json:"encoder"`
	JPEG    int `json:"jpeg"`
	OFA     int `json:"ofa"` // optical flow
}

// NoCI marks an Instance whose compute instance does not exist.
const NoCI = -1

// Instance is a live GPU instance. Identity is (GPU, Profile, Start): ids are
// reused by the driver and UUIDs are new with each creation.
type Instance struct {
	GPU     GPUID
	Profile ProfileID
	Start   int    // first memory slice
	GI      int    // GPU instance id
	CI      int    // compute instance id, NoCI when there is none
	UUID    string // "MIG-<uuid>", empty when there is no CI
}

// Whole reports whether the instance can be used by a container.
func (i Instance) Whole() bool { return i.CI != NoCI && i.UUID != "" }

// WholeGPU stands for a GPU instance id where the whole GPU is meant.
const WholeGPU = -1

// Event is an XID error that the driver reports. What the number means, and
// which numbers are the application's own fault, is for the caller to know.
type Event struct {
	GPU GPUID
	XID int // such as 13 or 79
	GI  int // GPU instance, WholeGPU when it is not tied to one
	CI  int // compute instance, NoCI with WholeGPU
}

// Events are the XID errors of some GPUs from the moment on at which they were
// asked for. They belong to the session that they came from.
type Events interface {
	// Wait returns the oldest event that was not returned yet, waiting for it at
	// most so long: ErrTimeout when there is none by then. ErrGPULost when one of
	// the GPUs is lost, once its events are returned: ask each GPU which one it
	// is, and ask for the events of the others. ErrUninitialized when the session
	// is lost or closed. For one caller at a time.
	Wait(timeout time.Duration) (Event, error)

	// Close ends them, and must not be called while Wait runs.
	Close() error
}

// Process is a compute client that NVML reports. Its absence does not prove that
// nobody holds the instance: NVML lists CUDA clients only, not open handles.
type Process struct {
	PID       int
	MemoryMiB int
}

// Driver is one NVML session on a node. Calls cannot be cancelled and may take
// seconds. Calls for different GPUs may run in parallel; calls for one GPU are
// serialised by the caller. Errors wrap the sentinels of errors.go.
type Driver interface {
	// DriverVersion is the version of the loaded kernel driver.
	DriverVersion() (string, error)

	// GPUs lists the node's physical GPUs in NVML's order. Of those that skip names
	// (nil: none) nothing is read but what they are known by, ID and Index. Beside a
	// list that is not empty an error says which GPUs are left out because they do
	// not answer; those that skip names by their Index alone are left out without.
	GPUs(skip func(id GPUID, index int) bool) ([]GPU, error)

	// Profiles lists the GPU instance profiles of a MIG capable GPU, by
	// ascending ID. It works with MIG off. ErrNotSupported when not capable.
	Profiles(GPUID) ([]Profile, error)

	// MIGMode reads the current and the pending mode. ErrNotSupported when the
	// GPU is not MIG capable.
	MIGMode(GPUID) (MIGMode, error)

	// SetMIGMode asks for a mode. It returns nil only when the mode is in
	// force; ErrResetRequired when it is stored and waits for a reset; ErrInUse
	// when the GPU is not idle. Instances must be gone before MIG is turned off.
	SetMIGMode(id GPUID, on bool) error

	// Instances lists every GPU instance of the GPU, also those without a
	// compute instance, by Start. It enumerates by profile, since a walk over
	// MIG handles does not see a GI without a CI. Empty with MIG off.
	Instances(GPUID) ([]Instance, error)

	// CreateGPUInstance creates a GPU instance exactly there and returns it
	// without a compute instance. ErrInsufficientResources when the span is
	// taken or the profile's count is exhausted, ErrInvalidArgument when the
	// profile has no such start, ErrNotSupported with MIG off.
	CreateGPUInstance(id GPUID, profile ProfileID, start int) (Instance, error)

	// CreateComputeInstance creates the compute instance that spans GPU
	// instance gi and returns the whole instance, with its UUID.
	CreateComputeInstance(id GPUID, gi int) (Instance, error)

	// ComputeProfiles lists, by enum, the compute instance profiles that GPU instance
	// gi offers. ErrNotFound when there is no such instance.
	ComputeProfiles(id GPUID, gi int) ([]ComputeProfile, error)

	// DestroyComputeInstance destroys a compute instance. ErrInUse while a
	// client holds it, ErrNotFound when it is gone.
	DestroyComputeInstance(id GPUID, gi, ci int) error

	// DestroyGPUInstance destroys a GPU instance without compute instances.
	// ErrInUse while it has any or a client holds it, ErrNotFound when it is
	// gone. Success may come while the driver still lists it: list again.
	DestroyGPUInstance(id GPUID, gi int) error

	// Processes lists the compute clients of GPU instance gi, with WholeGPU those
	// of the GPU and of all its instances.
	Processes(id GPUID, gi int) ([]Process, error)

	// Events asks for the XID errors of some GPUs, at least one. ErrNotSupported
	// when a GPU reports none: then only failing calls show what is wrong with it.
	Events(ids ...GPUID) (Events, error)

	// Close ends the session.
	Close() error
}
