// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProcessWithAnotherStartTimeIsNotTouched(t *testing.T) {
	cmd := exec.Command("sleep", "3600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	real, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := (&tracker{run: dir, logs: dir}).process("reused")
	if err := writeJSON(p.file(), record{identity: identity{PID: real.PID, Start: real.Start - 1}}); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Error("a process whose pid was used again counts as running")
	}
	if err := errors.Join(p.Stop(t.Context()), p.Kill(t.Context())); err != nil {
		t.Error(err)
	}
	if !real.alive() {
		t.Error("a process that only shares the pid was killed")
	}
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := claim(Config{Name: "a", Dir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("claiming a directory with somebody's file = %v; want an error that names it", err)
	}
	dir = t.TempDir()
	if err := claim(Config{Name: "a", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if err := claim(Config{Name: "a", Dir: dir}); err != nil {
		t.Errorf("claiming one's own directory again: %v", err)
	}
	if err := claim(Config{Name: "b", Dir: dir}); err == nil || !strings.Contains(err.Error(), "cluster a") {
		t.Errorf("claiming the directory of cluster a for b = %v; want an error that names a", err)
	}
}

func TestConfigErrorNamesTheField(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"no name", Config{Dir: "d"}, "Config.Name"},
		{"a name with a dash could be taken for another cluster's node", Config{Name: "a-1", Dir: "d"}, "Config.Name"},
		{"a name too long for an interface", Config{Name: "abcdefghij", Dir: "d"}, "Config.Name"},
		{"no directory", Config{Name: "a"}, "Config.Dir"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := tc.cfg.complete(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("complete() = %v; want an error that names %s", err, tc.want)
			}
		})
	}
	err := Config{Bin: t.TempDir()}.checkPrograms()
	for _, want := range []string{"Config.Bin", "kube-apiserver", "hack/build-tools.sh"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("checkPrograms() of an empty directory = %v; want an error that names %s", err, want)
		}
	}
}

func TestNetworkAvoidsAddressesInUse(t *testing.T) {
	addr := func(cidr string) net.Addr {
		ip, n, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		return &net.IPNet{IP: ip, Mask: n.Mask}
	}
	n := network(100)
	if got := n.nodePrefix(7).String(); got != "10.100.7.1/24" {
		t.Errorf("address of node 7 = %s; want 10.100.7.1/24", got)
	}
	for cidr, want := range map[string]bool{
		"10.100.3.1/24": true, "10.101.3.1/24": false, "10.0.0.5/8": true, "192.168.1.2/24": false, "::1/128": false,
	} {
		if got := n.in([]net.Addr{addr(cidr)}); got != want {
			t.Errorf("10.100.0.0/16 overlaps %s = %v; want %v", cidr, got, want)
		}
	}
}

func TestArchiveHoldsTheImageAndIsReproducible(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	im := Image{
		Name: "example.test/a:1", Files: map[string]string{"/usr/bin/program": program, "/usr/bin/twin": program},
		Links: map[string]string{"/p": "usr/bin/program"}, Entrypoint: []string{"/p"},
	}
	var archives [2][]byte
	for i := range archives {
		file := filepath.Join(dir, "image.tar")
		if err := im.WriteArchive(file); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = data
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of the same image differ")
	}

	files := untar(t, archives[0])
	var config struct {
		Config struct{ Entrypoint []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(files["config.json"], &config); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(files["layer.tar"])
	if want := []string{"sha256:" + hex.EncodeToString(sum[:])}; !cmp.Equal(config.RootFS.DiffIDs, want) {
		t.Errorf("diff_ids = %v; want the layer's %v", config.RootFS.DiffIDs, want)
	}
	want := map[string][]byte{
		"tmp/": {}, "usr/": {}, "usr/bin/": {}, "p": []byte("-> usr/bin/program"),
		"usr/bin/program": []byte("#!"), "usr/bin/twin": []byte("#!"),
	}
	if diff := cmp.Diff(want, untar(t, files["layer.tar"])); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

// untar returns the contents by name; of a link, its target.
func untar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink {
			data = []byte("-> " + h.Linkname)
		}
		files[h.Name] = data
	}
}

// TestVersion2CgroupDelegatesItsControllers works on whatever cgroup2 tree this
// machine has mounted, also beside version 1.
func TestVersion2CgroupDelegatesItsControllers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making cgroups needs root")
	}
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if !h.v2 {
			continue
		}
		restoreDelegation(t, h.root)
		t.Cleanup(func() {
			if err := removeTree(filepath.Join(h.root, "tc-unit")); err != nil {
				t.Error(err)
			}
		})
		if err := h.make("tc-unit/node"); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{h.root, filepath.Join(h.root, "tc-unit"), filepath.Join(h.root, "tc-unit/node")} {
			has, given := controllersIn(t, dir, "cgroup.controllers"), controllersIn(t, dir, "cgroup.subtree_control")
			if !cmp.Equal(has, given) {
				t.Errorf("%s has controllers %v and gives %v to its children; want all", dir, has, given)
			}
		}
		return
	}
	t.Skip("no cgroup2 tree is mounted on this machine")
}

func controllersIn(t *testing.T, dir, file string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// restoreDelegation takes back, after the test, what it gives to all cgroups of the machine.
func restoreDelegation(t *testing.T, root string) {
	before := strings.Join(controllersIn(t, root, "cgroup.subtree_control"), " ")
	t.Cleanup(func() {
		for _, c := range controllersIn(t, root, "cgroup.subtree_control") {
			if strings.Contains(" "+before+" ", " "+c+" ") {
				continue
			}
			if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("-"+c), 0o644); err != nil {
				t.Error(err)
			}
		}
	})
}
