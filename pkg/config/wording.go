// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxQuoted is the longest value, in bytes, that a message repeats.
const maxQuoted = 64

// describe says in few words what stands in the file.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "empty"
	case n.ShortTag() != "!!str" && plainValue.MatchString(n.Value):
		return n.Value
	default:
		return quote(n.Value)
	}
}

var plainValue = regexp.MustCompile(`^[A-Za-z0-9_.+-]{1,64}$`)

func quote(s string) string {
	if len(s) > maxQuoted {
		s = strings.ToValidUTF8(s[:maxQuoted], "") + "..."
	}
	return strconv.Quote(s)
}

// words lists: "a", "a or b", "a, b or c".
func words(list []string, last string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	end := len(list) - 1
	return strings.Join(list[:end], ", ") + " " + last + " " + list[end]
}

// Nearest returns the word that was probably meant, the first of equally near
// ones, and "" when none is near: a third of it may differ, and two letters always.
func Nearest(word string, known []string) string {
	best, bestDistance := "", len(word)
	for _, k := range known {
		if n := distance(strings.ToLower(word), strings.ToLower(k)); n < bestDistance && n <= max(2, len(k)/3) {
			best, bestDistance = k, n
		}
	}
	return best
}

// distance is the number of bytes to insert, delete or change to get from a to b
// (Levenshtein). A word of more than 80 bytes is near nothing.
func distance(a, b string) int {
	if len(a) > 80 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
