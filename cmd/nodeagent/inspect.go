// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/dynamig/dynamig/pkg/agent"
	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/nodecheck"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/facts"
)

// subcommands look at a node without serving it.
var subcommands = map[string]func(ctx context.Context, args []string, out, usage io.Writer) error{
	"facts": runFacts,
	"check": runCheck,
}

// driverFlags are those that say which driver is meant.
func (o *options) driverFlags(flags *flag.FlagSet) {
	flags.StringVar(&o.driver, "driver", driverNative, "NVML to use: `native or sim`")
	flags.StringVar(&o.driverRoot, "driver-root", "/", "with --driver=native: `directory` where the driver's root file system is mounted, with its libraries and /dev")
	flags.Func("sim-root", "with --driver=sim: `directory` of the simulated node", func(dir string) (err error) {
		o.simRoot, err = filepath.Abs(dir) // the driver's own paths are below it
		return err
	})
}

// migMinorLines is how much of the table of capability minors is recorded: the
// first two GPU instances of the first GPU, which show how it counts.
const migMinorLines = 20

// runFacts prints what the node's GPUs are.
func runFacts(_ context.Context, args []string, out, usage io.Writer) error {
	var o options
	var exercise int
	flags := flag.NewFlagSet("nodeagent facts", flag.ContinueOnError)
	flags.SetOutput(usage)
	explained(flags, `Usage: nodeagent facts [flags]

Prints what the driver says of this node's GPUs, as JSON. It changes nothing without
--exercise. The exit status is 0, and 1 where something could not be read.
`)
	o.driverFlags(flags)
	flags.IntVar(&exercise, "exercise", -1, "also create and destroy an instance at each placement of the GPU with this `index`, which must be empty and in MIG mode")
	if err := parseAll(flags, args); err != nil {
		return err
	}
	if err := o.checkDriver(); err != nil {
		return err
	}
	d, err := o.open()
	if err != nil {
		return err
	}
	defer d.Close()
	source := facts.Source{Tool: "nodeagent facts", Date: time.Now().UTC().Format(time.DateOnly), Confidence: facts.Verified}
	if o.driver == driverSim {
		source.Confidence = facts.Simulated
	}
	node, failed := facts.Record(d, source)
	if len(node.GPUs) == 0 && failed != nil {
		return failed
	}
	if node.MIGMinors, err = firstLines(filepath.Join("/", o.capabilities().Root, "proc/driver/nvidia-caps/mig-minors"), migMinorLines); err != nil {
		return err
	}
	if exercise >= 0 {
		failed = errors.Join(failed, facts.Exercise(d, &node, exercise))
	}
	text, err := facts.Encode(node)
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return errors.Join(failed, err)
}

// firstLines reads the beginning of a file; none where there is no file.
func firstLines(file string, n int) ([]string, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading capability minors: %w", err)
	}
	defer f.Close()
	var lines []string
	for s := bufio.NewScanner(f); len(lines) < n && s.Scan(); {
		lines = append(lines, s.Text())
	}
	return lines, nil
}

// explained has the usage begin with a text.
func explained(flags *flag.FlagSet, text string) {
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "%s\nFlags:\n", text)
		flags.PrintDefaults()
	}
}

// parseAll reads flags, and nothing else. The commands are those that could have been
// meant by another argument.
func parseAll(flags *flag.FlagSet, args []string, commands ...string) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	arg := flags.Arg(0)
	switch near := config.Nearest(arg, commands); {
	case flags.NArg() == 0:
		return nil
	case near != "":
		return fmt.Errorf("argument %q is unknown; did you mean %s %s [flags]?", arg, flags.Name(), near)
	case len(commands) > 0:
		return fmt.Errorf("argument %q is unknown; before flags, %s takes one of %s only, see --help", arg, flags.Name(), strings.Join(commands, ", "))
	default:
		return fmt.Errorf("argument %q is unknown; %s takes flags only, see --help", arg, flags.Name())
	}
}

// Errors that end the program with status 1 after the findings have been printed.
var (
	errProblems = errors.New("this node cannot do dynamic MIG until the problems above are solved")
	errConfig   = errors.New("agents do not take this configuration until the problems above are solved")
)

// runCheck prints whether the node can do dynamic MIG, and whether configuration files
// are good.
func runCheck(ctx context.Context, args []string, out, usage io.Writer) error {
	var o options
	var output, etc string
	var configOnly bool
	flags := flag.NewFlagSet("nodeagent check", flag.ContinueOnError)
	flags.SetOutput(usage)
	explained(flags, `Usage: nodeagent check [flags]

Says whether this node can do dynamic MIG, and whether configuration files are good.
It changes nothing. The exit status is 0 where it found no Problem, and 1 where it
found one or could not look.
`)
	o.driverFlags(flags)
	o.configFlags(flags)
	flags.BoolVar(&configOnly, "config-only", false, "look at the configuration files only, which can be done on any machine")
	flags.StringVar(&o.nodeName, "node-name", os.Getenv("NODE_NAME"), "`name` of the Node object (default $NODE_NAME)")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server (default: it is not asked)")
	flags.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "kubelet's root `directory`")
	flags.StringVar(&o.cdiDir, "cdi-dir", cdi.DefaultPath, "`directory` of CDI files that the container runtime reads")
	flags.StringVar(&o.procDir, "proc-dir", "/proc", "proc file system that shows all processes of the node, a `directory`")
	flags.StringVar(&o.cdiHook, "cdi-hook", "/usr/bin/nvidia-cdi-hook", "with --driver=native: `program` of the NVIDIA container toolkit that the container runtime runs, a path on the host")
	flags.StringVar(&etc, "etc-dir", "/etc", "`directory` of the node's configuration files")
	flags.StringVar(&output, "o", "text", "`text or json`")
	if err := parseAll(flags, args); err != nil {
		return err
	}
	if output != "text" && output != "json" {
		return fmt.Errorf("-o %q is neither text nor json; choose one", output)
	}
	findings := o.checkConfig()
	switch {
	case configOnly && o.deviceConfig+o.nodeConfig+o.migParted == "":
		return errors.New("--config-only has no file to look at; give --device-config, --node-config or --mig-parted-config")
	case configOnly:
		return conclude(out, output, findings, "These configuration files are good.", errConfig)
	}
	node := nodecheck.Node{
		Open: o.openChecked, Capabilities: o.capabilities(), Openers: openersOf(o.procDir), UID: os.Getuid(),
		CDIDir: o.cdiDir, KubeletDir: o.kubeletDir, EtcDir: etc, Name: o.nodeName,
	}
	if o.driver == driverNative {
		node.HookPath = o.cdiHook
	}
	if o.kubeconfig != "" {
		config, err := o.client()
		if err != nil {
			return err
		}
		if node.Client, err = kubernetes.NewForConfig(config); err != nil {
			return fmt.Errorf("making client: %w; correct the kubeconfig", err)
		}
	}
	return conclude(out, output, append(findings, node.Check(ctx)...), "This node can do dynamic MIG.", errProblems)
}

// checkConfig looks at the configuration files that flags name, as the agent would.
func (o *options) checkConfig() []nodecheck.Finding {
	const subject = "configuration"
	var out []nodecheck.Finding
	notes, err := agent.CheckConfig(o.deviceConfig, o.nodeConfig, o.migParted)
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			out = append(out, nodecheck.Finding{Level: nodecheck.Problem, Subject: subject, Text: line})
		}
		return out
	}
	for _, file := range []string{o.deviceConfig, o.nodeConfig, o.migParted} {
		if file != "" {
			out = append(out, nodecheck.Finding{Level: nodecheck.OK, Subject: subject, Text: file + " has no mistake."})
		}
	}
	for _, note := range notes {
		out = append(out, nodecheck.Finding{Level: nodecheck.Note, Subject: subject, Text: note})
	}
	if len(out) == 0 {
		out = append(out, nodecheck.Finding{Level: nodecheck.Note, Subject: subject,
			Text: "No configuration file was looked at; give --device-config, --node-config and --mig-parted-config."})
	}
	return out
}

// conclude prints findings and what they come to.
func conclude(out io.Writer, output string, findings []nodecheck.Finding, good string, bad error) error {
	if err := printFindings(out, output, findings); err != nil {
		return err
	}
	if nodecheck.Failed(findings) {
		return bad
	}
	if output == "text" {
		_, err := fmt.Fprintln(out, "\n"+good)
		return err
	}
	return nil
}

func printFindings(out io.Writer, output string, findings []nodecheck.Finding) error {
	if output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(findings)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Level, f.Subject, f.Text)
	}
	return w.Flush()
}

// openChecked is open where the flags may be wrong, which is a finding, too.
func (o *options) openChecked() (nvml.Driver, error) {
	if err := o.checkDriver(); err != nil {
		return nil, err
	}
	return o.open()
}

// openersOf asks which processes hold one device open.
func openersOf(proc string) func(nvml.DeviceNode) ([]int, error) {
	openers := agent.Openers(proc)
	return func(n nvml.DeviceNode) ([]int, error) {
		return openers([]agent.DeviceNumber{{Major: n.Major, Minor: n.Minor}})
	}
}
