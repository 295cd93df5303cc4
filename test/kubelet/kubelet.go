// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package kubelet is a model of kubelet's device manager, for tests: it speaks the
// real device plugin, PodResources and Pods protocols and writes the real checkpoint,
// and it does on purpose at random what kubelet may do in any order.
//
//	plugin --Register--> Kubelet --ListAndWatch, Allocate, PreStartContainer--> plugin
//	                        |
//	                        +--> checkpoint file, PodResources, Pods API
//
// kubelet knows slots and pods. It does not start containers: who calls it says
// when a container starts, and looks at what the runtime would see.
package kubelet

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
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
	pods "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// Resource is what the plugin must offer.
const Resource = "nvidia.com/gpu"

// checkpointFile is kubelet's name for its checkpoint.
const checkpointFile = "kubelet_internal_checkpoint"

// T is what the kubelet needs of a test.
type T interface {
	Helper()
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Pod is a pod as the API server has it.
type Pod struct {
	UID             types.UID
	Namespace, Name string
	Inits, Apps     []Container // Apps also has the sidecars
	Object          *v1.Pod     // for the Pods API, which does not show a pod without
}

// Container is a container of a pod. It asks for as many slots as it has devices,
// which are whatever the test tells them apart by.
type Container struct {
	Name    string
	Devices []string
}

// Containers lists all, plain init containers first.
func (p *Pod) Containers() []Container { return append(slices.Clone(p.Inits), p.Apps...) }

// Container finds one by its name.
func (p *Pod) Container(name string) Container {
	all := p.Containers()
	return all[slices.IndexFunc(all, func(c Container) bool { return c.Name == name })]
}

// Kubelet does what kubelet's device manager does: it keeps one list of
// devices, picks at random, gives slots of init containers on, writes its
// checkpoint, and reports each sign of a plugin that would wedge or crash it.
type Kubelet struct {
	pluginapi.UnimplementedRegistrationServer
	podresources.UnimplementedPodResourcesListerServer
	pods.UnimplementedPodsServer
	T        T
	Dir      string // kubelet's root directory
	server   *grpc.Server
	lister   *grpc.Server
	pods     *grpc.Server
	running  sync.WaitGroup
	Limit    *rate.Limiter
	admitted sync.Mutex // one pod is admitted at a time

	NoPodsAPI bool // the Pods API is not served, as before Kubernetes 1.37; from the next Run on

	// Hooks for races; set before use.
	BeforeAllocate func() // between picking slots and calling Allocate

	Mu           sync.Mutex                  // guards what follows
	BeforeList   func()                      // before PodResources answers
	clients      map[string]*grpc.ClientConn // by socket; live streams
	API          pluginapi.DevicePluginClient
	options      *pluginapi.DevicePluginOptions
	Asked        []string // sockets of all calls of Register
	Sockets      []string // of all registrations
	healthy, all map[string]bool
	Past         []string // ListAndWatch updates: "s0000 s0001 | s0002", healthy slots and others
	ListCalls    int      // PodResources calls
	Rejected     int      // PodResources calls over the limit
	PodCalls     int      // ListPods calls
	Initializing bool     // it has not heard of its pods from the API server since its start
	Active       map[types.UID]*Pod
	Holds        map[types.UID]map[string]Hold // by pod and container
	changed      chan struct{}
	Started      time.Time // when kubelet.sock accepted
	Registered   time.Time // when the last registration came
	KeepEmpty    bool      // write checkpoints without holdings, as a lost race does
	KeepOld      bool      // write no checkpoints, so that it contradicts PodResources
}

// Hold is what a container was given.
type Hold struct {
	Slots []string
	CDI   []string // CDI device names of the Allocate answer
}

// New starts a kubelet on a directory, which becomes its root directory. The path
// is short, since sockets are below it.
func New(t T, dir string) *Kubelet {
	t.Helper()
	k := &Kubelet{
		T:      t,
		Dir:    dir,
		Active: map[types.UID]*Pod{},
		Holds:  map[types.UID]map[string]Hold{},
	}
	k.Run()
	return k
}

// PluginDir is where device plugins and kubelet have their sockets.
func (k *Kubelet) PluginDir() string { return filepath.Join(k.Dir, "device-plugins") }

// PodResources is the socket of the PodResources API.
func (k *Kubelet) PodResources() string { return filepath.Join(k.Dir, "pod-resources", "kubelet.sock") }

func (k *Kubelet) checkpoint() string { return filepath.Join(k.PluginDir(), checkpointFile) }

// Run starts kubelet, at first or after Stop.
func (k *Kubelet) Run() {
	k.clients = map[string]*grpc.ClientConn{}
	k.healthy, k.all = map[string]bool{}, map[string]bool{}
	k.changed = make(chan struct{})
	k.Limit = rate.NewLimiter(100, 10)
	k.removeSockets()
	k.server, k.lister = grpc.NewServer(), grpc.NewServer(grpc.UnaryInterceptor(k.limited))
	pluginapi.RegisterRegistrationServer(k.server, k)
	podresources.RegisterPodResourcesListerServer(k.lister, k)
	k.serve(k.lister, k.PodResources())
	k.pods = grpc.NewServer()
	if !k.NoPodsAPI {
		pods.RegisterPodsServer(k.pods, k)
		k.serve(k.pods, k.PodsAPI())
	}
	k.Serve()
	k.Started = time.Now()
}

// Serve makes kubelet's socket anew.
func (k *Kubelet) Serve() { k.serve(k.server, filepath.Join(k.PluginDir(), "kubelet.sock")) }

func (k *Kubelet) serve(server *grpc.Server, path string) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		k.T.Fatal(err)
	}
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		k.T.Fatal(err)
	}
	k.running.Go(func() { _ = server.Serve(listener) })
}

// removeSockets is what kubelet does at its start, to its own sockets too.
func (k *Kubelet) removeSockets() {
	paths, _ := filepath.Glob(filepath.Join(k.PluginDir(), "*.sock"))
	for _, path := range paths {
		_ = os.Remove(path)
	}
}

// Stop ends kubelet. What it knows of pods stays, as its checkpoint would.
func (k *Kubelet) Stop() {
	k.Mu.Lock()
	for _, conn := range k.clients {
		_ = conn.Close()
	}
	k.Mu.Unlock()
	k.server.Stop()
	k.lister.Stop()
	k.pods.Stop()
	_ = os.Remove(k.PodsAPI())
	k.running.Wait()
}

func (k *Kubelet) limited(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !k.Limit.Allow() {
		k.Mu.Lock()
		k.Rejected++
		k.Mu.Unlock()
		return nil, status.Error(codes.ResourceExhausted, "rejected by rate limit")
	}
	return next(ctx, req)
}

func (k *Kubelet) update() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// Register connects back, as the real one does, before it answers.
func (k *Kubelet) Register(ctx context.Context, req *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	if req.Version != pluginapi.Version || req.ResourceName != Resource || !req.Options.PreStartRequired {
		k.T.Errorf("registration is %v", req)
	}
	k.Mu.Lock()
	k.Asked = append(k.Asked, req.Endpoint)
	k.Mu.Unlock()
	for begin := time.Now(); k.Streams() > 0; { // its end takes a moment to arrive
		if time.Since(begin) > Patience {
			k.T.Errorf("socket %s is registered while another stream lives", req.Endpoint)
			break
		}
		runtime.Gosched()
	}
	k.Mu.Lock()
	defer k.Mu.Unlock()
	if slices.Contains(k.Sockets, req.Endpoint) {
		k.T.Errorf("socket %s is registered twice: kubelet wedges", req.Endpoint)
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(k.PluginDir(), req.Endpoint), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	api := pluginapi.NewDevicePluginClient(conn)
	if k.options, err = api.GetDevicePluginOptions(ctx, &pluginapi.Empty{}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	k.Sockets = append(k.Sockets, req.Endpoint)
	k.Registered = time.Now()
	k.clients[req.Endpoint], k.API = conn, api
	k.running.Go(func() { k.watch(req.Endpoint, conn, api) })
	return &pluginapi.Empty{}, nil
}

// Streams counts the plugins whose lists are watched.
func (k *Kubelet) Streams() int {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	return len(k.clients)
}

func (k *Kubelet) watch(socket string, conn *grpc.ClientConn, api pluginapi.DevicePluginClient) {
	stream, err := api.ListAndWatch(context.Background(), &pluginapi.Empty{})
	for err == nil {
		var list *pluginapi.ListAndWatchResponse
		if list, err = stream.Recv(); err == nil {
			k.receive(list.Devices)
		}
	}
	_ = conn.Close()
	k.Mu.Lock()
	defer k.Mu.Unlock()
	delete(k.clients, socket)
	k.healthy = map[string]bool{}
	k.update()
}

func (k *Kubelet) receive(devices []*pluginapi.Device) {
	k.Mu.Lock()
	defer k.Mu.Unlock()
	k.healthy, k.all = map[string]bool{}, map[string]bool{}
	for _, d := range devices {
		k.all[d.ID] = true
		if d.Health == pluginapi.Healthy {
			k.healthy[d.ID] = true
		}
	}
	healthy, other := k.slots()
	k.Past = append(k.Past, strings.Join(healthy, " ")+" | "+strings.Join(other, " "))
	k.WriteCheckpoint()
	k.update()
}

// WriteCheckpoint is by rename, as kubelet's.
func (k *Kubelet) WriteCheckpoint() {
	if k.KeepOld {
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
	file.Data.RegisteredDevices = map[string][]string{Resource: slices.Collect(maps.Keys(k.healthy))}
	for uid, containers := range k.Holds {
		for name, hold := range containers {
			if !k.KeepEmpty {
				file.Data.PodDeviceEntries = append(file.Data.PodDeviceEntries,
					entry{uid, name, Resource, map[string][]string{"-1": hold.Slots}, nil},
					entry{uid, name, "other.example/thing", map[string][]string{"-1": {"s0000"}}, nil})
			}
		}
	}
	text, err := json.Marshal(file)
	path := k.checkpoint()
	if err == nil {
		err = os.WriteFile(path+".tmp", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		k.T.Error(err)
	}
}
