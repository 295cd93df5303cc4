// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"math"
	"regexp"

	"go.yaml.in/yaml/v3"
	v1 "k8s.io/api/core/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// Bounds of lists, generous for people and small enough that YAML aliases cannot
// blow a file up. The first two are those of GPUModel.
const (
	maxGeometries = 64  // of one entry
	maxEntries    = 32  // of one geometry
	maxModels     = 64  // of one entry, and profiles of an allowlist
	maxLists      = 128 // entries of knownMigGeometries or migProfileAllowlist
)

// Policies of gpuCorePolicy.
const (
	CorePolicyDefault = "default"
	CorePolicyForce   = "force"
	CorePolicyDisable = "disable"
)

// Device is the nvidia block of device-config.yaml. A key that the file lacks has
// HAMi's default.
type Device struct {
	File string // as given to ParseDevice, for messages

	ResourceCountName            string
	ResourceMemoryName           string
	ResourceMemoryPercentageName string
	ResourceCoreName             string
	ResourcePriorityName         string

	OverwriteEnv     bool
	DefaultMemoryMiB int32  // of a request without memory; 0 means all of a GPU
	DefaultCores     int32  // percent, of a request without cores
	DefaultGPUNum    int32  // added where memory or cores are asked for without devices; 0 adds none
	MemoryFactor     int32  // what one unit of requested memory is, in MiB
	DisableCoreLimit bool   // software shares only
	GPUCorePolicy    string // CorePolicyDefault, CorePolicyForce or CorePolicyDisable
	LibCUDALogLevel  string // "0" to "4"
	RuntimeClassName string // empty means none

	PreConfiguredDeviceMemoryMiB int64   // replaces a GPU's memory where NVML reports none; 0 means unset
	DeviceSplitCount             int32   // software shares of one GPU
	DeviceMemoryScaling          float64 // software shares only
	DeviceCoreScaling            float64 // software shares only
	EnableNUMATopology           bool

	KnownMigGeometries  []Geometries
	MigProfileAllowlist []Allowlist

	// Parted is what mig-parted's configuration has for the GPUs of one model, not of
	// the file (Cut); nil where that is nothing.
	Parted *Geometries
}

// Geometries is an entry of knownMigGeometries: the layouts that GPUs of some
// models may have, in order of preference.
type Geometries struct {
	Models            []string
	AllowedGeometries [][]GeometryEntry
	Line              int // of the entry, from 1

	Where string // what messages call it; empty for an entry of knownMigGeometries
}

// GeometryEntry is one line of a layout.
type GeometryEntry struct {
	Name   string // a MIG profile, perhaps by an old name such as 7g.79gb
	Core   int32  // percent; 0 where the file does not say
	Memory int64  // MiB of one instance, as promised to users; 0 is what the hardware has
	Count  int32  // instances
}

// Allowlist is an entry of migProfileAllowlist: the profiles that GPUs of some
// models offer.
type Allowlist struct {
	Models   []string
	Profiles []string
	Line     int // of the entry, from 1
}

// DefaultDevice is what HAMi assumes without any file, less its list of layouts.
func DefaultDevice() *Device {
	return &Device{
		ResourceCountName:            string(v1alpha1.ResourceGPU),
		ResourceMemoryName:           string(v1alpha1.ResourceMemory),
		ResourceMemoryPercentageName: string(v1alpha1.ResourceMemoryPercentage),
		ResourceCoreName:             string(v1alpha1.ResourceCores),
		ResourcePriorityName:         string(v1alpha1.ResourcePriority),
		DefaultGPUNum:                1,
		MemoryFactor:                 1,
		GPUCorePolicy:                CorePolicyDefault,
		LibCUDALogLevel:              "1",
		DeviceSplitCount:             10,
		DeviceMemoryScaling:          1,
		DeviceCoreScaling:            1,
	}
}

// ParseDevice reads a device-config.yaml: a text with an nvidia block, beside
// which other vendors' blocks are ignored; the contents of such a block alone; or
// the manifest of the ConfigMap that holds either. The file's name is for
// messages. The error joins all problems, each with line, field and remedy.
func ParseDevice(file string, data []byte) (*Device, error) {
	r := deviceReader{decoder: &decoder{file: file}, out: DefaultDevice()}
	r.out.File = file
	if top, ok := r.document(data, "device-config.yaml"); ok {
		r.top(top)
	} else if len(r.problems) == 0 {
		r.note(1, noBlock)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return r.out, nil
}

const noBlock = "has no nvidia block; put the settings of NVIDIA GPUs under nvidia:"

// With returns the settings as they are on a node with this entry: the entry's own
// values, where it has any, before d's.
func (d *Device) With(e NodeEntry) *Device {
	out := *d
	override(&out.DeviceMemoryScaling, e.DeviceMemoryScaling)
	override(&out.DeviceCoreScaling, e.DeviceCoreScaling)
	override(&out.DeviceSplitCount, e.DeviceSplitCount)
	override(&out.PreConfiguredDeviceMemoryMiB, e.PreConfiguredDeviceMemoryMiB)
	override(&out.LibCUDALogLevel, e.LibCUDALogLevel)
	if e.EnableNUMATopology != nil {
		out.EnableNUMATopology = *e.EnableNUMATopology
	}
	return &out
}

// Resources are the names of a request's resources.
func (d *Device) Resources() v1alpha1.Resources {
	return v1alpha1.Resources{
		Count: v1.ResourceName(d.ResourceCountName), Memory: v1.ResourceName(d.ResourceMemoryName),
		MemoryPercentage: v1.ResourceName(d.ResourceMemoryPercentageName), Cores: v1.ResourceName(d.ResourceCoreName),
		Priority: v1.ResourceName(d.ResourcePriorityName),
	}
}

// RequestDefaults are what a request means that leaves amounts open.
func (d *Device) RequestDefaults() v1alpha1.RequestDefaults {
	return v1alpha1.RequestDefaults{MemoryMiB: d.DefaultMemoryMiB, Cores: d.DefaultCores, MemoryFactor: d.MemoryFactor}
}

func override[T comparable](dst *T, value T) {
	var unset T
	if value != unset {
		*dst = value
	}
}

// deviceReader reads the tree of a device-config.yaml into out.
type deviceReader struct {
	*decoder
	out *Device
}

// top finds the nvidia block.
func (r *deviceReader) top(v at) {
	if block := value(v.node, "nvidia"); block != nil {
		if !isNull(block) {
			r.block(at{block, "nvidia"})
		}
		return
	}
	known := r.keys()
	for i := 0; v.node.Kind == yaml.MappingNode && i+1 < len(v.node.Content); i += 2 {
		if known[v.node.Content[i].Value] != nil {
			r.block(v)
			return
		}
	}
	r.reject(v, noBlock)
}

func (r *deviceReader) keys() readers {
	o := r.out
	return readers{
		"resourceCountName":            r.resourceName(&o.ResourceCountName),
		"resourceMemoryName":           r.resourceName(&o.ResourceMemoryName),
		"resourceMemoryPercentageName": r.resourceName(&o.ResourceMemoryPercentageName),
		"resourceCoreName":             r.resourceName(&o.ResourceCoreName),
		"resourcePriorityName":         r.resourceName(&o.ResourcePriorityName),
		"overwriteEnv":                 r.boolean(&o.OverwriteEnv),
		"defaultMemory":                integer(r.decoder, &o.DefaultMemoryMiB, 0, math.MaxInt32),
		"defaultCores":                 integer(r.decoder, &o.DefaultCores, 0, 100),
		"defaultGPUNum":                integer(r.decoder, &o.DefaultGPUNum, 0, math.MaxInt32),
		"memoryFactor":                 integer(r.decoder, &o.MemoryFactor, 1, math.MaxInt32),
		"disableCoreLimit":             r.boolean(&o.DisableCoreLimit),
		"gpuCorePolicy":                r.oneOf(&o.GPUCorePolicy, CorePolicyDefault, CorePolicyForce, CorePolicyDisable),
		"libCudaLogLevel":              r.oneOf(&o.LibCUDALogLevel, logLevels...),
		"runtimeClassName":             r.optionalText(&o.RuntimeClassName),
		"preConfiguredDeviceMemory":    integer(r.decoder, &o.PreConfiguredDeviceMemoryMiB, 0, math.MaxInt64),
		"deviceSplitCount":             integer(r.decoder, &o.DeviceSplitCount, 1, maxSplit),
		"deviceMemoryScaling":          r.aboveZero(&o.DeviceMemoryScaling),
		"deviceCoreScaling":            r.aboveZero(&o.DeviceCoreScaling),
		"enableNumaTopology":           r.boolean(&o.EnableNUMATopology),
		"knownMigGeometries":           r.optionalList(maxLists, r.geometries),
		"migProfileAllowlist":          r.optionalList(maxLists, r.allowlist),
	}
}

// maxSplit is the most parts that a GPU may have: kubelet gets one device for each,
// in one message, and keeps all of them.
const maxSplit = 500

var logLevels = []string{"0", "1", "2", "3", "4"}

func (r *deviceReader) block(v at) {
	seen := r.mapping(v, r.keys())
	taken := map[string]string{}
	for _, n := range []struct{ key, name string }{
		{"resourceCountName", r.out.ResourceCountName},
		{"resourceMemoryName", r.out.ResourceMemoryName},
		{"resourceMemoryPercentageName", r.out.ResourceMemoryPercentageName},
		{"resourceCoreName", r.out.ResourceCoreName},
		{"resourcePriorityName", r.out.ResourcePriorityName},
	} {
		other, twice := taken[n.name]
		taken[n.name] = n.key
		if !twice {
			continue
		}
		where, ok := seen[n.key]
		if !ok {
			where = v.field(n.key, seen[other].node)
		}
		r.reject(where, "is %q, as is %s; each resource needs a name of its own", n.name, other)
	}
}

// extendedResource is the form that Kubernetes demands of an extended resource.
var extendedResource = regexp.MustCompile(
	`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)

func (r *deviceReader) resourceName(dst *string) func(at) {
	return func(v at) {
		var name string
		r.text(&name)(v)
		if name == "" {
			return
		}
		if !extendedResource.MatchString(name) {
			r.reject(v, "is %s; write a domain and a name, such as nvidia.com/gpu", quote(name))
			return
		}
		*dst = name
	}
}

// models reads the list of models of an entry.
func (r *deviceReader) models(dst *[]string) func(at) {
	return r.list(maxModels, into(dst, r.text))
}

func (r *deviceReader) allowlist(v at) {
	a := Allowlist{Line: r.line(v.node)}
	seen := r.mapping(v, readers{
		"models":   r.models(&a.Models),
		"profiles": r.list(maxModels, into(&a.Profiles, r.profileName)),
	})
	r.require(v, seen, "models", wantModels)
	r.require(v, seen, "profiles", `list MIG profiles, such as [ "1g.10gb" ]`)
	r.out.MigProfileAllowlist = append(r.out.MigProfileAllowlist, a)
}

const wantModels = `list NVML product names, such as [ "A100-SXM4-40GB" ]`
