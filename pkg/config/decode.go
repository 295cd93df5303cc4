// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxProblems ends the reading of a hopeless file.
const maxProblems = 100

// at is a value of the file and its path, such as nodeconfig[0].name.
type at struct {
	node *yaml.Node // never an alias
	path string     // empty at the top
}

// field is the value of a key of v.
func (v at) field(key string, value *yaml.Node) at {
	if !plainKey.MatchString(key) {
		key = quote(key)
	}
	if v.path != "" {
		key = v.path + "." + key
	}
	return at{target(value), key}
}

func (v at) item(i int) at {
	return at{target(v.node.Content[i]), fmt.Sprintf("%s[%d]", v.path, i)}
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_./-]{1,80}$`)

// target follows an alias. A cycle does no harm: no schema here is recursive.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// A decoder walks the tree of one file and collects every problem of it. Its
// readers set what they are given only when the value is good; an empty value
// (null) counts as absent.
type decoder struct {
	file     string
	foldCase bool // keys compare without case, as Go's encoding/json does
	offset   int  // lines above the document, where it is part of a manifest
	fixed    int  // when above 0, the line of everything

	problems []problem
	more     int // problems beyond maxProblems
}

type problem struct {
	line int
	text string // without file and line
}

func (d *decoder) line(n *yaml.Node) int {
	if d.fixed > 0 {
		return d.fixed
	}
	return n.Line + d.offset
}

// reject notes a problem of v: its path followed by the words.
func (d *decoder) reject(v at, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if v.path != "" {
		text = v.path + " " + text
	}
	d.note(d.line(v.node), text)
}

func (d *decoder) note(line int, text string) {
	if len(d.problems) == maxProblems {
		d.more++
		return
	}
	d.problems = append(d.problems, problem{line, text})
}

// err joins all problems in the order of their lines; nil when there is none.
func (d *decoder) err() error {
	slices.SortStableFunc(d.problems, func(a, b problem) int { return a.line - b.line })
	errs := make([]error, len(d.problems))
	for i, p := range d.problems {
		errs[i] = fmt.Errorf("%s:%d: %s", d.file, p.line, p.text)
	}
	if d.more > 0 {
		errs = append(errs, fmt.Errorf("%s: %d more problems; correct these first", d.file, d.more))
	}
	return errors.Join(errs...)
}

// readers has a reader for each key that a mapping may have.
type readers map[string]func(at)

// mapping reads the values of the known keys, in the order of the file, and
// rejects all other keys. It returns the values that are there, by key, and nil
// when v is not a mapping.
func (d *decoder) mapping(v at, known readers) map[string]at {
	if v.node.Kind != yaml.MappingNode {
		d.reject(v, "is %s; write a mapping with the keys %s", describe(v.node), keysOf(known))
		return nil
	}
	seen := make(map[string]at, len(v.node.Content)/2)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key := target(v.node.Content[i])
		value := v.field(key.Value, v.node.Content[i+1])
		name, ok := d.known(key.Value, known)
		switch {
		case key.Kind != yaml.ScalarNode:
			d.reject(at{key, v.path}, "has a key that is %s; write a word", describe(key))
		case !ok:
			d.rejectKey(at{key, value.path}, key.Value, known)
		case seen[name].node != nil:
			d.reject(at{key, value.path}, "is set twice, first in line %d; remove one", d.line(seen[name].node))
		case !isNull(value.node):
			seen[name] = value
			known[name](value)
		}
	}
	return seen
}

// known returns the spelling of a key that has a reader.
func (d *decoder) known(key string, known readers) (string, bool) {
	if known[key] != nil {
		return key, true
	}
	for name := range known {
		if d.foldCase && strings.EqualFold(name, key) {
			return name, true
		}
	}
	return "", false
}

// named reads each value of a mapping whose keys are names, 1 to most of them, in
// the order of the file. What a value is, such as "labels", is for messages.
func (d *decoder) named(v at, what string, most int, each func(name string, value at)) {
	if v.node.Kind != yaml.MappingNode {
		d.reject(v, "is %s; write a mapping of %s", describe(v.node), what)
		return
	}
	pairs := v.node.Content
	if n := len(pairs) / 2; n < 1 || n > most {
		d.reject(v, "has %d %s; write 1 to %d", n, what, most)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(pairs); i += 2 {
		name := target(pairs[i]).Value
		value := v.field(name, pairs[i+1])
		if seen[name] {
			d.reject(value, "is set twice; remove one")
		}
		seen[name] = true
		each(name, value)
	}
}

func (d *decoder) rejectKey(v at, key string, known readers) {
	if key == "<<" {
		d.reject(v, "is a merge key, which is not supported; write the keys out")
	} else if near := Nearest(key, slices.Sorted(maps.Keys(known))); near != "" {
		d.reject(v, "is unknown; did you mean %s?", near)
	} else {
		d.reject(v, "is unknown; the known keys are %s", keysOf(known))
	}
}

func keysOf(known readers) string { return words(slices.Sorted(maps.Keys(known)), "and") }

// require rejects the mapping v when it lacks a key.
func (d *decoder) require(v at, seen map[string]at, key, remedy string) {
	if _, ok := seen[key]; !ok && seen != nil {
		d.reject(v.field(key, v.node), "is missing; %s", remedy)
	}
}

// list reads each item of a list of 1 to most items.
func (d *decoder) list(most int, each func(at)) func(at) { return d.items(1, most, each) }

// optionalList is like list, but the list may be empty.
func (d *decoder) optionalList(most int, each func(at)) func(at) { return d.items(0, most, each) }

func (d *decoder) items(least, most int, each func(at)) func(at) {
	return func(v at) {
		switch n := len(v.node.Content); {
		case v.node.Kind != yaml.SequenceNode:
			d.reject(v, "is %s; write a list", describe(v.node))
		case n < least:
			d.reject(v, "is an empty list; write at least one item or remove it")
		case n > most:
			d.reject(v, "has %d items; at most %d are possible", n, most)
		default:
			for i := range n {
				each(v.item(i))
			}
		}
	}
}

// into makes a reader of one value a reader of an item of a list: it appends what
// was read, if it was good.
func into[T comparable](list *[]T, read func(*T) func(at)) func(at) {
	return func(v at) {
		var item, unset T
		if read(&item)(v); item != unset {
			*list = append(*list, item)
		}
	}
}

// scalar reports whether v is a scalar of one of the YAML types, and rejects it
// otherwise, with what should stand there.
func (d *decoder) scalar(v at, wanted string, tags ...string) bool {
	if v.node.Kind == yaml.ScalarNode && slices.Contains(tags, v.node.ShortTag()) {
		return true
	}
	d.reject(v, "is %s; %s", describe(v.node), wanted)
	return false
}

// text reads a string that is not empty.
func (d *decoder) text(dst *string) func(at) {
	return func(v at) {
		if !d.scalar(v, "write a string, in quotes where it reads as something else", "!!str") {
			return
		}
		if strings.TrimSpace(v.node.Value) == "" {
			d.reject(v, "is empty; write a string or remove it")
			return
		}
		*dst = v.node.Value
	}
}

// optionalText reads a string that may be empty.
func (d *decoder) optionalText(dst *string) func(at) {
	return func(v at) {
		if d.scalar(v, "write a string, in quotes where it reads as something else", "!!str") {
			*dst = v.node.Value
		}
	}
}

// oneOf reads one of the words. An empty string counts as absent.
func (d *decoder) oneOf(dst *string, allowed ...string) func(at) {
	return func(v at) {
		use := "use " + words(allowed, "or")
		if !d.scalar(v, use, "!!str", "!!int") || v.node.Value == "" {
			return
		}
		if !slices.Contains(allowed, v.node.Value) {
			d.reject(v, "is %s; %s", describe(v.node), use)
			return
		}
		*dst = v.node.Value
	}
}

func (d *decoder) boolean(dst *bool) func(at) {
	return func(v at) {
		const use = "use true or false"
		if d.scalar(v, use, "!!bool") && v.node.Decode(dst) != nil {
			d.reject(v, "is %s; %s", describe(v.node), use)
		}
	}
}

// integer reads a whole number from least to most.
func integer[T int32 | int64](d *decoder, dst *T, least, most T) func(at) {
	wanted := fmt.Sprintf("write a whole number from %d to %d", least, most)
	if most >= math.MaxInt32 {
		wanted = fmt.Sprintf("write a whole number of %d or more", least)
	}
	return func(v at) {
		if !d.scalar(v, wanted, "!!int") {
			return
		}
		var n T
		if err := v.node.Decode(&n); err != nil || n < least || n > most {
			d.reject(v, "is %s; %s", describe(v.node), wanted)
			return
		}
		*dst = n
	}
}

// number reads a finite number for which ok holds.
func (d *decoder) number(dst *float64, wanted string, ok func(float64) bool) func(at) {
	return func(v at) {
		if !d.scalar(v, wanted, "!!int", "!!float") {
			return
		}
		var n float64
		if err := v.node.Decode(&n); err != nil || math.IsNaN(n) || math.IsInf(n, 0) || !ok(n) {
			d.reject(v, "is %s; %s", describe(v.node), wanted)
			return
		}
		*dst = n
	}
}

// aboveZero reads a number above 0.
func (d *decoder) aboveZero(dst *float64) func(at) {
	return d.number(dst, "write a number above 0", func(n float64) bool { return n > 0 })
}

// zeroOrAbove reads a number of 0 or above.
func (d *decoder) zeroOrAbove(dst *float64) func(at) {
	return d.number(dst, "write a number of 0 or above", func(n float64) bool { return n >= 0 })
}
