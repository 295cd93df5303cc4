// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// claimFile marks a directory as a test cluster's, now or formerly.
const claimFile = "test-cluster"

// claim makes cfg.Dir this cluster's. A directory with anything else in it is
// refused, because Start and Down remove things there.
func claim(cfg Config) error {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return fmt.Errorf("looking into the state directory: %w", err)
	}
	file := cfg.path(claimFile)
	owner, err := os.ReadFile(file)
	switch {
	case err != nil && len(entries) > 0:
		return fmt.Errorf("Config.Dir %s is not empty and holds no test cluster: choose another directory", cfg.Dir)
	case err == nil && strings.TrimSpace(string(owner)) != cfg.Name:
		return fmt.Errorf("Config.Dir %s belongs to test cluster %s: choose another directory for %s", cfg.Dir, strings.TrimSpace(string(owner)), cfg.Name)
	}
	return os.WriteFile(file, []byte(cfg.Name+"\n"), 0o644)
}

// lock makes this process the only one that changes the cluster in dir. The kernel
// releases it if the process dies.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	err = poll(ctx, func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s, which another process is changing: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// Down removes the cluster cfg.Name, complete or half-started, with all its nodes,
// pods and tracked processes. Of cfg only Name, Dir and Out count. Everything is
// killed at once: the state is thrown away, so nothing is worth a graceful end.
// Only DIR/log stays. Removing a cluster that is not there is no error.
func Down(ctx context.Context, cfg Config) error {
	cfg, err := cfg.complete()
	if err != nil {
		return err
	}
	if !isDir(cfg.Dir) {
		return down(ctx, cfg)
	}
	if err := claim(cfg); err != nil {
		return err
	}
	unlock, err := lock(ctx, cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	return down(ctx, cfg)
}

// downTimeout limits how long the kernel may take to let go of what was killed.
const downTimeout = time.Minute

// down removes processes first, since they hold everything else.
func down(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	if err := killMarked(ctx, cfg.Name); err != nil {
		return fmt.Errorf("killing the processes of test cluster %s: %w", cfg.Name, err)
	}
	names, err := bridges(cfg.trace())
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeBridge(ctx, name); err != nil {
			return err
		}
	}
	if err := removeCgroup(ctx, cfg.trace()); err != nil {
		return err
	}
	for _, name := range []string{"cluster.json", "run", "etcd", "pki", "kubeconfig", "admin.kubeconfig", "images", "nodes"} {
		if err := removeState(cfg.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// removeState removes a file or directory. Nothing is ever mounted below it on the
// host, but should it be, the removal must not reach through.
func removeState(path string) error {
	mounts, err := mountsOf("self")
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if m.point == path || strings.HasPrefix(m.point, path+"/") {
			if err := unix.Unmount(m.point, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmounting %s: %w", m.point, err)
			}
		}
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("removing state: %w", err)
	}
	return nil
}

// mount is one line of a mountinfo file.
type mount struct {
	point  string
	root   string // directory of the filesystem that is mounted, not "/" for bind mounts
	fsType string
}

// mountsOf returns the mounts that a process sees; proc is its pid or "self".
func mountsOf(proc string) ([]mount, error) {
	f, err := os.Open("/proc/" + proc + "/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading mounts: %w", err)
	}
	defer f.Close()
	var mounts []mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlay mounts have long lines
	for lines.Scan() {
		// ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER-OPTIONS
		front, back, _ := strings.Cut(lines.Text(), " - ")
		f, b := strings.Fields(front), strings.Fields(back)
		if len(f) >= 5 && len(b) >= 1 {
			mounts = append(mounts, mount{point: f[4], root: f[3], fsType: b[0]})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading mounts: %w", err)
	}
	return mounts, nil
}

// Leftovers returns one line for each process, bridge, cgroup and mount of the
// cluster that exists, in the host's or in any other mount namespace. While the
// cluster runs that is a lot; after Down it must be nothing. A pod's network
// namespace counts by the interface in it, whose other end is a port of a bridge.
func Leftovers(name, dir string) ([]string, error) {
	cfg, err := Config{Name: name, Dir: dir}.complete()
	if err != nil {
		return nil, err
	}
	ids, err1 := marked(cfg.Name)
	links, err2 := bridges(cfg.trace())
	cgroups, err3 := cgroupsAt(cfg.trace())
	mounts, err4 := mountedFrom(cfg.Dir)
	var found []string
	for _, id := range ids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id.PID))
		found = append(found, fmt.Sprintf("process %d: %s", id.PID, strings.ReplaceAll(string(cmdline), "\x00", " ")))
	}
	for _, link := range links {
		ports, _ := bridgePorts(link) // gone: no ports
		found = append(found, fmt.Sprintf("bridge %s, ports: %s", link, strings.Join(ports, " ")))
	}
	for _, dir := range cgroups {
		found = append(found, "cgroup "+dir)
	}
	return append(found, mounts...), errors.Join(err1, err2, err3, err4)
}

// mountedFrom looks through all mount namespaces of this machine for mounts on or
// of something below dir.
func mountedFrom(dir string) ([]string, error) {
	threads, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool) // namespaces
	var found []string
	for _, thread := range threads {
		ns, err := os.Readlink(filepath.Join(thread, "ns/mnt"))
		if err != nil || seen[ns] {
			continue // ended meanwhile, or known
		}
		seen[ns] = true
		mounts, err := mountsOf(strings.TrimPrefix(thread, "/proc/"))
		if err != nil {
			continue
		}
		for _, m := range mounts {
			if strings.HasPrefix(m.point, dir+"/") || strings.Contains(m.root+"/", dir+"/nodes/") {
				found = append(found, fmt.Sprintf("mount %s in %s, held by %s", m.point, ns, thread))
			}
		}
	}
	return found, nil
}
