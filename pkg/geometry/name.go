// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"fmt"
	"strconv"
	"strings"
)

// Attributes that a profile's name can carry. A profile without is plain.
const (
	Plain           = ""
	MediaExtensions = "+me"     // with the JPEG and optical-flow engines; one on a GPU
	AllMedia        = "+me.all" // with every media engine; only NoMedia beside it
	NoMedia         = "-me"     // without media engines
	Graphics        = "+gfx"    // with graphics
)

// Name is what the name of a profile says. It is a label: GB is rounded by the
// driver, by rules that change, and never a capacity.
type Name struct {
	ComputeSlices int
	GB            int
	Attributes    string // Plain, MediaExtensions, AllMedia, NoMedia or Graphics
}

// String is the inverse of ParseName.
func (n Name) String() string {
	return fmt.Sprintf("%dg.%dgb%s", n.ComputeSlices, n.GB, n.Attributes)
}

// ParseName reads a name such as "1g.10gb" or "2g.48gb+me.all", exactly as the
// driver prints it: no spaces, no capitals, no leading zeros. This is the only
// place where names are taken apart.
func ParseName(s string) (Name, error) {
	compute, rest, _ := strings.Cut(s, "g.")
	gb, attributes, ok := strings.Cut(rest, "gb")
	n := Name{Attributes: attributes}
	var err1, err2 error
	n.ComputeSlices, err1 = strconv.Atoi(compute)
	n.GB, err2 = strconv.Atoi(gb)
	if !ok || err1 != nil || err2 != nil || n.ComputeSlices < 1 || n.GB < 0 || n.String() != s {
		return Name{}, fmt.Errorf("parsing profile name %q: want a form like 1g.10gb or 1g.10gb+me", s)
	}
	switch attributes {
	case Plain, MediaExtensions, AllMedia, NoMedia, Graphics:
		return n, nil
	}
	return Name{}, fmt.Errorf("parsing profile name %q: attribute %q is none of +me, +me.all, -me, +gfx", s, attributes)
}

// attributesOf returns the attributes in a profile's name, and false when the
// name is of a form that we do not know.
func attributesOf(name string) (string, bool) {
	n, err := ParseName(name)
	return n.Attributes, err == nil
}
