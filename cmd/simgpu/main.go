// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Simgpu plays everybody but the node agent on a simulated GPU node: the
// administrator with nvidia-smi, the jobs that hold instances, and the hardware
// that fails. It changes the state that pkg/nvml/sim keeps below --root, which
// an agent with --driver=sim uses at the same time. Its own calls are not
// counted and no fault hits them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

const long = `simgpu plays everybody but the node agent on a simulated GPU node: the
administrator with nvidia-smi, jobs that hold instances, hardware that fails.

A simulated node is a directory: state.json, and below proc and dev the files and
character devices that the NVIDIA driver would show. Any number of programs may
use it at the same time; an agent does with --driver=sim --sim-root=DIR.

GPUs are named by index or UUID, instances by their GPU instance id (the GI column
of "simgpu list"), profiles by name or reported id.`

const examples = `  # A node with two A100 in MIG mode and one H100 that is not
  simgpu --root /tmp/n1 create-node --gpu A100-SXM4-40GB,count=2,mig=on --gpu H100-80GB

  # What is there
  simgpu --root /tmp/n1 list

  # An administrator cuts a foreign instance, behind the agent's back
  simgpu --root /tmp/n1 create --gpu 0 --profile 3g.20gb --start 4

  # A job uses it; now it cannot be destroyed
  simgpu --root /tmp/n1 hold --gpu 0 --gi 1 --pid 4711

  # The agent's next creation fails; the one after kills the agent half way
  simgpu --root /tmp/n1 fault --call CreateGPUInstance --code INSUFFICIENT_RESOURCES
  simgpu --root /tmp/n1 fault --call CreateGPUInstance --nth 2 --crash after

  # A GPU falls off the bus; the node is started again
  simgpu --root /tmp/n1 lose --gpu 1
  simgpu --root /tmp/n1 reboot`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "simgpu: %v\n", err)
		os.Exit(1)
	}
}

// app is what the commands share.
type app struct{ root string }

func newCommand() *cobra.Command {
	a := &app{}
	cmd := &cobra.Command{
		Use:           "simgpu",
		Short:         "Play everybody but the node agent on a simulated GPU node",
		Long:          long,
		Example:       examples,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.PersistentFlags().StringVar(&a.root, "root", "", "directory of the simulated node")
	cmd.AddCommand(
		a.createNode(), a.boards(), a.list(), a.profiles(),
		a.create(), a.destroy(), a.mode(), a.hold(), a.release(),
		a.xid(), a.lose(), a.reset(), a.reboot(), a.dropSessions(),
		a.fault(), a.faults(), a.latency(), a.memory(),
	)
	cmd.CompletionOptions.HiddenDefaultCmd = true
	return cmd
}

// node returns the node of --root.
func (a *app) node() (*sim.Node, error) {
	if a.root == "" {
		return nil, fmt.Errorf("no node: give its directory with --root")
	}
	return sim.Load(a.root)
}

// session opens a session of somebody else on the node of --root.
func (a *app) session() (*sim.Driver, error) {
	if a.root == "" {
		return nil, fmt.Errorf("no node: give its directory with --root")
	}
	return sim.Open(a.root, sim.Uncounted())
}

// gpuNamed finds a GPU by index or UUID.
func gpuNamed(s sim.State, name string) (sim.GPU, error) {
	i := slices.IndexFunc(s.GPUs, func(g sim.GPU) bool { return string(g.UUID) == name || strconv.Itoa(g.Index) == name })
	if i < 0 {
		return sim.GPU{}, fmt.Errorf("this node has no GPU %q: see simgpu list", name)
	}
	return s.GPUs[i], nil
}

// gpuOf is gpuNamed on a node's present state.
func gpuOf(n *sim.Node, name string) (sim.GPU, error) {
	s, err := n.Dump()
	if err != nil {
		return sim.GPU{}, err
	}
	return gpuNamed(s, name)
}

// profileNamed finds a profile of a GPU by name or reported id.
func profileNamed(s sim.State, g sim.GPU, name string) (nvml.ProfileID, error) {
	var names []string
	for _, p := range s.Models[g.Model].Profiles {
		if p.Name == name || strconv.Itoa(int(p.ID)) == name {
			return p.ID, nil
		}
		names = append(names, p.Name)
	}
	return 0, fmt.Errorf("GPU %d has no profile %q: it has %s", g.Index, name, strings.Join(names, ", "))
}

// gpuFlag adds the flag that names a GPU.
func gpuFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "gpu", "", "index or UUID of the GPU")
	required(cmd, "gpu")
}

// required marks flags that cannot be left out.
func required(cmd *cobra.Command, flags ...string) {
	for _, f := range flags {
		if err := cmd.MarkFlagRequired(f); err != nil {
			panic(err) // no such flag: a mistake in this program
		}
	}
}

func parseOnOff(text string) (bool, error) {
	switch text {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither on nor off", text)
}
