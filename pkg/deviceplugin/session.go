// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Sockets are in kubelet's directory; the whole path may have 107 bytes.
const (
	socketPrefix = "dynamig-"
	socketSuffix = ".sock"
)

// session is one registration: a socket that no other registration ever had, the
// server on it, and the one stream by which kubelet watches the slots. Kubelet 1.37
// wedges when a path registers twice: it refuses the second as already connected,
// forgets the first, and never notices its end (plugin/v1beta1/handler.go).
//
//	newSession --> serving --kubelet calls ListAndWatch--> open --stream ends--> ended
//	                  |                                     |                      |
//	                  +------------------ stop -------------+----------------------+
type session struct {
	socket  string
	kubelet os.FileInfo // kubelet's socket at the time
	server  *grpc.Server
	serving sync.WaitGroup

	opened, ended       chan struct{}
	openOnce, endedOnce sync.Once
}

// newSession listens on a new socket and serves it.
func (p *Plugin) newSession(ctx context.Context, kubelet os.FileInfo) (*session, error) {
	s := &session{
		socket:  filepath.Join(p.config.PluginDir, socketPrefix+rand.Text()[:12]+socketSuffix),
		kubelet: kubelet,
		opened:  make(chan struct{}),
		ended:   make(chan struct{}),
	}
	listener, err := net.Listen("unix", s.socket)
	if err != nil {
		return nil, fmt.Errorf("listening for kubelet: %w", err)
	}
	logger := klog.FromContext(ctx)
	s.server = grpc.NewServer(
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			return p.metrics.observe(klog.NewContext(ctx, logger), req, info, next)
		}))
	pluginapi.RegisterDevicePluginServer(s.server, &service{plugin: p, session: s})
	s.serving.Go(func() {
		if err := s.server.Serve(listener); err != nil {
			logger.Error(err, "Serving kubelet ended", "socket", s.socket)
			s.end()
		}
	})
	return s, nil
}

func (s *session) open() { s.openOnce.Do(func() { close(s.opened) }) }
func (s *session) end()  { s.endedOnce.Do(func() { close(s.ended) }) }

// hold returns when the stream or ctx has ended, another kubelet is there, or there
// is no slot left that kubelet has to know.
func (s *session) hold(ctx context.Context, watch *socketWatch, p *Plugin) {
	for {
		yes, changed := p.listed(true)
		if !yes {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-s.ended:
			return
		case <-watch.touched:
			if now := watch.identity(); now != nil && !sameSocket(s.kubelet, now) {
				return
			}
		}
	}
}

// stop ends the stream and waits until nothing of the session is left.
func (s *session) stop() {
	s.server.Stop()
	s.serving.Wait()
	_ = os.Remove(s.socket) // mostly gone with the listener, or removed by kubelet
}
