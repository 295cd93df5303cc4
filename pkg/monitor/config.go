// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"errors"
	"fmt"
	"net"

	"github.com/spf13/pflag"
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
