// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/facts"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

func (a *app) createNode() *cobra.Command {
	var (
		spec    sim.Spec
		gpus    []string
		mig     string
		latency []string
		record  string
	)
	cmd := &cobra.Command{
		Use:   "create-node --facts FILE | --gpu BOARD[,count=N][,mig=on|off][,numa=N][,memory=MiB][,profile-memory=ID:MiB][,product=NAME][,vgpu=on]...",
		Short: "Make a simulated node below --root",
		Long: `create-node makes a simulated node below --root, which must not hold one yet.

Each --gpu adds GPUs of a board, named by its key or by an NVML product name (see
"simgpu boards"). Where memory sizes of a board are not known, give memory=MiB of
the whole GPU and profile-memory=ID:MiB of each such profile, by reported id. A GPU
without MIG is written "none,product=NAME,memory=MiB".

With --facts the node is like one that "nodeagent facts" has recorded.

Character devices need the right to make them (root); without it they are plain
files, and "list -o json" says plainDevices.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.root == "" {
				return fmt.Errorf("no node: give its directory with --root")
			}
			on, err := parseOnOff(mig)
			if err != nil {
				return fmt.Errorf("reading --mig: %w", err)
			}
			if record != "" {
				if err := readFacts(&spec, record); err != nil {
					return err
				}
			}
			for _, text := range gpus {
				some, err := parseGPUs(text, on)
				if err != nil {
					return fmt.Errorf("reading --gpu %q: %w", text, err)
				}
				spec.GPUs = append(spec.GPUs, some...)
			}
			if spec.Latencies, err = parseLatencies(latency); err != nil {
				return err
			}
			return sim.Create(a.root, spec)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&gpus, "gpu", nil, "one kind of GPU; may be given several times, in order of index")
	f.StringVar(&mig, "mig", "off", "MIG mode of the GPUs that do not say: on or off")
	f.StringArrayVar(&latency, "latency", []string{"none"}, "none, realistic, or CALL=DURATION; may be given several times")
	f.StringVar(&spec.DriverVersion, "driver-version", "", "version of the driver (default a recent one)")
	f.StringVar(&spec.Seed, "seed", "", "makes all UUIDs foreseeable")
	f.BoolVar(&spec.PlainDevices, "plain-devices", false, "make plain files instead of character devices")
	f.StringVar(&record, "facts", "", "`file` that nodeagent facts has written")
	cmd.MarkFlagsOneRequired("gpu", "facts")
	cmd.MarkFlagsMutuallyExclusive("gpu", "facts")
	return cmd
}

// readFacts adds the GPUs and the driver of a record to spec; flags win.
func readFacts(spec *sim.Spec, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading --facts: %w", err)
	}
	node, err := facts.Decode(text)
	if err != nil {
		return fmt.Errorf("reading --facts %s: %w", file, err)
	}
	recorded := sim.FromFacts(node)
	spec.GPUs, spec.DriverVersion = recorded.GPUs, cmp.Or(spec.DriverVersion, recorded.DriverVersion)
	return nil
}

// parseGPUs reads one --gpu flag.
func parseGPUs(text string, on bool) ([]sim.GPUSpec, error) {
	fields := strings.Split(text, ",")
	spec, count := sim.GPUSpec{Board: fields[0], MIG: on}, 1
	if spec.Board == "none" {
		spec.Board, spec.MIG = "", false
	}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch key {
		case "count":
			count, err = strconv.Atoi(value)
		case "mig":
			spec.MIG, err = parseOnOff(value)
		case "numa":
			spec.NUMANode, err = strconv.Atoi(value)
		case "memory":
			spec.MemoryMiB, err = strconv.Atoi(value)
		case "profile-memory":
			err = addProfileMemory(&spec, value)
		case "product":
			spec.Product = value
		case "vgpu":
			spec.VGPU, err = parseOnOff(value)
		default:
			err = fmt.Errorf("%q is none of count, mig, numa, memory, profile-memory, product and vgpu", key)
		}
		if err != nil {
			return nil, err
		}
	}
	if count < 1 {
		return nil, fmt.Errorf("count %d: expected at least 1", count)
	}
	specs := make([]sim.GPUSpec, count)
	for i := range specs {
		specs[i] = spec
	}
	return specs, nil
}

// addProfileMemory reads "9:47488": reported id of a profile and its MiB.
func addProfileMemory(spec *sim.GPUSpec, text string) error {
	id, memory, _ := strings.Cut(text, ":")
	profile, err := strconv.Atoi(id)
	mib, err2 := strconv.Atoi(memory)
	if err != nil || err2 != nil {
		return fmt.Errorf("%q: expected ID:MiB with the reported id of a profile", text)
	}
	if spec.ProfileMemoryMiB == nil {
		spec.ProfileMemoryMiB = map[nvml.ProfileID]int{}
	}
	spec.ProfileMemoryMiB[nvml.ProfileID(profile)] = mib
	return nil
}

func (a *app) boards() *cobra.Command {
	return &cobra.Command{
		Use:   "boards",
		Short: "List the boards that can be simulated",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := newTable(cmd.OutOrStdout(), "KEY", "GENERATION", "GRID", "MEMORY MiB", "PRODUCTS")
			for _, b := range boards.All() {
				memory := "not known: give memory="
				if b.MemoryMiB > 0 {
					memory = strconv.Itoa(b.MemoryMiB)
				}
				w.row(b.Key, b.Architecture, b.Grid, memory, strings.Join(b.Products, ", "))
			}
			return w.Flush()
		},
	}
}

func (a *app) list() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List GPUs, their instances and who holds them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := a.node()
			if err != nil {
				return err
			}
			s, err := n.Dump()
			if err != nil {
				return err
			}
			switch output {
			case "json":
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(s)
			case "table":
				return printNode(cmd.OutOrStdout(), s)
			}
			return fmt.Errorf("reading --output: %q is neither table nor json", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, or json for the whole state")
	return cmd
}

func printNode(out io.Writer, s sim.State) error {
	w := newTable(out, "GPU", "NAME", "MIG", "GI", "CI", "PROFILE", "ID", "PLACEMENT", "HELD BY", "UUID")
	for _, g := range s.GPUs {
		w.row(g.Index, g.Name, modeOf(g), "", "", "", "", "", holders(g, sim.WholeGPU), string(g.UUID))
		for _, in := range g.Instances {
			ci, uuid := "-", "-"
			if in.CI != nvml.NoCI {
				ci, uuid = strconv.Itoa(in.CI), in.UUID
			}
			profile := in.Name
			if in.Lingers != 0 {
				profile += " (destroyed, lingers)"
			}
			w.row(g.Index, "", "", in.GI, ci, profile, in.Profile, fmt.Sprintf("%d:%d", in.Start, in.Size), holders(g, in.GI), uuid)
		}
	}
	return w.Flush()
}

func modeOf(g sim.GPU) string {
	word := map[bool]string{true: "on", false: "off"}
	switch {
	case g.Lost:
		return "lost"
	case g.Model == "":
		return "-"
	case g.Current != g.Pending:
		return word[g.Current] + ", " + word[g.Pending] + " pending"
	}
	return word[g.Current]
}

func holders(g sim.GPU, gi int) string {
	var all []string
	for _, h := range g.Holders {
		switch {
		case h.GI != gi:
		case h.PID == 0:
			all = append(all, "handle")
		default:
			all = append(all, fmt.Sprintf("pid %d", h.PID))
		}
	}
	return strings.Join(all, ", ")
}

func (a *app) profiles() *cobra.Command {
	var gpu string
	cmd := &cobra.Command{
		Use:   "profiles --gpu GPU",
		Short: "List the profiles of a GPU and where they may start",
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
			profiles, err := d.Profiles(g.UUID)
			if err != nil {
				return err
			}
			w := newTable(cmd.OutOrStdout(), "PROFILE", "ID", "MEMORY MiB", "SMS", "MAX", "PLACEMENTS")
			for _, p := range profiles {
				starts := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(p.Starts)), ","), "[]")
				w.row(p.Name, p.ID, p.MemoryMiB, p.SMs, p.Max, fmt.Sprintf("{%s}:%d", starts, p.Size))
			}
			return w.Flush()
		},
	}
	gpuFlag(cmd, &gpu)
	return cmd
}

// table prints columns that line up.
type table struct{ *tabwriter.Writer }

func newTable(out io.Writer, columns ...any) table {
	t := table{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	t.row(columns...)
	return t
}

func (t table) row(cells ...any) {
	line := strings.TrimSuffix(strings.Repeat("%v\t", len(cells)), "\t") + "\n"
	fmt.Fprintf(t, line, cells...)
}
