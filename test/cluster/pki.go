// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// lifetime of every certificate and token. Kubernetes logs a warning for longer tokens.
const lifetime = 365 * 24 * time.Hour

// authority is the cluster's only certificate authority. It signs for servers,
// clients, and the front proxy that nobody uses.
type authority struct {
	dir  string // holds ca.crt, ca.key and the pairs signed
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte // of cert
}

// newAuthority makes an authority in dir, and sa.key, which signs ServiceAccount tokens.
func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making a certificate authority: %w", err)
	}
	a := &authority{dir: dir}
	template := x509.Certificate{
		Subject:               pkix.Name{CommonName: "test-cluster-ca"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	err := errors.Join(a.write("ca", template), writeKey(filepath.Join(dir, "sa.key")))
	if err != nil {
		return nil, fmt.Errorf("making a certificate authority: %w", err)
	}
	return loadAuthority(dir)
}

func writeKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	data, err := encodeKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func loadAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir}
	certPEM, err1 := os.ReadFile(a.certFile("ca"))
	keyPEM, err2 := os.ReadFile(a.keyFile("ca"))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("loading the certificate authority: %w", err)
	}
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("loading the certificate authority: ca.crt or ca.key in %s is not PEM", dir)
	}
	a.pem = certPEM
	a.cert, err1 = x509.ParseCertificate(certBlock.Bytes)
	a.key, err2 = x509.ParseECPrivateKey(keyBlock.Bytes)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("loading the certificate authority: %w", err)
	}
	return a, nil
}

func (a *authority) certFile(name string) string { return filepath.Join(a.dir, name+".crt") }
func (a *authority) keyFile(name string) string  { return filepath.Join(a.dir, name+".key") }

// server signs a pair for a server at these addresses and host names.
func (a *authority) server(name string, ips []net.IP, hosts ...string) error {
	return a.write(name, x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		IPAddresses: ips,
		DNSNames:    hosts,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// clientTemplate is a certificate that the API server takes for this user in these groups.
func clientTemplate(user string, groups []string) x509.Certificate {
	return x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// write signs a pair and writes it to NAME.crt and NAME.key.
func (a *authority) write(name string, template x509.Certificate) error {
	cert, key, err := a.sign(template)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(a.certFile(name), cert, 0o644), os.WriteFile(a.keyFile(name), key, 0o600))
}

// sign makes a key and signs the template for it; both are returned in PEM form.
// The authority itself is signed by its own key.
func (a *authority) sign(template x509.Certificate) (certPEM, keyPEM []byte, err error) {
	name := template.Subject.CommonName
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key for %s: %w", name, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, fmt.Errorf("making a serial number for %s: %w", name, err)
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour) // clocks may be set back
	template.NotAfter = time.Now().Add(lifetime)
	parent, signer := a.cert, a.key
	if template.IsCA {
		parent, signer = &template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("signing a certificate for %s: %w", name, err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, fmt.Errorf("encoding the key of %s: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

// clientKubeconfig writes a kubeconfig file with a client certificate for this user.
func (a *authority) clientKubeconfig(file, server, user string, groups ...string) error {
	cert, key, err := a.sign(clientTemplate(user, groups))
	if err != nil {
		return err
	}
	return a.kubeconfig(file, server, &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key})
}

func (a *authority) kubeconfig(file, server string, auth *clientcmdapi.AuthInfo) error {
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["test"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: a.pem}
	cfg.AuthInfos["test"] = auth
	cfg.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	cfg.CurrentContext = "test"
	if err := clientcmd.WriteToFile(*cfg, file); err != nil {
		return fmt.Errorf("writing kubeconfig %s: %w", file, err)
	}
	return nil
}
