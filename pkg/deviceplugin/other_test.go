// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/dynamig/dynamig/test/kubelet"
)

// otherPlugin offers the same resource for somebody else, as HAMi's or NVIDIA's does.
type otherPlugin struct {
	pluginapi.UnimplementedDevicePluginServer
	server *grpc.Server
	ended  chan struct{}
}

// otherDevices are what kubelet has of the other plugin.
const otherDevices = "GPU-a::0 GPU-a::1"

// startOther registers the other plugin with kubelet and waits for its devices.
func (n *node) startOther(name string) *otherPlugin {
	n.T.Helper()
	p := &otherPlugin{server: grpc.NewServer(), ended: make(chan struct{})}
	pluginapi.RegisterDevicePluginServer(p.server, p)
	listener, err := net.Listen("unix", filepath.Join(n.PluginDir(), name))
	if err != nil {
		n.T.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.server.Serve(listener)
	}()
	conn, err := net.Dial("unix", filepath.Join(n.PluginDir(), "kubelet.sock"))
	if err != nil {
		n.T.Fatal(err)
	}
	err = callRegister(context.Background(), conn, &pluginapi.RegisterRequest{
		Version: pluginapi.Version, Endpoint: name, ResourceName: kubelet.Resource, Options: options(),
	})
	if err != nil {
		n.T.Fatal(err)
	}
	n.AwaitSlots(otherDevices)
	return p
}

func (n *node) stopOther(p *otherPlugin) {
	n.T.Helper()
	p.server.Stop()
	<-p.ended
	n.Await("the end of the other plugin's stream", func() bool { return n.Streams() == 0 })
}

func (p *otherPlugin) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return options(), nil
}

func (p *otherPlugin) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	list := &pluginapi.ListAndWatchResponse{}
	for id := range strings.SplitSeq(otherDevices, " ") {
		list.Devices = append(list.Devices, &pluginapi.Device{ID: id, Health: pluginapi.Healthy})
	}
	if err := stream.Send(list); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// ours counts how often our plugin has asked to be registered.
func (n *node) ours() int {
	n.Mu.Lock()
	defer n.Mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(n.Asked), func(s string) bool { return !strings.HasPrefix(s, socketPrefix) }))
}

// A node that does not take part, or not any more, is another plugin's: kubelet would
// give the resource to who registers last.
func TestResourceStaysWithTheOtherPlugin(t *testing.T) {
	n := newNode(t)
	n.setCapacity(3)
	n.stopAgent()
	other := n.startOther("other-1.sock")
	before := n.ours()

	n.startAgent() // with free slots of the earlier run
	if n.plugin.Settled() {
		t.Error("kubelet is said to know all before the capacity is known")
	}
	if err := n.plugin.SetCapacity(0); err != nil {
		t.Fatal(err)
	}
	n.plugin.SetUnhealthy(nil)
	n.awaitDropped()
	n.Stop()
	n.stopOther(other)
	n.Run()
	other = n.startOther("other-2.sock")
	if got := n.ours(); got != before {
		t.Errorf("the plugin has asked %d times to be registered although it offers nothing", got-before)
	}
	if !n.plugin.Settled() {
		t.Error("kubelet is said to lack slots, of which there are none")
	}

	n.stopOther(other)
	n.setCapacity(2)
}

// awaitDropped waits until the grace of withdrawn slots is over.
func (n *node) awaitDropped() {
	n.T.Helper()
	for {
		if _, changed := n.plugin.slots.list(); n.plugin.slots.count()["withdrawn"] > 0 {
			<-changed
			continue
		}
		return
	}
}

// A node that leaves keeps what its pods need, and then gives the resource up.
func TestLeavingNodeGivesUpTheResourceAfterItsPods(t *testing.T) {
	n := newNode(t)
	n.setCapacity(3)
	a := pod("a", "main=1")
	n.runPod(a)
	if err := n.plugin.SetCapacity(0); err != nil {
		t.Fatal(err)
	}
	slot := n.SlotsOf(a, "main")[0]
	n.AwaitSlots(slot)
	n.stopAgent()
	n.startAgent() // no capacity is known yet
	n.AwaitSlots(slot)
	n.Stop()
	n.Run()
	n.AwaitSlots(slot)
	if err := n.Readmit(a); err != nil {
		t.Error(err)
	}
	n.startContainer(a, "main")
	if err := n.plugin.SetCapacity(0); err != nil {
		t.Fatal(err)
	}
	n.finish(a)
	n.Await("the end of the stream", func() bool { return n.Streams() == 0 })
	n.stopOther(n.startOther("other.sock"))
}
