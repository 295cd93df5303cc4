// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// TestModelOfIsTheInverseOfGeometry, for each board.
func TestModelOfIsTheInverseOfGeometry(t *testing.T) {
	for _, b := range boards.All() {
		hardware, err := b.Model()
		if err != nil {
			t.Fatal(err)
		}
		m := ModelOf("a name", hardware)
		again, err := m.Geometry()
		if err != nil {
			t.Fatalf("%s: %v", b.Key, err)
		}
		if diff := cmp.Diff(hardware.Profiles(), again.Profiles()); diff != "" || hardware.Grid() != again.Grid() {
			t.Errorf("%s comes back on grid %v, want %v, with other profiles (-want +got):\n%s", b.Key, again.Grid(), hardware.Grid(), diff)
		}
		if m.Model != "a name" || m.Rule != RuleHardware {
			t.Errorf("%s: the model is %q under rule %q", b.Key, m.Model, m.Rule)
		}
	}
}
