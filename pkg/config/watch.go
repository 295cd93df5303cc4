// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long a change may go on before it is looked at. An update of
	// a ConfigMap is about six events within a millisecond.
	settle = 100 * time.Millisecond

	// recheck is how often files are looked at without an event: for file systems
	// without events, and for directories that were replaced.
	recheck = time.Minute
)

// Watch calls changed once at the start, and then after each change of what the
// files hold; also when one appears or goes away. It returns nil when ctx ends,
// and an error when a directory cannot be watched at the start.
//
// The first call comes after the watches stand, so that a change between an
// earlier reading and Watch is not lost. Calls are made one after the other, from
// the goroutine of Watch. Several changes within a tenth of a second are one.
//
// It is the directories that are watched, because a ConfigMap volume changes by a
// swap of the symbolic link ..data beside the files, and editors replace files by
// rename. A file mounted with subPath never changes; that is kubelet's doing.
func Watch(ctx context.Context, paths []string, changed func()) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching configuration files: %w", err)
	}
	defer notify.Close()
	for _, p := range paths {
		if err := notify.Add(filepath.Dir(p)); err != nil {
			return fmt.Errorf("watching the directory of %s: %w", p, err)
		}
	}
	w := watcher{
		events: notify.Events,
		errs:   notify.Errors,
		state:  func() string { return contents(paths) },
		renew: func() {
			for _, p := range paths {
				_ = notify.Add(filepath.Dir(p)) // it may be away for now; the next time will show
			}
		},
		changed: changed,
	}
	w.run(ctx)
	return nil
}

// watcher is the waiting part of Watch.
//
//	         event                settle later: state differs -> changed
//	quiet ------------> settling ---------------------------------------> quiet
//	  |  recheck: renew     ^
//	  +---------------------+
type watcher struct {
	events  <-chan fsnotify.Event
	errs    <-chan error  // an overflow of the queue, say: events were lost
	state   func() string // of the files; differs when they do
	renew   func()        // the watches
	changed func()
}

func (w *watcher) run(ctx context.Context) {
	last := w.state()
	w.changed()
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()
	var settled <-chan time.Time // nil while quiet
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.events:
		case <-w.errs:
		case <-ticker.C:
			w.renew()
		case <-settled:
			settled = nil
			if now := w.state(); now != last {
				last = now
				w.changed()
			}
			continue
		}
		if settled == nil {
			settled = time.After(settle)
		}
	}
}

// contents is a digest of the files; one that cannot be read counts as absent.
func contents(paths []string) string {
	sum := sha256.New()
	for _, p := range paths {
		data, err := os.ReadFile(p)
		fmt.Fprintf(sum, "%t %d ", err == nil, len(data))
		_, _ = sum.Write(data)
	}
	return string(sum.Sum(nil))
}
