// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"math"
	"slices"
	"strings"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// Node is the node file, config.json: how the GPUs of each node are used.
type Node struct {
	File    string // as given to ParseNode, for messages
	Entries []NodeEntry
}

// NodeEntry is an entry of nodeconfig. It selects nodes by Name, by NodeSelector,
// or as Default, and by one of these only. A value that the file lacks is the zero
// value, and then the device configuration's holds (Device.With).
type NodeEntry struct {
	Line int // of the entry, from 1

	Name         string
	NodeSelector map[string]string // labels that a node has, all of them
	Default      bool              // nodes that nothing else selects

	OperatingMode string        // v1alpha1.ModeMIG or v1alpha1.ModeHAMiCore (where the file is silent, but see MIGConfig)
	FilterDevices FilterDevices // GPUs that are not ours and never touched
	GPUs          []GPUEntry    // GPUs with a mode of their own

	// MIGConfig names a configuration of mig-parted's file, which says the mode and
	// the layout of the GPUs that it selects; see UseMIGParted. Where OperatingMode is
	// empty then, the others are not ours.
	MIGConfig string
	Cuts      []MIGPartedItem // of that configuration
	CutsFile  string          // where it is, for messages

	DeviceMemoryScaling          float64
	DeviceCoreScaling            float64
	DeviceSplitCount             int32
	PreConfiguredDeviceMemoryMiB int64
	LibCUDALogLevel              string
	EnableNUMATopology           *bool // nil where the file is silent

	// MIGStrategy and EnableGetPreferredAllocation are read, so that old files
	// stay valid, and mean nothing here.
	MIGStrategy                  string
	EnableGetPreferredAllocation bool
}

// FilterDevices names GPUs by UUID or by NVML's index.
type FilterDevices struct {
	UUIDs   []string
	Indexes []int32
}

// GPUEntry gives one GPU a mode.
type GPUEntry struct {
	UUID          string // empty when the GPU is named by Index
	Index         int32  // NVML's order; -1 when the GPU is named by UUID
	OperatingMode string
}

// For returns the entry for a node: the one with its name, else the first whose
// labels the node has, else the default. False when there is none.
func (n *Node) For(nodeName string, labels map[string]string) (NodeEntry, bool) {
	for _, selects := range []func(NodeEntry) bool{
		func(e NodeEntry) bool { return e.Name != "" && e.Name == nodeName },
		func(e NodeEntry) bool { return hasAll(labels, e.NodeSelector) },
		func(e NodeEntry) bool { return e.Default },
	} {
		if i := slices.IndexFunc(n.Entries, selects); i >= 0 {
			return n.Entries[i], true
		}
	}
	return NodeEntry{}, false
}

// hasAll reports whether labels has all that the selector asks for. An empty
// selector selects nothing.
func hasAll(labels, selector map[string]string) bool {
	for key, want := range selector {
		if has, ok := labels[key]; !ok || has != want {
			return false
		}
	}
	return len(selector) > 0
}

// Excludes reports whether filterdevices names a GPU.
func (e *NodeEntry) Excludes(uuid string, index int32) bool {
	return slices.Contains(e.FilterDevices.UUIDs, uuid) || slices.Contains(e.FilterDevices.Indexes, index)
}

// ModeOf returns the mode that is wanted of a GPU. Why is not empty when the entry
// leaves it alone. An entry of gpus by UUID goes before one by index, both before
// mig-parted's configuration, and that before the node's mode.
func (e *NodeEntry) ModeOf(gpu GPUName) (mode, why string) {
	if e.Excludes(gpu.UUID, gpu.Index) {
		return "", "filterdevices excludes the GPU"
	}
	for _, names := range []func(GPUEntry) bool{
		func(g GPUEntry) bool { return g.UUID != "" && g.UUID == gpu.UUID },
		func(g GPUEntry) bool { return g.UUID == "" && g.Index == gpu.Index },
	} {
		if i := slices.IndexFunc(e.GPUs, names); i >= 0 {
			return e.GPUs[i].OperatingMode, ""
		}
	}
	if i := itemOf(e.Cuts, gpu); i != nil {
		return i.mode(), ""
	}
	if e.OperatingMode == "" {
		return "", "migconfig " + e.MIGConfig + " does not select the GPU, and there is no operatingmode for others"
	}
	return e.OperatingMode, ""
}

// ParseNode reads a config.json, in JSON or YAML, or the manifest of the ConfigMap
// that holds it. Keys compare without case, as HAMi does. The file's name is for
// messages. The error joins all problems, each with line, field and remedy.
func ParseNode(file string, data []byte) (*Node, error) {
	r := nodeReader{decoder: &decoder{file: file, foldCase: true}, out: &Node{File: file}}
	if top, ok := r.document(data, "config.json"); ok {
		seen := r.mapping(top, readers{"nodeconfig": r.optionalList(maxNodes, r.entry)})
		r.require(top, seen, "nodeconfig", "write a list of entries, each for a node")
		r.checkTwice()
	} else if len(r.problems) == 0 {
		r.note(1, `is empty; write {"nodeconfig": []} where no node is to be configured`)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return r.out, nil
}

// Bounds of lists; Kubernetes supports 5000 nodes.
const (
	maxNodes  = 10_000
	maxGPUs   = 256 // entries of gpus, and of the lists of filterdevices
	maxLabels = 32  // of a nodeSelector
)

var modes = []string{v1alpha1.ModeMIG, v1alpha1.ModeHAMiCore}

// nodeReader reads the tree of a config.json into out.
type nodeReader struct {
	*decoder
	out *Node
	ats []at // of out.Entries
}

func (r *nodeReader) entry(v at) {
	e := NodeEntry{Line: r.line(v.node), OperatingMode: v1alpha1.ModeHAMiCore}
	var numa bool
	var gpus []at
	seen := r.mapping(v, readers{
		"name":          r.optionalText(&e.Name),
		"nodeSelector":  r.selector(&e.NodeSelector),
		"default":       r.boolean(&e.Default),
		"operatingmode": r.oneOf(&e.OperatingMode, modes...),
		"filterdevices": r.filterDevices(&e.FilterDevices),
		"gpus": r.optionalList(maxGPUs, func(v at) {
			e.GPUs, gpus = append(e.GPUs, r.gpu(v)), append(gpus, v)
		}),
		"devicememoryscaling":          r.zeroOrAbove(&e.DeviceMemoryScaling),
		"devicecorescaling":            r.zeroOrAbove(&e.DeviceCoreScaling),
		"devicesplitcount":             integer(r.decoder, &e.DeviceSplitCount, 0, maxSplit),
		"preconfigureddevicememory":    integer(r.decoder, &e.PreConfiguredDeviceMemoryMiB, 0, math.MaxInt64),
		"libcudaloglevel":              r.oneOf(&e.LibCUDALogLevel, logLevels...),
		"enablenumatopology":           r.boolean(&numa),
		"migconfig":                    r.optionalText(&e.MIGConfig),
		"migstrategy":                  r.oneOf(&e.MIGStrategy, "none", "single", "mixed"),
		"enablegetpreferredallocation": r.boolean(&e.EnableGetPreferredAllocation),
	})
	if seen != nil {
		if mode, ok := seen["operatingmode"]; e.MIGConfig != "" && (!ok || mode.node.Value == "") {
			e.OperatingMode = ""
		}
		if _, ok := seen["enablenumatopology"]; ok {
			e.EnableNUMATopology = &numa
		}
		r.checkSelection(v, e, seen)
		r.checkGPUs(e, gpus)
	}
	r.out.Entries, r.ats = append(r.out.Entries, e), append(r.ats, v)
}

// selector reads labels, whose keys have case.
func (r *nodeReader) selector(dst *map[string]string) func(at) {
	return func(v at) {
		labels := map[string]string{}
		r.named(v, "labels", maxLabels, func(key string, value at) {
			label := ""
			r.optionalText(&label)(value)
			labels[key] = label
		})
		*dst = labels
	}
}

func (r *nodeReader) filterDevices(dst *FilterDevices) func(at) {
	return func(v at) {
		r.mapping(v, readers{
			"uuid": r.optionalList(maxGPUs, into(&dst.UUIDs, r.uuid)),
			"index": r.optionalList(maxGPUs, func(v at) {
				index := int32(-1)
				if r.index(&index)(v); index >= 0 {
					dst.Indexes = append(dst.Indexes, index)
				}
			}),
		})
	}
}

func (r *nodeReader) index(dst *int32) func(at) {
	return integer(r.decoder, dst, 0, math.MaxInt32)
}

func (r *nodeReader) uuid(dst *string) func(at) {
	return func(v at) {
		var uuid string
		r.text(&uuid)(v)
		if uuid != "" && !strings.HasPrefix(uuid, "GPU-") {
			r.reject(v, "is %s; write the UUID of a GPU as nvidia-smi -L prints it, GPU-...", quote(uuid))
			return
		}
		*dst = uuid
	}
}

func (r *nodeReader) gpu(v at) GPUEntry {
	g := GPUEntry{Index: -1}
	seen := r.mapping(v, readers{
		"uuid":          r.uuid(&g.UUID),
		"index":         r.index(&g.Index),
		"operatingmode": r.oneOf(&g.OperatingMode, modes...),
	})
	if seen == nil {
		return g
	}
	_, byUUID := seen["uuid"]
	_, byIndex := seen["index"]
	switch {
	case byUUID && byIndex:
		r.reject(v, "has uuid and index; keep one")
	case !byUUID && !byIndex:
		r.reject(v, "names no GPU; add uuid or index")
	}
	if mode, ok := seen["operatingmode"]; ok && mode.node.Value == "" {
		delete(seen, "operatingmode")
	}
	r.require(v, seen, "operatingmode", "use mig or hami-core")
	return g
}

// checkSelection rejects an entry that selects nodes in no way, or in several.
func (r *nodeReader) checkSelection(v at, e NodeEntry, seen map[string]at) {
	var by []string
	if e.Name != "" {
		by = append(by, "name")
	}
	if _, ok := seen["nodeSelector"]; ok {
		by = append(by, "nodeSelector")
	}
	if e.Default {
		by = append(by, "default")
	}
	if len(by) == 0 {
		r.reject(v, "selects no node; add name, nodeSelector or default: true")
	} else if len(by) > 1 {
		r.reject(v, "has %s; keep one", words(by, "and"))
	}
}

// checkGPUs rejects a GPU that has two modes, or a mode although it is excluded.
func (r *nodeReader) checkGPUs(e NodeEntry, ats []at) {
	for i, g := range e.GPUs {
		if g.UUID == "" && g.Index < 0 {
			continue // rejected already
		}
		first := slices.IndexFunc(e.GPUs, func(o GPUEntry) bool { return o.UUID == g.UUID && o.Index == g.Index })
		if first < i {
			r.reject(ats[i], "names the same GPU as gpus[%d]; keep one", first)
		}
		if slices.Contains(e.FilterDevices.UUIDs, g.UUID) || slices.Contains(e.FilterDevices.Indexes, g.Index) {
			r.reject(ats[i], "sets the mode of a GPU that filterdevices excludes; remove one of the two")
		}
	}
}

// checkTwice rejects two entries for one node, and two defaults.
func (r *nodeReader) checkTwice() {
	named, fallback := map[string]int{}, -1
	for i, e := range r.out.Entries {
		switch first, twice := named[e.Name]; {
		case e.Default && fallback >= 0:
			r.reject(r.ats[i], "is a second default, after nodeconfig[%d]; keep one", fallback)
		case e.Default:
			fallback = i
		case e.Name != "" && twice:
			r.reject(r.ats[i], "is a second entry for node %s, after nodeconfig[%d]; keep one", quote(e.Name), first)
		case e.Name != "":
			named[e.Name] = i
		}
	}
}
