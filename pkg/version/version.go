// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package version says what a program was built from.
package version

import "runtime/debug"

const unknown = "unknown"

// Text is the module's version, the commit where the build knows it, and the version
// of Go: "v0.1.0, commit 0123456789ab, go1.26.1"; "unknown" in a program without build
// information.
func Text() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unknown
	}
	text := info.Main.Version
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			text += ", commit " + setting.Value[:min(12, len(setting.Value))]
		}
	}
	return text + ", " + info.GoVersion
}

// Of is the version of one of the modules that the program is built of: "v1.37.2";
// "unknown" where the build does not tell.
func Of(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unknown
	}
	for _, m := range info.Deps {
		if m.Path == module {
			return m.Version
		}
	}
	return unknown
}
