// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// TestCountsOfLayouts compares with counts that were made by others: placement
// sets, distinct multisets, maximal sets, maximal multisets.
func TestCountsOfLayouts(t *testing.T) {
	plain := func(p Profile) bool { return !p.Special() }
	noDouble := func(p Profile) bool { return plain(p) && p.ID != 15 }
	all := func(Profile) bool { return true }
	for _, tc := range []struct {
		name, board string
		keep        func(Profile) bool
		want        [4]int
	}{
		{"7x8 without double memory and +me", "A100-40GB", noDouble, [4]int{298, 38, 19, 14}},
		{"7x8 with double memory", "A100-40GB", plain, [4]int{723, 78, 78, 38}},
		{"7x8 with double memory and +me", "A100-40GB", all, [4]int{2319, 128, 239, 64}},
		{"A30 plain", "A30-24GB", plain, [4]int{26, 10, 5, 4}},
		{"A30 with +me", "A30-24GB", all, [4]int{84, 22, 21, 9}},
		{"RTX PRO 6000 plain", "RTX-PRO-6000-96GB", plain, [4]int{26, 10, 5, 4}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := onlyProfiles(t, tc.board, tc.keep)
			var got [4]int
			multisets, maximal := map[string]bool{}, map[string]bool{}
			for _, l := range reachable(t, m) {
				names := multiset(m, l)
				got[0]++
				multisets[names] = true
				if isMaximal(t, m, l) {
					got[2]++
					maximal[names] = true
				}
			}
			got[1], got[3] = len(multisets), len(maximal)
			if got != tc.want {
				t.Errorf("layouts, multisets, maximal, maximal multisets are %v, want %v", got, tc.want)
			}
		})
	}
}

// reachable lists all layouts, found with Starts and Occupy.
func reachable(t *testing.T, m *Model) []Layout {
	t.Helper()
	seen := map[string]bool{}
	var list []Layout
	var extend func(l Layout)
	extend = func(l Layout) {
		if s := m.Format(l); seen[s] {
			return
		} else {
			seen[s] = true
		}
		list = append(list, l)
		o := mustOccupy(t, m, l)
		for _, p := range m.Profiles() {
			for start := range m.Starts(o, p.ID) {
				next := append(slices.Clone(l), Placed{p.ID, start})
				slices.SortFunc(next, func(a, b Placed) int { return a.Start - b.Start })
				extend(next)
			}
		}
	}
	extend(Layout{})
	return list
}

func mustOccupy(t *testing.T, m *Model, l Layout) Occupancy {
	t.Helper()
	o, err := m.Occupancy(l)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func multiset(m *Model, l Layout) string {
	var names []string
	for _, p := range l {
		profile, _ := m.Profile(p.Profile)
		names = append(names, profile.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func isMaximal(t *testing.T, m *Model, l Layout) bool {
	t.Helper()
	o := mustOccupy(t, m, l)
	for _, p := range m.Profiles() {
		for range m.Starts(o, p.ID) {
			return false
		}
	}
	return true
}

// TestEveryLayoutOfEveryBoard compares the arithmetic of occupancies with the
// oracle (I1 to I4).
func TestEveryLayoutOfEveryBoard(t *testing.T) {
	for _, b := range boards.All() {
		t.Run(b.Key, func(t *testing.T) {
			t.Parallel()
			m := modelOf(t, b.Key)
			forEachLayout(m, func(l Layout) {
				o := mustOccupy(t, m, l)
				if err := errors.Join(m.Check(o), l.Check(m)); err != nil {
					t.Fatalf("%s: %v", m.Format(l), err)
				}
				compute := 0
				for _, p := range l {
					profile, _ := m.Profile(p.Profile)
					compute += profile.ComputeSlices
				}
				if compute > m.ComputeSlices() { // I4
					t.Fatalf("%s has %d compute slices, and the GPU %d", m.Format(l), compute, m.ComputeSlices())
				}
				compareOccupy(t, m, l, o)
				compareVacate(t, m, l, o)
				compareText(t, m, l)
			})
		})
	}
}

// compareOccupy tries every profile at every start, on and off the table.
func compareOccupy(t *testing.T, m *Model, l Layout, o Occupancy) {
	t.Helper()
	there := spansOf(m, l)
	for _, p := range m.Profiles() {
		want := slowStarts(there, p)
		if got := slices.Collect(m.Starts(o, p.ID)); !slices.Equal(got, want) {
			t.Fatalf("Starts(%s, %s) = %v, want %v", m.Format(l), p.Name, got, want)
		}
		for start := -1; start <= m.MemorySlices(); start++ {
			after, err := m.Occupy(o, Placed{p.ID, start})
			if ok := slices.Contains(want, start); (err == nil) != ok {
				t.Fatalf("Occupy(%s, %s@%d) says %v, want it to be %v", m.Format(l), p.Name, start, err, ok)
			}
			if err != nil {
				if after != o {
					t.Fatalf("Occupy(%s, %s@%d) refuses and changes the occupancy", m.Format(l), p.Name, start)
				}
				continue
			}
			if free := m.FreeSlices(o) - m.FreeSlices(after); free != p.Size {
				t.Fatalf("Occupy(%s, %s@%d) takes %d memory slices, want %d", m.Format(l), p.Name, start, free, p.Size)
			}
		}
	}
}

// compareVacate takes instances away one by one, in an order of chance, and
// builds the layout up again in another.
func compareVacate(t *testing.T, m *Model, l Layout, o Occupancy) {
	t.Helper()
	chance := rand.New(rand.NewPCG(o.Mask, uint64(len(l))))
	left, order := o, chance.Perm(len(l))
	var rest Layout
	for n, i := range order {
		var err error
		if left, err = m.Vacate(left, l[i]); err != nil {
			t.Fatalf("Vacate(%s, %v): %v", m.Format(l), l[i], err)
		}
		rest = nil
		for _, j := range order[n+1:] {
			rest = append(rest, l[j])
		}
		if want := mustOccupy(t, m, rest); left != want {
			t.Fatalf("Vacate leaves %v of %s, and building it up gives %v", left, m.Format(l), want)
		}
	}
	if left != (Occupancy{}) {
		t.Fatalf("Vacate leaves %v of %s", left, m.Format(l))
	}
	shuffled := slices.Clone(l)
	chance.Shuffle(len(l), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	if got := mustOccupy(t, m, shuffled); got != o {
		t.Fatalf("%v in another order gives %v, want %v", l, got, o)
	}
}

// compareText checks that Parse is the inverse of Format, and that the dots are
// the free memory slices.
func compareText(t *testing.T, m *Model, l Layout) {
	t.Helper()
	s := m.Format(l)
	parsed, err := m.Parse(s)
	if err != nil || !slices.Equal(parsed, l) {
		t.Fatalf("Parse(%q) = %v, %v; want %v", s, parsed, err, l)
	}
	dots := 0
	for _, word := range strings.Fields(s) {
		if strings.Trim(word, ".") == "" {
			dots += len(word)
		}
	}
	if free := m.FreeSlices(mustOccupy(t, m, l)); dots != free {
		t.Fatalf("%q has %d dots, and %d memory slices are free", s, dots, free)
	}
}

func TestOccupyTellsWhyNot(t *testing.T) {
	for _, tc := range []struct {
		name, board, layout string
		add                 Placed
		want                error
	}{
		{"an unknown profile", "A100-40GB", "........", Placed{77, 0}, ErrUnknownProfile},
		{"3g starts at 0 and 4 only", "A100-40GB", "........", Placed{9, 2}, ErrOffTable},
		{"far outside", "A100-40GB", "........", Placed{9, 64}, ErrOffTable},
		{"before the first", "A100-40GB", "........", Placed{9, -4}, ErrOffTable},
		{"overlap", "A100-40GB", ".... 1g.5gb@4 ...", Placed{9, 4}, ErrTaken},
		{"one +me on a GPU", "A100-40GB", "1g.5gb+me@0 .......", Placed{20, 1}, ErrExhausted},
		{"1g beside 1g+me is fine", "A100-40GB", "1g.5gb+me@0 .......", Placed{19, 1}, nil},
		{"plain beside +me.all", "RTX-PRO-6000-96GB", "1g.24gb+me.all@0 .........", Placed{14, 3}, ErrMediaEngines},
		{"-me beside +me.all is fine", "RTX-PRO-6000-96GB", "1g.24gb+me.all@0 .........", Placed{67, 3}, nil},
		{"+me.all beside plain", "RTX-PRO-6000-96GB", "1g.24gb@0 .........", Placed{65, 3}, ErrMediaEngines},
		{"+me.all beside graphics", "RTX-PRO-6000-96GB", "1g.24gb+gfx@0 .........", Placed{65, 3}, ErrMediaEngines},
		{"2g+me.all beside 1g+me.all", "RTX-PRO-6000-96GB", "1g.24gb+me.all@0 .........", Placed{64, 6}, ErrMediaEngines},
		{"+me.all beside -me is fine", "RTX-PRO-6000-96GB", "2g.48gb-me@0 ......", Placed{65, 6}, nil},
		{"+me beside +me.all", "RTX-PRO-6000-96GB", "1g.24gb+me.all@0 .........", Placed{21, 3}, ErrMediaEngines},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := modelOf(t, tc.board)
			l, err := m.Parse(tc.layout)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.Occupy(mustOccupy(t, m, l), tc.add); !errors.Is(err, tc.want) {
				t.Errorf("Occupy says %v, want %v", err, tc.want)
			}
		})
	}
}

func TestVacateRefusesWhatIsNotThere(t *testing.T) {
	m := modelOf(t, "A100-40GB")
	o := mustOccupy(t, m, Layout{{14, 0}, {19, 6}})
	for p, want := range map[Placed]error{
		{19, 2}: ErrAbsent, {9, 0}: ErrAbsent, {15, 0}: ErrAbsent, {77, 0}: ErrUnknownProfile, {14, 1}: ErrOffTable,
	} {
		if after, err := m.Vacate(o, p); !errors.Is(err, want) || after != o {
			t.Errorf("Vacate(%v) says %v, want %v and no change", p, err, want)
		}
	}
}

func TestBlockedSpansAreTakenButNotCounted(t *testing.T) {
	m := modelOf(t, "A100-40GB")
	for _, tc := range []struct {
		at   Placement
		free int
	}{
		{Placement{0, 4}, 4}, {Placement{7, 1}, 7}, {Placement{6, 9}, 6}, {Placement{-2, 4}, 6}, {Placement{64, 1}, 8},
		{Placement{0, 64}, 0}, {Placement{0, 1 << 40}, 0}, {Placement{3, 0}, 8}, {Placement{3, -1}, 8}, {Placement{-9, 3}, 8},
	} {
		o := m.Block(Occupancy{}, tc.at)
		if got := m.FreeSlices(o); got != tc.free || o.Counts != (Occupancy{}).Counts || m.Check(o) != nil {
			t.Errorf("Block(%v) leaves %d of 8 memory slices and %v; want %d", tc.at, got, o, tc.free)
		}
		if m.Block(o, tc.at) != o {
			t.Errorf("Block(%v) twice is not as once", tc.at)
		}
	}
}

func TestCheckFindsWhatCannotBe(t *testing.T) {
	m := modelOf(t, "A100-40GB") // by id: 7g 3g 4g... see Profiles
	index := func(id ProfileID) int {
		return slices.IndexFunc(m.Profiles(), func(p Profile) bool { return p.ID == id })
	}
	counts := func(n map[ProfileID]uint8) (c [32]uint8) {
		for id, v := range n {
			c[index(id)] = v
		}
		return c
	}
	beyond := Occupancy{Mask: 1}
	beyond.Counts[31] = 1
	for _, tc := range []struct {
		name string
		o    Occupancy
		says string
	}{
		{"a memory slice that does not exist", Occupancy{Mask: 1 << 8}, "0x100 do not exist"},
		{"a count of no profile", beyond, "count 31"},
		{"too many", Occupancy{Mask: 0xff, Counts: counts(map[ProfileID]uint8{9: 3})}, "3 of 3g.20gb"},
		{"more than the taken slices hold", Occupancy{Mask: 1, Counts: counts(map[ProfileID]uint8{19: 2})}, "do not fit"},
		{"enough slices, but not where they must be", Occupancy{Mask: 0x1e, Counts: counts(map[ProfileID]uint8{9: 1})}, "do not fit"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := m.Check(tc.o); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Check says %v, want %q", err, tc.says)
			}
		})
	}
	rtx := modelOf(t, "RTX-PRO-6000-96GB")
	mixed := Occupancy{Mask: 0x3f}
	for i, p := range rtx.Profiles() {
		if p.ID == 65 || p.ID == 14 {
			mixed.Counts[i] = 1
		}
	}
	if err := rtx.Check(mixed); !errors.Is(err, ErrMediaEngines) {
		t.Errorf("1g and 1g+me.all: Check says %v, want %v", err, ErrMediaEngines)
	}
	if err := (Layout{{19, 3}, {19, 1}}).Check(m); err == nil || !strings.Contains(err.Error(), "not sorted") {
		t.Errorf("an unsorted layout: Check says %v", err)
	}
}

func TestParseIsStrict(t *testing.T) {
	m := modelOf(t, "A100-40GB")
	for s, says := range map[string]string{
		"":                                  `write it as "........"`,
		".......":                           `write it as "........"`,
		".... ....":                         `write it as "........"`,
		"1g.5gb@0":                          `write it as "1g.5gb@0 ......."`,
		".. 1g.5gb@0 .....":                 `write it as "1g.5gb@0 ......."`,
		"1g.5gb@00 .......":                 `write it as "1g.5gb@0 ......."`,
		"1g.5gb@+0 .......":                 `write it as`,
		"1g.5gb ........":                   "neither dots nor",
		"1g.5gb@x .......":                  "neither dots nor",
		"9g.5gb@0 .......":                  "no such profile",
		"3g.20gb@1 ...":                     "no such start",
		"3g.20gb@0 3g.20gb@0":               "are taken",
		"... 1g.5gb@4 1g.5gb@3 ...":         "not sorted",
		"1g.5gb+me@0 1g.5gb+me@1 ......":    "maximum is reached",
		"1g.5gb@0\t.......":                 `write it as "1g.5gb@0 ......."`,
		"1g.5gb@99999999999999999999 .....": "neither dots nor",
	} {
		if l, err := m.Parse(s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Parse(%q) = %v, %v; want %q", s, l, err, says)
		}
	}
}

func TestFormatPrintsWhatIsNotLegal(t *testing.T) {
	m := modelOf(t, "A100-40GB")
	for want, l := range map[string]Layout{
		".. profile77@2 ......":  {{77, 2}},
		"3g.20gb@0 3g.20gb@2 ..": {{9, 0}, {9, 2}},
		"........ 1g.5gb@99":     {{19, 99}},
		"1g.5gb@-3 ........":     {{19, -3}},
		"........":               nil,
	} {
		if got := m.Format(l); got != want {
			t.Errorf("Format(%v) = %q, want %q", l, got, want)
		}
	}
}

func ExampleModel_Format() {
	b, _ := boards.Named("NVIDIA A100-SXM4-40GB")
	m, _ := b.Model()
	fmt.Println(m.Format(Layout{{Profile: 14, Start: 0}, {Profile: 9, Start: 4}}))
	// Output: 2g.10gb@0 .. 3g.20gb@4
}
