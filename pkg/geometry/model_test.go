// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry_test

import (
	"fmt"
	"strings"
	"testing"

	. "github.com/dynamig/dynamig/pkg/geometry"
)

// oneSlice is a profile that is right in everything.
func oneSlice() Profile {
	return Profile{ID: 19, Name: "1g.5gb", MemoryMiB: 4864, SMs: 14, ComputeSlices: 1, Size: 1, Max: 7, Starts: []int{0, 1, 2, 3}}
}

func TestNewModelRefusesWhatCannotBe(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(p *Profile)
		says   string
	}{
		{"an id twice", func(p *Profile) { p.Name = "2g.10gb" }, "the same id 19"},
		{"a name twice", func(p *Profile) { p.ID = 14 }, "the same name 1g.5gb"},
		{"a negative id", func(p *Profile) { p.ID = -1 }, "id is negative"},
		{"no name", func(p *Profile) { p.Name = "" }, `name ""`},
		{"a name of dots", func(p *Profile) { p.Name = ".." }, `name ".."`},
		{"a name with a space", func(p *Profile) { p.Name = "MIG 1g.5gb" }, `name "MIG 1g.5gb"`},
		{"a name with an @", func(p *Profile) { p.Name = "1g@5" }, `name "1g@5"`},
		{"negative memory", func(p *Profile) { p.MemoryMiB = -1 }, "memory, SMs or maximum"},
		{"no compute slices", func(p *Profile) { p.ComputeSlices = 0 }, "0 compute slices"},
		{"no size", func(p *Profile) { p.Size = 0 }, "size 0"},
		{"no starts", func(p *Profile) { p.Starts = nil }, "0 starts"},
		{"a negative start", func(p *Profile) { p.Starts = []int{-1, 0} }, "start -1"},
		{"starts that descend", func(p *Profile) { p.Starts = []int{1, 0} }, "do not ascend"},
		{"a start twice", func(p *Profile) { p.Starts = []int{1, 1} }, "do not ascend"},
		{"65 memory slices", func(p *Profile) { p.Starts = []int{64} }, "1 compute x 65 memory slices"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bad := oneSlice()
			tc.change(&bad)
			_, err := NewModel("A100", []Profile{oneSlice(), bad})
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), `model "A100"`) {
				t.Errorf("NewModel says %v, want %q and the model in it", err, tc.says)
			}
		})
	}
}

func TestModelOnGridRefusesPlacementsOutside(t *testing.T) {
	grid := Grid{MemorySlices: 3, ComputeSlices: 3}
	if _, err := NewModelOnGrid("small", grid, []Profile{oneSlice()}); err == nil || !strings.Contains(err.Error(), "start 3 with size 1 is outside 3 memory slices") {
		t.Errorf("NewModelOnGrid says %v, want a word on start 3", err)
	}
	big := oneSlice()
	big.ComputeSlices, big.Starts = 4, []int{0}
	if _, err := NewModelOnGrid("small", grid, []Profile{big}); err == nil || !strings.Contains(err.Error(), "4 compute slices") {
		t.Errorf("NewModelOnGrid says %v, want a word on compute slices", err)
	}
}

func TestModelHasOneTo32Profiles(t *testing.T) {
	var many []Profile
	for i := range 33 {
		p := oneSlice()
		p.ID, p.Name = ProfileID(i), fmt.Sprintf("1g.%dgb", i)
		many = append(many, p)
	}
	if _, err := NewModel("many", many[:32]); err != nil {
		t.Error(err)
	}
	for _, profiles := range [][]Profile{many, nil} {
		if _, err := NewModel("many", profiles); err == nil {
			t.Errorf("NewModel accepts %d profiles", len(profiles))
		}
	}
}

func TestMaximumIsThatOfPlacementsAndReportedCount(t *testing.T) {
	for _, tc := range []struct {
		name, profile string
		size          int
		starts        []int
		reported      int
		want          int
	}{
		{"reported and placements agree", "2g.12gb", 2, []int{0, 2}, 2, 2},
		{"a count above what fits is wrong, as on an A30", "2g.12gb", 2, []int{0, 2}, 3, 2},
		{"an unknown count is what fits", "2g.12gb", 2, []int{0, 2}, 0, 2},
		{"starts may overlap each other", "2g.12gb", 2, []int{0, 1, 2}, 0, 2},
		{"a lower count holds", "2g.12gb", 2, []int{0, 2}, 1, 1},
		{"one +me, where nothing is known", "1g.6gb+me", 1, []int{0, 1, 2, 3}, 0, 1},
		{"more +me, where hardware says so", "1g.6gb+me", 1, []int{0, 1, 2, 3}, 2, 2},
		{"one +me.all, whatever is said", "1g.6gb+me.all", 1, []int{0, 1, 2, 3}, 4, 1},
		{"as many -me as fit", "1g.6gb-me", 1, []int{0, 1, 2, 3}, 0, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := Profile{ID: 5, Name: tc.profile, ComputeSlices: 2, Size: tc.size, Starts: tc.starts, Max: tc.reported}
			m, err := NewModel("A30", []Profile{p})
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Profiles()[0].Max; got != tc.want {
				t.Errorf("Max is %d, want %d", got, tc.want)
			}
		})
	}
}

func TestModelKeepsNothingOfItsCaller(t *testing.T) {
	given := []Profile{oneSlice()}
	m, err := NewModel("A100", given)
	if err != nil {
		t.Fatal(err)
	}
	given[0].Starts[3], given[0].ID = 1, 7
	if got := m.Profiles()[0]; got.Starts[3] != 3 || got.ID != 19 {
		t.Errorf("the caller's change reached the model: %+v", got)
	}
}

func TestLookups(t *testing.T) {
	for _, tc := range []struct{ board, full, grid string }{
		{"A100-40GB", "7g.40gb", "{8 7}"}, {"A30-24GB", "4g.24gb", "{4 4}"}, {"RTX-PRO-6000-96GB", "4g.96gb", "{12 4}"},
	} {
		m := modelOf(t, tc.board)
		if p, ok := m.FullProfile(); !ok || p.Name != tc.full {
			t.Errorf("%s: FullProfile is %s, %v; want %s", tc.board, p.Name, ok, tc.full)
		}
		if got := fmt.Sprint(m.Grid()); got != tc.grid || got != fmt.Sprintf("{%d %d}", m.MemorySlices(), m.ComputeSlices()) {
			t.Errorf("%s: the grid is %s, want %s", tc.board, got, tc.grid)
		}
	}
	m := modelOf(t, "A100-40GB")
	if p, ok := m.ByName("2g.10gb"); !ok || p.ID != 14 {
		t.Errorf("ByName(2g.10gb) = %+v, %v", p, ok)
	}
	if _, ok := m.ByName("2g"); ok {
		t.Error("ByName(2g) finds something")
	}
	if _, ok := m.Profile(77); ok {
		t.Error("Profile(77) finds something")
	}
	at, err := m.Placement(Placed{Profile: 9, Start: 4})
	if err != nil || at != (Placement{Start: 4, Size: 4}) {
		t.Errorf("Placement(3g@4) = %v, %v", at, err)
	}
	if _, err := m.Placement(Placed{Profile: 9, Start: 1}); err == nil {
		t.Error("Placement(3g@1) is accepted")
	}
	some := onlyProfiles(t, "A100-40GB", func(p Profile) bool { return p.Size == 1 })
	if _, ok := some.FullProfile(); ok || some.MemorySlices() != 8 {
		t.Errorf("without 7g there is a full profile, or not 8 memory slices but %d", some.MemorySlices())
	}
}

func TestNearestFindsWhatAConfigurationMeans(t *testing.T) {
	for _, tc := range []struct{ name, board, configured, want string }{
		{"the very name", "A100-40GB", "1g.5gb", "1g.5gb"},
		{"an old name", "A100-80GB", "7g.79gb", "7g.80gb"},
		{"double memory is another profile", "A100-40GB", "1g.10gb", "1g.10gb"},
		{"one GB away", "A100-40GB", "1g.6gb", "1g.5gb"},
		{"more than one GB away", "A100-40GB", "1g.7gb", ""},
		{"within 5 percent", "H200-141GB", "7g.144gb", "7g.141gb"},
		{"beyond 5 percent", "H200-141GB", "7g.150gb", ""},
		{"by another driver's rounding", "GB200-186GB", "7g.189gb", "7g.186gb"},
		{"other compute slices", "A100-40GB", "5g.20gb", ""},
		{"3g is not 4g", "A100-40GB", "4g.20gb", "4g.20gb"},
		{"attributes count", "A100-40GB", "1g.5gb+me", "1g.5gb+me"},
		{"attributes that the hardware lacks", "A100-40GB", "1g.5gb+gfx", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := ParseName(tc.configured)
			if err != nil {
				t.Fatal(err)
			}
			p, ok := modelOf(t, tc.board).Nearest(n)
			if ok != (tc.want != "") || p.Name != tc.want {
				t.Errorf("Nearest(%s) = %s, %v; want %q", n, p.Name, ok, tc.want)
			}
		})
	}
}

func TestNearestPrefersTheSmallerOfTwo(t *testing.T) {
	var profiles []Profile
	for i, name := range []string{"1g.42gb", "1g.40gb", "1g.44gb"} {
		p := oneSlice()
		p.ID, p.Name = ProfileID(i), name
		profiles = append(profiles, p)
	}
	m, err := NewModel("odd", profiles)
	if err != nil {
		t.Fatal(err)
	}
	for gb, want := range map[int]string{41: "1g.40gb", 43: "1g.42gb", 45: "1g.44gb"} {
		if p, _ := m.Nearest(Name{ComputeSlices: 1, GB: gb}); p.Name != want {
			t.Errorf("Nearest(1g.%dgb) = %s, want %s", gb, p.Name, want)
		}
	}
}

func TestFullProfileIsPlainAndHasMostComputeSlices(t *testing.T) {
	whole := func(id ProfileID, name string, compute int) Profile {
		return Profile{ID: id, Name: name, ComputeSlices: compute, Size: 2, Starts: []int{0}}
	}
	m, err := NewModel("odd", []Profile{whole(1, "2g.8gb+gfx", 2), whole(2, "1g.8gb", 1), whole(3, "2g.8gb", 2), whole(4, "2g.9gb", 2)})
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := m.FullProfile(); !ok || p.ID != 3 {
		t.Errorf("FullProfile is %+v, %v; want 2g.8gb", p, ok)
	}
	special, err := NewModel("odd", []Profile{whole(1, "2g.8gb+gfx", 2)})
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := special.FullProfile(); ok {
		t.Errorf("FullProfile is %+v, want none that is plain", p)
	}
	if _, ok := newCatalogue(t, special, config{rule: RuleHardware}).Can(Want{Full: true}); ok {
		t.Error("a catalogue without a full profile can give a whole GPU")
	}
}
