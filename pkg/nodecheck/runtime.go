// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package nodecheck

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

var (
	enableCDI = regexp.MustCompile(`(?m)^\s*enable_cdi\s*=\s*(true|false)`)
	specDirs  = regexp.MustCompile(`(?m)^\s*cdi_spec_dirs\s*=\s*\[([^\]]*)\]`)
	version   = regexp.MustCompile(`(?m)^\s*version\s*=\s*(\d+)`)
)

// runtime reads what the container runtime's configuration says about CDI. Without
// one the runtime has its defaults: containerd 2 and CRI-O have CDI on.
func (n *Node) runtime(r *report) {
	containerd := filepath.Join(n.EtcDir, "containerd/config.toml")
	text, err := os.ReadFile(containerd)
	if err == nil {
		n.containerd(r, containerd, string(text))
		return
	}
	crio, _ := filepath.Glob(filepath.Join(n.EtcDir, "crio/crio.conf*"))
	if len(crio) == 0 {
		r.add(Note, "runtime", "There is no configuration of containerd or CRI-O below %s; make sure that CDI is on (containerd 2 and CRI-O: by default) and reads %s.", n.EtcDir, n.CDIDir)
		return
	}
	drop, _ := filepath.Glob(filepath.Join(n.EtcDir, "crio/crio.conf.d/*"))
	all := ""
	for _, file := range append(crio, drop...) {
		if text, err := os.ReadFile(file); err == nil {
			all += string(text) + "\n"
		}
	}
	n.dirs(r, filepath.Join(n.EtcDir, "crio"), all)
}

func (n *Node) containerd(r *report, file, text string) {
	on := enableCDI.FindStringSubmatch(text)
	v := version.FindStringSubmatch(text)
	switch {
	case on != nil && on[1] == "false":
		r.add(Problem, "runtime", "%s turns CDI off; set enable_cdi = true and restart containerd.", file)
		return
	case on == nil && (v == nil || v[1] < "3"):
		r.add(Note, "runtime", "%s does not turn CDI on, and containerd 1.7 has it off by default; with that version set enable_cdi = true in the CRI plugin and restart containerd.", file)
	}
	n.dirs(r, file, text)
}

// dirs looks whether the runtime reads our directory.
func (n *Node) dirs(r *report, file, text string) {
	dirs := specDirs.FindStringSubmatch(text)
	if dirs != nil && !strings.Contains(dirs[1], `"`+n.CDIDir+`"`) && !strings.Contains(dirs[1], `'`+n.CDIDir+`'`) {
		r.add(Problem, "runtime", "cdi_spec_dirs in %s leaves out %s; add it and restart the runtime.", file, n.CDIDir)
		return
	}
	r.add(OK, "runtime", "%s lets the runtime read %s.", file, n.CDIDir)
}
