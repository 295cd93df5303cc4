// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestKrew: hack/krew.sh makes an archive for each platform, and a manifest with
// their sums. The compiler is a stand-in that writes the platform's name.
func TestKrew(t *testing.T) {
	bin, out := t.TempDir(), t.TempDir()
	compiler := "#!/bin/sh\nwhile [ \"$1\" != -o ]; do shift; done\necho \"$GOOS/$GOARCH\" >\"$2\"; chmod +x \"$2\"\n"
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte(compiler), 0o755); err != nil {
		t.Fatal(err)
	}
	script := exec.Command(filepath.Join(root, "hack/krew.sh"), "v1.2.3", "https://example.com/v1.2.3", "https://example.com", out)
	script.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if text, err := script.CombinedOutput(); err != nil {
		t.Fatalf("hack/krew.sh: %v\n%s", err, text)
	}
	text, err := os.ReadFile(filepath.Join(out, "mig.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var plugin struct {
		Spec struct {
			Version, Homepage string
			Platforms         []struct {
				Selector         struct{ MatchLabels struct{ OS, Arch string } }
				URI, SHA256, Bin string
			}
		}
	}
	if err := yaml.Unmarshal(text, &plugin); err != nil {
		t.Fatal(err)
	}
	if s := plugin.Spec; s.Version != "v1.2.3" || s.Homepage != "https://example.com" || bytes.ContainsRune(text[bytes.Index(text, []byte("spec:")):], '@') {
		t.Errorf("the manifest is not filled in:\n%s", text)
	}
	var platforms []string
	for _, p := range plugin.Spec.Platforms {
		platform := p.Selector.MatchLabels.OS + "/" + p.Selector.MatchLabels.Arch
		platforms = append(platforms, platform)
		name, ok := strings.CutPrefix(p.URI, "https://example.com/v1.2.3/")
		archive, err := os.ReadFile(filepath.Join(out, name))
		if !ok || err != nil {
			t.Errorf("%s: no archive for %s: %v", platform, p.URI, err)
			continue
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(archive)); sum != p.SHA256 {
			t.Errorf("%s: sha256 is %s, the archive's is %s", platform, p.SHA256, sum)
		}
		if files := unpack(t, archive); files[p.Bin] != platform+"\n" || files["LICENSE"] == "" || len(files) != 2 {
			t.Errorf("%s: the archive has %v, want %s of the platform and LICENSE", platform, files, p.Bin)
		}
	}
	if want := []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("platforms are %v, want %v", platforms, want)
	}
}

// unpack reads an archive; of programs, which must be executable, and texts.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	plain, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(plain); ; {
		head, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if head.Name != "LICENSE" && head.Mode&0o111 == 0 {
			t.Errorf("%s is not executable", head.Name)
		}
		files[head.Name] = string(content)
	}
}

// TestKubectlMIGBuildsElsewhere: every package that it needs exists for each platform
// of the manifest, without cgo. Compiling them all would take minutes.
func TestKubectlMIGBuildsElsewhere(t *testing.T) {
	for _, platform := range []string{"linux/arm64", "darwin/amd64", "darwin/arm64"} {
		system, arch, _ := strings.Cut(platform, "/")
		command := exec.Command("go", "list", "-deps", "./cmd/kubectl-mig")
		command.Dir = root
		command.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+arch, "CGO_ENABLED=0")
		if text, err := command.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", platform, err, text)
		}
	}
}
