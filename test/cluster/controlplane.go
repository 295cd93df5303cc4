// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// serviceNetwork is where Services would have their addresses; nothing answers there.
const serviceNetwork, serviceAPI, serviceDNS = "10.96.0.0/16", "10.96.0.1", "10.96.0.10"

// controllers are those that pods, their owners, nodes and ServiceAccounts need.
// The full list would take 5 s longer to be ready.
var controllers = []string{
	"serviceaccount-controller", "serviceaccount-token-controller", "root-ca-certificate-publisher-controller",
	"clusterrole-aggregation-controller", "namespace-controller", "garbage-collector-controller",
	"daemonset-controller", "deployment-controller", "replicaset-controller", "job-controller",
	"disruption-controller", "node-lifecycle-controller", "taint-eviction-controller", "pod-garbage-collector-controller",
}

// writeCertificates makes everything that the control plane's programs prove themselves with.
func (c *Cluster) writeCertificates() (err error) {
	if c.ca, err = newAuthority(c.cfg.path("pki")); err != nil {
		return err
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(serviceAPI)}
	if err := c.ca.server("apiserver", ips, "localhost", "kubernetes.default.svc"); err != nil {
		return err
	}
	if err := c.ca.write("to-kubelet", clientTemplate("kube-apiserver-kubelet-client", []string{"system:masters"})); err != nil {
		return err
	}
	if err := c.ca.clientKubeconfig(c.AdminKubeconfig(), c.cfg.serverURL(), "admin", "system:masters"); err != nil {
		return err
	}
	return c.ca.clientKubeconfig(c.cfg.path("pki", "controller-manager.kubeconfig"), c.cfg.serverURL(), "system:kube-controller-manager")
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	steps := []struct {
		name  string
		start func(context.Context) error
	}{
		{"etcd", c.startEtcd},
		{"kube-apiserver", c.startAPIServer},
		{"kube-controller-manager", c.startControllerManager},
	}
	for _, s := range steps {
		if err := c.step(s.name, func() error { return s.start(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	client, peer := "http://"+c.cfg.addr(portEtcd), "http://"+c.cfg.addr(portEtcdPeer)
	etcd, err := c.host().launch("etcd", []string{c.cfg.bin("etcd"),
		"--data-dir", c.cfg.path("etcd"),
		"--unsafe-no-fsync", // the data is thrown away with the cluster
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", "default=" + peer,
	}, nil)
	if err != nil {
		return err
	}
	return etcd.await(ctx, func(ctx context.Context) error { return healthy(ctx, client+"/health") })
}

// healthy returns nil if url answers 200.
func healthy(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true // no connection is kept
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	argv := append([]string{c.cfg.bin("kube-apiserver"),
		"--etcd-servers=http://" + c.cfg.addr(portEtcd),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", c.cfg.PortBase+portAPIServer),
		"--tls-cert-file=" + c.ca.certFile("apiserver"), "--tls-private-key-file=" + c.ca.keyFile("apiserver"),
		"--client-ca-file=" + c.ca.certFile("ca"),
		// The front proxy has the same authority, so it needs a name that no user has.
		"--requestheader-client-ca-file=" + c.ca.certFile("ca"), "--requestheader-allowed-names=front-proxy-client",
		"--kubelet-client-certificate=" + c.ca.certFile("to-kubelet"), "--kubelet-client-key=" + c.ca.keyFile("to-kubelet"),
		"--kubelet-certificate-authority=" + c.ca.certFile("ca"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-key-file=" + c.ca.keyFile("sa"), "--service-account-signing-key-file=" + c.ca.keyFile("sa"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction", // besides the default ones, admission policies among them
		"--allow-privileged", "--service-cluster-ip-range=" + serviceNetwork, "--endpoint-reconciler-type=none",
	}, c.cfg.APIServer...)
	server, err := c.host().launch("kube-apiserver", argv, nil)
	if err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	return c.apiServerReady(ctx, server)
}

func (c *Cluster) apiServerReady(ctx context.Context, server *Process) error {
	return server.await(ctx, func(ctx context.Context) error {
		return c.client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// RestartAPIServer kills kube-apiserver and starts it again; clients and tokens stay
// good. A program that lost its lease meanwhile may have ended.
func (c *Cluster) RestartAPIServer(ctx context.Context) error {
	server := c.host().process("kube-apiserver")
	if err := errors.Join(server.Kill(ctx), server.Restart(ctx)); err != nil {
		return err
	}
	return c.apiServerReady(ctx, server)
}

// startControllerManager waits until pods can be created: that takes the default
// ServiceAccount and the root certificate which their tokens are mounted with.
func (c *Cluster) startControllerManager(ctx context.Context) error {
	kubeconfig := c.cfg.path("pki", "controller-manager.kubeconfig")
	manager, err := c.host().launch("kube-controller-manager", []string{c.cfg.bin("kube-controller-manager"),
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", c.cfg.PortBase+portControllerManager),
		"--service-account-private-key-file=" + c.ca.keyFile("sa"), "--root-ca-file=" + c.ca.certFile("ca"),
		"--use-service-account-credentials", "--leader-elect=false",
		"--kube-api-qps=500", "--kube-api-burst=1000",
		"--controllers=" + strings.Join(controllers, ","),
	}, nil)
	if err != nil {
		return err
	}
	return manager.await(ctx, func(ctx context.Context) error {
		_, err := c.client.CoreV1().ServiceAccounts(corev1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			_, err = c.client.CoreV1().ConfigMaps(corev1.NamespaceDefault).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		}
		return err
	})
}
