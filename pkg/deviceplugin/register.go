// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Pauses between tries to reach kubelet. The first is short, because its socket
// appears a moment before it accepts; a pod that kubelet admits before we have
// registered fails for good.
const (
	firstRetry = time.Millisecond
	lastRetry  = time.Second
)

// serveKubelet keeps one registration with the kubelet that is there while there are
// slots to tell it of (I8), until ctx ends. A kubelet that restarts ends the stream
// and makes its socket anew.
func (p *Plugin) serveKubelet(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	removeDeadSockets(p.config.PluginDir)
	watch, err := watchSocket(filepath.Join(p.config.PluginDir, filepath.Base(pluginapi.KubeletSocket)))
	if err != nil {
		return err
	}
	defer watch.stop()
	retry := firstRetry
	for {
		if err := p.awaitSlots(ctx, watch); err != nil || ctx.Err() != nil {
			return err
		}
		begin := time.Now()
		s, err := p.register(ctx, watch)
		switch {
		case err == nil:
			logger.V(2).Info("Registered with kubelet", "socket", s.socket, "duration", time.Since(begin))
			p.metrics.registrations.Inc()
			p.connected.Store(true)
			s.hold(ctx, watch, p)
			p.connected.Store(false)
			s.stop()
			if time.Since(begin) > lastRetry {
				retry = firstRetry
			}
		case !errors.Is(err, errNoKubelet) && ctx.Err() == nil:
			logger.Error(err, "Kubelet did not take the registration", "retryIn", retry)
		}
		news, err := watch.wait(ctx, retry)
		if err != nil {
			return err
		}
		retry = min(2*retry, lastRetry)
		if news {
			retry = firstRetry
		}
	}
}

// awaitSlots returns when kubelet has to know a slot, or ctx has ended.
func (p *Plugin) awaitSlots(ctx context.Context, watch *socketWatch) error {
	for {
		yes, changed := p.listed(false)
		if yes {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watch.gone:
			return watch.lost()
		case <-changed:
		}
	}
}

// listed is slots.listed with kubelet's checkpoint, which is read without a lock: I1.
func (p *Plugin) listed(registered bool) (yes bool, changed <-chan struct{}) {
	yes, unbound, changed := p.slots.listed(registered)
	return yes || slices.ContainsFunc(unbound, p.inCheckpoint()), changed
}

// errNoKubelet says that nobody accepts connections on kubelet's socket.
var errNoKubelet = errors.New("kubelet is not there")

// register connects to kubelet, opens a session and waits until kubelet watches
// its list. A failed try leaves nothing behind.
func (p *Plugin) register(ctx context.Context, watch *socketWatch) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timing.register)
	defer cancel()
	conn, kubelet, err := connect(ctx, watch)
	if err != nil {
		return nil, err
	}
	s, err := p.newSession(ctx, kubelet)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	err = callRegister(ctx, conn, &pluginapi.RegisterRequest{
		Version:      pluginapi.Version,
		Endpoint:     filepath.Base(s.socket),
		ResourceName: p.config.Resource,
		Options:      options(),
	})
	if err == nil {
		select {
		case <-s.opened:
			return s, nil
		case <-ctx.Done():
			err = errors.New("kubelet has not asked for the list of slots")
		}
	}
	s.stop()
	return nil, err
}

// connect opens a connection to kubelet and says which socket it is to. One that was
// replaced meanwhile is as good as none: taken for the new one, it would cost a
// second registration, during which kubelet has no slots.
func connect(ctx context.Context, watch *socketWatch) (net.Conn, os.FileInfo, error) {
	kubelet := watch.identity()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", watch.path)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNoKubelet, err)
	}
	if now := watch.identity(); now == nil || !sameSocket(kubelet, now) {
		return nil, nil, errors.Join(errNoKubelet, conn.Close())
	}
	return conn, kubelet, nil
}

// callRegister calls kubelet on a connection, and closes it.
func callRegister(ctx context.Context, conn net.Conn, request *pluginapi.RegisterRequest) error {
	once := make(chan net.Conn, 1)
	once <- conn
	client, err := grpc.NewClient("passthrough:///kubelet",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errNoKubelet // it has closed the connection; do not talk to a next one
			}
		}))
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	_, err = pluginapi.NewRegistrationClient(client).Register(ctx, request)
	err = errors.Join(err, client.Close())
	select {
	case c := <-once: // never used
		err = errors.Join(err, c.Close())
	default:
	}
	return err
}

// removeDeadSockets removes sockets that a killed agent left. Kubelet does so only
// when it starts. A socket that answers belongs to someone alive.
func removeDeadSockets(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, socketPrefix+"*"+socketSuffix)) // the pattern is well formed
	for _, path := range paths {
		conn, err := net.Dial("unix", path)
		if err != nil {
			_ = os.Remove(path) // only untidy
			continue
		}
		_ = conn.Close()
	}
}
