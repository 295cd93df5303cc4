// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// addOutput adds the flag -o with the formats that a command knows, and completes them.
// without says what is printed without it.
func addOutput(cmd *cobra.Command, o *string, without string, formats ...string) {
	last := len(formats) - 1
	cmd.Flags().StringVarP(o, "output", "o", "", strings.Join(formats[:last], ", ")+" or "+formats[last]+without)
	// It fails for a flag that does not exist only.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

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
