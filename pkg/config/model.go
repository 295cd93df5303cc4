// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path"
	"slices"
	"strings"
)

// aliases are names that configurations use for products which NVML calls
// otherwise. A * stands for anything.
var aliases = []struct{ configured, product string }{
	{"H100-SXM5-80GB", "H100 80GB HBM3"},
	{"H100-PCIE-80GB", "H100 PCIe"},
	{"H100-*-94GB", "H100 NVL"},
	{"A100-80GB-PCIe", "A100 80GB PCIe"},
	{"A100-PCIE-80GB", "A100 80GB PCIe"},
	{"H200-SXM5", "H200"},
}

// How well a configured string names a product. Between them lie the lengths of
// strings that are a part of the product's name.
const (
	isNoName    = 0
	isAliasName = 1 << 20
	isFullName  = 1 << 21
)

// rank says how well a configured string names a product, both with or without
// NVIDIA in front. The whole name is best, then an alias of it, then the longest
// string whose words occur in the name one after the other. Only spaces part
// words: H20 is no part of H200, H20-3e or GH200, while H200 is one of "H200 NVL".
func rank(product, configured string) int {
	name, part := wordsOf(product), wordsOf(configured)
	full, text := strings.Join(name, " "), strings.Join(part, " ")
	switch {
	case len(part) == 0:
		return isNoName
	case full == text:
		return isFullName
	case hasAlias(full, text):
		return isAliasName
	}
	for i := 0; i+len(part) <= len(name); i++ {
		if slices.Equal(name[i:i+len(part)], part) {
			return len(text)
		}
	}
	return isNoName
}

// wordsOf a name, less NVIDIA in front.
func wordsOf(name string) []string {
	w := strings.Fields(name)
	if len(w) > 0 && w[0] == "NVIDIA" {
		w = w[1:]
	}
	return w
}

func hasAlias(product, configured string) bool {
	for _, a := range aliases {
		if ok, err := path.Match(a.configured, configured); ok && err == nil && a.product == product {
			return true
		}
	}
	return false
}

// best returns the entry whose models name the product best, the first of equally
// good ones, and nil when none does.
func best[E any](product string, entries []E, models func(*E) []string) *E {
	var found *E
	foundRank := isNoName
	for i := range entries {
		for _, m := range models(&entries[i]) {
			if r := rank(product, m); r > foundRank {
				found, foundRank = &entries[i], r
			}
		}
	}
	return found
}
