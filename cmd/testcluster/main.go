// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command testcluster starts, shows and removes the cluster of package
// test/cluster. It knows nothing about GPUs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dynamig/dynamig/test/cluster"
)

const usage = `usage: testcluster COMMAND [FLAGS]

  up          start a cluster, removing a former one of the same name, and its nodes
  down        remove the cluster, complete or half-started
  status      list nodes and processes
  kubeconfig  print the path of a kubeconfig file: the administrator's, or -user's
  add-node    add the nodes named as arguments
  restart     PLACE PROCESS, as status lists them: start a process again, stopping it first if it runs
  leftovers   list what exists of a cluster; fails if that is anything

Flags:
`

type options struct {
	cluster.Config
	nodes int
	user  string
	group string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	opts := options{Config: cluster.Config{Out: out}}
	flags := flag.NewFlagSet("testcluster", flag.ExitOnError)
	flags.StringVar(&opts.Name, "name", "dev", "cluster `name`, up to 9 letters and digits")
	flags.StringVar(&opts.Dir, "dir", "", "state `directory` (default .build/cluster/NAME; status and kubeconfig: that of the only cluster)")
	flags.StringVar(&opts.Bin, "bin", ".build/tools/bin", "`directory` that hack/build-tools.sh fills")
	flags.IntVar(&opts.PortBase, "port-base", cluster.DefaultPortBase, "first of a few consecutive TCP `ports` on 127.0.0.1")
	flags.IntVar(&opts.nodes, "nodes", 1, "up: number of nodes, called node1, node2, ...")
	flags.StringVar(&opts.user, "user", "", "kubeconfig: sign a certificate for this `user`")
	flags.StringVar(&opts.group, "groups", "", "kubeconfig: the user's groups, separated by commas")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	commands := map[string]func(context.Context, options, []string) error{
		"up": up, "down": down, "status": status, "kubeconfig": kubeconfig, "add-node": addNodes, "restart": restart, "leftovers": leftovers,
	}
	if len(args) > 0 && slices.Contains([]string{"-h", "-help", "--help", "help"}, args[0]) {
		flags.SetOutput(out)
		flags.Usage()
		return nil
	}
	if len(args) == 0 || commands[args[0]] == nil {
		flags.Usage()
		return errors.New("no such command")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if err := opts.locate(args[0], flags); err != nil {
		return err
	}
	return commands[args[0]](ctx, opts, flags.Args())
}

// locate fills in the directory. Commands that only look take the one cluster that
// there is, where neither name nor directory is given: make demo and the tests have
// their own.
func (o *options) locate(command string, flags *flag.FlagSet) error {
	given := o.Dir != ""
	flags.Visit(func(f *flag.Flag) { given = given || f.Name == "name" })
	if o.Dir == "" {
		o.Dir = filepath.Join(".build", "cluster", o.Name)
	}
	if given || command != "status" && command != "kubeconfig" {
		return nil
	}
	var found []string
	for _, pattern := range []string{".build/*/cluster.json", ".build/cluster/*/cluster.json"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			found = append(found, filepath.Dir(file))
		}
	}
	switch len(found) {
	case 0:
		return nil // the command says what is missing
	case 1:
		o.Dir = found[0]
		return nil
	}
	return fmt.Errorf("there are several clusters; name one with -dir: %s", strings.Join(found, ", "))
}

func up(ctx context.Context, opts options, _ []string) error {
	began := time.Now()
	c, err := cluster.Start(ctx, opts.Config)
	if err != nil {
		return err
	}
	var names []string
	for i := range opts.nodes {
		names = append(names, fmt.Sprintf("node%d", i+1))
	}
	if err := add(ctx, c, names); err != nil {
		return errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}
	fmt.Fprintf(opts.Out, "cluster %s is up after %.1fs:\n  export KUBECONFIG=%s\n", c.Name(), time.Since(began).Seconds(), c.AdminKubeconfig())
	return nil
}

func addNodes(ctx context.Context, opts options, names []string) error {
	c, err := cluster.Open(opts.Config)
	if err != nil {
		return err
	}
	return add(ctx, c, names)
}

// add starts nodes one after the other, which on two cores takes no longer than
// all at once.
func add(ctx context.Context, c *cluster.Cluster, names []string) error {
	for _, name := range names {
		if _, err := c.AddNode(ctx, cluster.NodeConfig{Name: name}); err != nil {
			return err
		}
	}
	return nil
}

func down(ctx context.Context, opts options, _ []string) error {
	return cluster.Down(ctx, opts.Config)
}

// open is the cluster with all its processes.
func open(opts options) (*cluster.Cluster, []*cluster.Process, error) {
	c, err := cluster.Open(opts.Config)
	if err != nil {
		return nil, nil, err
	}
	all, err := c.Processes()
	return c, all, err
}

func status(_ context.Context, opts options, _ []string) error {
	c, all, err := open(opts)
	if err != nil {
		return err
	}
	fmt.Fprintf(opts.Out, "cluster %s, API server https://127.0.0.1:%d, state in %s\n", c.Name(), c.APIPort(), c.Dir())
	table := tabwriter.NewWriter(opts.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "PLACE\tPROCESS\tPID\tLOG")
	for _, p := range all {
		pid := "ended"
		if p.Running() {
			pid = fmt.Sprint(p.PID())
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", p.Place(), p.Name, pid, p.Log)
	}
	return table.Flush()
}

// restart starts a process again as it was started last, dead or alive.
func restart(ctx context.Context, opts options, args []string) error {
	if len(args) != 2 {
		return errors.New("restart takes a place and a process, such as: restart node1 kubelet; status lists them")
	}
	_, all, err := open(opts)
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.Place() == args[0] && p.Name == args[1] {
			return p.Restart(ctx)
		}
	}
	return fmt.Errorf("%s has no process %s; status lists what there is", args[0], args[1])
}

func kubeconfig(_ context.Context, opts options, _ []string) error {
	c, err := cluster.Open(opts.Config)
	if err != nil {
		return err
	}
	path := c.AdminKubeconfig()
	if opts.user != "" {
		groups := strings.FieldsFunc(opts.group, func(r rune) bool { return r == ',' })
		if path, err = c.Kubeconfig(opts.user, groups...); err != nil {
			return err
		}
	}
	fmt.Fprintln(opts.Out, path)
	return nil
}

func leftovers(_ context.Context, opts options, _ []string) error {
	found, err := cluster.Leftovers(opts.Name, opts.Dir)
	for _, line := range found {
		fmt.Fprintln(opts.Out, line)
	}
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%d things of cluster %s exist", len(found), opts.Name)
	}
	return err
}
