// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/kubelet"
)

// create is what a runtime does: it reads the CDI files, and the container's process
// uses what they give it.
func (p *Pod) create(container string) error {
	if err := p.compare(container); err != nil {
		return err
	}
	var uuids []string
	if err := p.enter(container); err != nil {
		return err
	}
	err := p.each(container, func(in nvml.Instance) error {
		uuids = append(uuids, in.UUID)
		return p.node.Sim.Hold(in.GPU, sim.Holder{GI: in.GI, PID: p.pid(container)})
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.created[container] = uuids
	return err
}

// compare resolves the CDI names that kubelet was promised. What they say must be
// the instances that the pod owns, as NVML has them.
func (p *Pod) compare(container string) error {
	var want []string
	err := p.each(container, func(in nvml.Instance) error {
		nodes, err := p.node.nodes(in)
		want = append(want, nodes)
		return err
	})
	if err != nil {
		return err
	}
	got, err := p.node.resolve(p.node.Kubelet.Promised(p.inner, container))
	if err != nil {
		return err
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("the CDI files give %q, the pod's instances have %q", got, want)
	}
	return nil
}

// letGo ends the container's process.
func (p *Pod) letGo(container string) {
	p.mu.Lock()
	_, held := p.created[container]
	p.mu.Unlock()
	if !held {
		return
	}
	if err := errors.Join(p.idle(container), os.RemoveAll(p.process(container))); err != nil {
		p.node.T.Errorf("ending container %s of pod %s: %v", container, p.Name, err)
	}
}

// idle has the container's process close its GPUs.
func (p *Pod) idle(container string) error {
	return p.each(container, func(in nvml.Instance) error {
		err := p.node.Sim.Release(in.GPU, in.GI, p.pid(container))
		if errors.Is(err, nvml.ErrNotFound) {
			return nil // after a reboot, or idle already
		}
		return err
	})
}

// enter shows the container's process below proc, in the control group that kubelet
// makes for the pod.
func (p *Pod) enter(container string) error {
	dir := p.process(container)
	return errors.Join(os.MkdirAll(filepath.Join(dir, "fd"), 0o700),
		os.WriteFile(filepath.Join(dir, "cgroup"), fmt.Appendf(nil, "0::/kubepods/besteffort/pod%s/%s\n", p.UID, container), 0o600))
}

func (p *Pod) process(container string) string {
	return p.node.path(fmt.Sprintf("proc/%d", p.pid(container)))
}

func (p *Pod) each(container string, f func(nvml.Instance) error) error {
	for _, d := range p.allocation.Containers[container] {
		in, err := p.node.instance(d)
		if err == nil {
			err = f(in)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pid is the container's.
func (p *Pod) pid(container string) int {
	var base int
	_, _ = fmt.Sscan(string(p.UID[strings.LastIndexByte(string(p.UID), '-')+1:]), &base) // Bind made it
	return base*8 + slices.IndexFunc(p.inner.Containers(), func(c kubelet.Container) bool { return c.Name == container })
}

// instance finds a whole instance at a placement.
func (n *Node) instance(d v1alpha1.Device) (nvml.Instance, error) {
	all, err := n.driver.Instances(nvml.GPUID(d.GPU))
	if err != nil {
		return nvml.Instance{}, err
	}
	for _, in := range all {
		if int32(in.Profile) == d.MIG.ProfileID && int32(in.Start) == d.MIG.Start && in.Whole() {
			return in, nil
		}
	}
	return nvml.Instance{}, fmt.Errorf("NVML has no whole %s at %d of %s: %v", d.MIG.Profile, d.MIG.Start, d.GPU, all)
}

// nodes draws the device nodes of an instance.
func (n *Node) nodes(in nvml.Instance) (string, error) {
	i := slices.IndexFunc(n.gpus, func(g nvml.GPU) bool { return g.ID == in.GPU })
	nodes, err := nvml.Capabilities{Root: n.simRoot()}.InstanceNodes(n.gpus[i].Minor, in.GI, in.CI)
	var out []string
	for _, d := range nodes {
		out = append(out, fmt.Sprintf("%s %d:%d", d.Path, d.Major, d.Minor))
	}
	return strings.Join(out, ", "), err
}

// resolve reads CDI files as a runtime would, and draws the nodes of each slot.
func (n *Node) resolve(names []string) ([]string, error) {
	if len(names) == 0 || names[0] != cdi.DriverDevice {
		return nil, fmt.Errorf("resolving an answer of Allocate: it promised %q, want %s first", names, cdi.DriverDevice)
	}
	if _, err := n.spec(cdi.DriverDevice); err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names[1:] {
		spec, err := n.spec(name)
		if err != nil {
			return nil, err
		}
		var nodes []string
		for _, d := range spec.Devices[0].ContainerEdits.DeviceNodes {
			nodes = append(nodes, fmt.Sprintf("%s %d:%d", d.Path, d.Major, d.Minor))
		}
		out = append(out, strings.Join(nodes, ", "))
	}
	return out, nil
}

// spec is the file that defines a CDI device, exactly once.
func (n *Node) spec(name string) (specs.Spec, error) {
	kind, device, _ := strings.Cut(name, "=")
	file := strings.ReplaceAll(kind, "/", "-")
	if device != "all" {
		file += "_" + device
	}
	text, err := os.ReadFile(filepath.Join(n.CDIDir(), file+".json"))
	var spec specs.Spec
	if err == nil {
		err = json.Unmarshal(text, &spec)
	}
	if err == nil && (spec.Kind != kind || len(spec.Devices) != 1 || spec.Devices[0].Name != device) {
		err = fmt.Errorf("its file defines %s", text)
	}
	if err != nil {
		return specs.Spec{}, fmt.Errorf("CDI device %s: %w", name, err)
	}
	return spec, nil
}

// Layout draws what a GPU holds: "2g.10gb@0 1g.5gb@2(GI only)".
func (n *Node) Layout(gpu int) string {
	n.T.Helper()
	var out []string
	for _, in := range n.Dump().GPUs[gpu].Instances {
		text := fmt.Sprintf("%s@%d", in.Name, in.Start)
		if in.CI == nvml.NoCI {
			text += "(GI only)"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// UUID of the instance at a place such as "0:1g.5gb@4"; empty when there is none.
func (n *Node) UUID(place string) string {
	n.T.Helper()
	in, err := n.instance(n.device(place))
	if err != nil {
		return ""
	}
	return in.UUID
}

// Foreign makes an instance as an administrator would, and returns its UUID.
func (n *Node) Foreign(place string) string {
	n.T.Helper()
	d := n.device(place)
	in, err := n.driver.CreateGPUInstance(nvml.GPUID(d.GPU), nvml.ProfileID(d.MIG.ProfileID), int(d.MIG.Start))
	if err == nil {
		in, err = n.driver.CreateComputeInstance(in.GPU, in.GI)
	}
	if err != nil {
		n.T.Fatal(err)
	}
	return in.UUID
}

// Hold has somebody use the instance at a place: a process, or with PID 0 a handle
// that NVML does not show.
func (n *Node) Hold(place string, pid int) {
	n.T.Helper()
	in, err := n.instance(n.device(place))
	if err == nil {
		err = n.Sim.Hold(in.GPU, sim.Holder{GI: in.GI, PID: pid})
	}
	if err != nil {
		n.T.Fatal(err)
	}
}

// Reported draws a GPU of the report: "2g.10gb@0:Live/a 1g.5gb@4:Idle".
func (n *Node) Reported(gpu int) string {
	report := n.API.GPUNode()
	if report == nil || len(report.Status.GPUs) <= gpu {
		return "nothing"
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, in := range report.Status.GPUs[gpu].Instances {
		text := fmt.Sprintf("%s@%d:%s", n.nameOf(in.ProfileID), in.Start, in.State)
		if in.PodUID != "" {
			text += "/" + cmp.Or(n.podName(string(in.PodUID)), string(in.PodUID))
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// podName is the name of a pod of the node. mu is held.
func (n *Node) podName(uid string) string {
	if p := n.pods[uid]; p != nil {
		return p.Name
	}
	return ""
}

func (n *Node) nameOf(profile int32) string {
	for name, p := range n.profile {
		if int32(p.ID) == profile {
			return name
		}
	}
	return fmt.Sprint(profile)
}

// Leftovers names CDI files of slots that no pod of these holds.
func (n *Node) Leftovers(pods ...*Pod) []string {
	slots, err := cdi.Dir{Path: n.CDIDir()}.Slots()
	if err != nil {
		return []string{err.Error()}
	}
	return slices.DeleteFunc(slots, func(slot string) bool {
		return slices.ContainsFunc(pods, func(p *Pod) bool {
			return slices.ContainsFunc(p.inner.Containers(), func(c kubelet.Container) bool {
				return slices.Contains(n.Kubelet.SlotsOf(p.inner, c.Name), slot)
			})
		})
	})
}
