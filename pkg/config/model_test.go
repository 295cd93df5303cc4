// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"testing"

	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// published says which entry of HAMi's lists, by its first model, is for a
// product; "" where none is.
var published = map[string]string{
	"NVIDIA A30":              "A30",
	"NVIDIA A100-SXM4-40GB":   "A100-SXM4-40GB",
	"NVIDIA A100-PCIE-40GB":   "A100-SXM4-40GB",
	"NVIDIA A800-SXM4-40GB":   "",
	"NVIDIA A800 40GB Active": "",
	"NVIDIA A100-SXM4-80GB":   "A100-SXM4-80GB",
	"NVIDIA A100 80GB PCIe":   "A100-SXM4-80GB",
	"NVIDIA A800-SXM4-80GB":   "",
	"NVIDIA A800 80GB PCIe":   "",
	"NVIDIA H100 80GB HBM3":   "H100-PCIE-80GB",
	"NVIDIA H100 PCIe":        "H100-PCIE-80GB",
	"NVIDIA H800":             "",
	"NVIDIA H800 PCIe":        "",
	"NVIDIA H100 NVL":         "H100-PCIE-94GB",
	"NVIDIA H800 NVL":         "",
	"NVIDIA H20":              "H20",
	"NVIDIA H20-3e":           "",
	"NVIDIA GH200 120GB":      "",
	"NVIDIA GH200 480GB":      "",
	"NVIDIA GH200 144G HBM3e": "",
	"NVIDIA H200":             "H200 NVL",
	"NVIDIA H200 NVL":         "H200 NVL",
	"NVIDIA B200":             "B200",
	"NVIDIA GB200":            "",
	"NVIDIA B300 SXM6 AC":     "",
	"NVIDIA GB300":            "",
	"NVIDIA RTX PRO 6000 Blackwell Server Edition":      "RTX PRO 6000 Blackwell Server Edition",
	"NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "",
}

func TestPublishedListsNameTheProductsThatTheyAreFor(t *testing.T) {
	geometries := device(t, "g", read(t, "geometries-2.9.yaml"))
	allowlist := device(t, "a", read(t, "allowlist-2.10.yaml"))
	for _, b := range boards.All() {
		for _, product := range b.Products {
			want, known := published[product]
			if !known {
				t.Errorf("%s is a product of board %s and not in the table; add it", product, b.Key)
			}
			var byGeometries, byAllowlist string
			if g := best(product, geometries.KnownMigGeometries, func(g *Geometries) []string { return g.Models }); g != nil {
				byGeometries = g.Models[0]
			}
			if a := best(product, allowlist.MigProfileAllowlist, func(a *Allowlist) []string { return a.Models }); a != nil {
				byAllowlist = a.Models[0]
			}
			if byGeometries != want || byAllowlist != want {
				t.Errorf("%s is named by the entry of %q in geometries and %q in the allowlist, want %q",
					product, byGeometries, byAllowlist, want)
			}
		}
	}
}

func TestModelsMatchByWholeWords(t *testing.T) {
	for _, tt := range []struct {
		product, configured string
		want                int
	}{
		{"NVIDIA A30", "A30", isFullName},
		{"NVIDIA A30", "NVIDIA A30", isFullName},
		{"A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB", isFullName}, // as older drivers print it
		{"NVIDIA  A30 ", " NVIDIA A30", isFullName},
		{"NVIDIA H200 NVL", "H200", len("H200")},
		{"NVIDIA H200 NVL", "NVL", len("NVL")},
		{"NVIDIA H100 80GB HBM3", "80GB HBM3", len("80GB HBM3")},
		{"NVIDIA H100 80GB HBM3", "H100 HBM3", isNoName}, // not one after the other
		{"NVIDIA H200", "H20", isNoName},
		{"NVIDIA H20-3e", "H20", isNoName},
		{"NVIDIA H20", "H20-3e", isNoName},
		{"NVIDIA GH200 480GB", "H200", isNoName},
		{"NVIDIA GB200", "B200", isNoName},
		{"NVIDIA A100-SXM4-40GB", "A100", isNoName},
		{"NVIDIA A30", "a30", isNoName},
		{"NVIDIA A30", "", isNoName},
		{"NVIDIA A30", "NVIDIA", isNoName},
		{"NVIDIA A30", "A30 PCIe", isNoName},
		{"", "A30", isNoName},
		{"NVIDIA H100 80GB HBM3", "H100-SXM5-80GB", isAliasName},
		{"NVIDIA H100 80GB HBM3", "NVIDIA H100-SXM5-80GB", isAliasName},
		{"NVIDIA H100 PCIe", "H100-PCIE-80GB", isAliasName},
		{"NVIDIA H100 PCIe", "H100-SXM5-80GB", isNoName},
		{"NVIDIA H100 NVL", "H100-PCIE-94GB", isAliasName},
		{"NVIDIA H100 NVL", "H100-SXM5-94GB", isAliasName},
		{"NVIDIA H100 NVL", "H100-PCIE-80GB", isNoName},
		{"NVIDIA A100 80GB PCIe", "A100-80GB-PCIe", isAliasName},
		{"NVIDIA A100 80GB PCIe", "A100-PCIE-80GB", isAliasName},
		{"NVIDIA H200", "H200-SXM5", isAliasName},
		{"NVIDIA H200 NVL", "H200-SXM5", isNoName},
	} {
		if got := rank(tt.product, tt.configured); got != tt.want {
			t.Errorf("rank(%q, %q) = %d, want %d", tt.product, tt.configured, got, tt.want)
		}
	}
}

func TestTheBestNameWins(t *testing.T) {
	for _, tt := range []struct {
		name, product string
		entries       [][]string
		want          int // index, -1 for none
	}{
		{"the whole name before a part, whatever the order", "NVIDIA H200 NVL", [][]string{{"H200"}, {"H200 NVL"}}, 1},
		{"an alias before a part", "NVIDIA H100 80GB HBM3", [][]string{{"H100 80GB"}, {"x", "H100-SXM5-80GB"}}, 1},
		{"the whole name before an alias", "NVIDIA H200", [][]string{{"H200-SXM5"}, {"H200"}}, 1},
		{"the longer part", "NVIDIA H100 80GB HBM3", [][]string{{"H100"}, {"H100 80GB"}}, 1},
		{"the first of equals", "NVIDIA A30", [][]string{{"B200"}, {"A30"}, {"NVIDIA A30"}}, 1},
		{"none", "NVIDIA H20", [][]string{{"H200"}, {"H20-3e"}, {"H200 NVL"}}, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := -1
			if found := best(tt.product, tt.entries, func(e *[]string) []string { return *e }); found != nil {
				for i := range tt.entries {
					if &tt.entries[i] == found {
						got = i
					}
				}
			}
			if got != tt.want {
				t.Errorf("entry %d names %s best, want %d", got, tt.product, tt.want)
			}
		})
	}
}
