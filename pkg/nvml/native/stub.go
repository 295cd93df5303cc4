// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package native

import (
	"errors"

	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/nvml"
)

// Built says whether this program can use real GPUs.
const Built = false

var errNotBuilt = errors.New("this program was built without cgo and cannot use real GPUs; build it with CGO_ENABLED=1 and a C compiler")

// Open says that the driver is not there.
func Open(string) (nvml.Driver, error) { return nil, errNotBuilt }

// DriverEdits says the same.
func DriverEdits(string, string) (cdi.Edits, error) { return cdi.Edits{}, errNotBuilt }
