// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import "errors"

// Why an instance cannot be added to, or taken from, an occupancy. Test with
// errors.Is; the wrapping error names profile, start and model.
var (
	// ErrUnknownProfile: the model has no profile with this id.
	ErrUnknownProfile = errors.New("the model has no such profile")
	// ErrOffTable: the profile may not start there.
	ErrOffTable = errors.New("the profile has no such start")
	// ErrTaken: some of the memory slices are taken.
	ErrTaken = errors.New("memory slices are taken")
	// ErrExhausted: the GPU holds as many of the profile as it can.
	ErrExhausted = errors.New("the profile's maximum is reached")
	// ErrMediaEngines: a +me.all instance has, or would need, all media engines.
	ErrMediaEngines = errors.New("media engines are in use")
	// ErrAbsent: there is no such instance to take away.
	ErrAbsent = errors.New("there is no such instance")
)
