// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// maxBytes is the largest file that is read. A ConfigMap holds no more.
const maxBytes = 1 << 20

// document parses data, YAML or JSON, as one document and returns its top. Where
// data is the manifest of a ConfigMap, that is the text under the key. False when
// there is nothing to walk; the reason is noted, except for an empty document.
func (d *decoder) document(data []byte, key string) (at, bool) {
	if len(data) > maxBytes {
		d.note(1, fmt.Sprintf("has %d bytes; at most %d are read, as a ConfigMap holds no more", len(data), maxBytes))
		return at{}, false
	}
	top := d.parse(data)
	if top == nil {
		return at{}, false
	}
	if value(top, "kind") == nil || value(top, "kind").Value != "ConfigMap" {
		return at{node: top}, true
	}
	text := value(value(top, "data"), key)
	if text == nil || text.Kind != yaml.ScalarNode {
		d.reject(at{node: top}, "ConfigMap has no text at data.%s", key)
		return at{}, false
	}
	if text.Style&yaml.LiteralStyle != 0 {
		d.offset = text.Line // the text begins below its "|"
	} else {
		d.fixed = text.Line
	}
	top = d.parse([]byte(text.Value))
	return at{node: top}, top != nil
}

// parse returns the top of the only document, nil when it is empty or broken.
func (d *decoder) parse(data []byte) *yaml.Node {
	reader := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := reader.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		d.noteSyntax(data, err)
		return nil
	}
	switch err := reader.Decode(&second); {
	case err == nil:
		d.note(d.line(&second), "a second document begins; keep one")
		return nil
	case !errors.Is(err, io.EOF):
		d.noteSyntax(data, err)
		return nil
	}
	if len(doc.Content) == 0 || isNull(target(doc.Content[0])) {
		return nil
	}
	return target(doc.Content[0])
}

var syntaxError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// noteSyntax turns the parser's "yaml: line 7: why" into a problem of that line.
// Of JSON, where that would be the line of an opening bracket, Go's JSON parser
// knows the place.
func (d *decoder) noteSyntax(data []byte, err error) {
	where, why := yaml.Node{Line: 1}, err.Error()
	if m := syntaxError.FindStringSubmatch(why); m != nil {
		why = "is not valid YAML: " + m[2]
		if n, err := strconv.Atoi(m[1]); err == nil {
			where.Line = n
		}
	}
	var inJSON *json.SyntaxError
	if looksLikeJSON(data) && errors.As(json.Unmarshal(data, new(any)), &inJSON) {
		where.Line = 1 + bytes.Count(data[:min(int(inJSON.Offset), len(data))], []byte("\n"))
		why = "is not valid JSON: " + inJSON.Error()
	}
	d.note(d.line(&where), why)
}

func looksLikeJSON(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte("{"))
}

// value of a key of a mapping; nil when there is none.
func value(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return target(n.Content[i+1])
		}
	}
	return nil
}
