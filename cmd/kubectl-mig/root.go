// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dynamig/dynamig/pkg/version"
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
		Args:          checked(noArguments),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	access := newAccess()
	access.addFlags(root.PersistentFlags())
	hideFlags(root.PersistentFlags())
	root.AddCommand(newStatusCommand(s, access), newExplainCommand(s, access), newWhatIfCommand(s, access),
		newHistoryCommand(s, access), newExportCommand(s, access), newReplayCommand(s), newVersionCommand(s))
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.AddCommand(newKubectlCompletionCommand(s))
		}
	}
	return root
}

// kubectlCompletion is what kubectl runs to complete "kubectl mig ..."
// (k8s.io/kubectl pkg/cmd/plugin/plugin_completion.go).
const kubectlCompletion = `#!/bin/sh
# Put this into a directory of PATH as kubectl_complete-mig, executable.
exec kubectl mig __complete "$@"
`

// newKubectlCompletionCommand prints the program for completion by kubectl.
func newKubectlCompletionCommand(s *screen) *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl",
		Short: "Generate the program that completes \"kubectl mig\" in kubectl's own completion",
		Long:  "Prints kubectl_complete-mig: put it into a directory of PATH, executable.",
		Args:  checked(noArguments),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(s.out, kubectlCompletion)
			return err
		},
	}
}

// newVersionCommand prints what this binary was built from.
func newVersionCommand(s *screen) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  checked(noArguments),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(s.out, "kubectl-mig", version.Text())
			return err
		},
	}
}

// noArguments refuses arguments, with what was probably meant by the first.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		err := fmt.Errorf("%s takes no argument, and %q is one", cmd.Name(), args[0])
		if cmd.Flags().Lookup("filename") != nil {
			err = fmt.Errorf("%w; name a file with -f, such as: %s -f %s", err, cmd.CommandPath(), args[0])
		}
		return err
	}
	err := fmt.Errorf("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
	}
	return err
}

// flagError words what a flag cannot be, as our own checks do.
func flagError(err error) error {
	var wrong *pflag.InvalidValueError
	if !errors.As(err, &wrong) || wrong.GetFlag().Value.Type() != "int" {
		return err
	}
	return fmt.Errorf("--%s is %q; use a whole number", wrong.GetFlag().Name, wrong.GetValue())
}

// checked makes mistakes in the arguments usage errors.
func checked(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}
