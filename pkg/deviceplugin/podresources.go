// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
)

const (
	// maxListBytes is what kubelet's own clients allow; 110 pods stay far below.
	maxListBytes = 16 << 20

	listTimeout = 5 * time.Second
)

// listed is a container as PodResources shows it: no UID, and no plain init
// containers.
type listed struct {
	namespace, pod, container string
	slots                     []string // sorted
}

// Kubelet serves 100 calls per second to all callers, in bursts of 10
// (apis/podresources/constants.go). Half of that is left to others.
const (
	listsPerSecond = 50
	listBurst      = 5
)

// podResources lists who holds slots, as kubelet has it in memory. All who ask while
// a call has to wait share it.
type podResources struct {
	socket, resource string
	wake             chan struct{} // has an element when next is not nil

	mu   sync.Mutex
	next *listCall // not begun; nil = nobody waits
}

// listCall is one call for all who asked before it began.
type listCall struct {
	done chan struct{} // closed at the end
	held []listed
	err  error
}

func newPodResources(socket, resource string) *podResources {
	return &podResources{socket: socket, resource: resource, wake: make(chan struct{}, 1)}
}

// list returns what kubelet held at a moment after the call of list began.
func (r *podResources) list(ctx context.Context) ([]listed, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &listCall{done: make(chan struct{})}
		r.wake <- struct{}{}
	}
	call := r.next
	r.mu.Unlock()
	select {
	case <-call.done:
		return call.held, call.err
	case <-ctx.Done():
		return nil, fmt.Errorf("listing kubelet's PodResources: %w", ctx.Err())
	}
}

// dial returns a client of one of kubelet's sockets, which needs not be there yet.
func dial(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxListBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{
			// Kubelet restarts; its socket is local, so a retry costs nothing.
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 2, MaxDelay: time.Second},
			MinConnectTimeout: listTimeout, // else an attempt is cut off after BaseDelay
		}))
	if err != nil {
		return nil, fmt.Errorf("using kubelet's socket %s: %w", socket, err)
	}
	return conn, nil
}

// run makes the calls until ctx ends.
func (r *podResources) run(ctx context.Context) error {
	conn, err := dial(r.socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	client := podresources.NewPodResourcesListerClient(conn)
	limit := rate.NewLimiter(listsPerSecond, listBurst)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		if limit.Wait(ctx) != nil {
			return nil
		}
		call := r.begin()
		call.held, call.err = r.ask(ctx, client)
		close(call.done)
	}
}

func (r *podResources) begin() *listCall {
	r.mu.Lock()
	defer r.mu.Unlock()
	call := r.next
	r.next = nil
	return call
}

// ask calls kubelet once. Who asked tries again for a while: kubelet may be
// restarting, or others may have used up its limit.
func (r *podResources) ask(ctx context.Context, client podresources.PodResourcesListerClient) ([]listed, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	response, err := client.List(ctx, &podresources.ListPodResourcesRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing kubelet's PodResources: %w", err)
	}
	return r.held(response), nil
}

// held picks the containers that hold slots out of kubelet's answer.
func (r *podResources) held(response *podresources.ListPodResourcesResponse) []listed {
	var all []listed
	for _, pod := range response.PodResources {
		for _, c := range pod.Containers {
			var slots []string
			for _, d := range c.Devices {
				if d.ResourceName == r.resource {
					slots = append(slots, d.DeviceIds...)
				}
			}
			if len(slots) > 0 {
				all = append(all, listed{pod.Namespace, pod.Name, c.Name, slices.Compact(sortSlots(slots))})
			}
		}
	}
	return all
}

// pause waits; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
