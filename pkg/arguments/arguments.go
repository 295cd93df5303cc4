// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package arguments is DynamicMIGArgs, the plugin's section of a
// KubeSchedulerConfiguration: its fields, how they are read, and what they mean to
// pkg/pool. The plugin and kubectl mig read them here, so that they agree.
//
// arguments does not know the scheduling framework, nor where files are.
package arguments

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"

	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/pool"
)

// Oversize says whether a pod may get a larger profile than the smallest adequate
// one that the model has.
type Oversize string

// Values of Oversize.
const (
	OversizeAllow Oversize = "Allow"
	OversizeNever Oversize = "Never"
)

// AllocationWrite says how a pod's allocation is written.
type AllocationWrite string

// Values of AllocationWrite.
const (
	// WriteAnnotation patches the pod before it is bound.
	WriteAnnotation AllocationWrite = "Annotation"

	// WriteBinding has the annotation travel in the Binding, which the API server
	// merges into the pod in the same write as spec.nodeName: one write for each pod.
	// The plugin must bind then, before others.
	WriteBinding AllocationWrite = "Binding"
)

// DynamicMIG are the arguments, with the defaults filled in by Decode.
type DynamicMIG struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind,omitempty"`

	// Oversize is Allow when empty.
	Oversize Oversize `json:"oversize,omitempty"`

	// StrictMemory compares gpumem with what NVML reports instead of the memory
	// that knownMigGeometries promises.
	StrictMemory bool `json:"strictMemory,omitempty"`

	// NodeSchedulerPolicy and GPUSchedulerPolicy are those of pods without HAMi's
	// annotations of these names: binpack, spread, or empty for the score, which
	// packs best.
	NodeSchedulerPolicy geometry.Policy `json:"nodeSchedulerPolicy,omitempty"`
	GPUSchedulerPolicy  geometry.Policy `json:"gpuSchedulerPolicy,omitempty"`

	// Mix is what requests are expected to come; all profiles alike when empty.
	Mix []Expected `json:"mix,omitempty"`

	// MixLearning says whether real requests change the mix. It is Enabled when empty.
	MixLearning Switch `json:"mixLearning,omitempty"`

	// AllocationWrite is Annotation when empty, which works in every profile.
	AllocationWrite AllocationWrite `json:"allocationWrite,omitempty"`

	// DeviceConfig is the file of HAMi's device configuration, for the names of
	// resources, which are read at the start, and the defaults of requests, which
	// follow the file. Empty means HAMi's own.
	DeviceConfig string `json:"deviceConfig,omitempty"`
}

// Expected is a kind of device in DynamicMIG.Mix: what one container would ask for, and
// how often, in any unit.
type Expected struct {
	Profile    string  `json:"profile,omitempty"` // or:
	Memory     int     `json:"gpumem,omitempty"`  // MiB, or:
	Percentage int     `json:"gpumem-percentage,omitempty"`
	Cores      int     `json:"gpucores,omitempty"`
	Weight     float64 `json:"weight"`
}

// Switch is Enabled or Disabled. (On and Off would be booleans to YAML.)
type Switch string

// Values of Switch.
const (
	Enabled  Switch = "Enabled"
	Disabled Switch = "Disabled"
)

// Decode reads the arguments, YAML or JSON, strictly and fills in the defaults. Text
// that is empty is the defaults alone. The error names the field.
func Decode(text []byte) (DynamicMIG, error) {
	var args DynamicMIG
	if len(text) > 0 {
		text, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return args, fmt.Errorf("decoding DynamicMIGArgs: %w", err)
		}
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&args); err != nil {
			return args, fmt.Errorf("decoding DynamicMIGArgs: %w", err)
		}
	}
	args.Oversize = cmp.Or(args.Oversize, OversizeAllow)
	args.MixLearning = cmp.Or(args.MixLearning, Enabled)
	args.AllocationWrite = cmp.Or(args.AllocationWrite, WriteAnnotation)
	return args, args.check()
}

// check tells what is wrong with the arguments.
func (a *DynamicMIG) check() error {
	if a.Oversize != OversizeAllow && a.Oversize != OversizeNever {
		return fmt.Errorf("DynamicMIGArgs: oversize is %q; use %s or %s", a.Oversize, OversizeAllow, OversizeNever)
	}
	if err := checkPolicy("nodeSchedulerPolicy", a.NodeSchedulerPolicy); err != nil {
		return err
	}
	if err := checkPolicy("gpuSchedulerPolicy", a.GPUSchedulerPolicy); err != nil {
		return err
	}
	if a.MixLearning != Enabled && a.MixLearning != Disabled {
		return fmt.Errorf("DynamicMIGArgs: mixLearning is %q; use %s or %s", a.MixLearning, Enabled, Disabled)
	}
	if a.AllocationWrite != WriteAnnotation && a.AllocationWrite != WriteBinding {
		return fmt.Errorf("DynamicMIGArgs: allocationWrite is %q; use %s or %s", a.AllocationWrite, WriteAnnotation, WriteBinding)
	}
	for i, e := range a.Mix {
		switch {
		case !(e.Weight > 0) || math.IsInf(e.Weight, 1):
			return fmt.Errorf("DynamicMIGArgs: mix[%d].weight is %v; use a number above 0", i, e.Weight)
		case e.Memory < 0 || e.Percentage < 0 || e.Percentage > 100 || e.Cores < 0 || e.Cores > 100:
			return fmt.Errorf("DynamicMIGArgs: mix[%d] has an amount below 0 or a share above 100; correct it", i)
		case e.Profile != "" && e.Memory+e.Percentage+e.Cores > 0:
			return fmt.Errorf("DynamicMIGArgs: mix[%d] has a profile and amounts; a request has one or the other", i)
		}
	}
	return nil
}

func checkPolicy(field string, p geometry.Policy) error {
	if p != geometry.ByScore && p != geometry.Binpack && p != geometry.Spread {
		return fmt.Errorf("DynamicMIGArgs: %s is %q; use %s or %s, or leave it out", field, p, geometry.Binpack, geometry.Spread)
	}
	return nil
}

// want is what a pod would ask for.
func (e Expected) want(a *DynamicMIG) geometry.Want {
	return geometry.Want{
		Profile: e.Profile, MemoryMiB: e.Memory, Percent: e.Percentage, Cores: e.Cores, Strict: a.StrictMemory,
		Full: e.Profile == "" && e.Memory+e.Percentage+e.Cores == 0,
	}
}

// Options are what the pool needs of the arguments and of the file that they name,
// which readFile reads.
func (a DynamicMIG) Options(readFile func(name string) ([]byte, error)) (pool.Options, error) {
	o := pool.Options{
		NoOversize: a.Oversize == OversizeNever, StrictMemory: a.StrictMemory,
		Policy: pool.Policy{Node: a.NodeSchedulerPolicy, GPU: a.GPUSchedulerPolicy},
		Learn:  a.MixLearning == Enabled,
	}
	for _, e := range a.Mix {
		o.Expected = append(o.Expected, pool.Expected{Want: e.want(&a), Weight: e.Weight})
	}
	if a.DeviceConfig == "" {
		return o, nil
	}
	var err error
	o.Names, o.Defaults, err = Requests(a.DeviceConfig, readFile)
	if err != nil {
		return o, fmt.Errorf("DynamicMIGArgs: %w", err)
	}
	return o, nil
}

// Requests reads what a device configuration says of requests.
func Requests(file string, readFile func(name string) ([]byte, error)) (names v1alpha1.Resources, defaults v1alpha1.RequestDefaults, err error) {
	text, err := readFile(file)
	if err != nil {
		return names, defaults, fmt.Errorf("deviceConfig: %w; mount the file there, or leave the field out", err)
	}
	d, err := config.ParseDevice(file, text)
	if err != nil {
		return names, defaults, fmt.Errorf("deviceConfig: %w", err)
	}
	return d.Resources(), d.RequestDefaults(), nil
}
