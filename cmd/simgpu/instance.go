// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

func (a *app) create() *cobra.Command {
	var (
		gpu, profile string
		start        int
		giOnly       bool
	)
	cmd := &cobra.Command{
		Use:   "create --gpu GPU --profile PROFILE --start N",
		Short: "Create an instance, as an administrator does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.session()
			if err != nil {
				return err
			}
			defer d.Close()
			s, err := d.Dump()
			if err != nil {
				return err
			}
			g, err := gpuNamed(s, gpu)
			if err != nil {
				return err
			}
			id, err := profileNamed(s, g, profile)
			if err != nil {
				return err
			}
			in, err := d.CreateGPUInstance(g.UUID, id, start)
			if err == nil && !giOnly {
				in, err = d.CreateComputeInstance(g.UUID, in.GI)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(fmt.Sprintf("GPU instance %d %s", in.GI, in.UUID)))
			return nil
		},
	}
	gpuFlag(cmd, &gpu)
	cmd.Flags().StringVar(&profile, "profile", "", "name or reported id of the profile")
	cmd.Flags().IntVar(&start, "start", 0, "first memory slice")
	cmd.Flags().BoolVar(&giOnly, "gi-only", false, "leave out the compute instance")
	required(cmd, "profile", "start")
	return cmd
}

func (a *app) destroy() *cobra.Command {
	var (
		gpu    string
		gi     int
		ciOnly bool
	)
	cmd := &cobra.Command{
		Use:   "destroy --gpu GPU [--gi ID]",
		Short: "Destroy one instance of a GPU, or all of them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.session()
			if err != nil {
				return err
			}
			defer d.Close()
			g, err := gpuOf(d.Node, gpu)
			if err != nil {
				return err
			}
			all := !cmd.Flags().Changed("gi")
			found := false
			for _, in := range g.Instances {
				if all || in.GI == gi {
					found = true
					err = cmp.Or(err, destroyInstance(d, g.UUID, in, ciOnly)) // the first, and go on
				}
			}
			if !all && !found {
				return fmt.Errorf("GPU %d has no GPU instance %d: see simgpu list", g.Index, gi)
			}
			return err
		},
	}
	gpuFlag(cmd, &gpu)
	cmd.Flags().IntVar(&gi, "gi", 0, "GPU instance id (default all)")
	cmd.Flags().BoolVar(&ciOnly, "ci-only", false, "leave the GPU instance")
	return cmd
}

func destroyInstance(d *sim.Driver, id nvml.GPUID, in sim.Instance, ciOnly bool) error {
	if in.CI != nvml.NoCI {
		if err := d.DestroyComputeInstance(id, in.GI, in.CI); err != nil {
			return err
		}
	}
	if ciOnly {
		return nil
	}
	return d.DestroyGPUInstance(id, in.GI)
}

func (a *app) mode() *cobra.Command {
	var gpu string
	cmd := &cobra.Command{
		Use:       "mode --gpu GPU on|off",
		Short:     "Turn MIG mode on or off",
		Long:      "mode asks for a MIG mode. On Ampere it waits for \"simgpu reset\" or \"simgpu reboot\".",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			on, err := parseOnOff(args[0])
			if err != nil {
				return err
			}
			d, err := a.session()
			if err != nil {
				return err
			}
			defer d.Close()
			g, err := gpuOf(d.Node, gpu)
			if err != nil {
				return err
			}
			err = d.SetMIGMode(g.UUID, on)
			if errors.Is(err, nvml.ErrResetRequired) {
				fmt.Fprintf(cmd.OutOrStdout(), "MIG mode %s is pending: it waits for a reset or reboot\n", args[0])
				return nil
			}
			return err
		},
	}
	gpuFlag(cmd, &gpu)
	return cmd
}

// holdFlags are those of hold and release.
type holdFlags struct {
	gpu   string
	gi    int
	whole bool
	pid   int
}

func (h *holdFlags) add(cmd *cobra.Command) {
	gpuFlag(cmd, &h.gpu)
	cmd.Flags().IntVar(&h.gi, "gi", 0, "GPU instance id")
	cmd.Flags().BoolVar(&h.whole, "whole-gpu", false, "the GPU itself, not an instance")
	cmd.Flags().IntVar(&h.pid, "pid", 0, "process that NVML shows (default a handle that it does not show)")
	cmd.MarkFlagsMutuallyExclusive("gi", "whole-gpu")
	cmd.MarkFlagsOneRequired("gi", "whole-gpu")
}

func (h *holdFlags) instance() int {
	if h.whole {
		return sim.WholeGPU
	}
	return h.gi
}

func (a *app) hold() *cobra.Command {
	var (
		flags  holdFlags
		memory int
		wait   bool
	)
	cmd := &cobra.Command{
		Use:   "hold --gpu GPU --gi ID [--pid PID] [--wait]",
		Short: "Use an instance, so that it cannot be destroyed",
		Long: `hold makes somebody use an instance or, with --whole-gpu, the GPU itself: the
process --pid, or else a handle that NVML does not show, such as DCGM's.

With --wait, simgpu itself keeps the instance's device file open until it is
interrupted, so that a look into /proc/PID/fd finds it, and then releases.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := a.node()
			if err != nil {
				return err
			}
			g, err := gpuOf(n, flags.gpu)
			if err != nil {
				return err
			}
			h := sim.Holder{GI: flags.instance(), PID: flags.pid, MemoryMiB: memory}
			if err := n.Hold(g.UUID, h); err != nil || !wait {
				return err
			}
			err = holdOpen(cmd, n.Root(), g, h)
			return errors.Join(err, n.Release(g.UUID, h.GI, h.PID))
		},
	}
	flags.add(cmd)
	cmd.Flags().IntVar(&memory, "memory", 0, "MiB that the process uses")
	cmd.Flags().BoolVar(&wait, "wait", false, "keep the device file open until interrupted")
	return cmd
}

// holdOpen keeps a device file open, without the driver that is not there, until
// the command is interrupted.
func holdOpen(cmd *cobra.Command, root string, g sim.GPU, h sim.Holder) error {
	caps := nvml.Capabilities{Root: root}
	node, err := caps.GPUNode(g.Minor)
	for _, in := range g.Instances {
		if in.GI != h.GI {
			continue
		}
		if in.CI == nvml.NoCI {
			return fmt.Errorf("holding GPU instance %d: it has no compute instance, so nobody can open it", h.GI)
		}
		var nodes []nvml.DeviceNode
		if nodes, err = caps.InstanceNodes(g.Minor, in.GI, in.CI); err == nil {
			node = nodes[1]
		}
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(node.HostPath, unix.O_PATH, 0)
	if err != nil {
		return fmt.Errorf("holding device: %w", err)
	}
	defer f.Close()
	fmt.Fprintf(cmd.OutOrStdout(), "process %d has %s open\n", os.Getpid(), node.HostPath)
	<-cmd.Context().Done()
	return nil
}

func (a *app) release() *cobra.Command {
	var flags holdFlags
	cmd := &cobra.Command{
		Use:   "release --gpu GPU --gi ID [--pid PID]",
		Short: "End what hold began",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			n, err := a.node()
			if err != nil {
				return err
			}
			g, err := gpuOf(n, flags.gpu)
			if err != nil {
				return err
			}
			return n.Release(g.UUID, flags.instance(), flags.pid)
		},
	}
	flags.add(cmd)
	return cmd
}
