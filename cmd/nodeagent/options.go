// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/native"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// options are the program's flags.
type options struct {
	nodeName     string
	kubeconfig   string
	driver       string
	driverRoot   string
	simRoot      string
	deviceConfig string
	nodeConfig   string
	migParted    string
	stateDir     string
	kubeletDir   string
	cdiDir       string
	cdiHook      string
	resetCommand string
	procDir      string
	hamiCoreDir  string
	hamiCoreLock string
	listen       string
	dryRun       bool
	version      bool
}

// Values of --driver.
const (
	driverNative = "native"
	driverSim    = "sim"
)

const usageText = `Usage:
  nodeagent [flags]        serve the node
  nodeagent check [flags]  say whether this node can do dynamic MIG, and whether configuration files are good
  nodeagent facts [flags]  record what its GPUs are
`

// parse reads the command line. The usage goes to out.
func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("nodeagent", flag.ContinueOnError)
	flags.SetOutput(out)
	explained(flags, usageText)
	flags.StringVar(&o.nodeName, "node-name", os.Getenv("NODE_NAME"), "`name` of the Node object (default $NODE_NAME)")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server (default: as a pod does)")
	o.driverFlags(flags)
	o.configFlags(flags)
	flags.StringVar(&o.stateDir, "state-dir", "/var/lib/dynamig", "`directory` for what must survive restarts")
	flags.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "kubelet's root `directory`")
	flags.StringVar(&o.cdiDir, "cdi-dir", cdi.DefaultPath, "`directory` of CDI files that the container runtime reads")
	flags.StringVar(&o.cdiHook, "cdi-hook", "/usr/bin/nvidia-cdi-hook", "with --driver=native: `program` of the NVIDIA container toolkit that the container runtime runs, a path on the host")
	flags.StringVar(&o.resetCommand, "reset-command", "", "`command` that resets the GPU named by {uuid}, {index} or {bus}, such as \"nvidia-smi --gpu-reset -i {uuid}\"; run on an Ampere GPU that nobody uses, to change its MIG mode (default: no GPU is ever reset)")
	flags.StringVar(&o.procDir, "proc-dir", "/proc", "proc file system that shows all processes of the node, a `directory`")
	flags.StringVar(&o.hamiCoreDir, "hami-core-dir", "/usr/local/vgpu", "`directory` of the host with HAMi-core's libvgpu.so, for GPUs in mode hami-core; the agent must see it under the same path and may write there")
	flags.StringVar(&o.hamiCoreLock, "hami-core-lock-dir", "/var/lib/dynamig/vgpulock", "`directory` of the host for the lock that all processes with HAMi-core share; containers with shares may write into it, nobody else should; the agent must see it under the same path")
	flags.StringVar(&o.listen, "listen", "", "`address` for /metrics, /healthz and /readyz, such as :9401 (default: none)")
	flags.BoolVar(&o.dryRun, "dry-run", false, "say what the agent would do if it were started now, touch nothing, and end")
	flags.BoolVar(&o.version, "version", false, "print what this program was built from, and end")
	addVerbosity(flags)
	if err := parseAll(flags, args, slices.Sorted(maps.Keys(subcommands))...); err != nil || o.version {
		return o, err
	}
	return o, o.check()
}

// configFlags name the configuration files.
func (o *options) configFlags(flags *flag.FlagSet) {
	flags.StringVar(&o.deviceConfig, "device-config", "", "device configuration `file`, HAMi's device-config.yaml (default: none)")
	flags.StringVar(&o.nodeConfig, "node-config", "", "node configuration `file`, HAMi's config.json (default: none, so that nothing is offered)")
	flags.StringVar(&o.migParted, "mig-parted-config", "", "mig-parted's configuration `file`, of which entries of the node configuration name configurations as migconfig (default: none)")
}

// addVerbosity adds klog's -v and -vmodule, and leaves its flags for files out.
func addVerbosity(flags *flag.FlagSet) {
	all := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(all)
	for _, name := range []string{"v", "vmodule"} {
		f := all.Lookup(name)
		flags.Var(f.Value, f.Name, f.Usage)
	}
}

func (o *options) check() error {
	if o.nodeName == "" {
		return errors.New("--node-name is empty; give the name of this machine's Node object, or set NODE_NAME from spec.nodeName")
	}
	if _, err := resetCommand(o.resetCommand); err != nil {
		return err
	}
	return o.checkDriver()
}

func (o *options) checkDriver() error {
	switch {
	case o.driver == driverNative && !native.Built:
		return errors.New("--driver=native is not in this program, which was built without cgo; build it with CGO_ENABLED=1 and a C compiler, or use --driver=sim with --sim-root")
	case o.driver != driverNative && o.driver != driverSim:
		return fmt.Errorf("--driver=%s is neither native nor sim; choose one", o.driver)
	case o.driver == driverSim && o.simRoot == "":
		return errors.New("--driver=sim needs --sim-root; give the directory that simgpu has made")
	}
	return nil
}

// capabilities reads the device nodes of the GPUs.
func (o *options) capabilities() nvml.Capabilities { return nvml.Capabilities{Root: o.simRoot} }

// open opens an NVML session.
func (o *options) open() (nvml.Driver, error) {
	if o.driver == driverNative {
		return native.Open(o.driverRoot)
	}
	return sim.Open(o.simRoot)
}

// slotsFile keeps the device plugin's slots.
func (o *options) slotsFile() string { return filepath.Join(o.stateDir, "slots.json") }

// client says how to reach the API server.
func (o *options) client() (*rest.Config, error) {
	var config *rest.Config
	var err error
	if o.kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("reading how to reach the API server: %w; give --kubeconfig, or run the agent in a pod with a service account", err)
	}
	return rest.AddUserAgent(config, "dynamig-nodeagent"), nil
}
