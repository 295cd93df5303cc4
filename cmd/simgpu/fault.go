// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

func (a *app) xid() *cobra.Command {
	var (
		gpu     string
		gi, xid int
	)
	cmd := &cobra.Command{
		Use:   "xid --gpu GPU [--gi ID] --xid N",
		Short: "Report an XID error of an instance, or of the whole GPU",
		Args:  cobra.NoArgs,
		RunE:  a.onGPU(&gpu, func(n *sim.Node, g sim.GPU) error { return n.XID(g.UUID, gi, xid) }),
	}
	gpuFlag(cmd, &gpu)
	cmd.Flags().IntVar(&gi, "gi", sim.WholeGPU, "GPU instance id; -1: no instance in particular")
	cmd.Flags().IntVar(&xid, "xid", 0, "number of the error, such as 31 or 79")
	required(cmd, "xid")
	return cmd
}

func (a *app) lose() *cobra.Command {
	var gpu string
	cmd := &cobra.Command{
		Use:   "lose --gpu GPU",
		Short: "Let a GPU fall off the bus, until reset or reboot",
		Args:  cobra.NoArgs,
		RunE:  a.onGPU(&gpu, func(n *sim.Node, g sim.GPU) error { return n.LoseGPU(g.UUID) }),
	}
	gpuFlag(cmd, &gpu)
	return cmd
}

func (a *app) reset() *cobra.Command {
	var gpu string
	cmd := &cobra.Command{
		Use:   "reset --gpu GPU",
		Short: "Reset a GPU: its instances are gone, a pending MIG mode comes into force",
		Args:  cobra.NoArgs,
		RunE:  a.onGPU(&gpu, func(n *sim.Node, g sim.GPU) error { return n.ResetGPU(g.UUID) }),
	}
	gpuFlag(cmd, &gpu)
	return cmd
}

// onGPU makes a command of something done to one GPU.
func (a *app) onGPU(name *string, act func(*sim.Node, sim.GPU) error) func(*cobra.Command, []string) error {
	return func(*cobra.Command, []string) error {
		n, err := a.node()
		if err != nil {
			return err
		}
		g, err := gpuOf(n, *name)
		if err != nil {
			return err
		}
		return act(n, g)
	}
}

func (a *app) reboot() *cobra.Command {
	return &cobra.Command{
		Use:   "reboot",
		Short: "Restart the node: sessions, holders and all instances are gone",
		Long: `reboot does to GPUs and driver what a restart of the machine does. MIG mode
stays on Ampere and is off on later GPUs. Programs go on; their sessions fail.`,
		Args: cobra.NoArgs,
		RunE: a.onNode((*sim.Node).Reboot),
	}
}

func (a *app) dropSessions() *cobra.Command {
	return &cobra.Command{
		Use:   "drop-sessions",
		Short: "Make every open session UNINITIALIZED; instances stay",
		Args:  cobra.NoArgs,
		RunE:  a.onNode((*sim.Node).LoseSessions),
	}
}

// onNode makes a command of something done to the node.
func (a *app) onNode(act func(*sim.Node) error) func(*cobra.Command, []string) error {
	return func(*cobra.Command, []string) error {
		n, err := a.node()
		if err != nil {
			return err
		}
		return act(n)
	}
}

func (a *app) fault() *cobra.Command {
	var (
		f     sim.Fault
		gpu   string
		delay time.Duration
	)
	cmd := &cobra.Command{
		Use:   "fault [--call CALL] [--gpu GPU] [--nth N] [--times N] --code CODE | --delay TIME | --halt | --crash before|after | --linger N",
		Short: "Order something to go wrong in a coming call",
		Long: `fault orders something to go wrong in a coming call of the agent (calls of simgpu
are not hit). Orders outlive programs and reboots until they are used up.

Calls: ` + strings.Join(sim.CallNames(), ", ") + `.
Codes: ` + strings.Join(sim.CodeNames(), ", ") + `.`,
		Args: cobra.NoArgs,
		RunE: a.onNode(func(n *sim.Node) error {
			if gpu != "" {
				g, err := gpuOf(n, gpu)
				if err != nil {
					return err
				}
				f.GPU = g.UUID
			}
			f.DelayMillis = int(delay.Milliseconds())
			return n.AddFault(f)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Call, "call", "", "name of the call (default any)")
	flags.StringVar(&gpu, "gpu", "", "index or UUID of the GPU (default any)")
	flags.IntVar(&f.Nth, "nth", 1, "first call that is hit: 1 is the next that matches")
	flags.IntVar(&f.Times, "times", 1, "calls that are hit from then on; -1: all")
	flags.StringVar(&f.Code, "code", "", "the call fails with this NVML return code")
	flags.BoolVar(&f.Late, "late", false, "with --code: the call does its work, and then fails")
	flags.DurationVar(&delay, "delay", 0, "the call takes that much longer")
	flags.BoolVar(&f.Halt, "halt", false, "the call waits until faults are cleared")
	flags.StringVar(&f.Crash, "crash", "", "the calling process dies before or after the call's work")
	flags.IntVar(&f.Linger, "linger", 0, "DestroyGPUInstance succeeds and the instance stays for that many listings; -1: for ever")
	cmd.MarkFlagsOneRequired("code", "delay", "halt", "crash", "linger")
	return cmd
}

func (a *app) faults() *cobra.Command {
	var withdraw bool
	cmd := &cobra.Command{
		Use:   "faults [--clear]",
		Short: "List the faults that are ordered, or withdraw them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := a.node()
			if err != nil {
				return err
			}
			if withdraw {
				return n.ClearFaults()
			}
			return printFaults(cmd, n)
		},
	}
	cmd.Flags().BoolVar(&withdraw, "clear", false, "withdraw all faults, remove lingering instances, let halted calls go on")
	return cmd
}

func printFaults(cmd *cobra.Command, n *sim.Node) error {
	s, err := n.Dump()
	if err != nil {
		return err
	}
	w := newTable(cmd.OutOrStdout(), "CALL", "GPU", "NTH", "TIMES", "EFFECT")
	for _, f := range s.Faults {
		w.row(orAny(f.Call), orAny(string(f.GPU)), f.Nth, f.Times, effects(f))
	}
	return w.Flush()
}

func orAny(text string) string {
	if text == "" {
		return "any"
	}
	return text
}

func effects(f sim.Fault) string {
	var all []string
	if f.Code != "" {
		all = append(all, f.Code)
	}
	if f.Late {
		all = append(all, "after its work")
	}
	if f.DelayMillis != 0 {
		all = append(all, fmt.Sprintf("%s later", time.Duration(f.DelayMillis)*time.Millisecond))
	}
	if f.Halt {
		all = append(all, "waits until faults are cleared")
	}
	if f.Crash != "" {
		all = append(all, "crash "+f.Crash)
	}
	if f.Linger != 0 {
		all = append(all, fmt.Sprintf("lingers for %d", f.Linger))
	}
	return strings.Join(all, ", ")
}

func (a *app) latency() *cobra.Command {
	return &cobra.Command{
		Use:   "latency none | realistic | CALL=DURATION...",
		Short: "Set how long calls take",
		Long: `latency replaces how long calls take: none, the shape of real hardware, or a time
for each call. The time of Instances is for each instance it lists.`,
		Example: "  simgpu --root /tmp/n1 latency realistic CreateGPUInstance=3s",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			latencies, err := parseLatencies(args)
			if err != nil {
				return err
			}
			n, err := a.node()
			if err != nil {
				return err
			}
			return n.SetLatencies(latencies)
		},
	}
}

// parseLatencies reads words such as "realistic" and "CreateGPUInstance=3s"; later
// ones win.
func parseLatencies(words []string) (map[string]time.Duration, error) {
	latencies := map[string]time.Duration{}
	for _, word := range words {
		call, text, isCall := strings.Cut(word, "=")
		switch {
		case isCall:
			d, err := time.ParseDuration(text)
			if err != nil || !slices.Contains(sim.CallNames(), call) {
				return nil, fmt.Errorf("reading latency %q: expected CALL=DURATION with one of the calls %s",
					word, strings.Join(sim.CallNames(), ", "))
			}
			latencies[call] = d
		case word == "realistic":
			maps.Copy(latencies, sim.RealisticLatencies())
		case word == "none":
			clear(latencies)
		default:
			return nil, fmt.Errorf("reading latency %q: expected none, realistic or CALL=DURATION", word)
		}
	}
	return latencies, nil
}

func (a *app) memory() *cobra.Command {
	var (
		gpu, profile string
		mib          int
	)
	cmd := &cobra.Command{
		Use:   "memory --gpu GPU --profile PROFILE --mib N",
		Short: "Report another memory size for a profile, as another driver version does",
		Args:  cobra.NoArgs,
		RunE: a.onGPU(&gpu, func(n *sim.Node, g sim.GPU) error {
			s, err := n.Dump()
			if err != nil {
				return err
			}
			id, err := profileNamed(s, g, profile)
			if err != nil {
				return err
			}
			return n.SetProfileMemory(g.UUID, id, mib)
		}),
	}
	gpuFlag(cmd, &gpu)
	cmd.Flags().StringVar(&profile, "profile", "", "name or reported id of the profile")
	cmd.Flags().IntVar(&mib, "mib", 0, "memory of one instance in MiB; 0: what the board's table says")
	required(cmd, "profile", "mib")
	return cmd
}
