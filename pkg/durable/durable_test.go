// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package durable

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSaveReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	if err := os.WriteFile(path+".tmp", []byte("what a crash has left, which is longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", "2nd"} {
		if err := Save(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); string(got) != text || err != nil {
			t.Errorf("the file holds %q, %v, want %q", got, err, text)
		}
	}
	if names, err := os.ReadDir(filepath.Dir(path)); len(names) != 1 || err != nil {
		t.Errorf("the directory holds %v, %v, want one file", names, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v, want one that its owner alone can read", info, err)
	}
}

// TestSaveThatFailsLeavesTheFile: here its directory cannot take another file.
func TestSaveThatFailsLeavesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	if err := Save(path, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+".tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Save(path, []byte("lost")); err == nil {
		t.Error("Save says that it has written")
	}
	if got, err := os.ReadFile(path); string(got) != "kept" || err != nil {
		t.Errorf("the file holds %q, %v, want what was there", got, err)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for _, c := range []struct {
		name, text string
		ok         bool
	}{
		{"a value", ` {"a": 1}` + "\n", true},
		{"an unknown field", `{"a": 1, "b": 2}`, false},
		{"text behind it", `{"a": 1} {}`, false},
		{"half a value", `{"a": `, false},
		{"nothing", ``, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var v struct{ A int }
			if err := Decode([]byte(c.text), &v); (err == nil) != c.ok || c.ok && v.A != 1 {
				t.Errorf("Decode = %v, %+v, want an error: %t", err, v, !c.ok)
			}
		})
	}
}
