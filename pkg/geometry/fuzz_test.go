// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"slices"
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

func FuzzParseLayout(f *testing.F) {
	for _, s := range []string{"........", "2g.10gb@0 .. 3g.20gb@4", "1g.5gb+me@0 .......", "3g.20gb@1 ...", "@", "1g.5gb@", ". ."} {
		f.Add(s)
	}
	m := modelOf(f, "A100-40GB")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := m.Parse(s)
		if err != nil {
			return
		}
		if again := m.Format(l); again != s {
			t.Errorf("Parse(%q) prints as %q", s, again)
		}
		if err := l.Check(m); err != nil {
			t.Errorf("Parse(%q): %v", s, err)
		}
	})
}

// FuzzOperations runs random operations against a list of instances. Each byte is
// one: on which board first, then what to do.
func FuzzOperations(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte{2, 0x80, 0x10, 0x20, 0x81, 0x30, 0xc0, 0xff, 0x07})
	f.Add([]byte("every GPU can be cut in many ways"))
	all := boards.All()
	f.Fuzz(func(t *testing.T, ops []byte) {
		if len(ops) == 0 {
			return
		}
		m := modelOf(t, all[int(ops[0])%len(all)].Key)
		c := newCatalogue(t, m, config{rule: RuleHardware})
		var l Layout
		var blocked []Placement
		o := Occupancy{}
		for _, op := range ops[1:] {
			o, l, blocked = operate(t, c, o, l, blocked, op)
			want := Occupancy{}
			for _, at := range blocked {
				want = m.Block(want, at)
			}
			for _, p := range l {
				var err error
				if want, err = m.Occupy(want, p); err != nil {
					t.Fatalf("after %#x: %v", op, err)
				}
			}
			if o != want || m.Check(o) != nil {
				t.Fatalf("after %#x: occupancy %v, rebuilt %v, %v", op, o, want, m.Check(o))
			}
			compareTable(t, c, o, Want{Percent: int(op) % 101, Oversize: op >= 0x80})
		}
	})
}

// compareTable holds a table against the search that fills it, which may have met
// another occupancy of this state (I7).
func compareTable(t *testing.T, c *Catalogue, o Occupancy, w Want) {
	t.Helper()
	var want []Choice
	c.Choices(o, w, func(choice Choice) bool {
		want = append(want, choice)
		return true
	})
	if got := c.Table(w, ByScore).Choices(c.State(o)); !slices.Equal(got, want) {
		t.Fatalf("Table.Choices(%v, %+v) = %+v, and Choices are %+v", o, w, got, want)
	}
}

// operate does one operation: the upper two bits say which, the others to what.
func operate(t *testing.T, c *Catalogue, o Occupancy, l Layout, blocked []Placement, op byte) (Occupancy, Layout, []Placement) {
	t.Helper()
	m, arg := c.Model(), int(op&0x3f)
	switch p := m.Profiles()[arg%len(m.Profiles())]; op >> 6 {
	case 0: // place what fits best
		if choice, ok := c.Fit(o, Want{Profile: p.Name}); ok {
			after, err := m.Occupy(o, choice.Placed)
			if err != nil {
				t.Fatalf("Fit chose what Occupy refuses: %v", err)
			}
			return after, append(l, choice.Placed), blocked
		}
	case 1: // place somewhere
		at := Placed{p.ID, arg % (m.MemorySlices() + 1)}
		if after, err := m.Occupy(o, at); err == nil {
			return after, append(l, at), blocked
		}
	case 2: // remove one
		if len(l) > 0 {
			i := arg % len(l)
			after, err := m.Vacate(o, l[i])
			if err != nil {
				t.Fatal(err)
			}
			return after, slices.Delete(l, i, i+1), blocked
		}
	case 3: // somebody else takes a free slice
		at := Placement{Start: arg % m.MemorySlices(), Size: 1}
		if after := m.Block(o, at); m.FreeSlices(after) < m.FreeSlices(o) {
			return after, l, append(blocked, at)
		}
	}
	return o, l, blocked
}
