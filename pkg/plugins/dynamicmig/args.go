// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

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

// Args are DynamicMIGArgs, the plugin's section of pluginConfig.
type Args struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind,omitempty"`

	// Oversize is Allow when empty.
	Oversize Oversize `json:"oversize,omitempty"`

	// StrictMemory compares gpumem with what NVML reports instead of the memory
	// that knownMigGeometries promises.
	StrictMemory bool `json:"strictMemory,omitempty"`
}

// decodeArgs reads the arguments strictly and fills in the defaults. The error
// names the field.
func decodeArgs(obj runtime.Object) (Args, error) {
	args := Args{Oversize: OversizeAllow}
	if obj == nil {
		return args, nil
	}
	raw, ok := obj.(*runtime.Unknown)
	if !ok {
		return args, fmt.Errorf("decoding DynamicMIGArgs: want the type runtime.Unknown, got %T", obj)
	}
	text, err := yaml.YAMLToJSON(raw.Raw)
	if err != nil {
		return args, fmt.Errorf("decoding DynamicMIGArgs: %w", err)
	}
	if len(raw.Raw) > 0 {
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&args); err != nil {
			return args, fmt.Errorf("decoding DynamicMIGArgs: %w", err)
		}
	}
	args.Oversize = cmp.Or(args.Oversize, OversizeAllow)
	if args.Oversize != OversizeAllow && args.Oversize != OversizeNever {
		return args, fmt.Errorf("DynamicMIGArgs: oversize is %q; use %s or %s", args.Oversize, OversizeAllow, OversizeNever)
	}
	return args, nil
}

func (a Args) options() pool.Options {
	return pool.Options{NoOversize: a.Oversize == OversizeNever, StrictMemory: a.StrictMemory}
}
