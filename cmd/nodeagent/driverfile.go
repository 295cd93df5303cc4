// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/dynamig/dynamig/pkg/cdi"
	"github.com/dynamig/dynamig/pkg/nvml/native"
)

// driverFile keeps the CDI file of what every container needs of the driver.
type driverFile struct {
	dir     cdi.Dir
	edits   func() (cdi.Edits, error)
	version func() string // of the loaded driver, any text that changes with it
	written string        // the version that the file is of
}

const (
	driverCheck = 10 * time.Second // how often it is looked whether another driver was loaded
	driverRetry = time.Second      // between tries to write the file for the first time
)

func (o *options) driverFile() *driverFile {
	return &driverFile{dir: cdi.Dir{Path: o.cdiDir}, edits: o.driverEdits, version: o.loadedDriver}
}

// driverEdits asks the container toolkit; the simulation has control devices only.
func (o *options) driverEdits() (cdi.Edits, error) {
	if o.driver == driverNative {
		return native.DriverEdits(o.driverRoot, o.cdiHook)
	}
	nodes, err := o.capabilities().ControlNodes()
	if err != nil {
		return cdi.Edits{}, fmt.Errorf("finding the driver's control devices: %w; is the driver loaded?", err)
	}
	return cdi.Edits{DeviceNodes: edits(nodes)}, nil
}

// loadedDriver is the kernel module's own word; empty while none is loaded.
func (o *options) loadedDriver() string {
	text, _ := os.ReadFile(filepath.Join("/", o.capabilities().Root, "proc/driver/nvidia/version"))
	return string(text)
}

// write makes the file that of the loaded driver.
func (f *driverFile) write() error {
	version := f.version()
	edits, err := f.edits()
	if err != nil {
		return err
	}
	if err := f.dir.WriteDriver(edits); err != nil {
		return fmt.Errorf("%w; make --cdi-dir writable", err)
	}
	f.written = version
	return nil
}

// first writes the file, again at each tick while that fails: right after a boot the
// driver's devices or libraries may not be there yet. report is told why it fails, and
// nil when it is written. false when ctx has ended before.
func (f *driverFile) first(ctx context.Context, tick <-chan time.Time, report func(error)) bool {
	for last := ""; ; {
		err := f.write()
		report(err)
		if err == nil {
			return true
		}
		if text := err.Error(); text != last {
			klog.FromContext(ctx).Error(err, "Could not write the CDI file of the driver")
			last = text
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick:
		}
	}
}

// keep looks at each tick whether the file is to be written anew, until ctx ends.
func (f *driverFile) keep(ctx context.Context, tick <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			f.renew(ctx)
		}
	}
}

// renew writes the file anew when another driver was loaded. While that fails the
// old file stays: containers that need it fail or work as before.
func (f *driverFile) renew(ctx context.Context) {
	if version := f.version(); version == "" || version == f.written {
		return
	}
	if err := f.write(); err != nil {
		klog.FromContext(ctx).Error(err, "Could not write the CDI file of the driver anew")
		return
	}
	klog.FromContext(ctx).V(2).Info("Wrote the CDI file of another driver")
}
