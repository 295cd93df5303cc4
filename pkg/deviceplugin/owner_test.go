// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/types"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/dynamig/dynamig/pkg/cdi"

	"github.com/dynamig/dynamig/test/kubelet"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// testOwner knows the pods and prepares their devices.
type testOwner struct {
	mu      sync.Mutex
	pods    map[types.UID]*kubelet.Pod
	calls   map[string]int                               // of Prepare, by container
	prepare func(ctx context.Context, c Container) error // nil = at once
}

func newOwner() *testOwner {
	return &testOwner{pods: map[types.UID]*kubelet.Pod{}, calls: map[string]int{}}
}

func (o *testOwner) add(pod *kubelet.Pod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pods[pod.UID] = pod
}

func (o *testOwner) remove(pod *kubelet.Pod) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.pods, pod.UID)
}

func (o *testOwner) live(uid types.UID) bool {
	_, _, ok := o.Pod(uid)
	return ok
}

func (o *testOwner) Pod(uid types.UID) (namespace, name string, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	pod := o.pods[uid]
	if pod == nil {
		return "", "", false
	}
	return pod.Namespace, pod.Name, true
}

func (o *testOwner) prepared(container string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls[container]
}

func (o *testOwner) Prepare(ctx context.Context, c Container) ([]Device, error) {
	o.mu.Lock()
	o.calls[c.Name]++
	pod, prepare := o.pods[c.PodUID], o.prepare
	o.mu.Unlock()
	if pod == nil || pod.Name != c.Pod || pod.Namespace != c.Namespace {
		return nil, fmt.Errorf("asked for container %v, which is not of pod %v", c, pod)
	}
	if prepare != nil {
		if err := prepare(ctx, c); err != nil {
			return nil, err
		}
	}
	var devices []Device
	for _, key := range pod.Container(c.Name).Devices {
		devices = append(devices, Device{Key: key, Edits: editsOf(pod, key)})
	}
	return devices, nil
}

func editsOf(pod *kubelet.Pod, key string) cdi.Edits {
	return cdi.Edits{Env: []string{"DEVICE=" + string(pod.UID) + "/" + key}}
}

// node is a kubelet, an owner and the plugin between them.
type node struct {
	*kubelet.Kubelet
	owner  *testOwner
	config Config
	adjust func(*timing) // before each start of the agent
	plugin *Plugin
	cancel context.CancelFunc
	ended  chan error
}

func newNode(t testing.TB) *node { return newNodeWith(t, func(*timing) {}) }

func newNodeWith(t testing.TB, adjust func(*timing)) *node {
	k := kubelet.New(t, shortDir(t))
	n := &node{Kubelet: k, owner: newOwner(), adjust: adjust}
	n.config = Config{
		Resource:     kubelet.Resource,
		PluginDir:    k.PluginDir(),
		PodResources: k.PodResources(),
		State:        filepath.Join(k.Dir, "slots.json"),
		CDI:          cdi.Dir{Path: filepath.Join(k.Dir, "cdi")},
		Preparer:     n.owner,
		Pods:         n.owner,
	}
	n.startAgent()
	t.Cleanup(func() { n.stopAgent(); n.Stop() })
	return n
}

func (n *node) startAgent() {
	n.T.Helper()
	p, err := New(n.config)
	if err != nil {
		n.T.Fatal(err)
	}
	// Patience is for a busy machine: nothing is meant to take that long.
	p.timing.withdraw, p.timing.settle, p.timing.identify = 5*time.Second, 100*time.Millisecond, 20*time.Second
	n.adjust(&p.timing)
	ctx, cancel := context.WithCancel(context.Background())
	n.plugin, n.cancel, n.ended = p, cancel, make(chan error, 1)
	go func() { n.ended <- p.Run(ctx) }()
}

// stopAgent ends the plugin and checks that it leaves no socket.
func (n *node) stopAgent() {
	n.T.Helper()
	if n.cancel == nil {
		return
	}
	n.cancel()
	if err := <-n.ended; err != nil {
		n.T.Errorf("Run = %v", err)
	}
	n.cancel = nil
	n.Await("the end of the stream", func() bool { return n.Streams() == 0 })
	if left, _ := filepath.Glob(filepath.Join(n.PluginDir(), socketPrefix+"*")); len(left) > 0 {
		n.T.Errorf("Run left %v", left)
	}
}

func (n *node) setCapacity(count int) {
	n.T.Helper()
	if err := n.plugin.SetCapacity(count); err != nil {
		n.T.Fatal(err)
	}
	n.AwaitCapacity(count)
}

// run makes a pod known, admits it and starts its containers in order.
func (n *node) runPod(pod *kubelet.Pod) {
	n.T.Helper()
	n.owner.add(pod)
	if err := n.Admit(pod); err != nil {
		n.T.Fatal(err)
	}
	for _, c := range pod.Containers() {
		n.startContainer(pod, c.Name)
	}
}

// startContainer starts a container and checks what it sees.
func (n *node) startContainer(pod *kubelet.Pod, container string) {
	n.T.Helper()
	if err := n.PreStart(context.Background(), pod, container); err != nil {
		n.T.Fatalf("starting %s of %s: %v", container, pod.Name, err)
	}
	n.checkContainer(pod, container)
}

// finish ends a pod for kubelet, then for the owner, and releases it.
func (n *node) finish(pod *kubelet.Pod) {
	n.T.Helper()
	n.End(pod)
	n.owner.remove(pod)
	if err := n.plugin.Release(pod.UID); err != nil {
		n.T.Error(err)
	}
}

// checkContainer resolves the promised names as a runtime would, and compares
// what the container gets with what its pod owns.
func (n *node) checkContainer(pod *kubelet.Pod, container string) {
	n.T.Helper()
	want := map[string]bool{}
	for _, key := range pod.Container(container).Devices {
		want[editsOf(pod, key).Env[0]] = true
	}
	names := n.Promised(pod, container)
	if len(names) != len(want)+1 || names[0] != cdi.DriverDevice {
		n.T.Errorf("%s/%s was promised %v", pod.Name, container, names)
	}
	for _, name := range names[1:] {
		got, err := resolve(n.config.CDI.Path, name)
		if err != nil {
			n.T.Errorf("%s/%s: %v", pod.Name, container, err)
		} else if !want[got] {
			n.T.Errorf("%s/%s sees %s under %s, want one of %v", pod.Name, container, got, name, want)
		}
		delete(want, got)
	}
}

// resolve reads a slot's file as a runtime would.
func resolve(dir, name string) (string, error) {
	slot := strings.TrimPrefix(name, "dynamig.io/slot=")
	text, err := os.ReadFile(filepath.Join(dir, "dynamig.io-slot_"+slot+".json"))
	if err != nil {
		return "", err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return "", err
	}
	if spec.Kind+"="+spec.Devices[0].Name != name {
		return "", fmt.Errorf("the file of %s defines %s=%s", name, spec.Kind, spec.Devices[0].Name)
	}
	return spec.Devices[0].ContainerEdits.Env[0], nil
}

// device is the value of a slot's file, "" where there is none.
func (n *node) device(slot string) string {
	got, err := resolve(n.config.CDI.Path, cdi.SlotDevice(slot))
	if err != nil {
		return ""
	}
	return got
}

// pod builds a pod from container texts: "main=a b", or "init:setup=a" for a
// plain init container.
func pod(name string, containers ...string) *kubelet.Pod {
	p := &kubelet.Pod{UID: types.UID("uid-" + name), Namespace: "default", Name: name}
	for _, text := range containers {
		text, isInit := strings.CutPrefix(text, "init:")
		container, devices, _ := strings.Cut(text, "=")
		c := kubelet.Container{Name: container, Devices: strings.Fields(devices)}
		if isInit {
			p.Inits = append(p.Inits, c)
		} else {
			p.Apps = append(p.Apps, c)
		}
	}
	return p
}

// shortDir is a directory that is removed at the end. t.TempDir is too long for a
// socket's path.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
