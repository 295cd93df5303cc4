// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"
)

const (
	// DefaultPath is where runtimes look for files that do not outlive a reboot.
	DefaultPath = "/var/run/cdi"

	vendor     = "dynamig.io"
	slotKind   = vendor + "/slot"
	driverKind = vendor + "/driver"
	driverName = "all"

	// DriverDevice is the device that carries the driver's common edits.
	DriverDevice = driverKind + "=" + driverName

	ownerAnnotation = vendor + "/owner"

	// visibleDevices stops NVIDIA's older runtime hook: many images set "all",
	// upon which it would add every GPU of the node.
	visibleDevices = "NVIDIA_VISIBLE_DEVICES="

	slotPrefix = vendor + "-slot_"
	driverFile = vendor + "-driver.json"
	suffix     = ".json"

	// Neither .json nor .yaml, or the runtime would read the unfinished file.
	temporary = "." + vendor + "-*.tmp"
)

// validSlot is what CDI allows as a device name and a file system as part of a
// file name, in at most the 63 characters that kubelet allows.
var validSlot = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?$`)

// SlotDevice is the CDI device name of a slot.
func SlotDevice(slot string) string { return slotKind + "=" + slot }

// Dir is a directory of CDI files, our own among others. It has no state; calls
// for different slots may run in parallel, calls for one slot may not.
type Dir struct {
	Path string // empty = DefaultPath; made when it is missing
}

// WriteSlot makes the slot's file say that the slot belongs to owner and means e.
// It replaces what was there, and does nothing when that was the same. It does
// not ask who owned the slot before.
func (d Dir) WriteSlot(slot, owner string, e Edits) error {
	if err := d.writeSlot(slot, owner, e); err != nil {
		return fmt.Errorf("writing CDI file of slot %s: %w", slot, err)
	}
	return nil
}

func (d Dir) writeSlot(slot, owner string, e Edits) error {
	if !validSlot.MatchString(slot) {
		return errors.New("this is no valid CDI device name")
	}
	if owner == "" {
		return errors.New("the owner is empty")
	}
	if err := e.check(); err != nil {
		return err
	}
	return d.write(slotFile(slot), &specs.Spec{
		Kind:        slotKind,
		Annotations: map[string]string{ownerAnnotation: owner},
		Devices:     []specs.Device{{Name: slot, ContainerEdits: e.containerEdits()}},
	})
}

// WriteDriver makes DriverDevice mean e, with NVIDIA_VISIBLE_DEVICES=void in any
// case. It does nothing when that is so already.
func (d Dir) WriteDriver(e Edits) error {
	e.Env = slices.DeleteFunc(slices.Clone(e.Env), func(v string) bool { return strings.HasPrefix(v, visibleDevices) })
	e.Env = append(e.Env, visibleDevices+"void")
	err := e.check()
	if err == nil {
		err = d.write(driverFile, &specs.Spec{
			Kind:    driverKind,
			Devices: []specs.Device{{Name: driverName, ContainerEdits: e.containerEdits()}},
		})
	}
	if err != nil {
		return fmt.Errorf("writing CDI file of %s: %w", DriverDevice, err)
	}
	return nil
}

// ReadOwner returns whom the slot's file was written for; found is false when
// there is no file. A file that cannot be understood is an error: treat it as
// somebody else's.
func (d Dir) ReadOwner(slot string) (owner string, found bool, err error) {
	text, err := os.ReadFile(d.join(slotFile(slot)))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", true, fmt.Errorf("reading CDI file of slot %s: %w", slot, err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return "", true, fmt.Errorf("reading CDI file of slot %s: %w", slot, err)
	}
	owner = spec.Annotations[ownerAnnotation]
	if owner == "" {
		return "", true, fmt.Errorf("reading CDI file of slot %s: annotation %s is missing", slot, ownerAnnotation)
	}
	return owner, true, nil
}

// RemoveSlot removes the slot's file. Removing what is not there succeeds.
func (d Dir) RemoveSlot(slot string) error {
	err := os.Remove(d.join(slotFile(slot)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing CDI file of slot %s: %w", slot, err)
	}
	return nil
}

// Slots lists the slots that have a file, sorted. A missing directory has none.
func (d Dir) Slots() ([]string, error) {
	entries, err := os.ReadDir(d.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing CDI files: %w", err)
	}
	var slots []string
	for _, entry := range entries {
		name, isSlot := strings.CutPrefix(entry.Name(), slotPrefix)
		name, isFile := strings.CutSuffix(name, suffix)
		if isSlot && isFile {
			slots = append(slots, name)
		}
	}
	slices.Sort(slots)
	return slots, nil
}

func slotFile(slot string) string { return slotPrefix + slot + suffix }

func (d Dir) path() string {
	if d.Path == "" {
		return DefaultPath
	}
	return d.Path
}

func (d Dir) join(name string) string { return filepath.Join(d.path(), name) }

// write replaces a file by the specification, unless it has that content.
func (d Dir) write(name string, spec *specs.Spec) error {
	// The lowest version, so that older runtimes can read it.
	version, err := specs.MinimumRequiredVersion(spec)
	if err != nil {
		return err
	}
	spec.Version = version
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(d.join(name)); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := os.MkdirAll(d.path(), 0o755); err != nil {
		return err
	}
	return d.replace(name, text)
}

// replace writes a file in one step, as seen by others. It does not wait for the
// disk: the directory is emptied by a reboot, as are the containers.
func (d Dir) replace(name string, text []byte) (err error) {
	f, err := os.CreateTemp(d.path(), temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), d.join(name))
}
