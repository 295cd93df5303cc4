// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Command kubectl-mig is the plugin "kubectl mig": it draws the GPUs of a cluster,
// explains where pods are or why they wait, and says what would fit. It reads
// through the API server alone and changes nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes; docs/kubectl-mig.md documents them for scripts.
const (
	exitFine    = 0
	exitError   = 1
	exitUsage   = 2
	exitWaiting = 3 // the answer is no: a pod waits, or would not fit
)

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// errWaiting ends a command that has told its answer, which is no.
var errWaiting = errors.New("a pod waits or would not fit")

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, newScreen(os.Stdin, os.Stdout, os.Stderr, os.Getenv), os.Args[1:])
	cancel()
	os.Exit(code)
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, s *screen, args []string) int {
	root := newRootCommand(s)
	root.SetArgs(append([]string{}, args...)) // never nil: cobra would take os.Args
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errWaiting):
		return exitWaiting
	case errors.As(err, &usage):
		fmt.Fprintf(s.err, "error: %v\nSee 'kubectl mig --help'.\n", err)
		return exitUsage
	default:
		fmt.Fprintf(s.err, "error: %v\n", err)
		return exitError
	}
}
