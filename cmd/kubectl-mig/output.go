// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// checkOutput refuses an unknown value of -o.
func checkOutput(o string, known ...string) error {
	if o == "" || slices.Contains(known, o) {
		return nil
	}
	return usageError{fmt.Errorf("-o %s is not known; use %s", o, strings.Join(known, ", "))}
}

// printTable cuts a table to the width of a screen, unless it is to be wide.
func (s *screen) printTable(t *table, wide bool) error {
	if wide || !s.given {
		s = s.unlimited()
	}
	return s.print(t.lines(s)...)
}

// encode writes a value for programs.
func (s *screen) encode(format string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if format == "yaml" {
		if text, err = yaml.JSONToYAML(text); err != nil {
			return err
		}
		_, err = s.out.Write(text)
		return err
	}
	_, err = fmt.Fprintf(s.out, "%s\n", text)
	return err
}
