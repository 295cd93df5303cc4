// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// MIGParted is the configuration file of NVIDIA's mig-parted: named configurations,
// each of which says how some GPUs of a node are cut.
//
//	version: v1
//	mig-configs:
//	  all-balanced:
//	  - device-filter: ["0x20B010DE"]  # PCI device and vendor; optional, a string or a list
//	    devices: all                   # or a list of indexes
//	    mig-enabled: true
//	    mig-devices: {1g.5gb: 2, 2g.10gb: 1, 3g.20gb: 1}
//
// There a configuration is what a GPU is cut into at once. Here it is a layout that
// the GPU is cut within, on demand; mig-enabled: false is mode hami-core.
type MIGParted struct {
	File    string // as given to ParseMIGParted, for messages
	Configs map[string][]MIGPartedItem
}

// MIGPartedItem says how the GPUs are used that it selects.
type MIGPartedItem struct {
	Line int // of the item, from 1

	Filter  []string // PCI ids, "0x20B010DE" or with the board's "0x20B010DE:0x144E10DE"; empty for all
	Devices []int32  // NVML's indexes; nil for all
	Enabled bool     // MIG mode

	// Layout is the instances that a GPU may have; empty where any will do. Names are
	// in order. Memory is 0: the file promises none.
	Layout []GeometryEntry
}

// GPUName is what configurations know a GPU by.
type GPUName struct {
	UUID  string
	Index int32  // NVML's order
	PCI   string // device and vendor, "0x20B010DE"; empty where unknown
	Board string // the same of the board, which PCI calls the subsystem
	NoMIG bool   // the GPU cannot do MIG
}

// has reports whether a PCI id of a filter is the GPU's.
func (g GPUName) has(id string) bool {
	id, board, byBoard := strings.Cut(id, ":")
	return strings.EqualFold(id, g.PCI) && (!byBoard || strings.EqualFold(board, g.Board))
}

// selects reports whether the item is about a GPU. With MIG on, "devices: all" is about
// those that can do MIG: mig-parted skips the others.
func (i *MIGPartedItem) selects(g GPUName) bool {
	named := slices.Contains(i.Devices, g.Index) || i.Devices == nil && !(i.Enabled && g.NoMIG)
	return named && (len(i.Filter) == 0 || slices.ContainsFunc(i.Filter, g.has))
}

// mode is the operating mode that the item stands for.
func (i *MIGPartedItem) mode() string {
	if i.Enabled {
		return v1alpha1.ModeMIG
	}
	return v1alpha1.ModeHAMiCore
}

// itemOf returns the item about a GPU, the last of several, as mig-parted applies
// them one after the other; nil when there is none.
func itemOf(items []MIGPartedItem, g GPUName) *MIGPartedItem {
	for i := range slices.Backward(items) {
		if items[i].selects(g) {
			return &items[i]
		}
	}
	return nil
}

// Bounds of mig-parted's file; the GPU Operator's has some 150 configurations.
const (
	maxConfigs  = 1000
	maxItems    = 256
	maxFilters  = 256
	maxProfiles = 64
)

// ParseMIGParted reads a configuration file of mig-parted, in YAML or JSON, or the
// manifest of the ConfigMap that holds it as config.yaml. The file's name is for
// messages. The error joins all problems, each with line, field and remedy.
func ParseMIGParted(file string, data []byte) (*MIGParted, error) {
	r := migPartedReader{decoder: &decoder{file: file}, out: &MIGParted{File: file, Configs: map[string][]MIGPartedItem{}}}
	if top, ok := r.document(data, "config.yaml"); ok {
		var version string
		seen := r.mapping(top, readers{
			"version": r.oneOf(&version, "v1"),
			"mig-configs": func(v at) {
				r.named(v, "configurations", maxConfigs, func(name string, v at) {
					r.list(maxItems, func(v at) { r.out.Configs[name] = append(r.out.Configs[name], r.item(v)) })(v)
				})
			},
		})
		r.require(top, seen, "version", "write version: v1")
		r.require(top, seen, "mig-configs", "write a mapping of configurations")
	} else if len(r.problems) == 0 {
		r.note(1, "is empty; write version: v1 and mig-configs, or leave out --mig-parted-config")
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return r.out, nil
}

// migPartedReader reads the tree of a file into out.
type migPartedReader struct {
	*decoder
	out *MIGParted
}

func (r *migPartedReader) item(v at) MIGPartedItem {
	i := MIGPartedItem{Line: r.line(v.node)}
	seen := r.mapping(v, readers{
		"device-filter": r.filter(&i.Filter),
		"devices":       r.devices(&i.Devices),
		"mig-enabled":   r.boolean(&i.Enabled),
		"mig-devices":   r.layout(&i.Layout),
	})
	r.require(v, seen, "devices", "write all, or a list of indexes")
	r.require(v, seen, "mig-enabled", "use true or false")
	switch {
	case i.Enabled:
		r.require(v, seen, "mig-devices", "write a mapping of profiles to numbers, or {} for any")
	case len(i.Layout) > 0:
		r.reject(seen["mig-devices"], "has instances although mig-enabled is false; remove one of the two")
	}
	return i
}

// pciID is device and vendor, and those of the board after a colon, which mig-parted
// reads since 0.15.
var pciID = regexp.MustCompile(`^0[xX][0-9A-Fa-f]{8}(:0[xX][0-9A-Fa-f]{8})?$`)

func (r *migPartedReader) filter(dst *[]string) func(at) {
	one := func(v at) {
		var id string
		r.text(&id)(v)
		switch {
		case id == "":
		case !pciID.MatchString(id):
			r.reject(v, "is %s; write PCI device and vendor, such as \"0x20B010DE\"", quote(id))
		default:
			*dst = append(*dst, id)
		}
	}
	return func(v at) {
		if v.node.Kind == yaml.SequenceNode {
			r.optionalList(maxFilters, one)(v)
		} else if v.node.Value != "" || v.node.Kind != yaml.ScalarNode {
			one(v)
		}
	}
}

func (r *migPartedReader) devices(dst *[]int32) func(at) {
	return func(v at) {
		if v.node.Kind == yaml.ScalarNode {
			var all string
			r.oneOf(&all, "all")(v)
			return
		}
		*dst = []int32{} // an empty list selects no GPU
		r.optionalList(maxItems, func(v at) {
			index := int32(-1)
			if integer(r.decoder, &index, 0, 1<<16)(v); index >= 0 {
				*dst = append(*dst, index)
			}
		})(v)
	}
}

// migPartedProfile is a profile as mig-parted writes it, with the number of compute
// slices in front where an instance is to be shared: 1c.3g.20gb.
var migPartedProfile = regexp.MustCompile(`^([1-9]c\.)?[1-9]g\.[0-9]{1,4}gb([+-][a-z.,]+)?$`)

func (r *migPartedReader) layout(dst *[]GeometryEntry) func(at) {
	return func(v at) {
		if v.node.Kind == yaml.MappingNode && len(v.node.Content) == 0 {
			return
		}
		r.named(v, "profiles", maxProfiles, func(name string, v at) {
			e := GeometryEntry{Name: name}
			if !migPartedProfile.MatchString(name) {
				r.reject(v, "is no MIG profile; write one such as 1g.10gb or 1g.10gb+me")
			}
			integer(r.decoder, &e.Count, 1, 64)(v)
			*dst = append(*dst, e)
		})
		slices.SortFunc(*dst, func(a, b GeometryEntry) int { return strings.Compare(a.Name, b.Name) })
	}
}

// UseMIGParted gives the entries the configurations that they name. The error joins
// all that are not in the file, or that no file is there for (m is nil).
func (n *Node) UseMIGParted(m *MIGParted) error {
	d := decoder{file: n.File}
	for i := range n.Entries {
		e := &n.Entries[i]
		if e.MIGConfig == "" {
			continue
		}
		problem := func(format string, args ...any) {
			d.note(e.Line, fmt.Sprintf("nodeconfig[%d].migconfig is %s; ", i, quote(e.MIGConfig))+fmt.Sprintf(format, args...))
		}
		if m == nil {
			problem("name mig-parted's file with the agent's flag --mig-parted-config, or remove it")
		} else if items, ok := m.Configs[e.MIGConfig]; ok {
			e.Cuts, e.CutsFile = items, m.File
		} else if near := Nearest(e.MIGConfig, slices.Sorted(maps.Keys(m.Configs))); near != "" {
			problem("%s has no such configuration; did you mean %s?", m.File, near)
		} else {
			problem("%s has no such configuration; write the name of one of its mig-configs", m.File)
		}
	}
	return d.err()
}

// Cut returns the settings for the GPUs of a model that a node with this entry has in
// mode mig: the layouts that mig-parted's configuration has for them go before all
// others, as far as the hardware can be cut like that. Where it has several for one model, each GPU may have any of them, which is
// remarked; and where it has none for one of them, none is held to any.
func (d *Device) Cut(e *NodeEntry, model string, gpus []GPUName) (*Device, []string) {
	g := Geometries{Models: []string{model}}
	free := false // some GPU may be cut in any way
	var lines []string
	for _, gpu := range gpus {
		i := itemOf(e.Cuts, gpu)
		switch {
		case i == nil || !i.Enabled || len(i.Layout) == 0:
			free = true
		case !slices.ContainsFunc(g.AllowedGeometries, func(l []GeometryEntry) bool { return slices.Equal(l, i.Layout) }):
			g.AllowedGeometries = append(g.AllowedGeometries, i.Layout)
			lines = append(lines, strconv.Itoa(i.Line))
		}
	}
	g.Where = fmt.Sprintf("mig-configs.%s (%s:%s)", e.MIGConfig, e.CutsFile, strings.Join(lines, ","))
	var remarks []string
	switch n := len(g.AllowedGeometries); {
	case n == 0:
		return d, nil
	case free:
		return d, []string{fmt.Sprintf("%s has a layout for some GPUs of model %s and none for others, so none of them is held to it.", g.Where, model)}
	case n > 1:
		remarks = []string{fmt.Sprintf("%s has %d layouts for GPUs of model %s; each of them may have any one of these.", g.Where, n, model)}
	}
	out := *d
	out.Parted = &g
	return &out, remarks
}

// EncodeMIGParted writes what a node's GPUs are cut into as a configuration of
// mig-parted with this name: what `nvidia-mig-parted assert` is meant to agree with,
// which was not tried with that program. Every instance counts, whoever made it, that one
// compute instance spans: mig-parted counts compute instances, and a comment tells of
// others. GPUs that the agent leaves alone are left out, so that mig-parted leaves them
// alone, too.
func EncodeMIGParted(name string, status *v1alpha1.GPUNodeStatus) ([]byte, error) {
	type item struct {
		Devices []int32          `yaml:"devices,flow"`
		Enabled bool             `yaml:"mig-enabled"`
		Layout  map[string]int32 `yaml:"mig-devices"`
	}
	items := []item{}
	var out bytes.Buffer
	for i := range status.GPUs {
		gpu := &status.GPUs[i]
		next := item{Devices: []int32{gpu.Index}, Enabled: gpu.Mode.Current == v1alpha1.ModeMIG, Layout: map[string]int32{}}
		for _, in := range gpu.Instances {
			switch profile := nameOf(status.Model(gpu.Model), in.ProfileID); {
			case profile == "":
				return nil, fmt.Errorf("GPU %d has an instance of profile %d at %d, which its model %s does not list", gpu.Index, in.ProfileID, in.Start, gpu.Model)
			case in.UUID == "":
				fmt.Fprintf(&out, "# GPU %d: %s at %d is left out, since no compute instance spans it.\n", gpu.Index, profile, in.Start)
			default:
				next.Layout[profile]++
			}
		}
		same := slices.IndexFunc(items, func(o item) bool { return o.Enabled == next.Enabled && maps.Equal(o.Layout, next.Layout) })
		if same >= 0 {
			items[same].Devices = append(items[same].Devices, gpu.Index)
			continue
		}
		items = append(items, next)
	}
	if len(items) == 0 {
		return nil, fmt.Errorf("the node's agent manages no GPU")
	}
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	err := enc.Encode(struct {
		Version string            `yaml:"version"`
		Configs map[string][]item `yaml:"mig-configs"`
	}{"v1", map[string][]item{name: items}})
	return out.Bytes(), err
}

// nameOf a profile of a model, nil where there is none; empty when it has no such
// profile.
func nameOf(m *v1alpha1.GPUModel, id int32) string {
	if m == nil {
		return ""
	}
	if i := slices.IndexFunc(m.Profiles, func(p v1alpha1.Profile) bool { return p.ID == id }); i >= 0 {
		return m.Profiles[i].Name
	}
	return ""
}
