// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package nodecheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// Node is what is looked at.
type Node struct {
	Open         func() (nvml.Driver, error)          // opens an NVML session
	Capabilities nvml.Capabilities                    // the driver's files below /proc and /dev
	Openers      func(nvml.DeviceNode) ([]int, error) // processes that hold a device open
	UID          int                                  // of the user that the agent runs as
	CDIDir       string
	KubeletDir   string
	EtcDir       string // "/etc", for the configuration of the container runtime
	HookPath     string // the program that CDI hooks run; "" where none is used

	// Name and Client are of the Node object; a nil Client is not asked.
	Name   string
	Client kubernetes.Interface
}

// report gathers findings.
type report struct{ findings []Finding }

func (r *report) add(level Level, subject, format string, args ...any) {
	r.findings = append(r.findings, Finding{level, subject, fmt.Sprintf(format, args...)})
}

// Check looks at everything that it can and returns at least one finding for each
// subject.
func (n *Node) Check(ctx context.Context) []Finding {
	r := &report{}
	n.user(r)
	n.driver(r)
	n.cdi(r)
	n.runtime(r)
	n.kubelet(r)
	n.cluster(ctx, r)
	return r.findings
}

func (n *Node) user(r *report) {
	if n.UID == 0 {
		r.add(OK, "user", "The agent runs as root.")
		return
	}
	r.add(Problem, "user", "User %d may not create MIG instances; run the agent as root, in a pod with privileged: true.", n.UID)
}

func (n *Node) driver(r *report) {
	d, err := n.Open()
	if errors.Is(err, nvml.ErrDriverNotLoaded) {
		r.add(Problem, "driver", "The NVIDIA driver cannot be used (%v); install and load it, or reload it after an upgrade.", err)
		return
	}
	if err != nil {
		r.add(Problem, "driver", "The NVIDIA driver cannot be used: %v.", err)
		return
	}
	defer d.Close()
	version, err := d.DriverVersion()
	gpus, listErr := d.GPUs(nil)
	if len(gpus) > 0 && listErr != nil {
		r.add(Problem, "GPUs", "Not all GPUs answer (%v); look for NVRM in the kernel log.", listErr)
		listErr = nil
	}
	if err := errors.Join(err, listErr); err != nil {
		r.add(Problem, "driver", "The NVIDIA driver does not answer (%v); look for NVRM in the kernel log.", err)
		return
	}
	r.add(OK, "driver", "NVIDIA driver %s is loaded and has %d GPUs.", version, len(gpus))
	capable := 0
	for _, gpu := range gpus {
		if n.gpu(r, d, gpu) {
			capable++
		}
	}
	if capable == 0 {
		r.add(Problem, "GPUs", "None of the %d GPUs can do MIG; that takes an A100, A30, H100, H200, B200 or another data centre GPU from Ampere on.", len(gpus))
		return
	}
	n.devices(r)
}

// gpu looks at one GPU and reports whether it can do MIG.
func (n *Node) gpu(r *report, d nvml.Driver, gpu nvml.GPU) (capable bool) {
	subject := fmt.Sprintf("GPU %d", gpu.Index)
	switch {
	case gpu.VGPU:
		r.add(Note, subject, "%s is a vGPU of a virtual machine, which only the host can partition; pass the whole GPU through to use it.", gpu.Name)
		return false
	case !gpu.MIGCapable:
		r.add(Note, subject, "%s cannot do MIG.", gpu.Name)
		return false
	}
	profiles, err := d.Profiles(gpu.ID)
	if errors.Is(err, nvml.ErrGPULost) {
		r.add(Problem, subject, "%s is lost (%v); reset it with nvidia-smi -i %d --gpu-reset or reboot, and look for NVRM in the kernel log.", gpu.Name, err, gpu.Index)
		return true
	}
	if err == nil && len(profiles) == 0 {
		err = errors.New("it lists no profile")
	}
	if err != nil {
		r.add(Problem, subject, "%s does not say into what it can be cut (%v); update the driver, or reset the GPU.", gpu.Name, err)
		return true
	}
	n.mode(r, d, gpu, subject, len(profiles))
	return true
}

func (n *Node) mode(r *report, d nvml.Driver, gpu nvml.GPU, subject string, profiles int) {
	mode, err := d.MIGMode(gpu.ID)
	if err != nil {
		r.add(Problem, subject, "%s does not say its MIG mode (%v); reset the GPU or reboot.", gpu.Name, err)
		return
	}
	users := n.users(d, gpu)
	enable := fmt.Sprintf("nvidia-smi -i %d -mig 1, nvidia-smi -i %d --gpu-reset", gpu.Index, gpu.Index)
	switch {
	case mode.Current && mode.Pending:
		r.add(OK, subject, "%s is in MIG mode and has %d profiles.", gpu.Name, profiles)
		n.instances(r, d, gpu, subject)
	case mode.Current:
		r.add(Problem, subject, "%s leaves MIG mode with its next reset; keep it with nvidia-smi -i %d -mig 1.", gpu.Name, gpu.Index)
	case mode.Pending:
		r.add(Problem, subject, "%s enters MIG mode with its next reset%s; stop what uses it and run nvidia-smi -i %d --gpu-reset, or reboot.", gpu.Name, users, gpu.Index)
	case gpu.Architecture == nvml.Ampere:
		r.add(Problem, subject, "%s is not in MIG mode, and Ampere GPUs need a reset to enter it%s; stop what uses it and run %s, or let the agent do it with --reset-command.", gpu.Name, users, enable)
	case users != "":
		r.add(Problem, subject, "%s is not in MIG mode and cannot enter it while it is in use%s; stop what uses it.", gpu.Name, users)
	default:
		r.add(OK, subject, "%s is not in MIG mode, and the agent can turn that on.", gpu.Name)
	}
}

// instances names what is on a GPU: this agent's, or somebody else's, who keeps it.
func (n *Node) instances(r *report, d nvml.Driver, gpu nvml.GPU, subject string) {
	instances, err := d.Instances(gpu.ID)
	if err != nil {
		r.add(Problem, subject, "%s does not list its instances (%v); reset the GPU or reboot.", gpu.Name, err)
		return
	}
	if len(instances) > 0 {
		r.add(Note, subject, "%s has %d GPU instances; the agent keeps off those that it did not make: to have their place, stop who uses them and run nvidia-smi mig -i %d -dci and -dgi.",
			gpu.Name, len(instances), gpu.Index)
	}
}

// users says who uses a GPU, in words that go before a semicolon; empty when that
// is nobody.
func (n *Node) users(d nvml.Driver, gpu nvml.GPU) string {
	var pids []int
	if processes, err := d.Processes(gpu.ID, nvml.WholeGPU); err == nil {
		for _, p := range processes {
			pids = append(pids, p.PID)
		}
	}
	if node, err := n.Capabilities.GPUNode(gpu.Minor); err == nil {
		if open, err := n.Openers(node); err == nil {
			pids = append(pids, open...)
		}
	}
	if len(pids) == 0 {
		return ""
	}
	slices.Sort(pids)
	pids = slices.Compact(pids)
	return ", which these processes keep from happening: " + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(pids)), ", "), "[]")
}

// devices looks at what a container needs of the driver besides the GPU.
func (n *Node) devices(r *report) {
	root := filepath.Join("/", n.Capabilities.Root)
	capabilities := filepath.Join(root, "proc/driver/nvidia/capabilities")
	if _, err := os.Stat(capabilities); err != nil {
		r.add(Problem, "capabilities", "%s is missing, so that no container can be given an instance (%v); mount the host's /proc/driver/nvidia, or update the driver.", capabilities, err)
	} else {
		r.add(OK, "capabilities", "%s is there.", capabilities)
	}
	nodes, err := n.Capabilities.ControlNodes()
	if err != nil {
		r.add(Problem, "devices", "The driver's control devices cannot be found (%v); load the kernel modules nvidia and nvidia-uvm.", err)
		return
	}
	for _, path := range []string{"/dev/nvidiactl", "/dev/nvidia-uvm"} {
		if !slices.ContainsFunc(nodes, func(node nvml.DeviceNode) bool { return node.Path == path }) {
			r.add(Problem, "devices", "%s is missing, without which CUDA does not start; run nvidia-modprobe -c 0 -u.", path)
			return
		}
	}
	r.add(OK, "devices", "The driver's control devices are there.")
	n.hook(r)
}

// hook looks for the container toolkit's program. Where the check runs in a pod the
// host's programs may not be seen, so its absence is no proof.
func (n *Node) hook(r *report) {
	if n.HookPath == "" {
		return
	}
	if _, err := os.Stat(n.HookPath); err != nil {
		r.add(Note, "toolkit", "%s is not seen from here, and the container runtime runs it for each container with a GPU; make sure that the host has nvidia-container-toolkit-base, or give --cdi-hook.", n.HookPath)
		return
	}
	r.add(OK, "toolkit", "%s is there.", n.HookPath)
}

// cdi looks whether CDI files can be written.
func (n *Node) cdi(r *report) {
	dir := n.CDIDir
	for {
		st, err := os.Stat(dir)
		if errors.Is(err, os.ErrNotExist) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			continue
		}
		if err == nil && !st.IsDir() {
			err = errors.New("it is no directory")
		}
		if err == nil {
			err = unix.Access(dir, unix.W_OK)
		}
		if err != nil {
			r.add(Problem, "CDI", "%s cannot be written in %s (%v); mount the host's directory writable, or choose another --cdi-dir.", n.CDIDir, dir, err)
			return
		}
		r.add(OK, "CDI", "CDI files can be written to %s.", n.CDIDir)
		return
	}
}

// kubelet looks for the sockets and for other device plugins.
func (n *Node) kubelet(r *report) {
	plugins := filepath.Join(n.KubeletDir, "device-plugins")
	whole := true
	for _, socket := range []string{filepath.Join(plugins, "kubelet.sock"), filepath.Join(n.KubeletDir, "pod-resources/kubelet.sock")} {
		if _, err := os.Stat(socket); err != nil {
			whole = false
			r.add(Problem, "kubelet", "Kubelet's socket %s is missing (%v); start kubelet, or mount its directory and give --kubelet-dir.", socket, err)
		}
	}
	if whole {
		r.add(OK, "kubelet", "Kubelet's sockets are there.")
	}
	for _, socket := range []string{"nvidia-gpu.sock", "nvidia.sock", "vgpu.sock"} {
		if _, err := os.Stat(filepath.Join(plugins, socket)); err == nil {
			r.add(Problem, "kubelet", "Another device plugin offers GPUs here (%s); remove its DaemonSet from this node.", filepath.Join(plugins, socket))
		}
	}
}
