// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import "fmt"

// WithoutEffect says of each setting that is set on a node and does nothing here why
// that is. d has the node's values (With), and e is the node's entry. A value that HAMi
// has by default asks for nothing.
func (d *Device) WithoutEffect(e *NodeEntry) []string {
	var out []string
	say := func(set bool, format string, args ...any) {
		if set {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	say(d.OverwriteEnv, "overwriteEnv has no effect: containers get devices through CDI alone, and those without a request get none.")
	say(d.RuntimeClassName != "", "runtimeClassName %s has no effect: containers get devices through CDI whatever their runtime; set spec.runtimeClassName in pods that need it.", d.RuntimeClassName)
	say(d.EnableNUMATopology, "enableNumaTopology has no effect: kubelet picks slots, which have no NUMA node; the annotation nvidia.com/numa-bind has one.")
	say(d.DefaultGPUNum != 1, "defaultGPUNum %d has no effect here: say the same in variables.count of the component hami-defaults.", d.DefaultGPUNum)
	say(e.MIGStrategy == "single" || e.MIGStrategy == "mixed", "migstrategy %s has no effect: instances are made for pods, and resources nvidia.com/mig-* are not offered.", e.MIGStrategy)
	say(e.EnableGetPreferredAllocation, "enablegetpreferredallocation has no effect: kubelet's slots stand for no GPU in particular.")
	return out
}
