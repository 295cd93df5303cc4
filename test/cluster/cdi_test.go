// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"net"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	plugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const cdiResource, cdiDevice = "example.test/thing", "example.test/thing=t0"

// thingPlugin is a device plugin with one device, known to CDI as cdiDevice.
type thingPlugin struct {
	plugin.UnimplementedDevicePluginServer
	stop <-chan struct{}
}

func (p thingPlugin) GetDevicePluginOptions(context.Context, *plugin.Empty) (*plugin.DevicePluginOptions, error) {
	return &plugin.DevicePluginOptions{}, nil
}

func (p thingPlugin) ListAndWatch(_ *plugin.Empty, s grpc.ServerStreamingServer[plugin.ListAndWatchResponse]) error {
	err := s.Send(&plugin.ListAndWatchResponse{Devices: []*plugin.Device{{ID: "t0", Health: plugin.Healthy}}})
	if err != nil {
		return err
	}
	<-p.stop
	return nil
}

func (p thingPlugin) Allocate(_ context.Context, req *plugin.AllocateRequest) (*plugin.AllocateResponse, error) {
	resp := &plugin.AllocateResponse{}
	for range req.ContainerRequests {
		resp.ContainerResponses = append(resp.ContainerResponses,
			&plugin.ContainerAllocateResponse{CdiDevices: []*plugin.CDIDevice{{Name: cdiDevice}}})
	}
	return resp, nil
}

// serveThings registers the plugin from the host, through the node's files.
func serveThings(t *testing.T, ctx context.Context, n *Node) {
	t.Helper()
	dir := mustPath(t, n, "/var/lib/kubelet/device-plugins")
	l, err := net.Listen("unix", dir+"/thing.sock")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	server := grpc.NewServer()
	plugin.RegisterDevicePluginServer(server, thingPlugin{stop: stop})
	go server.Serve(l)
	t.Cleanup(func() { close(stop); server.Stop() })

	conn, err := grpc.NewClient("unix://"+dir+"/kubelet.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = plugin.NewRegistrationClient(conn).Register(ctx, &plugin.RegisterRequest{
		Version: plugin.Version, Endpoint: "thing.sock", ResourceName: cdiResource,
	}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
}

// For a CDI device to work, kubelet, containerd and a plugin on the host have to
// mean the same by the node's directories.
func cdiDevicesReachContainers(t *testing.T, ctx context.Context, c *Cluster) {
	n, err := c.Node("n1")
	if err != nil {
		t.Fatal(err)
	}
	spec := `{"cdiVersion": "0.6.0", "kind": "example.test/thing",
		"devices": [{"name": "t0", "containerEdits": {"env": ["THING=t0"]}}]}`
	if err := os.WriteFile(mustPath(t, n, "/var/run/cdi/thing.json"), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	serveThings(t, ctx, n)
	waitForThing(t, ctx, c, n.Name)

	pod := busyboxPod("with-thing", n.Name, "echo THING=$THING")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{cdiResource: resource.MustParse("1")}
	runPod(t, ctx, c, pod, corev1.PodSucceeded)
	if out, err := c.Kubectl(ctx, "logs", "with-thing"); string(out) != "THING=t0\n" || err != nil {
		t.Errorf("the container says %q, %v; want what the CDI spec sets", out, err)
	}
}

// waitForThing waits until the Node shows the device.
func waitForThing(t *testing.T, ctx context.Context, c *Cluster, node string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	one := cache.NewListWatchFromClient(c.Client().CoreV1().RESTClient(), "nodes", "",
		fields.OneTermEqualSelector("metadata.name", node))
	_, err := watchtools.UntilWithSync(ctx, one, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		n, ok := e.Object.(*corev1.Node)
		things := n.Status.Allocatable[cdiResource]
		return ok && things.Value() == 1, nil
	})
	if err != nil {
		t.Fatalf("waiting for node %s to have one %s: %v", node, cdiResource, err)
	}
}
