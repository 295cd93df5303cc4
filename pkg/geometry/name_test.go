// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

func TestParseName(t *testing.T) {
	for s, want := range map[string]Name{
		"1g.5gb":         {1, 5, Plain},
		"7g.141gb":       {7, 141, Plain},
		"1g.10gb+me":     {1, 10, MediaExtensions},
		"2g.48gb+me.all": {2, 48, AllMedia},
		"1g.24gb-me":     {1, 24, NoMedia},
		"4g.96gb+gfx":    {4, 96, Graphics},
		"2g.0gb":         {2, 0, Plain}, // an integrated GPU
	} {
		got, err := ParseName(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("ParseName(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
}

func TestParseNameIsStrict(t *testing.T) {
	for _, s := range []string{
		"", "1g", "1g.", "g.5gb", "1g.gb", "1g.5", "1g.5GB", "1G.5gb", " 1g.5gb", "1g.5gb ", "1g5gb", "01g.5gb", "1g.05gb",
		"+1g.5gb", "-1g.5gb", "0g.5gb", "1g.-5gb", "1.5g.5gb", "1c.3g.20gb", "1g.5gb+", "1g.5gb+me+me", "1g.5gb+ME",
		"1g.5gb.me", "1g.5gb+media", "MIG 1g.5gb", "1g.5gbgb", "99999999999999999999g.5gb", "1g.5gb+me.al", "١g.5gb",
	} {
		if n, err := ParseName(s); err == nil {
			t.Errorf("ParseName(%q) = %+v, want an error", s, n)
		}
	}
}

func TestSpecialProfilesAreThoseWithAttributes(t *testing.T) {
	for name, want := range map[string]bool{
		"1g.5gb": false, "1g.5gb+me": true, "1g.24gb-me": true, "4g.96gb+gfx": true, "1g.24gb+me.all": true, "1g.5gb+new": true, "whole": true,
	} {
		if got := (Profile{Name: name}).Special(); got != want {
			t.Errorf("%s: Special() = %v, want %v", name, got, want)
		}
	}
}

func TestEveryBoardHasNamesThatParse(t *testing.T) {
	for _, b := range boards.All() {
		for _, p := range b.Profiles {
			n, err := ParseName(p.Name)
			if err != nil || n.ComputeSlices != p.ComputeSlices {
				t.Errorf("%s: %s has %d compute slices and parses as %+v, %v", b.Key, p.Name, p.ComputeSlices, n, err)
			}
		}
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"1g.5gb", "2g.48gb+me.all", "1g.24gb-me", "4g.96gb+gfx", "1c.3g.20gb", "", "g.gb", "1g.5gb+"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		switch {
		case err != nil && n != (Name{}):
			t.Errorf("ParseName(%q) gives %+v together with an error", s, n)
		case err == nil && n.String() != s:
			t.Errorf("ParseName(%q) prints as %q", s, n)
		}
	})
}
