// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/dynamig/dynamig/pkg/nvml"
)

func TestResetCommandNamesTheGPU(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "reset")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$@\" > "+dir+"/args\n[ \"$1\" != fail ] || { echo GPU is in use >&2; exit 3; }\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	gpu := nvml.GPU{ID: "GPU-1", Index: 4, PCIBusID: "00000000:07:00.0"}
	reset, err := resetCommand(script + "  -i {uuid} {index}/{bus}")
	if err != nil {
		t.Fatal(err)
	}
	if err := reset(context.Background(), gpu); err != nil {
		t.Fatal(err)
	}
	if args, err := os.ReadFile(dir + "/args"); err != nil || string(args) != "-i GPU-1 4/00000000:07:00.0\n" {
		t.Errorf("arguments are %q, %v", args, err)
	}
	if reset, err = resetCommand(script + " fail {index}"); err != nil {
		t.Fatal(err)
	}
	if err := reset(context.Background(), gpu); err == nil || !strings.Contains(err.Error(), "exit status 3: GPU is in use") {
		t.Errorf("reset that fails = %v; want its status and words", err)
	}
}

// A command whose children live on, with its output, has ended all the same.
func TestResetCommandThatLeavesAChild(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "reset")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsleep 600 &\necho $! > "+dir+"/child\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	reset, err := resetCommand(script + " {uuid}")
	if err != nil {
		t.Fatal(err)
	}
	if err := reset(t.Context(), nvml.GPU{ID: "GPU-1"}); err != nil {
		t.Errorf("reset = %v", err)
	}
	text, err := os.ReadFile(dir + "/child")
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
		t.Errorf("the child has not outlived the reset: %v", err)
	}
}

func TestResetCommandIsOffOrNamesAGPU(t *testing.T) {
	if reset, err := resetCommand(" "); reset != nil || err != nil {
		t.Errorf("an empty command gives %v; want no reset", err)
	}
	if _, err := resetCommand("nvidia-smi --gpu-reset"); err == nil || !strings.Contains(err.Error(), "{uuid}") {
		t.Errorf("a command for all GPUs: %v; want an error that names {uuid}", err)
	}
}
