// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	genericfilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
)

// Config says what to serve, and to whom.
type Config struct {
	BindAddress string // IP address
	Port        int    // 0 serves nothing
	CertFile    string // TLS where set, with KeyFile
	KeyFile     string
	// Authenticate asks the API server who a reader is and whether they may get the
	// path, for everything but the page's own files and /healthz.
	Authenticate bool

	InstanceMetrics bool
	HAMiMetrics     bool
	LegacyMetrics   bool
}

// AddFlags adds the monitor's flags, with their defaults.
func (c *Config) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.BindAddress, "monitor-bind-address", "0.0.0.0", "IP address on which the monitor (metrics, JSON API, page) listens.")
	fs.IntVar(&c.Port, "monitor-port", 9395, "Port of the monitor; 0 switches it off.")
	fs.StringVar(&c.CertFile, "monitor-tls-cert-file", "", "File with the monitor's TLS certificate; it is read again when it changes. Empty: plain HTTP.")
	fs.StringVar(&c.KeyFile, "monitor-tls-private-key-file", "", "File with the key of --monitor-tls-cert-file.")
	fs.BoolVar(&c.Authenticate, "monitor-authentication", false,
		"Ask the API server who a reader of the monitor is (bearer token or client certificate) and whether they may get the path (nonResourceURLs). Needs TLS.")
	fs.BoolVar(&c.InstanceMetrics, "monitor-instance-metrics", true, "Serve metrics with one series for each MIG instance or container.")
	fs.BoolVar(&c.HAMiMetrics, "monitor-hami-metrics", true, "Serve metrics under HAMi's names (hami_*).")
	fs.BoolVar(&c.LegacyMetrics, "monitor-legacy-metrics", false, "Serve metrics under the names that HAMi had up to 2.8 (GPUDeviceMemoryLimit and others).")
}

// Validate says what is wrong with the flags.
func (c *Config) Validate() error {
	switch {
	case c.Port < 0 || c.Port > 65535:
		return fmt.Errorf("--monitor-port is %d; use 1 to 65535, or 0 for no monitor", c.Port)
	case net.ParseIP(c.BindAddress) == nil && c.Port != 0:
		return fmt.Errorf("--monitor-bind-address is %q; use an IP address such as 0.0.0.0", c.BindAddress)
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("--monitor-tls-cert-file and --monitor-tls-private-key-file belong together; set both or none")
	case c.Authenticate && c.CertFile == "":
		return errors.New("--monitor-authentication needs --monitor-tls-cert-file: tokens must not travel in plain text")
	}
	return nil
}

// shutdownTimeout is how long requests may finish once the program ends.
const shutdownTimeout = time.Second

// Serve listens until ctx ends. It returns once the port is open, or with the
// reason why it cannot be.
func (m *Monitor) Serve(ctx context.Context) error {
	if m.cfg.Port == 0 {
		return nil
	}
	address := net.JoinHostPort(m.cfg.BindAddress, strconv.Itoa(m.cfg.Port))
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("opening the monitor's port; choose another with --monitor-port, or 0 for no monitor: %w", err)
	}
	if m.cfg.CertFile != "" {
		err = m.serveTLS(ctx, listener)
	} else {
		m.servePlain(ctx, listener)
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	klog.FromContext(ctx).Info("Monitor is serving", "address", address, "tls", m.cfg.CertFile != "", "authentication", m.cfg.Authenticate)
	return nil
}

func open(h http.Handler) http.Handler { return h }

func (m *Monitor) servePlain(ctx context.Context, listener net.Listener) {
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

// serveTLS serves as Kubernetes' own components do.
func (m *Monitor) serveTLS(ctx context.Context, listener net.Listener) error {
	cert, err := dynamiccertificates.NewDynamicServingContentFromFiles("monitor", m.cfg.CertFile, m.cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("reading the monitor's certificate: %w", err)
	}
	info := &server.SecureServingInfo{Listener: listener, Cert: cert, HTTP2MaxStreamsPerConnection: 250}
	guard := open
	if m.cfg.Authenticate {
		if guard, err = m.guard(ctx, info); err != nil {
			return err
		}
	}
	if _, _, err := info.Serve(m.Handler(guard), shutdownTimeout, ctx.Done()); err != nil {
		return fmt.Errorf("serving the monitor with TLS: %w", err)
	}
	return nil
}

// guard lets readers pass whom the API server knows, by token or certificate, and
// allows the path.
func (m *Monitor) guard(ctx context.Context, info *server.SecureServingInfo) (func(http.Handler) http.Handler, error) {
	ca, err := dynamiccertificates.NewDynamicCAFromConfigMapController("client-ca", metav1.NamespaceSystem,
		"extension-apiserver-authentication", "client-ca-file", m.client)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's client CA: %w", err)
	}
	if err := ca.RunOnce(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Client certificates are not accepted by the monitor until the cluster's client CA can be read")
	}
	go ca.Run(ctx, 1)
	info.ClientCA = ca
	authenticator, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient: m.client.AuthenticationV1(), TokenAccessReviewTimeout: 10 * time.Second,
		WebhookRetryBackoff: options.DefaultAuthWebhookRetryBackoff(), CacheTTL: 10 * time.Second,
		ClientCertificateCAContentProvider: ca,
	}.New()
	if err != nil {
		return nil, fmt.Errorf("setting up the monitor's authentication: %w", err)
	}
	authorizer, err := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: m.client.AuthorizationV1(), AllowCacheTTL: 10 * time.Second, DenyCacheTTL: 10 * time.Second,
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
