// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Images that every node has. Pods name them with imagePullPolicy Never or IfNotPresent.
const (
	PauseImage   = "dynamig.test/pause:1"
	BusyboxImage = "dynamig.test/busybox:1"
)

// Image is a container image made of local files, in one layer. Every image has
// an empty /tmp besides.
type Image struct {
	Name       string            // with tag, such as dynamig.test/agent:1
	Root       string            // directory whose whole content is taken; "" for none
	Files      map[string]string // path in the image -> local file; a static program alone is enough
	Links      map[string]string // path in the image -> target of a symbolic link there
	Entrypoint []string
	Cmd        []string
	Env        []string // besides PATH
}

// builtin returns the two images made of what lies in dir: pause and busybox.
func builtin(dir string) ([]Image, error) {
	busybox := filepath.Join(dir, "busybox")
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("listing the applets of %s: %w", busybox, err)
	}
	links := make(map[string]string)
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			links["/bin/"+applet] = "busybox"
		}
	}
	return []Image{
		{Name: PauseImage, Files: map[string]string{"/pause": filepath.Join(dir, "pause")}, Entrypoint: []string{"/pause"}},
		{Name: BusyboxImage, Files: map[string]string{"/bin/busybox": busybox}, Links: links, Cmd: []string{"/bin/sh"}},
	}, nil
}

// WriteArchive writes the image to file in the format of "docker save", which ctr
// and others import. Equal content gives equal bytes.
func (im Image) WriteArchive(file string) (err error) {
	layer, err := os.CreateTemp(filepath.Dir(file), "layer")
	if err != nil {
		return fmt.Errorf("writing image %s: %w", im.Name, err)
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	digest := sha256.New()
	if err := im.writeLayer(io.MultiWriter(layer, digest)); err != nil {
		return fmt.Errorf("writing image %s: %w", im.Name, err)
	}
	if err := im.writeArchive(file, layer, hex.EncodeToString(digest.Sum(nil))); err != nil {
		return fmt.Errorf("writing image %s: %w", im.Name, err)
	}
	return nil
}

// writeArchive wraps the layer, whose sha256 is given, with its description.
func (im Image) writeArchive(file string, layer *os.File, digest string) error {
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config": map[string]any{
			"Env":        append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, im.Env...),
			"Entrypoint": im.Entrypoint,
			"Cmd":        im.Cmd,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{im.Name}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	t := &layerWriter{tar: tar.NewWriter(out)}
	t.data("manifest.json", manifest)
	t.data("config.json", config)
	t.file("layer.tar", layer.Name())
	return t.close()
}

func (im Image) writeLayer(w io.Writer) error {
	t := &layerWriter{tar: tar.NewWriter(w), dirs: make(map[string]bool)}
	t.header(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777})
	t.dirs["tmp"] = true
	if im.Root != "" {
		t.tree(im.Root)
	}
	for _, name := range slices.Sorted(maps.Keys(im.Files)) {
		t.parents(name)
		t.file(relative(name), im.Files[name])
	}
	for _, name := range slices.Sorted(maps.Keys(im.Links)) {
		t.parents(name)
		t.header(tar.Header{Name: relative(name), Typeflag: tar.TypeSymlink, Linkname: im.Links[name], Mode: 0o777})
	}
	return t.close()
}

func relative(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// layerWriter writes entries that belong to root and have no times, until the
// first error, which close returns.
type layerWriter struct {
	tar  *tar.Writer
	dirs map[string]bool // written
	err  error
}

func (t *layerWriter) close() error {
	if t.err != nil {
		return t.err
	}
	return t.tar.Close()
}

func (t *layerWriter) header(h tar.Header) {
	if t.err == nil {
		t.err = t.tar.WriteHeader(&h)
	}
}

func (t *layerWriter) data(name string, content []byte) {
	t.header(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
	if t.err == nil {
		_, t.err = t.tar.Write(content)
	}
}

// parents writes the directories above name that are not there yet.
func (t *layerWriter) parents(name string) {
	dir := path.Dir(relative(name))
	if dir == "." || t.dirs[dir] {
		return
	}
	t.parents(dir)
	t.dirs[dir] = true
	t.header(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
}

// file writes a local file, with its permissions.
func (t *layerWriter) file(name, local string) {
	if t.err != nil {
		return
	}
	f, err := os.Open(local)
	if err != nil {
		t.err = err
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.err = err
		return
	}
	t.header(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(st.Mode().Perm()), Size: st.Size()})
	if t.err == nil {
		_, t.err = io.Copy(t.tar, f)
	}
}

// tree writes the directories, files and symbolic links below root.
func (t *layerWriter) tree(root string) {
	err := filepath.WalkDir(root, func(local string, d fs.DirEntry, err error) error {
		if err != nil || local == root {
			return err
		}
		name, err := filepath.Rel(root, local)
		if err != nil {
			return err
		}
		switch d.Type() {
		case fs.ModeDir:
			t.parents(name + "/x")
		case fs.ModeSymlink:
			target, err := os.Readlink(local)
			if err != nil {
				return err
			}
			t.header(tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777})
		case 0:
			t.file(name, local)
		default:
			return fmt.Errorf("%s is neither directory, file nor symbolic link", local)
		}
		return t.err
	})
	if t.err == nil {
		t.err = err
	}
}
