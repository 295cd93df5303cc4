// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package boards

import (
	"math"
	"strings"
	"testing"

	"github.com/dynamig/dynamig/pkg/geometry"
)

func TestEveryBoardIsWhole(t *testing.T) {
	owner := map[string]string{}
	for _, b := range All() {
		m, err := b.Model()
		if err != nil {
			t.Errorf("%s: %v", b.Key, err)
			continue
		}
		switch b.Architecture {
		case "Ampere", "Hopper", "Blackwell":
		default:
			t.Errorf("%s: architecture %q", b.Key, b.Architecture)
		}
		if len(b.PCI) == 0 || b.Placements == "" || b.Mem == "" {
			t.Errorf("%s: PCI id or confidence is missing", b.Key)
		}
		if _, ok := m.FullProfile(); !ok {
			t.Errorf("%s has no profile for the whole GPU", b.Key)
		}
		enums := map[int]bool{}
		for i, p := range b.Profiles {
			if enums[p.Enum] {
				t.Errorf("%s: enum %d twice", b.Key, p.Enum)
			}
			enums[p.Enum] = true
			if got := m.Profiles()[i]; got.ID != p.ID || got.Max != p.Max {
				t.Errorf("%s: profile %+v has maximum %d by its placements", b.Key, p, got.Max)
			}
		}
		for _, name := range append([]string{b.Key}, b.Products...) {
			if other, ok := owner[name]; ok {
				t.Errorf("%q is %s and %s", name, other, b.Key)
			}
			owner[name] = b.Key
			if got, ok := Named(name); !ok || got.Key != b.Key {
				t.Errorf("Named(%q) = %s, %v; want %s", name, got.Key, ok, b.Key)
			}
		}
	}
	if len(owner) < 2*14 {
		t.Errorf("only %d names of boards", len(owner))
	}
}

func TestNamedIsExact(t *testing.T) {
	for name, want := range map[string]string{
		"NVIDIA A100-SXM4-40GB": "A100-40GB", "NVIDIA A100-PCIE-40GB": "A100-40GB",
		"NVIDIA A100-SXM4-80GB": "A100-80GB", "NVIDIA A100 80GB PCIe": "A100-80GB",
		"NVIDIA H100 80GB HBM3": "H100-80GB", "NVIDIA H100 PCIe": "H100-80GB", "NVIDIA H100 NVL": "H100-94GB",
		"NVIDIA H20": "H100-96GB", "NVIDIA H20-3e": "H200-141GB", "NVIDIA H200": "H200-141GB", "NVIDIA H200 NVL": "H200-141GB",
		"NVIDIA B200": "B200-180GB", "NVIDIA GB200": "GB200-186GB", "NVIDIA A30": "A30-24GB",
		"NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000-96GB",
		"NVIDIA H2": "", "H200": "", "nvidia h200": "", "": "",
	} {
		if got, ok := Named(name); got.Key != want || ok != (want != "") {
			t.Errorf("Named(%q) = %q, %v; want %q", name, got.Key, ok, want)
		}
	}
}

// TestNamesFollowFromMemory recomputes each profile's GB from its memory: eighths
// of the GPU, rounded up, of its GiB, rounded up.
func TestNamesFollowFromMemory(t *testing.T) {
	checked := 0
	for _, b := range All() {
		for _, p := range b.Profiles {
			if b.MemoryMiB == 0 || p.MemoryMiB == 0 {
				continue
			}
			n, err := geometry.ParseName(p.Name)
			if err != nil {
				t.Fatal(err)
			}
			total := float64(b.MemoryMiB)
			gb := math.Round(math.Ceil(float64(p.MemoryMiB)/total*8) / 8 * math.Ceil(total/1024))
			if int(gb) != n.GB {
				t.Errorf("%s: %s with %d of %d MiB would be named %v GB", b.Key, p.Name, p.MemoryMiB, b.MemoryMiB, gb)
			}
			checked++
		}
	}
	if checked < 30 {
		t.Errorf("only %d names could be checked", checked)
	}
}

func TestVariantsShareMemoryAndSMs(t *testing.T) {
	for _, tc := range []struct {
		board, profile string
		memory, sms    int
	}{
		{"A100-40GB", "1g.5gb+me", 4864, 14},
		{"A100-40GB", "1g.10gb", 9984, 14},
		{"RTX-PRO-6000-96GB", "2g.48gb-me", 48512, 94},
		{"RTX-PRO-6000-96GB", "4g.96gb+gfx", 97280, 188},
		{"H100-94GB", "3g.47gb", 0, 0},
	} {
		b, _ := Named(tc.board)
		m, err := b.Model()
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := m.ByName(tc.profile); !ok || p.MemoryMiB != tc.memory || p.SMs != tc.sms {
			t.Errorf("%s %s has %d MiB and %d SMs, want %d and %d", tc.board, tc.profile, p.MemoryMiB, p.SMs, tc.memory, tc.sms)
		}
	}
}

func TestDecodeRefusesWhatDoesNotFit(t *testing.T) {
	const grid = `{"grids":{"1x1":{"memory_slices":1,"compute_slices":1,"profiles":{"1g":{"enum":0,"id":1,"slices":1,"size":1,"starts":[0],"max":1}}}},"boards":{"b":`
	for _, tc := range []struct{ name, board, says string }{
		{"a field that we do not know", `{"colour":"green"}}}`, "colour"},
		{"an unknown grid", `{"grid":"2x2"}}}`, `grid "2x2"`},
		{"an unknown profile", `{"grid":"1x1","names":{"2g":"2g.2gb"}}}}`, `profile "2g"`},
		{"memory of a profile that it does not have", `{"grid":"1x1","names":{"1g":"1g.1gb"},"mem_mib":{"1gg":3}}}}`, `profile "1gg"`},
		{"no profiles", `{"grid":"1x1","names":{}}}}`, "0 profiles"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := decode([]byte(grid + tc.board)); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("decode says %v, want %q", err, tc.says)
			}
		})
	}
}
