// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"fmt"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/dynamig/dynamig/pkg/nvml"
)

// check turns the result of a library call into an error, nil for SUCCESS. It is
// the only place that knows which return code is which error. (The library's own
// text for a code is not asked for: it may be unloaded meanwhile.)
func check(ret lib.Return, format string, args ...any) error {
	if ret == lib.SUCCESS {
		return nil
	}
	return fmt.Errorf("%s: %w (NVML code %d)", fmt.Sprintf(format, args...), errorOf(ret), int(ret))
}

func errorOf(ret lib.Return) error {
	switch ret {
	case lib.ERROR_UNINITIALIZED:
		return nvml.ErrUninitialized
	case lib.ERROR_INVALID_ARGUMENT:
		return nvml.ErrInvalidArgument
	case lib.ERROR_NOT_SUPPORTED, lib.ERROR_FUNCTION_NOT_FOUND, lib.ERROR_ARGUMENT_VERSION_MISMATCH, lib.ERROR_DEPRECATED:
		return nvml.ErrNotSupported
	case lib.ERROR_NO_PERMISSION:
		return nvml.ErrNoPermission
	case lib.ERROR_NOT_FOUND, lib.ERROR_GPU_NOT_FOUND:
		return nvml.ErrNotFound
	case lib.ERROR_DRIVER_NOT_LOADED, lib.ERROR_LIBRARY_NOT_FOUND, lib.ERROR_LIB_RM_VERSION_MISMATCH:
		return nvml.ErrDriverNotLoaded
	case lib.ERROR_TIMEOUT:
		return nvml.ErrTimeout
	case lib.ERROR_GPU_IS_LOST:
		return nvml.ErrGPULost
	case lib.ERROR_RESET_REQUIRED:
		return nvml.ErrResetRequired
	case lib.ERROR_IN_USE:
		return nvml.ErrInUse
	case lib.ERROR_INSUFFICIENT_RESOURCES:
		return nvml.ErrInsufficientResources
	case lib.ERROR_INVALID_STATE, lib.ERROR_NOT_READY:
		return nvml.ErrInvalidState
	}
	return nvml.ErrUnknown
}
