// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/dynamig/dynamig/pkg/durable"
)

// stateVersion is the only version of the state file so far.
const stateVersion = 1

// state is the file's form of a table.
type state struct {
	Version int            `json:"version"`
	Next    int            `json:"next"`
	Slots   map[string]use `json:"slots"`
}

// loadTable reads the state file; nil where there is none.
func loadTable(path string) (*table, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading slots: %w", err)
	}
	t, err := decodeTable(text)
	if err != nil {
		return nil, fmt.Errorf("reading slots from %s: %w; drain the node's pods that use GPUs and remove the file", path, err)
	}
	return t, nil
}

// decodeTable reads what save writes. Another version, an unknown field and a broken
// invariant are errors.
func decodeTable(text []byte) (*table, error) {
	var s state
	if err := durable.Decode(text, &s); err != nil {
		return nil, err
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("version %d is unknown, this program knows %d", s.Version, stateVersion)
	}
	t := &table{Next: s.Next, Slots: s.Slots}
	if t.Slots == nil {
		t.Slots = map[string]use{}
	}
	return t, t.check()
}

// check tests the table's invariants.
func (t *table) check() error {
	if t.Next < 0 {
		return fmt.Errorf("next is %d, want 0 or more", t.Next)
	}
	for name, u := range t.Slots {
		if number, ok := slotNumber(name); !ok || number >= t.Next {
			return fmt.Errorf("slots[%q] is not a slot before number %d", name, t.Next)
		}
		if (u.PodUID == "") != (u.Device == "") || (u.PodUID == "") != (u.Container == "") {
			return fmt.Errorf("slots[%q] is half bound: %+v", name, u)
		}
	}
	return nil
}

// save replaces the state file in one step and waits for the disk: a number that
// kubelet has seen must never come again (I2).
func (t *table) save(path string) error {
	text, err := json.Marshal(state{Version: stateVersion, Next: t.Next, Slots: t.Slots})
	if err == nil {
		err = durable.Save(path, text)
	}
	if err != nil {
		return fmt.Errorf("saving slots: %w", err)
	}
	return nil
}
