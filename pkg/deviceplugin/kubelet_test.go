// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

const testResource = "nvidia.com/gpu"

// testPod is a pod as the API server has it. Devices of a container are keys.
type testPod struct {
	uid             types.UID
	namespace, name string
	inits, apps     []testContainer
}

type testContainer struct {
	name    string
	devices []string
}

func (p *testPod) containers() []testContainer { return append(slices.Clone(p.inits), p.apps...) }

func (p *testPod) container(name string) testContainer {
	all := p.containers()
	return all[slices.IndexFunc(all, func(c testContainer) bool { return c.name == name })]
}

// testKubelet does what kubelet's device manager does: it keeps one list of
// devices, picks at random, gives slots of init containers on, writes its
// checkpoint, and reports each sign of a plugin that would wedge or crash it.
type testKubelet struct {
	pluginapi.UnimplementedRegistrationServer
	podresources.UnimplementedPodResourcesListerServer
	t        testing.TB
	dir      string
	server   *grpc.Server
	lister   *grpc.Server
	running  sync.WaitGroup
	limit    *rate.Limiter
	admitted sync.Mutex // one pod is admitted at a time

	// Hooks for races; set before use.
	beforeAllocate func() // between picking slots and calling Allocate

	mu           sync.Mutex
	beforeList   func()                      // before PodResources answers
	clients      map[string]*grpc.ClientConn // by socket; live streams
	api          pluginapi.DevicePluginClient
	options      *pluginapi.DevicePluginOptions
	sockets      []string // of all registrations
	healthy, all map[string]bool
	lists        int // ListAndWatch updates
	listCalls    int // PodResources calls
	rejected     int // PodResources calls over the limit
	active       map[types.UID]*testPod
	holds        map[types.UID]map[string]testHold // by pod and container
	changed      chan struct{}
	started      time.Time // when kubelet.sock accepted
	registered   time.Time // when the last registration came
	keepEmpty    bool      // write checkpoints without holdings, as a lost race does
	keepOld      bool      // write no checkpoints, so that it contradicts PodResources
}

// testHold is what a container was given.
type testHold struct {
	slots []string
	cdi   []string // CDI device names of the Allocate answer
}

// newKubelet starts a kubelet on an empty directory.
func newKubelet(t testing.TB) *testKubelet {
	dir, err := os.MkdirTemp("", "dp") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	k := &testKubelet{
		t:      t,
		dir:    dir,
		active: map[types.UID]*testPod{},
		holds:  map[types.UID]map[string]testHold{},
	}
	k.run()
	return k
}

func (k *testKubelet) run() {
	k.clients = map[string]*grpc.ClientConn{}
	k.healthy, k.all = map[string]bool{}, map[string]bool{}
	k.changed = make(chan struct{})
	k.limit = rate.NewLimiter(100, 10)
	k.removeSockets()
	k.server, k.lister = grpc.NewServer(), grpc.NewServer(grpc.UnaryInterceptor(k.limited))
	pluginapi.RegisterRegistrationServer(k.server, k)
	podresources.RegisterPodResourcesListerServer(k.lister, k)
	k.serve(k.lister, "podresources")
	k.serve(k.server, "kubelet.sock")
	k.started = time.Now()
}

func (k *testKubelet) serve(server *grpc.Server, name string) {
	path := filepath.Join(k.dir, name)
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		k.t.Fatal(err)
	}
	k.running.Go(func() { _ = server.Serve(listener) })
}

// removeSockets is what kubelet does at its start, to its own sockets too.
func (k *testKubelet) removeSockets() {
	paths, _ := filepath.Glob(filepath.Join(k.dir, "*.sock"))
	for _, path := range paths {
		_ = os.Remove(path)
	}
}

// stop ends kubelet. What it knows of pods stays, as its checkpoint would.
func (k *testKubelet) stop() {
	k.mu.Lock()
	for _, conn := range k.clients {
		_ = conn.Close()
	}
	k.mu.Unlock()
	k.server.Stop()
	k.lister.Stop()
	k.running.Wait()
}

func (k *testKubelet) limited(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !k.limit.Allow() {
		k.mu.Lock()
		k.rejected++
		k.mu.Unlock()
		return nil, status.Error(codes.ResourceExhausted, "rejected by rate limit")
	}
	return next(ctx, req)
}

func (k *testKubelet) update() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// Register connects back, as the real one does, before it answers.
func (k *testKubelet) Register(ctx context.Context, req *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	if req.Version != pluginapi.Version || req.ResourceName != testResource || !req.Options.PreStartRequired {
		k.t.Errorf("registration is %v", req)
	}
	for begin := time.Now(); k.streams() > 0; { // its end takes a moment to arrive
		if time.Since(begin) > 5*time.Second {
			k.t.Errorf("socket %s is registered while another stream lives", req.Endpoint)
			break
		}
		runtime.Gosched()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Contains(k.sockets, req.Endpoint) {
		k.t.Errorf("socket %s is registered twice: kubelet wedges", req.Endpoint)
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(k.dir, req.Endpoint), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	api := pluginapi.NewDevicePluginClient(conn)
	if k.options, err = api.GetDevicePluginOptions(ctx, &pluginapi.Empty{}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	k.sockets = append(k.sockets, req.Endpoint)
	k.registered = time.Now()
	k.clients[req.Endpoint], k.api = conn, api
	k.running.Go(func() { k.watch(req.Endpoint, conn, api) })
	return &pluginapi.Empty{}, nil
}

func (k *testKubelet) streams() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.clients)
}

func (k *testKubelet) watch(socket string, conn *grpc.ClientConn, api pluginapi.DevicePluginClient) {
	stream, err := api.ListAndWatch(context.Background(), &pluginapi.Empty{})
	for err == nil {
		var list *pluginapi.ListAndWatchResponse
		if list, err = stream.Recv(); err == nil {
			k.receive(list.Devices)
		}
	}
	_ = conn.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.clients, socket)
	k.healthy = map[string]bool{}
	k.update()
}

func (k *testKubelet) receive(devices []*pluginapi.Device) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.healthy, k.all = map[string]bool{}, map[string]bool{}
	for _, d := range devices {
		k.all[d.ID] = true
		if d.Health == pluginapi.Healthy {
			k.healthy[d.ID] = true
		}
	}
	k.lists++
	k.writeCheckpoint()
	k.update()
}

// writeCheckpoint is by rename, as kubelet's.
func (k *testKubelet) writeCheckpoint() {
	if k.keepOld {
		return
	}
	type entry struct {
		PodUID        types.UID
		ContainerName string
		ResourceName  string
		DeviceIDs     map[string][]string
		AllocResp     []byte
	}
	var file struct {
		Data struct {
			PodDeviceEntries  []entry
			RegisteredDevices map[string][]string
		}
		Checksum uint64
	}
	file.Data.RegisteredDevices = map[string][]string{testResource: slices.Collect(maps.Keys(k.healthy))}
	for uid, containers := range k.holds {
		for name, hold := range containers {
			if !k.keepEmpty {
				file.Data.PodDeviceEntries = append(file.Data.PodDeviceEntries,
					entry{uid, name, testResource, map[string][]string{"-1": hold.slots}, nil},
					entry{uid, name, "other.example/thing", map[string][]string{"-1": {"s0000"}}, nil})
			}
		}
	}
	text, err := json.Marshal(file)
	path := filepath.Join(k.dir, kubeletCheckpoint)
	if err == nil {
		err = os.WriteFile(path+".tmp", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		k.t.Error(err)
	}
}
