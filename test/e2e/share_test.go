// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// poolConfig: node2 shares its GPUs in software, node3 cuts GPU 0 and shares GPU 1.
const poolConfig = `{"nodeconfig": [
  {"name": "node2", "operatingmode": "hami-core"},
  {"name": "node3", "operatingmode": "mig", "gpus": [{"index": 1, "operatingmode": "hami-core"}]},
  {"default": true, "operatingmode": "mig"}
]}`

// TestOnePool: nodes of both modes, and one of both, are one pool for the same
// requests. All GPUs begin in MIG mode; the agents turn it off where it is not
// wanted.
func TestOnePool(t *testing.T) {
	nodes := map[string]*stack.Node{}
	for _, name := range []string{"node2", "node3"} {
		n, err := st.AddNodeWithoutAgent(t.Context(), name, "H100-80GB", "H100-80GB")
		if err != nil {
			t.Fatal(err)
		}
		nodes[name] = n
		t.Cleanup(func() {
			if err := st.Cluster.RemoveNode(context.WithoutCancel(t.Context()), name); err != nil {
				t.Error(err)
			}
		})
		if err := n.InstallHAMiCore(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartAgent(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.WriteConfig("config.json", poolConfig); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Cluster.Kubectl(t.Context(), "label", "node", name, "pool=one"); err != nil {
			t.Fatal(err)
		}
	}
	waitModes(t, "node2", v1alpha1.ModeHAMiCore, v1alpha1.ModeHAMiCore)
	waitModes(t, "node3", v1alpha1.ModeMIG, v1alpha1.ModeHAMiCore)

	t.Run("WhereItFits", func(t *testing.T) { whereItFits(t) })
	t.Run("Examples", func(t *testing.T) { examplesOfShares(t) })
	t.Run("TwoOnOneGPU", func(t *testing.T) { twoOnOneGPU(t, nodes["node2"]) })
}

// waitModes waits until a node's GPUs are offered in these modes.
func waitModes(t *testing.T, name string, modes ...string) {
	t.Helper()
	err := stack.Until(t.Context(), "the modes of "+name, func() (bool, error) {
		n, err := st.GPUs.DynamigV1alpha1().GPUNodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		var now []string
		for _, g := range n.Status.GPUs {
			if (g.Shares != nil) == (g.Mode.Current == v1alpha1.ModeHAMiCore) && !g.Mode.Pending && g.Reason == "" {
				now = append(now, g.Mode.Current)
			}
		}
		return slices.Equal(now, modes), fmt.Errorf("GPUs offered are in modes %v; %+v", now, n.Status.GPUs)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.WaitSlots(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// poolPod is a pod for node2 or node3.
func poolPod(name, wants string, annotations ...string) *v1.Pod {
	pod := newPod(name, wants)
	pod.Spec.NodeSelector = map[string]string{"pool": "one"}
	for i := 0; i+1 < len(annotations); i += 2 {
		pod.Annotations[annotations[i]] = annotations[i+1]
	}
	return pod
}

// whereItFits: the mode follows the request, unless the pod names one.
func whereItFits(t *testing.T) {
	for _, tc := range []struct {
		name, wants, mode string
		share             bool
	}{
		{"small", "gpu=1 gpumem=1000", "", true},
		{"fills", "gpu=1 gpumem=9000", "", false},
		{"several", "gpu=2 gpumem=9000", "", true},
		{"cut", "gpu=1 gpumem=1000", "mig", false},
		{"shared", "gpu=1 gpumem=9000", "hami-core", true},
	} {
		pod := runs(t, poolPod(tc.name, tc.wants, v1alpha1.AnnotationMode, tc.mode))
		a, err := v1alpha1.DecodeAllocation(pod.Annotations[v1alpha1.AnnotationAllocation])
		if err != nil {
			t.Fatal(err)
		}
		if shares := len(a.Shares()) > 0; shares != tc.share {
			t.Errorf("pod %s (%s, mode %q) got shares: %v, want %v", tc.name, tc.wants, tc.mode, shares, tc.share)
		}
	}
}

// examplesOfShares: the examples do what they say.
func examplesOfShares(t *testing.T) {
	for _, file := range []string{"share-pod.yaml", "either-pod.yaml"} {
		pod := example(t, file)
		pod.Spec.NodeSelector = map[string]string{"pool": "one"}
		pod = runs(t, pod)
		a, err := v1alpha1.DecodeAllocation(pod.Annotations[v1alpha1.AnnotationAllocation])
		if err != nil || len(a.Shares()) != 1 {
			t.Errorf("%s: allocation %+v, %v; want a share", file, a, err)
		}
		if file != "share-pod.yaml" {
			continue
		}
		if text := event(t, pod.Name, "Prepared"); !strings.Contains(text, "1 software share") || !strings.Contains(text, "2000 MiB, 30% of the cores of GPU ") {
			t.Errorf("%s: event Prepared: %s", file, text)
		}
		env := strings.Fields(inside(t, pod, "env"))
		for _, want := range []string{"CUDA_DEVICE_MEMORY_LIMIT_0=2000m", "CUDA_DEVICE_SM_LIMIT_0=30"} {
			if !slices.Contains(env, want) {
				t.Errorf("%s: the container lacks %s; it has %v", file, want, env)
			}
		}
	}
}

// twoOnOneGPU: what the process inside is given, and that two pods on one GPU
// cannot see each other's directory.
func twoOnOneGPU(t *testing.T, node *stack.Node) {
	status, err := st.GPUs.DynamigV1alpha1().GPUNodes().Get(t.Context(), node.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gpu := status.Status.GPUs[1].UUID
	started := map[string]*v1.Pod{}
	for name, wants := range map[string]string{"one": "gpu=1 gpumem=8000 gpucores=30", "two": "gpu=1 gpumem=4000"} {
		pod := poolPod(name, wants, v1alpha1.AnnotationMode, v1alpha1.ModeHAMiCore, v1alpha1.AnnotationUseUUID, gpu)
		pod.Spec.Volumes = []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/"}}}}
		pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "host", MountPath: "/host", ReadOnly: true}}
		pod.Spec.Containers[0].Env = []v1.EnvVar{{Name: "CUDA_DEVICE_MEMORY_LIMIT_0", Value: "0"}} // asks for no limit
		started[name] = runs(t, pod)
	}
	for name, want := range map[string][]string{
		"one": {"CUDA_DEVICE_MEMORY_LIMIT_0=8000m", "CUDA_DEVICE_MEMORY_LIMIT=8000m", "CUDA_DEVICE_SM_LIMIT=30", "CUDA_DEVICE_SM_LIMIT_0=30"},
		"two": {"CUDA_DEVICE_MEMORY_LIMIT_0=4000m", "CUDA_DEVICE_MEMORY_LIMIT=4000m", "CUDA_DEVICE_SM_LIMIT=100", "CUDA_DEVICE_SM_LIMIT_0=100"},
	} {
		pod := started[name]
		want = append(want, "CUDA_DEVICE_MEMORY_SHARED_CACHE=/usr/local/vgpu/"+string(pod.UID)+".cache", "NVIDIA_VISIBLE_DEVICES=void")
		env := strings.Fields(inside(t, pod, "env"))
		for _, v := range want {
			if !slices.Contains(env, v) {
				t.Errorf("pod %s lacks %s; it has %v", name, v, env)
			}
		}
		if text := inside(t, pod, "cat /etc/ld.so.preload"); text != "/usr/local/vgpu/libvgpu.so\n" {
			t.Errorf("pod %s: ld.so.preload is %q", name, text)
		}
		linker, libraries := interpreter(t)
		// The library has no code, so the linker says that it cannot use it; and that
		// it was told to.
		out := inside(t, pod, fmt.Sprintf("/host%s --library-path /host%s /host/bin/true 2>&1; true", linker, libraries))
		if !strings.Contains(out, "/usr/local/vgpu/libvgpu.so") || !strings.Contains(out, "/etc/ld.so.preload") {
			t.Errorf("pod %s: a process is started without the library: %q", name, out)
		}
		if out := inside(t, pod, "{ echo x > /usr/local/vgpu/libvgpu.so; echo x > /etc/ld.so.preload; } 2>&1; true"); strings.Count(out, "Read-only") != 2 {
			t.Errorf("pod %s can change the library: %q", name, out)
		}
		inside(t, pod, "touch /usr/local/vgpu/of-"+name+" /tmp/vgpulock/lock")
		if got := inside(t, pod, "ls /usr/local/vgpu | grep of-"); got != "of-"+name+"\n" {
			t.Errorf("pod %s sees %q, want its own file only", name, got)
		}
	}
	for name, pod := range started {
		remove(t, pod.Name)
		err := stack.Until(t.Context(), "the directory of pod "+name+" to go", func() (bool, error) {
			homes, err := node.Homes()
			return err == nil && !slices.Contains(homes, string(pod.UID)+"_main"), fmt.Errorf("directories %v, %w", homes, err)
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// inside runs a shell command in a pod's container.
func inside(t *testing.T, pod *v1.Pod, script string) string {
	t.Helper()
	out, err := st.Cluster.Kubectl(t.Context(), "exec", "-n", pod.Namespace, pod.Name, "--", "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// interpreter is the dynamic linker of this machine's programs, and the directory
// of its C library.
func interpreter(t *testing.T) (linker, libraries string) {
	t.Helper()
	f, err := elf.Open("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			text := make([]byte, p.Filesz)
			if _, err := p.ReadAt(text, 0); err != nil {
				t.Fatal(err)
			}
			linker = strings.TrimRight(string(text), "\x00")
		}
	}
	// In the container, links that begin at the root lead elsewhere.
	if linker, err = filepath.EvalSymlinks(linker); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"} {
		if _, err := os.Stat(dir + "/libc.so.6"); err == nil {
			return linker, dir
		}
	}
	t.Fatal("this machine's C library was not found")
	return "", ""
}
