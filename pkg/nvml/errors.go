// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package nvml

import "errors"

// Errors of a call, one for each NVML return code that callers tell apart.
// Use errors.Is; the wrapped text names the GPU, the call and the object.
var (
	ErrUninitialized         = errors.New("NVML session is not initialised")            // 1: open a new session
	ErrInvalidArgument       = errors.New("NVML refused the argument")                  // 2: also a stale handle
	ErrNotSupported          = errors.New("not supported by this GPU or mode")          // 3
	ErrNoPermission          = errors.New("no permission")                              // 4
	ErrNotFound              = errors.New("not found")                                  // 6
	ErrDriverNotLoaded       = errors.New("NVIDIA driver is not loaded")                // 9, 12, 18
	ErrTimeout               = errors.New("nothing happened in time")                   // 10: of Events.Wait
	ErrGPULost               = errors.New("GPU is lost")                                // 15
	ErrResetRequired         = errors.New("a GPU reset is required")                    // 16
	ErrInUse                 = errors.New("in use")                                     // 19
	ErrInsufficientResources = errors.New("no room for the instance at this placement") // 23
	ErrInvalidState          = errors.New("GPU is in an invalid state for this call")   // 29
	ErrUnknown               = errors.New("unknown NVML error")                         // 999
)
