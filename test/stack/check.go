// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// Device is a character device as a container sees it.
type Device struct {
	Path         string
	Major, Minor int64
	// Opens is what opening says: "ENXIO" where the container may open it and no
	// driver answers, as on this cluster; "EPERM" where it may not.
	Opens string
}

// Seen lists the NVIDIA devices inside a container, by path, and tries to open
// each.
func (s *Stack) Seen(ctx context.Context, pod *v1.Pod, container string) ([]Device, error) {
	// busybox: find, stat and a read that fails.
	const script = `find /dev -type c -path '*nvidia*' | sort | while read f; do
  echo "$f $(stat -c '%t %T' $f) $(cat $f 2>&1 | head -c 200)"; done`
	out, err := s.Cluster.Kubectl(ctx, "exec", "-n", pod.Namespace, pod.Name, "-c", container, "--", "sh", "-c", script)
	if err != nil {
		return nil, err
	}
	var devices []Device
	for line := range strings.Lines(string(out)) {
		d, err := parseDevice(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		devices = append(devices, d)
	}
	return devices, nil
}

// parseDevice reads "/dev/x MAJOR MINOR error text", numbers in hex.
func parseDevice(line string) (Device, error) {
	fields := strings.SplitN(line, " ", 4)
	if len(fields) < 4 {
		return Device{}, fmt.Errorf("reading a device of the container: %q", line)
	}
	major, err1 := strconv.ParseInt(fields[1], 16, 64)
	minor, err2 := strconv.ParseInt(fields[2], 16, 64)
	d := Device{Path: fields[0], Major: major, Minor: minor, Opens: fields[3]}
	switch {
	case strings.Contains(fields[3], "No such device or address"):
		d.Opens = "ENXIO"
	case strings.Contains(fields[3], "Operation not permitted"):
		d.Opens = "EPERM"
	}
	return d, errors.Join(err1, err2)
}

// Agree checks a running pod three ways: its annotation, what NVML (the simulator)
// holds, what GPUNode says, and the devices inside its containers must tell the
// same story, and the containers see no other GPU device.
func (s *Stack) Agree(ctx context.Context, pod *v1.Pod) error {
	a, err := v1alpha1.DecodeAllocation(pod.Annotations[v1alpha1.AnnotationAllocation])
	if err != nil {
		return err
	}
	if err := a.OwnsCounted(pod, pod.Spec.NodeName, cmp.Or(s.Count, v1alpha1.ResourceGPU)); err != nil {
		return err
	}
	node, err := s.Node(pod.Spec.NodeName)
	if err != nil {
		return err
	}
	report, err := s.GPUs.DynamigV1alpha1().GPUNodes().Get(ctx, node.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := a.Validate(&report.Status); err != nil {
		return err
	}
	driver, err := sim.Open(node.SimRoot)
	if err != nil {
		return err
	}
	defer driver.Close()
	for container, devices := range a.Containers {
		want, err := expected(driver, node.SimRoot, devices)
		if err == nil {
			err = s.sees(ctx, pod, container, want)
		}
		if err == nil {
			err = reported(&report.Status, pod, devices)
		}
		if err != nil {
			return fmt.Errorf("pod %s, container %s: %w", pod.Name, container, err)
		}
	}
	return nil
}

// sees compares a container's devices with those wanted.
func (s *Stack) sees(ctx context.Context, pod *v1.Pod, container string, want []Device) error {
	got, err := s.Seen(ctx, pod, container)
	if err != nil {
		return err
	}
	got = slices.DeleteFunc(got, func(d Device) bool { return control(d.Path) })
	if !slices.Equal(got, want) {
		return fmt.Errorf("the container sees %v, NVML's instances have %v", got, want)
	}
	return nil
}

// control reports whether a device belongs to the driver, not to a GPU.
func control(p string) bool {
	name := path.Base(p)
	return name == "nvidiactl" || name == "nvidia-modeset" || strings.HasPrefix(name, "nvidia-uvm")
}

// expected are the devices of the instances that NVML holds at the placements.
func expected(driver nvml.Driver, root string, devices []v1alpha1.Device) ([]Device, error) {
	gpus, err := driver.GPUs(nil)
	if err != nil {
		return nil, err
	}
	var want []Device
	for _, d := range devices {
		i := slices.IndexFunc(gpus, func(g nvml.GPU) bool { return string(g.ID) == d.GPU })
		if i < 0 {
			return nil, fmt.Errorf("GPU %s is not on the node", d.GPU)
		}
		if d.Share != nil {
			n, err := nvml.Capabilities{Root: root}.GPUNode(gpus[i].Minor)
			if err != nil {
				return nil, err
			}
			want = append(want, Device{Path: n.Path, Major: n.Major, Minor: n.Minor, Opens: "ENXIO"})
			continue
		}
		inst, err := instanceAt(driver, d)
		if err != nil {
			return nil, err
		}
		nodes, err := nvml.Capabilities{Root: root}.InstanceNodes(gpus[i].Minor, inst.GI, inst.CI)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			want = append(want, Device{Path: n.Path, Major: n.Major, Minor: n.Minor, Opens: "ENXIO"})
		}
	}
	slices.SortFunc(want, func(a, b Device) int { return strings.Compare(a.Path, b.Path) })
	return slices.Compact(want), nil
}

func instanceAt(driver nvml.Driver, d v1alpha1.Device) (nvml.Instance, error) {
	instances, err := driver.Instances(nvml.GPUID(d.GPU))
	if err != nil {
		return nvml.Instance{}, err
	}
	for _, inst := range instances {
		if int32(inst.Profile) == d.MIG.ProfileID && int32(inst.Start) == d.MIG.Start && inst.Whole() {
			return inst, nil
		}
	}
	return nvml.Instance{}, fmt.Errorf("NVML holds no whole instance %s at %d of %s: %v", d.MIG.Profile, d.MIG.Start, d.GPU, instances)
}

// reported checks that GPUNode shows the placements as the pod's.
func reported(status *v1alpha1.GPUNodeStatus, pod *v1.Pod, devices []v1alpha1.Device) error {
	for _, d := range devices {
		gpu := status.GPU(d.GPU)
		if gpu == nil {
			return fmt.Errorf("GPUNode does not have GPU %s", d.GPU)
		}
		if d.Share != nil {
			continue // Validate has looked at it; GPUNode names no pods of shares
		}
		if !slices.ContainsFunc(gpu.Instances, func(i v1alpha1.Instance) bool {
			return i.ProfileID == d.MIG.ProfileID && i.Start == d.MIG.Start && i.State == v1alpha1.InstanceLive && i.PodUID == pod.UID
		}) {
			return fmt.Errorf("GPUNode does not show %s at %d of %s as live and the pod's: %+v", d.MIG.Profile, d.MIG.Start, d.GPU, gpu.Instances)
		}
	}
	return nil
}
