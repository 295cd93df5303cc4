// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package serve puts a monitor on a port: plain, or with TLS and the cluster's own
// authentication and authorization. It is apart from package monitor because it needs
// the libraries of the API server, which are large.
//
// serve knows who may read. It does not know what there is to read.
package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/netutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	genericfilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/monitor"
)

// The most that readers may open: each takes memory and a file of the scheduler's process.
// A page needs some 6 connections, or as many streams of one with TLS.
const (
	maxConnections = 512
	maxStreams     = 32 // of a connection
)

// shutdownTimeout is how long requests may finish once the program ends.
const shutdownTimeout = time.Second

// Serve serves a monitor as cfg says until ctx ends. It returns once the port is open,
// or with the reason why it cannot be. The client asks the API server who readers are.
func Serve(ctx context.Context, cfg monitor.Config, m *monitor.Monitor, client kubernetes.Interface) error {
	if cfg.Port == 0 {
		return nil
	}
	address := net.JoinHostPort(cfg.BindAddress, strconv.Itoa(cfg.Port))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("opening the monitor's port; choose another with --monitor-port, or 0 for no monitor: %w", err)
	}
	listener = netutil.LimitListener(listener, maxConnections)
	if cfg.CertFile != "" {
		err = secure(ctx, cfg, m, client, listener)
	} else {
		plain(ctx, m, listener)
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	klog.FromContext(ctx).Info("Monitor is serving", "address", address, "tls", cfg.CertFile != "", "authentication", cfg.Authenticate)
	return nil
}

func open(h http.Handler) http.Handler { return h }

func plain(ctx context.Context, m *monitor.Monitor, listener net.Listener) {
	s := &http.Server{
		Handler: m.Handler(open), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	go func() {
		if err := s.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			klog.FromContext(ctx).Error(err, "Monitor has stopped serving")
		}
	}()
	go func() {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		_ = s.Shutdown(ctx) // what is left after the time is cut off
		_ = s.Close()
	}()
}

// secure serves with TLS, as Kubernetes' own components do.
func secure(ctx context.Context, cfg monitor.Config, m *monitor.Monitor, client kubernetes.Interface, listener net.Listener) error {
	cert, err := dynamiccertificates.NewDynamicServingContentFromFiles("monitor", cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("reading the monitor's certificate: %w", err)
	}
	info := &server.SecureServingInfo{Listener: listener, Cert: cert, HTTP2MaxStreamsPerConnection: maxStreams}
	guard := open
	if cfg.Authenticate {
		if guard, err = askFirst(ctx, client, info); err != nil {
			return err
		}
	}
	if _, _, err := info.Serve(m.Handler(guard), shutdownTimeout, ctx.Done()); err != nil {
		return fmt.Errorf("serving the monitor with TLS: %w", err)
	}
	return nil
}

// askFirst lets readers pass whom the API server knows, by token or certificate, and
// allows the path.
func askFirst(ctx context.Context, client kubernetes.Interface, info *server.SecureServingInfo) (func(http.Handler) http.Handler, error) {
	ca, err := dynamiccertificates.NewDynamicCAFromConfigMapController("client-ca", metav1.NamespaceSystem,
		"extension-apiserver-authentication", "client-ca-file", client)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's client CA: %w", err)
	}
	if err := ca.RunOnce(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Client certificates are not accepted by the monitor until the cluster's client CA can be read")
	}
	go ca.Run(ctx, 1)
	info.ClientCA = ca
	authenticator, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient: client.AuthenticationV1(), TokenAccessReviewTimeout: 10 * time.Second,
		WebhookRetryBackoff: options.DefaultAuthWebhookRetryBackoff(), CacheTTL: 10 * time.Second,
		ClientCertificateCAContentProvider: ca,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("setting up the monitor's authentication: %w", err)
	}
	authorizer, err := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: client.AuthorizationV1(), AllowCacheTTL: 10 * time.Second, DenyCacheTTL: 10 * time.Second,
		WebhookRetryBackoff: options.DefaultAuthWebhookRetryBackoff(),
	}.New()
	if err != nil {
		return nil, fmt.Errorf("setting up the monitor's authorization: %w", err)
	}
	resolver := &request.RequestInfoFactory{APIPrefixes: sets.NewString(), GrouplessAPIPrefixes: sets.NewString()}
	failed := genericfilters.Unauthorized(scheme.Codecs)
	return func(h http.Handler) http.Handler {
		h = genericfilters.WithAuthorization(h, authorizer, scheme.Codecs)
		h = genericfilters.WithAuthentication(h, authenticator, failed, nil, nil)
		return genericfilters.WithRequestInfo(h, resolver)
	}, nil
}
