// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	gpunodefake "github.com/dynamig/dynamig/pkg/generated/clientset/versioned/fake"
	"github.com/dynamig/dynamig/pkg/hamicore"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// The tests run whole agents over the simulated driver and fake API servers, in
// the fake time of testing/synctest: sleep lets that time pass, rest waits until
// nothing moves any more.

const nodeName = "node1"

// Profiles of an A100 with 40 GB.
var profiles = map[string]struct{ id, size int32 }{
	"1g.5gb": {19, 1}, "1g.5gb+me": {20, 1}, "1g.10gb": {15, 2}, "2g.10gb": {14, 2}, "3g.20gb": {9, 4}, "4g.20gb": {5, 4}, "7g.40gb": {0, 8},
}

const deviceConfig = `nvidia:
  knownMigGeometries:
  - models: [ "A100-SXM4-40GB" ]
    allowedGeometries:
      - - {name: 1g.5gb, memory: 5120, count: 7}
      - - {name: 2g.10gb, memory: 10240, count: 3}
        - {name: 1g.5gb, memory: 5120, count: 1}
      - - {name: 3g.20gb, memory: 20480, count: 2}
      - - {name: 7g.40gb, memory: 40960, count: 1}
`

const nodeConfig = `{"nodeconfig": [{"name": "node1", "operatingmode": "mig"}]}`

// openDriver opens the driver of a simulated node; native_test.go may replace it,
// and says so.
var (
	openDriver = func(root string) (nvml.Driver, error) { return sim.Open(root) }
	overNative = false
)

func TestMain(m *testing.M) {
	// The second handler, a rate limiter, sleeps by the time of its last error, which
	// may be that of another synctest bubble or of the process: for years, then.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
	os.Exit(m.Run())
}

// bench is a node with everything around the agent. The agent may be started and
// stopped many times.
type bench struct {
	t        *testing.T
	dir      string
	root     string // of the simulated node
	node     *sim.Node
	gpus     []string // UUIDs
	client   *fake.Clientset
	gpuNodes *gpunodefake.Clientset
	slots    *fakeSlots
	power    *power

	wrap   func(nvml.Driver) nvml.Driver         // around each session; nil = none
	opener atomic.Int64                          // process that has every capability device open; 0 = none
	reset  func(context.Context, nvml.GPU) error // of a GPU; nil = never

	gpuOpener atomic.Int64 // process that has every GPU's device open; 0 = none
	running   sync.Map     // by pod UID: a process of it that does not end with its object
	timing    Timing

	library hamicore.Dir                  // for software shares; zero = none
	sweep   func(func(string) bool) error // in the place of the library's; nil = none

	kubeletPods func(context.Context) ([]*v1.Pod, error) // what kubelet knows; nil = it does not tell

	migParted string // mig-parted's file; empty = none

	agent  *Agent
	reload func() // the configuration files have changed
	cancel context.CancelFunc
	result chan error
}

// newBench makes a node with so many A100 in MIG mode, without an agent.
func newBench(t *testing.T, gpus int) *bench {
	t.Helper()
	var specs []sim.GPUSpec
	for range gpus {
		specs = append(specs, sim.GPUSpec{Board: "A100-40GB", Product: "NVIDIA A100-SXM4-40GB", MIG: true})
	}
	return benchOf(t, specs)
}

func benchOf(t *testing.T, specs []sim.GPUSpec) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{
		t: t, dir: dir, root: filepath.Join(dir, "sim"),
		client:   fake.NewSimpleClientset(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName, UID: "node-uid"}}),
		gpuNodes: gpunodefake.NewSimpleClientset(), slots: &fakeSlots{}, power: &power{},
	}
	b.write("device-config.yaml", deviceConfig)
	b.write("config.json", nodeConfig)
	if err := sim.Create(b.root, sim.Spec{GPUs: specs, Seed: t.Name(), PlainDevices: true}); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.node, err = sim.Load(b.root); err != nil {
		t.Fatal(err)
	}
	for _, g := range b.dump().GPUs {
		b.gpus = append(b.gpus, string(g.UUID))
	}
	return b
}

func (b *bench) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) dump() sim.State {
	b.t.Helper()
	s, err := b.node.Dump()
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// start starts an agent and waits until nothing moves.
func (b *bench) start() {
	b.t.Helper()
	power := b.power
	a, err := New(Config{
		Node: nodeName, StateDir: filepath.Join(b.dir, "state"),
		DeviceConfig: filepath.Join(b.dir, "device-config.yaml"), NodeConfig: filepath.Join(b.dir, "config.json"), MIGPartedConfig: b.migParted,
		Open: func() (nvml.Driver, error) {
			d, err := openDriver(b.root)
			if err != nil {
				return nil, err
			}
			var driver nvml.Driver = &powered{Driver: d, power: power}
			if b.wrap != nil {
				driver = b.wrap(driver)
			}
			return driver, nil
		},
		Nodes: nvml.Capabilities{Root: b.root}, Openers: b.open, ProcessesOf: b.processesOf, Reset: b.reset, HAMiCore: b.library,
		Client: b.client, GPUNodes: b.gpuNodes.DynamigV1alpha1(), KubeletPods: b.kubeletPods, Timing: b.timing,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if b.sweep != nil {
		a.sweep = b.sweep
	}
	reload := make(chan struct{})
	b.reload = func() { reload <- struct{}{} }
	a.watch = func(ctx context.Context, _ []string, changed func()) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-reload:
				changed()
			}
		}
	}
	a.journal.replace = func(path string, text []byte) error {
		return power.step("writing journal", func() error { return os.WriteFile(path, text, 0o600) })
	}
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), klog.Logger{}))
	b.agent, b.cancel, b.result = a, cancel, make(chan error, 1)
	go func() { b.result <- a.Run(ctx, b.slots) }()
	b.rest()
}

// open is the agent's Openers.
func (b *bench) open(devices []DeviceNumber) ([]int, error) {
	switch pid := int(b.gpuOpener.Load()); {
	case len(devices) == 1 && pid != 0:
		return []int{pid}, nil
	case len(devices) == 1:
		return nil, nil
	case len(devices) != 2:
		return nil, fmt.Errorf("asked for %v, want the GPU's device or those of GPU instance and compute instance", devices)
	}
	if pid := int(b.opener.Load()); pid != 0 {
		return []int{pid}, nil
	}
	return nil, nil
}

// processesOf is the agent's ProcessesOf.
func (b *bench) processesOf(pod types.UID) ([]int, error) {
	if pid, ok := b.running.Load(pod); ok {
		return []int{pid.(int)}, nil
	}
	return nil, nil
}

// hold makes a process use an instance; PID 0 is a handle that NVML does not show.
func (b *bench) hold(gpu, gi, pid int) {
	b.t.Helper()
	if err := b.node.Hold(nvml.GPUID(b.gpus[gpu]), sim.Holder{GI: gi, PID: pid}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) letGo(gpu, gi, pid int) {
	b.t.Helper()
	if err := b.node.Release(nvml.GPUID(b.gpus[gpu]), gi, pid); err != nil {
		b.t.Fatal(err)
	}
}

// wrapCreate has f called before GPU 0 is asked to create a GPU instance, by
// sessions that are opened from now on.
func (b *bench) wrapCreate(f func()) {
	b.wrap = func(d nvml.Driver) nvml.Driver { return &interposed{Driver: d, gpu: nvml.GPUID(b.gpus[0]), before: f} }
}

// interposed calls before when a GPU instance is created on a GPU.
type interposed struct {
	nvml.Driver
	gpu    nvml.GPUID
	before func()
}

func (d *interposed) CreateGPUInstance(id nvml.GPUID, profile nvml.ProfileID, start int) (nvml.Instance, error) {
	if id == d.gpu {
		d.before()
	}
	return d.Driver.CreateGPUInstance(id, profile, start)
}

// released lists the pods that the slots were told are gone.
func (b *bench) released() []string {
	b.rest()
	b.slots.mu.Lock()
	defer b.slots.mu.Unlock()
	return texts(b.slots.released)
}

// unhealthy lists the pods whose slots are unhealthy.
func (b *bench) unhealthy() []string {
	b.rest()
	b.slots.mu.Lock()
	defer b.slots.mu.Unlock()
	return texts(b.slots.unhealthy)
}

func texts(uids []types.UID) []string {
	var out []string
	for _, uid := range uids {
		out = append(out, string(uid))
	}
	return out
}

// stop ends the agent.
func (b *bench) stop() {
	b.t.Helper()
	b.cancel()
	if err := <-b.result; err != nil {
		b.t.Errorf("Run = %v", err)
	}
}

// kill ends an agent that has died: its last words do not matter.
func (b *bench) kill() {
	b.cancel()
	<-b.result
}

// restart ends the agent and starts another one.
func (b *bench) restart() {
	b.t.Helper()
	b.stop()
	b.start()
}

// rest waits until nothing moves, the report is written, and events are sent.
func (b *bench) rest() {
	synctest.Wait()
	time.Sleep(time.Second)
	synctest.Wait()
}

// sleep lets time pass.
func (b *bench) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// pod describes a pod of the node.
type pod struct {
	name      string
	devices   []v1alpha1.Device
	scheduler string
	mutate    func(*v1.Pod)
}

// on asks for placements of GPU index gpu: "2g.10gb@0".
func (b *bench) on(gpu int, places ...string) []v1alpha1.Device {
	var out []v1alpha1.Device
	for _, place := range places {
		name, at, _ := strings.Cut(place, "@")
		p, ok := profiles[name]
		var start int32
		if _, err := fmt.Sscan(at, &start); err != nil || !ok {
			b.t.Fatalf("%q is no placement", place)
		}
		out = append(out, v1alpha1.Device{GPU: b.gpus[gpu], MIG: &v1alpha1.MIGInstance{
			ProfileID: p.id, Profile: name, Start: start, Size: p.size, MemoryMiB: int64(p.size) * 5120,
		}})
	}
	return out
}

var (
	metav1Now   = metav1.NewTime(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
	errDeadline = context.DeadlineExceeded
)

func uidOf(name string) types.UID { return types.UID("uid-" + name) }

// bind makes a pod appear on the node.
func (b *bench) bind(p pod) {
	b.t.Helper()
	if _, err := b.client.CoreV1().Pods("default").Create(b.t.Context(), b.object(p), metav1.CreateOptions{}); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// object is the pod as the API server has it.
func (b *bench) object(p pod) *v1.Pod {
	b.t.Helper()
	out := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: p.name, UID: uidOf(p.name)},
		Spec: v1.PodSpec{NodeName: nodeName, SchedulerName: v1alpha1.SchedulerName, Containers: []v1.Container{{
			Name: "main",
			Resources: v1.ResourceRequirements{Limits: v1.ResourceList{
				v1alpha1.ResourceGPU: *resource.NewQuantity(int64(max(1, len(p.devices))), resource.DecimalSI),
			}},
		}}},
		Status: v1.PodStatus{Phase: v1.PodPending},
	}
	if p.scheduler != "" {
		out.Spec.SchedulerName = p.scheduler
	}
	if len(p.devices) > 0 {
		text := b.allocation(out, map[string][]v1alpha1.Device{"main": p.devices})
		out.Annotations = map[string]string{v1alpha1.AnnotationAllocation: text}
	}
	if p.mutate != nil {
		p.mutate(out)
	}
	return out
}

// allocation is the annotation that gives a pod's containers devices.
func (b *bench) allocation(pod *v1.Pod, containers map[string][]v1alpha1.Device) string {
	b.t.Helper()
	text, err := v1alpha1.Allocation{
		Version: v1alpha1.AllocationVersion, Node: nodeName, PodUID: pod.UID, Containers: containers,
	}.Encode()
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// change changes a pod of the node.
func (b *bench) change(name string, f func(*v1.Pod)) {
	b.t.Helper()
	p, err := b.client.CoreV1().Pods("default").Get(b.t.Context(), name, metav1.GetOptions{})
	if err == nil {
		f(p)
		_, err = b.client.CoreV1().Pods("default").Update(b.t.Context(), p, metav1.UpdateOptions{})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// remove deletes a pod.
func (b *bench) remove(name string) {
	b.t.Helper()
	if err := b.client.CoreV1().Pods("default").Delete(b.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		b.t.Fatal(err)
	}
	synctest.Wait()
}

// prepare prepares the pod's container and returns the keys, or the error.
func (b *bench) prepare(name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	devices, err := b.agent.Prepare(ctx, Container{PodUID: uidOf(name), Namespace: "default", Pod: name, Name: "main"})
	var keys []string
	for _, d := range devices {
		if len(d.Nodes) != 3 {
			b.t.Errorf("device %s has nodes %v, want three", d.Key, d.Nodes)
		}
		keys = append(keys, d.Key)
	}
	return keys, err
}

// mustPrepare prepares the pod and fails the test when that does not work.
func (b *bench) mustPrepare(name string) {
	b.t.Helper()
	if _, err := b.prepare(name); err != nil {
		b.t.Fatalf("Prepare(%s) = %v", name, err)
	}
}

// layout draws what a GPU holds: "2g.10gb@0 1g.5gb@2(GI only)".
func (b *bench) layout(gpu int) string {
	b.t.Helper()
	var out []string
	for _, in := range b.dump().GPUs[gpu].Instances {
		text := fmt.Sprintf("%s@%d", in.Name, in.Start)
		if in.CI == nvml.NoCI {
			text += "(GI only)"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// calls returns how often a driver call was made.
func (b *bench) calls(name string) int { return b.dump().CallsByName[name] }

// status is the report in the API server.
func (b *bench) status() v1alpha1.GPUNodeStatus {
	b.t.Helper()
	b.rest()
	node, err := b.gpuNodes.DynamigV1alpha1().GPUNodes().Get(b.t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return node.Status
}

// reported draws a GPU of the report: "2g@0:Live/uid-a".
func (b *bench) reported(gpu int) string {
	b.t.Helper()
	var out []string
	for _, in := range b.status().GPUs[gpu].Instances {
		text := fmt.Sprintf("%s@%d:%s", nameOfProfile(in.ProfileID), in.Start, in.State)
		if in.PodUID != "" {
			text += "/" + string(in.PodUID)
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func nameOfProfile(id int32) string {
	for name, p := range profiles {
		if p.id == id {
			return name
		}
	}
	return fmt.Sprint(id)
}

// condition returns a condition of the report as "True Reason: message".
func (b *bench) condition(kind string) string {
	b.t.Helper()
	for _, c := range b.status().Conditions {
		if c.Type == kind {
			return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
		}
	}
	return ""
}

// foreign makes an instance that the agent knows nothing of.
func (b *bench) foreign(gpu int, place string) nvml.Instance {
	b.t.Helper()
	d, err := sim.Open(b.root, sim.Uncounted())
	if err != nil {
		b.t.Fatal(err)
	}
	defer d.Close()
	m := b.on(gpu, place)[0].MIG
	in, err := d.CreateGPUInstance(nvml.GPUID(b.gpus[gpu]), nvml.ProfileID(m.ProfileID), int(m.Start))
	if err == nil {
		in, err = d.CreateComputeInstance(in.GPU, in.GI)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return in
}

// destroyed destroys an instance behind the agent's back.
func (b *bench) destroyed(gpu int, place string) {
	b.t.Helper()
	d, err := sim.Open(b.root, sim.Uncounted())
	if err != nil {
		b.t.Fatal(err)
	}
	defer d.Close()
	in := b.instance(gpu, place)
	if err := d.DestroyComputeInstance(nvml.GPUID(b.gpus[gpu]), in.GI, in.CI); err != nil {
		b.t.Fatal(err)
	}
	if err := d.DestroyGPUInstance(nvml.GPUID(b.gpus[gpu]), in.GI); err != nil {
		b.t.Fatal(err)
	}
}

// instance finds an instance in the hardware.
func (b *bench) instance(gpu int, place string) sim.Instance {
	b.t.Helper()
	for _, in := range b.dump().GPUs[gpu].Instances {
		if fmt.Sprintf("%s@%d", in.Name, in.Start) == place {
			return in
		}
	}
	b.t.Fatalf("GPU %d has no %s: %q", gpu, place, b.layout(gpu))
	return sim.Instance{}
}

// expect compares what a GPU holds.
func (b *bench) expect(gpu int, want string) {
	b.t.Helper()
	if got := b.layout(gpu); got != want {
		b.t.Errorf("GPU %d holds %q, want %q", gpu, got, want)
	}
}

// expectText compares a text; want may be a part of it.
func (b *bench) expectText(what, got, want string) {
	b.t.Helper()
	if !strings.Contains(got, want) || want == "" && got != "" {
		b.t.Errorf("%s is %q, want %q in it", what, got, want)
	}
}

// expectEvents wants exactly one event with each text, in any order.
func (b *bench) expectEvents(name, reason string, want ...string) {
	b.t.Helper()
	got := b.events(name, reason)
	if len(got) != len(want) {
		b.t.Errorf("%s has %d events %s %q, want %d", name, len(got), reason, got, len(want))
		return
	}
	for _, text := range want {
		if !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, text) }) {
			b.t.Errorf("%s has events %s %q, want %q in one", name, reason, got, text)
		}
	}
}

// phaseOf is what the report says of a pod: "Refused: why"; empty when it is at
// rest.
func (b *bench) phaseOf(name string) string {
	b.t.Helper()
	for _, p := range b.status().Pods {
		if p.UID == uidOf(name) {
			return fmt.Sprintf("%s: %s", p.Phase, p.Reason)
		}
	}
	return ""
}

// events lists the messages of an object's events of one reason.
func (b *bench) events(name, reason string) []string {
	b.t.Helper()
	b.rest()
	list, err := b.client.CoreV1().Events("").List(b.t.Context(), metav1.ListOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		if e.InvolvedObject.Name == name && e.Reason == reason {
			for range max(1, e.Count) {
				out = append(out, e.Message)
			}
		}
	}
	return out
}

// fakeSlots records what kubelet's side is told.
type fakeSlots struct {
	mu        sync.Mutex // guards what follows
	capacity  int
	unhealthy []types.UID
	released  []types.UID
	live      func(types.UID) bool // of the last Sweep
}

func (s *fakeSlots) SetCapacity(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capacity = n
	return nil
}

func (s *fakeSlots) SetUnhealthy(pods []types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unhealthy = pods
}

func (s *fakeSlots) Release(pod types.UID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = append(s.released, pod)
	return nil
}

func (s *fakeSlots) Sweep(live func(types.UID) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = live
	return nil
}

func (s *fakeSlots) has() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.capacity
}
