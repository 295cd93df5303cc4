// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/hamicore"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

const sharing = `{"nodeconfig": [{"name": "node1", "operatingmode": "hami-core"}]}`

// shareBench is a node whose GPUs are to be shared, with a library.
func shareBench(t *testing.T, config string, specs ...sim.GPUSpec) *bench {
	t.Helper()
	b := benchOf(t, specs)
	b.library.Path, b.library.Lock = filepath.Join(b.dir, "vgpu"), filepath.Join(b.dir, "lock")
	if err := os.Mkdir(b.library.Path, 0o755); err != nil {
		t.Fatal(err)
	}
	b.install()
	b.write("config.json", config)
	return b
}

// install puts the head of a library where HAMi-core's should be.
func (b *bench) install() {
	b.t.Helper()
	head := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	machine := map[string]uint16{"amd64": 62, "arm64": 183}[runtime.GOARCH]
	for at, value := range map[int]uint16{16: 3, 18: machine, 20: 1, 52: 64, 58: 64} {
		binary.LittleEndian.PutUint16(head[at:], value)
	}
	if err := os.WriteFile(filepath.Join(b.library.Path, "libvgpu.so"), bytes.Clone(head), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) share(gpu int, id int32, memory int64, cores int32) v1alpha1.Device {
	return v1alpha1.Device{GPU: b.gpus[gpu], Share: &v1alpha1.Share{ID: id, MemoryMiB: memory, Cores: cores}}
}

// given prepares a container and returns its only device.
func (b *bench) given(pod, container string) Device {
	b.t.Helper()
	devices, err := b.agent.Prepare(b.t.Context(), Container{PodUID: uidOf(pod), Namespace: "default", Pod: pod, Name: container})
	if err != nil || len(devices) != 1 {
		b.t.Fatalf("Prepare(%s/%s) = %v, %v; want one device", pod, container, devices, err)
	}
	return devices[0]
}

func (b *bench) homes() []string {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.library.Path, "containers"))
	if err != nil {
		b.t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestSharesOfOneGPU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shareBench(t, sharing, sim.GPUSpec{Product: "Tesla T4", MemoryMiB: 15360}, sim.GPUSpec{Board: "H100-80GB"})
		b.write("device-config.yaml", "nvidia:\n  deviceSplitCount: 5\n  deviceMemoryScaling: 1.5\n  gpuCorePolicy: force\n")
		b.start()
		defer func() { b.stop() }()
		s := b.status()
		if diff := cmp.Diff(&v1alpha1.ShareCapacity{Count: 5, MemoryMiB: 23040, Cores: 100}, s.GPUs[0].Shares); diff != "" {
			t.Errorf("offered (-want +got):\n%s", diff)
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "True Offering: 2 of 2 GPUs take new work.")
		if got := b.slots.has(); got != 10 {
			t.Errorf("capacity is %d, want 10", got)
		}
		b.bind(pod{name: "a", devices: []v1alpha1.Device{b.share(0, 0, 8000, 30)}, mutate: func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Limits[v1alpha1.ResourcePriority] = resource.MustParse("0")
		}})
		b.bind(pod{name: "b", devices: []v1alpha1.Device{b.share(0, 0, 4000, 0)}, mutate: func(p *v1.Pod) {
			p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "CUDA_DISABLE_CONTROL", Value: "true"}, {Name: "LIBCUDA_LOG_LEVEL", Value: "4"}}
		}})
		first, second := b.given("a", "main"), b.given("b", "main")
		want := []string{
			"CUDA_DEVICE_MEMORY_LIMIT_0=8000m", "CUDA_DEVICE_SM_LIMIT_0=30", "CUDA_DEVICE_MEMORY_LIMIT=8000m", "CUDA_DEVICE_SM_LIMIT=30",
			"CUDA_DEVICE_MEMORY_SHARED_CACHE=/usr/local/vgpu/uid-a.cache", "CUDA_OVERSUBSCRIBE=true", "LIBCUDA_LOG_LEVEL=1",
			"GPU_CORE_UTILIZATION_POLICY=force", "CUDA_TASK_PRIORITY=0",
		}
		if diff := cmp.Diff(want, first.Env); diff != "" {
			t.Errorf("variables (-want +got):\n%s", diff)
		}
		if len(first.Nodes) != 1 || first.Nodes[0].Path != "/dev/nvidia0" {
			t.Errorf("nodes %v, want that of the GPU", first.Nodes)
		}
		if len(first.Mounts) != 4 || len(second.Mounts) != 3 {
			t.Errorf("mounts %v and %v, want four, and no preload where the container says so", first.Mounts, second.Mounts)
		}
		if slices.Contains(second.Env, "LIBCUDA_LOG_LEVEL=1") || !slices.Contains(second.Env, "CUDA_DEVICE_SM_LIMIT=100") {
			t.Errorf("variables %v, want the container's own log level, and 100 where cores are not limited", second.Env)
		}
		b.expectEvents("a", reasonPrepared, "Prepared 1 software share in less than 1 ms: 8000 MiB, 30% of the cores of GPU 0")
		if diff := cmp.Diff([]string{"uid-a_main", "uid-b_main"}, b.homes()); diff != "" {
			t.Errorf("directories (-want +got):\n%s", diff)
		}
		b.restart()
		if diff := cmp.Diff(first, b.given("a", "main")); diff != "" {
			t.Errorf("after a restart (-before +after):\n%s", diff)
		}
		b.remove("a")
		b.sleep(11 * time.Second)
		if diff := cmp.Diff([]string{"uid-b_main"}, b.homes()); diff != "" {
			t.Errorf("directories after the pod has ended (-want +got):\n%s", diff)
		}
		// As when a container was being prepared while its pod ended.
		if err := os.Mkdir(filepath.Join(b.library.Path, "containers", "uid-a_main"), 0o755); err != nil {
			t.Fatal(err)
		}
		b.sleep(11 * time.Second)
		if diff := cmp.Diff([]string{"uid-b_main"}, b.homes()); diff != "" {
			t.Errorf("directories after it was made again (-want +got):\n%s", diff)
		}
	})
}

// TestInitContainerUsesTheHomeOfTheLastOne: what a slot stands for cannot change
// between the containers that have it.
func TestInitContainerUsesTheHomeOfTheLastOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shareBench(t, sharing, sim.GPUSpec{Board: "H100-80GB"}, sim.GPUSpec{Board: "H100-80GB"})
		b.start()
		defer b.stop()
		d, e := b.share(0, 0, 8000, 30), b.share(1, 1, 4000, 30)
		b.bind(pod{name: "a", devices: []v1alpha1.Device{e, d}, mutate: func(p *v1.Pod) {
			p.Spec.InitContainers = []v1.Container{{Name: "init", Resources: v1.ResourceRequirements{
				Limits: v1.ResourceList{v1alpha1.ResourceGPU: resource.MustParse("1")},
			}}}
			p.Annotations[v1alpha1.AnnotationAllocation] = b.allocation(p, map[string][]v1alpha1.Device{"init": {d}, "main": {e, d}})
		}})
		early := b.given("a", "init")
		late, err := b.agent.Prepare(t.Context(), Container{PodUID: uidOf("a"), Namespace: "default", Pod: "a", Name: "main"})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(early, late[1]); diff != "" {
			t.Errorf("the share changes between containers (-init +main):\n%s", diff)
		}
		if want := "CUDA_DEVICE_MEMORY_LIMIT_0=4000m"; !slices.Contains(early.Env, want) {
			t.Errorf("variables %q, want %s: a container with one of two devices numbers it 0, whichever it is", early.Env, want)
		}
		if diff := cmp.Diff([]string{"uid-a_main"}, b.homes()); diff != "" {
			t.Errorf("directories (-want +got):\n%s", diff)
		}
	})
}

// TestPodWithAShareAndAnInstance: on a node with both modes, each container of one
// pod has its own kind.
func TestPodWithAShareAndAnInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		both := `{"nodeconfig": [{"name": "node1", "operatingmode": "mig", "gpus": [{"index": 1, "operatingmode": "hami-core"}]}]}`
		b := shareBench(t, both, sim.GPUSpec{Board: "A100-40GB", MIG: true}, sim.GPUSpec{Board: "A100-40GB"})
		b.start()
		defer b.stop()
		b.bind(pod{name: "a", devices: []v1alpha1.Device{b.share(1, 0, 4000, 0)}, mutate: func(p *v1.Pod) {
			side := p.Spec.Containers[0]
			side.Name = "side"
			p.Spec.Containers = append(p.Spec.Containers, side)
			p.Annotations[v1alpha1.AnnotationAllocation] = b.allocation(p, map[string][]v1alpha1.Device{
				"main": {b.share(1, 0, 4000, 0)}, "side": b.on(0, "1g.5gb@0"),
			})
		}})
		if got := b.given("a", "main"); got.Key != b.gpus[1]+"/share/0" {
			t.Errorf("main has %s, want its share of GPU 1", got.Key)
		}
		if got := b.given("a", "side"); got.Key != b.gpus[0]+"/19/0" || len(got.Env) > 0 {
			t.Errorf("side has %+v, want its instance of GPU 0 and nothing of the share", got)
		}
	})
}

func TestLibraryComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shareBench(t, sharing, sim.GPUSpec{Board: "H100-80GB"})
		file := filepath.Join(b.library.Path, "libvgpu.so")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		b.start()
		defer b.stop()
		for _, step := range []struct {
			change    func() error
			offered   bool
			health    string
			condition string
		}{
			{func() error { return nil }, false, "not offered, LibraryUnusable", "True Unusable: GPUs in mode hami-core are not offered: " + b.library.Path + " has no libvgpu.so"},
			{func() error { b.install(); return nil }, true, "OK", "False None"},
			{func() error { return os.WriteFile(file, []byte("#!/bin/sh\n"), 0o644) }, false, "not offered, LibraryUnusable", "True Unusable: GPUs in mode hami-core are not offered: " + file + " is no readable ELF library"},
		} {
			if err := step.change(); err != nil {
				t.Fatal(err)
			}
			b.sleep(11 * time.Second)
			s := b.status()
			b.expectText("condition", b.condition(v1alpha1.ConditionLibraryUnusable), step.condition)
			b.expectText("health", s.Summary.Health, step.health)
			if (s.GPUs[0].Shares != nil) != step.offered || (b.slots.has() > 0) != step.offered {
				t.Errorf("%s: the GPU offers %+v, capacity %d", step.condition, s.GPUs[0], b.slots.has())
			}
		}
	})
}

func TestMoreThanTheGPUHasIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shareBench(t, sharing, sim.GPUSpec{Product: "Tesla T4", MemoryMiB: 15360})
		b.start()
		defer b.stop()
		b.bind(pod{name: "a", devices: []v1alpha1.Device{b.share(0, 0, 8000, 60)}})
		b.bind(pod{name: "b", devices: []v1alpha1.Device{b.share(0, 0, 8000, 0)}})
		b.bind(pod{name: "c", devices: []v1alpha1.Device{b.share(0, 0, 100, 60)}})
		b.bind(pod{name: "d", devices: []v1alpha1.Device{b.share(0, 0, 100, 100)}})
		b.bind(pod{name: "e", devices: []v1alpha1.Device{b.share(0, 0, 15361, 0)}})
		b.sleep(2 * grace)
		for name, want := range map[string]string{
			"a": "", "b": "Refused: GPU 0 has not enough left for 8000 MiB", "c": "Refused: GPU 0 has not enough left", "d": "Refused: GPU 0 has not enough left",
			"e": "offers 15360 MiB to shares, not 15361",
		} {
			b.expectText("phase of "+name, b.phaseOf(name), want)
		}
	})
}

func TestGPUsChangeTheirModeWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shareBench(t, nodeConfig, sim.GPUSpec{Board: "H100-80GB", MIG: true})
		b.start()
		defer b.stop()
		cut := []v1alpha1.Device{{GPU: b.gpus[0], MIG: &v1alpha1.MIGInstance{ProfileID: 19, Profile: "1g.10gb", Start: 0, Size: 1, MemoryMiB: 9856}}}
		b.bind(pod{name: "a", devices: cut})
		b.mustPrepare("a")
		b.reconfigure(sharing)
		b.expectText("reason", b.status().GPUs[0].Reason, "MIG mode is turned off when the MIG instances of GPU 0 are gone (1 are left)")
		if got := b.status().GPUs[0].Shares; got != nil || !b.dump().GPUs[0].Current {
			t.Errorf("the GPU changes its mode under a pod; it offers %+v", got)
		}
		b.remove("a")
		b.sleep(25 * time.Second)
		if s := b.status(); s.GPUs[0].Mode.Current != v1alpha1.ModeHAMiCore || s.GPUs[0].Shares == nil || b.layout(0) != "" {
			t.Errorf("after its pod the GPU is %+v and holds %q", s.GPUs[0], b.layout(0))
		}
		b.bind(pod{name: "b", devices: []v1alpha1.Device{b.share(0, 0, 8000, 0)}})
		b.given("b", "main")
		b.reconfigure(nodeConfig)
		b.sleep(11 * time.Second)
		if s := b.status(); !strings.Contains(s.GPUs[0].Reason, "when the pods that share GPU 0 have ended") || b.dump().GPUs[0].Current {
			t.Errorf("with a pod that shares it the GPU is %+v", s.GPUs[0])
		}
		b.remove("b")
		b.sleep(25 * time.Second)
		if s := b.status(); s.GPUs[0].Mode.Current != v1alpha1.ModeMIG || s.GPUs[0].Shares != nil {
			t.Errorf("without pods the GPU is %+v", s.GPUs[0])
		}
	})
}

// TestContainerSpeaksToTheLibrary: HAMi's variables of a container, and what is none of
// their values, which leaves it as it would be without.
func TestContainerSpeaksToTheLibrary(t *testing.T) {
	forced := config.DefaultDevice()
	forced.GPUCorePolicy = "force"
	for _, tc := range []struct {
		name, value string // of the variable; the pod's own reach it in any case
		want        hamicore.Home
	}{
		{"CUDA_DISABLE_CONTROL", "true", hamicore.Home{NoPreload: true, LogLevel: "1", CorePolicy: "force", Priority: "1"}},
		{"CUDA_DISABLE_CONTROL", "false", hamicore.Home{LogLevel: "1", CorePolicy: "force", Priority: "1"}},
		{"CUDA_DISABLE_CONTROL", "yes", hamicore.Home{LogLevel: "1", CorePolicy: "force", Priority: "1"}},
		{"CUDA_DISABLE_CONTROL", "", hamicore.Home{LogLevel: "1", CorePolicy: "force", Priority: "1"}},
		{"GPU_CORE_UTILIZATION_POLICY", "default", hamicore.Home{LogLevel: "1", Priority: "1"}},
		{"LIBCUDA_LOG_LEVEL", "9", hamicore.Home{CorePolicy: "force", Priority: "1"}},
		{"CUDA_TASK_PRIORITY", "0", hamicore.Home{LogLevel: "1", CorePolicy: "force"}},
		{"CUDA_DEVICE_MEMORY_LIMIT_0", "0", hamicore.Home{LogLevel: "1", CorePolicy: "force", Priority: "1"}}, // set after it by the runtime
	} {
		c := &v1.Container{Env: []v1.EnvVar{{Name: tc.name, Value: tc.value}}}
		c.Resources.Limits = v1.ResourceList{v1alpha1.ResourcePriority: resource.MustParse("1")}
		var got hamicore.Home
		(&grounds{device: forced}).tell(&got, c)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s=%s (-want +got):\n%s", tc.name, tc.value, diff)
		}
	}
}

// TestCordonedGPU takes no new pods and keeps those that it has.
func TestCordonedGPU(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "1g.5gb@0")})
		b.mustPrepare("a")
		cordon := func(value string) {
			node, err := b.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			node.Annotations = map[string]string{v1alpha1.AnnotationCordon: value}
			if _, err := b.client.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			b.sleep(2 * time.Minute)
		}
		cordon("GPU-x, " + b.gpus[0])
		s := b.status()
		b.expectText("reason", s.GPUs[0].Reason, "annotation hami.io/device-cordon of the Node keeps new pods away")
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigRemarks), "annotation hami.io/device-cordon of the Node names GPU-x, which is the UUID of none of its 2 GPUs that answer.")
		if s.GPUs[1].Reason != "" {
			t.Errorf("GPU 1: %s", s.GPUs[1].Reason)
		}
		if got := b.slots.has(); got != 8 {
			t.Errorf("capacity is %d, want 7 of the other GPU and 1 of the pod", got)
		}
		b.mustPrepare("a")
		cordon("")
		if got := b.slots.has(); got != 14 {
			t.Errorf("capacity afterwards is %d, want 14", got)
		}
	})
}

// TestShareOfAnUnhealthyGPU: nothing starts on a GPU that cannot be used. One that
// needs a reset refuses the pod, one that may come back makes it wait.
func TestShareOfAnUnhealthyGPU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shareBench(t, sharing, sim.GPUSpec{Board: "H100-80GB"}, sim.GPUSpec{Board: "H100-80GB"})
		b.start()
		defer b.stop()
		b.bind(pod{name: "before", devices: []v1alpha1.Device{b.share(0, 0, 8000, 30)}})
		b.given("before", "main")
		b.xid("", 79)
		b.expectEvents("before", reasonUnhealthy, "GPU 0 is unhealthy: it reports XID 79")
		b.bind(pod{name: "broken", devices: []v1alpha1.Device{b.share(0, 1, 8000, 30)}})
		if devices, err := b.prepare("broken"); err == nil || !strings.Contains(err.Error(), "refuses the pod for good: GPU 0 is unhealthy: it reports XID 79") {
			t.Errorf("Prepare(broken) = %v, %v; want it refused", devices, err)
		}
		b.given("before", "main") // a restart of the container is the user's decision

		if err := b.node.AddFault(sim.Fault{Call: sim.CallMIGMode, GPU: nvml.GPUID(b.gpus[1]), Code: "UNKNOWN", Times: 8}); err != nil {
			t.Fatal(err)
		}
		b.sleep(25 * time.Second)
		b.bind(pod{name: "waiting", devices: []v1alpha1.Device{b.share(1, 0, 8000, 30)}})
		b.expectText("phase", b.phaseOf("waiting"), "Failing: GPU 1 is unhealthy: ")
		b.sleep(time.Minute)
		b.given("waiting", "main")
	})
}

// Directories that take long to remove hold up no slots.
func TestSlotsDoNotWaitForTheSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shareBench(t, sharing, sim.GPUSpec{Board: "H100-80GB"})
		begun, end := make(chan struct{}, 1), make(chan struct{})
		b.sweep = func(func(string) bool) error {
			signal(begun)
			<-end
			return nil
		}
		b.start()
		defer b.stop()
		b.bind(pod{name: "a", devices: []v1alpha1.Device{b.share(0, 0, 8000, 0)}})
		<-begun
		b.remove("a")
		b.reconfigure(`{"nodeconfig": []}`)
		if got := b.released(); !slices.Contains(got, string(uidOf("a"))) || b.slots.has() != 0 {
			t.Errorf("during a sweep %v are released and capacity is %d, want a and 0", got, b.slots.has())
		}
		close(end)
	})
}
