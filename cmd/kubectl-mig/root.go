// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// newRootCommand is the whole command tree.
func newRootCommand(s *screen) *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-mig",
		Short: "See and explain dynamic MIG: GPUs, pods, and what would fit",
		Long: `kubectl mig draws the GPUs of a dynamig cluster with their MIG instances, says why a
pod is where it is or why it waits, and tells what would fit. It changes nothing.

Exit codes: 0 fine, 1 error, 2 wrong usage, 3 the answer is no (a pod waits, or
would not fit).`,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl mig"},
		Args:          arguments(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newReplayCommand(s), newVersionCommand(s))
	return root
}

// newVersionCommand prints what this binary was built from.
func newVersionCommand(s *screen) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(s.out, "kubectl-mig", version())
			return err
		},
	}
}

// version is that of the module, and the commit where the build knows it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version + " " + info.GoVersion
}

// arguments makes mistakes in the arguments usage errors.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}
