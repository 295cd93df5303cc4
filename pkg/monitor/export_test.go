// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import "time"

// Hurry sets the times after which streams end, readers are cut off, and those who
// wait are turned away. It must come before the first request.
func (m *Monitor) Hurry(streamAge, patience, queue time.Duration) {
	m.streamAge, m.patience, m.queue = streamAge, patience, queue
}

// Slots are how many readers are being answered.
func (m *Monitor) Slots() int { return len(m.watchers.taken) + len(m.large.taken) }

// MaxLarge is how many answers of the fleet's size are written at once, MaxSmall how many
// nodes may be in one that does not count.
const (
	MaxLarge = maxLarge
	MaxSmall = maxSmall
)
