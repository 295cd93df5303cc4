// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command demo tells dynamig's first story on a real cluster with simulated GPUs,
// and verifies each step. With --once it tears the cluster down and exits 0 only if
// every step held; otherwise the cluster stays up to play with.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dynamig/dynamig/test/cluster"
	"github.com/dynamig/dynamig/test/stack"
)

// smallPods is how many small pods two A100-40GB hold beside gpu-pod: seven and one
// of 1g.5gb, and one in the last 2g.10gb.
const smallPods = 9

func main() {
	repo := flag.String("repo", ".", "root of the repository")
	build := flag.String("build", ".build", "directory with tools/bin and bin")
	port := flag.Int("port-base", cluster.DefaultPortBase, "first of the TCP ports used on 127.0.0.1")
	once := flag.Bool("once", false, "tear down at the end")
	stop := flag.Bool("stop", false, "only remove the demo's cluster")
	flag.Parse()

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	cfg := stack.Config{
		Repo:     *repo,
		Programs: filepath.Join(*build, "bin"),
		Cluster: cluster.Config{
			Name: "demo", Dir: filepath.Join(*build, "demo"), Bin: filepath.Join(*build, "tools/bin"),
			PortBase: *port, Out: os.Stdout,
		},
	}
	var err error
	if *stop {
		if err = cluster.Down(ctx, cfg.Cluster); err == nil {
			fmt.Println("The demo's cluster is gone; its logs stay in", filepath.Join(cfg.Cluster.Dir, "log"))
		}
	} else {
		err = run(ctx, cfg, *once)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run tells the story.
func run(ctx context.Context, cfg stack.Config, once bool) (err error) {
	began := time.Now()
	title("A cluster: etcd, kube-apiserver, kube-controller-manager, dynamig's scheduler")
	s, err := stack.Up(ctx, cfg)
	if err != nil {
		return err
	}
	if once {
		defer func() { err = errors.Join(err, s.Cluster.Stop(context.WithoutCancel(ctx))) }()
	}
	st := story{Stack: s, repo: cfg.Repo, programs: cfg.Programs}
	for _, chapter := range []func(context.Context) error{st.podFirst, st.whatItGot, st.fillGaps, st.oneMore, st.templateChanges} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	title(fmt.Sprintf("Done in %.1f s; every step was verified", time.Since(began).Seconds()))
	if once {
		return nil
	}
	fmt.Printf(`The cluster stays up:

  export KUBECONFIG=%s PATH=%s:%s:$PATH
  kubectl mig status --watch
  kubectl mig explain pod gpu-pod
  kubectl get pods -o wide
  kubectl delete pod larger-1
  kubectl create -f examples/small-pod.yaml

The live page is at %s, metrics at %[4]s/metrics.
Logs are in %s.

`, s.Cluster.AdminKubeconfig(), absolute(cfg.Cluster.Bin), absolute(cfg.Programs), s.Monitor(), filepath.Join(s.Cluster.Dir(), "log"))
	node, err := s.Node("node1")
	if err != nil {
		return err
	}
	fmt.Printf(`Play the administrator or failing hardware of node1: simgpu --root %s list (or --help)
The agent's live configuration: %s
Start the agent again: testcluster restart -dir %s node1 nodeagent
Remove it all with: make demo-stop%s
`, node.SimRoot, filepath.Dir(node.ConfigFile("config.json")), s.Cluster.Dir(), portBase(cfg.Cluster.PortBase))
	return nil
}

// portBase is make's argument for other ports than the usual ones.
func portBase(port int) string {
	if port == cluster.DefaultPortBase {
		return ""
	}
	return fmt.Sprintf(" PORT_BASE=%d", port)
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

func title(text string) { fmt.Printf("\n== %s\n\n", text) }
