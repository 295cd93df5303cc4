// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package agent

import (
	"os"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/native"
	"github.com/dynamig/dynamig/pkg/nvml/native/simnvml"
)

// init has the agents of all tests use the native driver, over the simulation
// dressed up as NVIDIA's library, where DYNAMIG_TEST_DRIVER=native says so.
func init() {
	if os.Getenv("DYNAMIG_TEST_DRIVER") == "native" {
		overNative = true
		openDriver = func(root string) (nvml.Driver, error) { return native.OpenLibrary(simnvml.New(root), root) }
	}
}
