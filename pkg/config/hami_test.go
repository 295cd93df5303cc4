// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// hamiKey is a row of testdata/hami-config.yaml.
type hamiKey struct {
	File    string    `yaml:"file"` // device or node
	Key     string    `yaml:"key"`
	Value   yaml.Node `yaml:"value"` // a string of YAML where it begins with a bracket
	Field   string    `yaml:"field"`
	Becomes any       `yaml:"becomes"` // of the field; the value where absent
	Silent  any       `yaml:"silent"`  // of the field where the file has no such key
	Bad     yaml.Node `yaml:"bad"`     // a mapping of values to what is said of them
	Without string    `yaml:"without"` // begin of the report that the key does nothing
}

func hamiKeys(t *testing.T) []hamiKey {
	t.Helper()
	var rows []hamiKey
	if err := yaml.Unmarshal(read(t, "hami-config.yaml"), &rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

// source is a value as the file under test writes it.
func source(n *yaml.Node) string {
	switch {
	case n.Style&yaml.TaggedStyle != 0:
		return n.Tag + " " + n.Value
	case n.ShortTag() == "!!str" && (n.Value == "" || strings.ContainsAny(n.Value[:1], `[{'"`)):
		return n.Value
	case n.ShortTag() == "!!str" && n.Style != 0:
		return fmt.Sprintf("%q", n.Value)
	}
	return n.Value
}

// with is a file that has the key, or none for an empty value.
func (k *hamiKey) with(value string) (text, path string) {
	if value != "" {
		value = k.Key + ": " + value
	}
	if k.File == "device" {
		return "nvidia: {" + value + "}\n", "nvidia." + k.Key
	}
	if k.Key != "name" && k.Key != "nodeSelector" && k.Key != "default" {
		value = "name: n, " + value
	}
	return "nodeconfig: [{" + value + "}]\n", "nodeconfig[0]." + k.Key
}

// parsed are the fields that a file gives, and what is reported as without effect.
func (k *hamiKey) parsed(text string) (fields map[string]any, without []string, err error) {
	d, e := DefaultDevice(), NodeEntry{}
	var of any
	if k.File == "device" {
		d, err = ParseDevice("f", []byte(text))
		of = d
	} else {
		var n *Node
		if n, err = ParseNode("f", []byte(text)); err == nil {
			e = n.Entries[0]
		}
		of = e
	}
	if err != nil {
		return nil, nil, err
	}
	data, err := json.Marshal(of)
	if err != nil {
		return nil, nil, err
	}
	err = json.Unmarshal(data, &fields)
	return fields, d.With(e).WithoutEffect(&e), err
}

// TestConfigurationAsHAMiDocumentsIt goes through every row of the table.
func TestConfigurationAsHAMiDocumentsIt(t *testing.T) {
	for _, k := range hamiKeys(t) {
		t.Run(k.File+"/"+k.Key, func(t *testing.T) {
			text, path := k.with(source(&k.Value))
			fields, without, err := k.parsed(text)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			want := k.Becomes
			if want == nil {
				if err := k.Value.Decode(&want); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(asJSON(t, want), asJSON(t, fields[k.Field])); diff != "" {
				t.Errorf("%s: field %s (-want +got):\n%s", text, k.Field, diff)
			}
			if (k.Without != "") != (len(without) == 1) || k.Without != "" && !strings.HasPrefix(without[0], k.Without) {
				t.Errorf("%s: reported as without effect: %q, want %q", text, without, k.Without)
			}
			k.checkSilent(t)
			for i := 0; i+1 < len(k.Bad.Content); i += 2 {
				text, _ := k.with(source(k.Bad.Content[i]))
				_, _, err := k.parsed(text)
				if want := "f:1: " + path + " " + k.Bad.Content[i+1].Value; !slices.Contains(strings.Split(fmt.Sprint(err), "\n"), want) {
					t.Errorf("%s: %v\nwant %s", text, err, want)
				}
			}
			if len(k.Bad.Content) == 0 {
				t.Error("the row has no malformed value")
			}
		})
	}
}

func (k *hamiKey) checkSilent(t *testing.T) {
	t.Helper()
	text, _ := k.with("")
	if k.File == "node" && (k.Key == "name" || k.Key == "nodeSelector" || k.Key == "default") {
		text = `nodeconfig: [{name: "n"}]`
		if k.Key == "name" {
			text = "nodeconfig: [{default: true}]"
		}
	}
	fields, without, err := k.parsed(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if diff := cmp.Diff(asJSON(t, k.Silent), asJSON(t, fields[k.Field])); diff != "" {
		t.Errorf("where the file is silent field %s is (-want +got):\n%s", k.Field, diff)
	}
	if len(without) > 0 {
		t.Errorf("where the file is silent: %q", without)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestEveryKeyHasARow: the readers list the keys that they know when they meet
// another, and each has a row.
func TestEveryKeyHasARow(t *testing.T) {
	rows := map[string]bool{}
	for _, k := range hamiKeys(t) {
		rows[k.File+" "+k.Key] = true
	}
	list := regexp.MustCompile(`the known keys are (.*)`)
	for file, parse := range map[string]func() error{
		"device": func() error { _, err := ParseDevice("f", []byte("nvidia: {zzzzzzzzzzzzzzzzzzzz: 1}")); return err },
		"node": func() error {
			_, err := ParseNode("f", []byte("nodeconfig: [{name: n, zzzzzzzzzzzzzzzzzzzz: 1}]"))
			return err
		},
	} {
		m := list.FindStringSubmatch(fmt.Sprint(parse()))
		if m == nil {
			t.Fatalf("%s: no list of keys", file)
		}
		for _, key := range strings.FieldsFunc(strings.ReplaceAll(m[1], " and ", ","), func(r rune) bool { return r == ',' || r == ' ' }) {
			if !rows[file+" "+key] {
				t.Errorf("key %s of the %s file has no row", key, file)
			}
		}
	}
}
