// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package nodecheck tells an operator whether a node can do dynamic MIG, and what
// is in the way, in sentences that each end with what to do.
//
//	driver, /proc, /dev, /etc, kubelet's directory, API server --> []Finding
//
// It only looks: it creates, destroys, resets and writes nothing.
//
// nodecheck does not know pods, instances of ours, or how the agent works.
package nodecheck

// Level says what a finding means.
type Level string

// Levels, from good to bad.
const (
	OK      Level = "OK"      // as it should be
	Note    Level = "Note"    // worth knowing; may be as it should be
	Problem Level = "Problem" // dynamic MIG does not work until it is solved
)

// Finding is one thing that was looked at.
type Finding struct {
	Level   Level  `json:"level"`
	Subject string `json:"subject"` // such as "driver" or "GPU 0"
	Text    string `json:"text"`    // a sentence, with the remedy where one is needed
}

// Failed reports whether any finding is a problem.
func Failed(findings []Finding) bool {
	for _, f := range findings {
		if f.Level == Problem {
			return true
		}
	}
	return false
}
