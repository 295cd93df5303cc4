// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const containerdSocket = "/run/containerd/containerd.sock"

// kubelet's ports, on the node's own address, so that all nodes can have the same.
const kubeletPort, kubeletHealthPort = 10250, 10248

// writeFiles writes the configuration of the node's programs.
func (n *Node) writeFiles(cfg NodeConfig) error {
	c := n.cluster
	if err := os.MkdirAll(filepath.Join(n.dir(), "etc/cni/net.d"), 0o755); err != nil {
		return fmt.Errorf("making the node's directory: %w", err)
	}
	serving := "kubelet-" + n.Name
	if err := c.ca.server(serving, []net.IP{net.ParseIP(n.IP)}, n.Name); err != nil {
		return err
	}
	kubeconfig := filepath.Join(n.dir(), "kubelet.kubeconfig")
	if err := c.ca.clientKubeconfig(kubeconfig, c.cfg.serverURL(), "system:node:"+n.Name, "system:nodes"); err != nil {
		return err
	}
	kubelet := n.kubeletConfig(c.ca.certFile(serving), c.ca.keyFile(serving), cfg)
	return errors.Join(
		writeJSON(filepath.Join(n.dir(), "kubelet.json"), kubelet),
		writeJSON(filepath.Join(n.dir(), "etc/cni/net.d/10-net.conflist"), n.cniConfig()),
		os.WriteFile(filepath.Join(n.dir(), "containerd.toml"), []byte(n.containerdConfig()), 0o644),
	)
}

// kubeletConfig is a KubeletConfiguration. The caller's fields replace whole fields of ours.
func (n *Node) kubeletConfig(certFile, keyFile string, cfg NodeConfig) map[string]any {
	type fields = map[string]any
	k := fields{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",

		"address": n.IP, "port": kubeletPort, "healthzBindAddress": n.IP, "healthzPort": kubeletHealthPort,
		"tlsCertFile": certFile, "tlsPrivateKeyFile": keyFile,
		"authentication": fields{
			"anonymous": fields{"enabled": false}, "webhook": fields{"enabled": true},
			"x509": fields{"clientCAFile": n.cluster.ca.certFile("ca")},
		},
		"authorization": fields{"mode": "Webhook"},

		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + n.cgroup(), // else the clean-up of one kubelet kills the pods of the others
		"failCgroupV1":             false,            // default true since 1.35; no effect on version 2
		"failSwapOn":               false,
		"volumePluginDir":          "/var/lib/kubelet/volume-plugins",
		"makeIPTablesUtilChains":   false,
		"clusterDNS":               []string{serviceDNS}, // nobody answers; without it every pod gets a warning event

		// A new device or a lost one shows in the Node within a second. Without the
		// second field kubelet would also write an unchanged status every second.
		"nodeStatusUpdateFrequency": "1s",
		"nodeStatusReportFrequency": "1m",

		// The disk belongs to the machine; a test must not depend on how full it is.
		"evictionHard":                fields{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
		"imageGCHighThresholdPercent": 100,
	}
	if len(cfg.Taints) > 0 {
		k["registerWithTaints"] = cfg.Taints
	}
	maps.Copy(k, cfg.Kubelet)
	return k
}

// cniConfig gives pods addresses of the node's subnet. The bridge exists, with the
// gateway's address: letting the plugin make it would switch on IP forwarding for
// the whole machine.
func (n *Node) cniConfig() map[string]any {
	type fields = map[string]any
	return fields{
		"cniVersion": "1.0.0", "name": "net",
		"plugins": []fields{{
			"type": "bridge", "bridge": n.bridge(),
			"ipam": fields{
				"type":   "host-local",
				"ranges": [][]fields{{{"subnet": n.subnet.Masked().String(), "gateway": n.IP}}},
				"routes": []fields{{"dst": "0.0.0.0/0"}},
			},
		}},
	}
}

// containerdConfig: NRI is off because its socket path is the same for all nodes;
// restrict_oom_score_adj because a root without CAP_SYS_RESOURCE, usual in
// containers and small VMs, could not start a single sandbox.
func (n *Node) containerdConfig() string {
	return fmt.Sprintf(`version = 3

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  enable_cdi = true
  cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = "/etc/cni/net.d"
`, PauseImage, n.cluster.cfg.Bin)
}

func joinLabels(labels map[string]string) string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, key+"="+labels[key])
	}
	return strings.Join(pairs, ",")
}
