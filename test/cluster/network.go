// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// network is 10.N.0.0/16, which a cluster divides among its nodes.
type network int

// Networks lie between 10.64 and 10.191; a cluster's name says where to begin looking.
const firstNetwork, networks = 64, 128

// freeNetwork returns the first network, from the one that belongs to name, in
// which this machine has no address.
func freeNetwork(name string) (network, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return 0, fmt.Errorf("listing this machine's addresses: %w", err)
	}
	h := fnv.New32a()
	h.Write([]byte(name))
	for i := range networks {
		n := network(firstNetwork + (int(h.Sum32()%networks)+i)%networks)
		if !n.in(addrs) {
			return n, nil
		}
	}
	return 0, errors.New("looking for a free network: this machine has an address in each of 10.64.0.0/16 to 10.191.0.0/16")
}

func (n network) in(addrs []net.Addr) bool {
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Overlaps(n.prefix()) {
			return true
		}
	}
	return false
}

func (n network) prefix() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 16)
}

// nodePrefix is the address of a node within its subnet, such as 10.100.1.1/24 for index 1.
func (n network) nodePrefix(index int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), byte(index), 1}), 24)
}

// addBridge makes a bridge with an address that this machine, its nodes and the
// bridge's pods can reach, and nobody else.
func addBridge(ctx context.Context, name string, addr netip.Prefix) error {
	return errors.Join(
		ip(ctx, "link", "add", name, "type", "bridge"),
		ip(ctx, "addr", "add", addr.String(), "dev", name),
		ip(ctx, "link", "set", name, "up"),
	)
}

// removeBridge removes a bridge whose pods have been killed. Their interfaces go
// when the kernel has cleared their network namespaces, a moment later; ports that
// stay longer are removed by name. A missing bridge is no error.
func removeBridge(ctx context.Context, name string) error {
	if !isDir("/sys/class/net/" + name) {
		return nil
	}
	patience, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var ports []string
	_ = poll(patience, func() (err error) {
		if ports, err = bridgePorts(name); err == nil && len(ports) > 0 {
			err = fmt.Errorf("bridge %s still has ports", name)
		}
		return err
	})
	for _, port := range ports {
		if err := ip(ctx, "link", "del", port); err != nil {
			return err
		}
	}
	return ip(ctx, "link", "del", name)
}

func bridgePorts(bridge string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join("/sys/class/net", bridge, "brif"))
	if err != nil {
		return nil, fmt.Errorf("listing the ports of bridge %s: %w", bridge, err)
	}
	var ports []string
	for _, e := range entries {
		ports = append(ports, e.Name())
	}
	return ports, nil
}

// bridges returns the interfaces that belong to a cluster, by name.
func bridges(trace string) ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	var found []string
	for _, i := range all {
		if strings.HasPrefix(i.Name, trace+"-") {
			found = append(found, i.Name)
		}
	}
	return found, nil
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("running ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
