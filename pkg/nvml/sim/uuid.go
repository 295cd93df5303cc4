// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
)

// newSeed returns a seed for a node whose UUIDs need not be foreseeable.
func newSeed() string { return rand.Text() }

// newUUID returns the next MIG UUID of the node: never one it gave out before,
// and the same sequence for the same seed.
func (s *State) newUUID() string {
	s.UUIDs++
	return uuid(s.Seed, "mig", s.UUIDs)
}

// uuid returns the n-th UUID of a kind, of version 5 like those of the driver.
func uuid(seed, kind string, n int) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", seed, kind, n))
	h[6] = h[6]&0x0f | 0x50
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}
