// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// resetTime is how long a reset may take before its command is told to end.
const resetTime = 2 * time.Minute

// resetGrace is how long a command that was told to end may still run, and children
// of one that has ended may keep its output.
const resetGrace = 2 * time.Second

// resetCommand makes a function of --reset-command that resets one GPU; nil when the
// flag is empty. The command is run without a shell. It must name the GPU, because
// a program that resets all GPUs of a node would end the jobs of the others: wrap
// such a program in one that takes a GPU.
func resetCommand(text string) (func(context.Context, nvml.GPU) error, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, nil
	}
	if !strings.Contains(text, "{uuid}") && !strings.Contains(text, "{index}") && !strings.Contains(text, "{bus}") {
		return nil, errors.New("--reset-command does not say which GPU it resets; use {uuid}, {index} or {bus} in it, as in \"nvidia-smi --gpu-reset -i {uuid}\"")
	}
	return func(ctx context.Context, gpu nvml.GPU) error {
		ctx, cancel := context.WithTimeout(ctx, resetTime)
		defer cancel()
		fill := strings.NewReplacer("{uuid}", string(gpu.ID), "{index}", strconv.Itoa(gpu.Index), "{bus}", gpu.PCIBusID)
		args := make([]string, len(words))
		for i, word := range words {
			args[i] = fill.Replace(word)
		}
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it may put the GPU in order
		cmd.WaitDelay = resetGrace
		out, err := cmd.CombinedOutput()
		if err != nil && !errors.Is(err, exec.ErrWaitDelay) { // which is of a command that succeeded
			return fmt.Errorf("running %s: %w: %s", args[0], err, strings.Join(strings.Fields(string(out)), " "))
		}
		return nil
	}, nil
}
