// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package nodecheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// good is a node without fault: one H100 on a simulated node.
type good struct {
	*Node
	dir  string
	root string
	sim  *sim.Node
}

func newNode(t *testing.T, gpus ...sim.GPUSpec) *good {
	t.Helper()
	if len(gpus) == 0 {
		gpus = []sim.GPUSpec{{Board: "H100-80GB"}}
	}
	g := &good{dir: t.TempDir(), root: t.TempDir()}
	must(t, sim.Create(g.root, sim.Spec{GPUs: gpus, PlainDevices: true}))
	var err error
	g.sim, err = sim.Load(g.root)
	must(t, err)
	for file, text := range map[string]string{
		"kubelet/device-plugins/kubelet.sock": "", "kubelet/pod-resources/kubelet.sock": "", "etc/containerd/config.toml": "version = 3\n",
	} {
		g.write(t, file, text)
	}
	g.Node = &Node{
		Open:         func() (nvml.Driver, error) { return sim.Open(g.root) },
		Capabilities: nvml.Capabilities{Root: g.root},
		Openers:      func(nvml.DeviceNode) ([]int, error) { return nil, nil },
		CDIDir:       filepath.Join(g.dir, "cdi"), KubeletDir: filepath.Join(g.dir, "kubelet"), EtcDir: filepath.Join(g.dir, "etc"),
		Name: "n", Client: fake.NewClientset(node(nil)),
	}
	return g
}

func node(change func(*v1.Node)) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{}, Annotations: map[string]string{}}}
	if change != nil {
		change(n)
	}
	return n
}

func (g *good) write(t *testing.T, file, text string) {
	t.Helper()
	path := filepath.Join(g.dir, file)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (g *good) gpu(t *testing.T) nvml.GPUID {
	t.Helper()
	s, err := g.sim.Dump()
	must(t, err)
	return s.GPUs[0].UUID
}

func TestGoodNodeHasNoProblem(t *testing.T) {
	for _, f := range newNode(t).Check(context.Background()) {
		if f.Level != OK {
			t.Errorf("finding %+v; want OK only", f)
		}
	}
}

// Each thing that is in the way is found, in one sentence with a remedy, and
// nothing else is.
func TestWhatIsInTheWayIsFound(t *testing.T) {
	class := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "gpu.nvidia.com"}}
	name := "nvidia.com/gpu"
	class.Spec.ExtendedResourceName = &name
	client := func(objects ...runtime.Object) func(*testing.T, *good) {
		return func(_ *testing.T, g *good) { g.Client = fake.NewClientset(objects...) }
	}
	remove := func(file string) func(*testing.T, *good) {
		return func(_ *testing.T, g *good) {
			open := g.Open // which mends the simulated node's files
			g.Open = func() (nvml.Driver, error) {
				d, err := open()
				return d, errors.Join(err, os.RemoveAll(strings.ReplaceAll(file, "ROOT", g.root)))
			}
		}
	}
	cases := []struct {
		name  string
		gpus  []sim.GPUSpec
		spoil func(*testing.T, *good)
		level Level
		want  string // part of the sentence
	}{
		{"not root", nil, func(_ *testing.T, g *good) { g.UID = 1000 }, Problem, "run the agent as root"},
		{"no driver", nil, func(_ *testing.T, g *good) {
			g.Open = func() (nvml.Driver, error) { return nil, fmt.Errorf("opening: %w", nvml.ErrDriverNotLoaded) }
		}, Problem, "install and load it"},
		{"no cgo", nil, func(_ *testing.T, g *good) {
			g.Open = func() (nvml.Driver, error) { return nil, errors.New("built without cgo; build it with CGO_ENABLED=1") }
		}, Problem, "CGO_ENABLED=1"},
		{"a driver that fails", nil, func(t *testing.T, g *good) { must(t, g.sim.FailCall(sim.CallGPUs, 1, nvml.ErrUnknown)) }, Problem, "kernel log"},
		{"no GPU that can do MIG", []sim.GPUSpec{{Product: "Tesla T4", MemoryMiB: 15360}}, nil, Problem, "None of the 1 GPUs can do MIG"},
		{"a vGPU", []sim.GPUSpec{{Board: "H100-80GB"}, {Product: "GRID A100-10C", MemoryMiB: 10240, VGPU: true}}, nil, Note, "pass the whole GPU through"},
		{"profiles that cannot be read", nil, func(t *testing.T, g *good) { must(t, g.sim.FailCall(sim.CallProfiles, 1, nvml.ErrUnknown)) }, Problem, "into what it can be cut"},
		{"a lost GPU", nil, func(t *testing.T, g *good) { must(t, g.sim.LoseGPU(g.gpu(t))) }, Problem, "is lost (listing profiles"},
		{"an instance of somebody", []sim.GPUSpec{{Board: "A100-40GB", MIG: true}}, func(t *testing.T, g *good) {
			d, err := sim.Open(g.root)
			must(t, err)
			_, err = d.CreateGPUInstance(g.gpu(t), 9, 4)
			must(t, err)
		}, Note, "has 1 GPU instances; the agent keeps off"},
		{"an Ampere without MIG", []sim.GPUSpec{{Board: "A100-40GB"}}, nil, Problem, "nvidia-smi -i 0 -mig 1, nvidia-smi -i 0 --gpu-reset"},
		{"an Ampere in use", []sim.GPUSpec{{Board: "A100-40GB"}}, func(t *testing.T, g *good) {
			must(t, g.sim.Hold(g.gpu(t), sim.Holder{GI: sim.WholeGPU, PID: 77}))
			g.Openers = func(n nvml.DeviceNode) ([]int, error) { return []int{77, 12}, nil }
		}, Problem, "these processes keep from happening: 12, 77;"},
		{"a change that is pending", []sim.GPUSpec{{Board: "A100-40GB"}}, func(t *testing.T, g *good) {
			d, err := sim.Open(g.root)
			must(t, err)
			if err := d.SetMIGMode(g.gpu(t), true); !errors.Is(err, nvml.ErrResetRequired) {
				t.Fatal(err)
			}
		}, Problem, "enters MIG mode with its next reset; stop"},
		{"a change that is pending, to off", []sim.GPUSpec{{Board: "A100-40GB", MIG: true}}, func(t *testing.T, g *good) {
			d, err := sim.Open(g.root)
			must(t, err)
			if err := d.SetMIGMode(g.gpu(t), false); !errors.Is(err, nvml.ErrResetRequired) {
				t.Fatal(err)
			}
		}, Problem, "keep it with nvidia-smi -i 0 -mig 1"},
		{"a Hopper in use", nil, func(t *testing.T, g *good) {
			must(t, g.sim.Hold(g.gpu(t), sim.Holder{GI: sim.WholeGPU, PID: 77}))
		}, Problem, "while it is in use, which these processes keep from happening: 77; stop"},
		{"no capabilities", nil, remove("ROOT/proc/driver/nvidia/capabilities"), Problem, "mount the host's /proc/driver/nvidia"},
		{"no uvm", nil, remove("ROOT/dev/nvidia-uvm"), Problem, "nvidia-modprobe -c 0 -u"},
		{"no device numbers", nil, remove("ROOT/proc/devices"), Problem, "load the kernel modules"},
		{"no container toolkit", nil, func(_ *testing.T, g *good) { g.HookPath = g.dir + "/hook" }, Note, "nvidia-container-toolkit-base"},
		{"a CDI directory that is a file", nil, func(t *testing.T, g *good) { g.write(t, "cdi", "") }, Problem, "another --cdi-dir"},
		{"no kubelet", nil, func(_ *testing.T, g *good) { g.KubeletDir += "/x" }, Problem, "start kubelet"},
		{"NVIDIA's device plugin", nil, func(t *testing.T, g *good) { g.write(t, "kubelet/device-plugins/nvidia-gpu.sock", "") }, Problem, "remove its DaemonSet"},
		{"containerd without CDI", nil, func(t *testing.T, g *good) {
			g.write(t, "etc/containerd/config.toml", "version = 2\n[x]\n  enable_cdi = false\n")
		}, Problem, "set enable_cdi = true"},
		{"containerd of old", nil, func(t *testing.T, g *good) { g.write(t, "etc/containerd/config.toml", "version = 2\n") }, Note, "containerd 1.7 has it off"},
		{"another CDI directory", nil, func(t *testing.T, g *good) {
			g.write(t, "etc/containerd/config.toml", "version = 3\ncdi_spec_dirs = ['/etc/cdi']\n")
		}, Problem, "leaves out"},
		{"CRI-O with another CDI directory", nil, func(t *testing.T, g *good) {
			must(t, os.RemoveAll(filepath.Join(g.dir, "etc/containerd")))
			g.write(t, "etc/crio/crio.conf", "")
			g.write(t, "etc/crio/crio.conf.d/10", "cdi_spec_dirs = [\n \"/etc/cdi\",\n]\n")
		}, Problem, "leaves out"},
		{"no runtime", nil, func(t *testing.T, g *good) { must(t, os.RemoveAll(filepath.Join(g.dir, "etc"))) }, Note, "make sure that CDI is on"},
		{"no API server", nil, func(_ *testing.T, g *good) { g.Client = nil }, Note, "give --kubeconfig"},
		{"another node's name", nil, client(), Problem, "correct --node-name"},
		{"mig-manager", nil, client(node(func(n *v1.Node) { n.Labels["nvidia.com/mig.config"] = "all-1g.5gb" })), Problem, "deploy.mig-manager=false"},
		{"HAMi", nil, client(node(func(n *v1.Node) { n.Annotations["hami.io/node-handshake"] = "x" })), Problem, "HAMi's device plugin"},
		{"static MIG", nil, client(node(func(n *v1.Node) {
			n.Status.Capacity = v1.ResourceList{"nvidia.com/mig-1g.5gb": resource.MustParse("7")}
		})), Problem, "strategy mixed"},
		{"a DeviceClass", nil, client(node(nil), class), Problem, "DeviceClass gpu.nvidia.com maps nvidia.com/gpu"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := newNode(t, c.gpus...)
			if c.spoil != nil {
				c.spoil(t, g)
			}
			findings := g.Check(context.Background())
			found := false
			for _, f := range findings {
				switch {
				case f.Level == c.level && strings.Contains(f.Text, c.want):
					found = true
				case f.Level == Problem && c.level == Problem && c.name != "no GPU that can do MIG" && c.name != "no kubelet", f.Level == Problem && c.level == Note:
					t.Errorf("also found: %+v", f)
				}
				if !strings.HasSuffix(f.Text, ".") || strings.Contains(f.Text, "\n") {
					t.Errorf("%q is not one sentence", f.Text)
				}
			}
			if !found {
				t.Errorf("no %s that says %q in %+v", c.level, c.want, findings)
			}
			if Failed(findings) != (c.level == Problem) {
				t.Errorf("Failed = %t", Failed(findings))
			}
		})
	}
}
