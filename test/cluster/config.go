// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// DefaultPortBase is the first port where Config names none.
const DefaultPortBase = 16440

// Ports, relative to Config.PortBase.
const (
	portEtcd = iota
	portEtcdPeer
	portAPIServer
	portControllerManager

	// FreePort is the first port, relative to Config.PortBase, that the cluster does not use.
	FreePort
)

// Config says what to start and where.
type Config struct {
	Name      string    // 1 to 9 letters and digits, a letter first; interfaces and cgroups are named tc-NAME...
	Dir       string    // state directory, absolute or relative; created if missing, else empty or a cluster's
	Bin       string    // directory of the programs that hack/build-tools.sh builds
	PortBase  int       // first of FreePort consecutive TCP ports on 127.0.0.1; 0 means DefaultPortBase
	APIServer []string  // further flags of kube-apiserver, such as --feature-gates=...
	Images    []Image   // images every node has, besides PauseImage and BusyboxImage
	Out       io.Writer `json:"-"` // gets one line per step with the time it took; nil discards
}

// programs are the files that Start and AddNode need in Config.Bin.
var programs = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kubelet", "kubectl",
	"containerd", "containerd-shim-runc-v2", "ctr", "runc",
	"bridge", "host-local", "loopback", "busybox", "pause",
}

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,8}$`)

// complete fills in defaults, makes paths absolute, and names the field that is wrong.
func (cfg Config) complete() (Config, error) {
	if !nameForm.MatchString(cfg.Name) {
		return cfg, fmt.Errorf("Config.Name %q: want 1 to 9 of a-z and 0-9, a letter first", cfg.Name)
	}
	if cfg.Dir == "" {
		return cfg, errors.New("Config.Dir is empty: name a directory for the cluster's state")
	}
	if cfg.PortBase == 0 {
		cfg.PortBase = DefaultPortBase
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	for _, path := range []*string{&cfg.Dir, &cfg.Bin} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return cfg, fmt.Errorf("resolving %q: %w", *path, err)
		}
		*path = abs
	}
	return cfg, nil
}

// checkPrograms names every program that Config.Bin lacks.
func (cfg Config) checkPrograms() error {
	var missing []string
	for _, name := range programs {
		if st, err := os.Stat(filepath.Join(cfg.Bin, name)); err != nil || st.Mode()&0o111 == 0 {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("Config.Bin %s lacks %s: run hack/build-tools.sh", cfg.Bin, strings.Join(missing, ", "))
	}
	return nil
}

func (cfg Config) path(elem ...string) string {
	return filepath.Join(append([]string{cfg.Dir}, elem...)...)
}

func (cfg Config) bin(program string) string { return filepath.Join(cfg.Bin, program) }

func (cfg Config) addr(port int) string { return fmt.Sprintf("127.0.0.1:%d", cfg.PortBase+port) }

func (cfg Config) serverURL() string { return "https://" + cfg.addr(portAPIServer) }

// trace is the name of everything that this cluster leaves outside its directory:
// cgroups are called so, and bridges begin with it and "-". Fits the 15 bytes of
// an interface name up to node index 99.
func (cfg Config) trace() string { return "tc-" + cfg.Name }
