// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo && gpu

package native

import (
	"os"
	"testing"

	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/nvmltest"
)

// On a machine with NVIDIA GPUs: CGO_ENABLED=1 go test -tags gpu ./pkg/nvml/native/.
// It only reads, unless DYNAMIG_GPU_WRITE=1 says that instances may be created on
// an empty GPU in MIG mode. It never changes a mode.
func TestContractOnRealGPUs(t *testing.T) {
	suite := nvmltest.ReadOnly
	if os.Getenv("DYNAMIG_GPU_WRITE") == "1" {
		suite = nvmltest.Contract
	}
	suite(t, func(t *testing.T) nvml.Driver {
		d, err := Open("")
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}
