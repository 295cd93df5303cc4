// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestKrewInstallsThePlugin: what hack/krew.sh makes is what krew takes; kubectl then
// finds the plugin, which answers, and does not once krew has removed it. The compiler
// is a stand-in that hands out the program of the other tests.
func TestKrewInstallsThePlugin(t *testing.T) {
	build, dir := os.Getenv(buildVariable), t.TempDir()
	compile := exec.CommandContext(t.Context(), "go", "-C", "../../hack/tools/krew", "build", "-o", dir+"/plugins/kubectl-krew", "sigs.k8s.io/krew/cmd/krew")
	if text, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("building krew: %v\n%s", err, text)
	}
	host := runtime.GOOS + "/" + runtime.GOARCH
	compiler := fmt.Sprintf("#!/bin/sh\nwhile [ \"$1\" != -o ]; do shift; done\n[ $GOOS/$GOARCH = %s ] || exec touch \"$2\"\nexec cp %s/bin/kubectl-mig \"$2\"\n", host, build)
	// krew lists and removes nothing without an index, which is a clone of a repository.
	if err := errors.Join(os.Mkdir(dir+"/compiler", 0o755), os.MkdirAll(dir+"/krew/index/default/.git", 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/compiler/go", []byte(compiler), 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "archives", fmt.Sprintf("kubectl-mig_%s_%s.tar.gz", runtime.GOOS, runtime.GOARCH))
	path := strings.Join([]string{dir + "/krew/bin", dir + "/plugins", build + "/tools/bin", os.Getenv("PATH")}, ":")
	run := func(name string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "PATH="+path, "COLUMNS=100", "KREW_ROOT="+dir+"/krew", "KREW_NO_UPGRADE_CHECK=1", "KUBECONFIG="+st.Cluster.AdminKubeconfig())
		text, err := cmd.CombinedOutput()
		return string(text), err
	}
	kubectl := build + "/tools/bin/kubectl"
	for _, step := range []struct {
		says string
		argv []string
	}{
		{"mig.yaml", []string{"env", "PATH=" + dir + "/compiler:" + os.Getenv("PATH"), "../../hack/krew.sh", "v0.1.0", "https://example.com/v0.1.0", "https://example.com", dir + "/archives"}},
		{"Installed plugin: mig", []string{kubectl, "krew", "install", "--manifest=" + dir + "/archives/mig.yaml", "--archive=" + archive}},
		{"detached/mig", []string{kubectl, "krew", "list"}},
		{dir + "/krew/bin/kubectl-mig", []string{kubectl, "plugin", "list"}},
		{"kubectl mig draws the GPUs", []string{kubectl, "mig", "--help"}},
		{"2x A100-SXM4-40GB", []string{kubectl, "mig", "status", "node1"}},
		{"Uninstalled plugin: mig", []string{kubectl, "krew", "uninstall", "mig"}},
	} {
		if text, err := run(step.argv[0], step.argv[1:]...); err != nil || !strings.Contains(text, step.says) {
			t.Fatalf("%v: %v, want %q:\n%s", step.argv, err, step.says, text)
		}
	}
	if text, err := run(kubectl, "mig", "--help"); err == nil {
		t.Errorf("kubectl still has the plugin:\n%s", text)
	}
}
