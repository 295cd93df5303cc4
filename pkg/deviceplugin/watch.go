// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// missed is how often kubelet's socket is looked at without being told to.
const missed = 10 * time.Second

// socketWatch tells when kubelet's socket may have changed.
type socketWatch struct {
	path    string
	touched chan struct{} // has an element when the socket should be looked at
	gone    chan struct{} // closed when the directory is gone

	watcher *fsnotify.Watcher
	reading sync.WaitGroup
}

// watchSocket watches the socket's directory, which is made if kubelet has never
// run.
func watchSocket(path string) (*socketWatch, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("watching for kubelet: %w", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching for kubelet: %w; raise fs.inotify.max_user_instances", err)
	}
	if err := watcher.Add(dir); err != nil {
		_ = watcher.Close()
		return nil, fmt.Errorf("watching for kubelet in %s: %w", dir, err)
	}
	w := &socketWatch{path: path, touched: make(chan struct{}, 1), gone: make(chan struct{}), watcher: watcher}
	w.reading.Go(w.read)
	return w, nil
}

func (w *socketWatch) stop() {
	_ = w.watcher.Close()
	w.reading.Wait()
}

// read turns events into touched until the watcher is closed.
func (w *socketWatch) read() {
	gone := sync.OnceFunc(func() { close(w.gone) })
	for {
		select {
		case event, ok := <-w.watcher.Events:
			if !ok {
				return
			}
			switch filepath.Clean(event.Name) {
			case w.path:
				w.touch()
			case filepath.Dir(w.path):
				if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
					gone()
				}
			}
		case _, ok := <-w.watcher.Errors:
			if !ok {
				return
			}
			w.touch() // events were lost
		}
	}
}

func (w *socketWatch) touch() {
	select {
	case w.touched <- struct{}{}:
	default: // somebody will look already
	}
}

// wait returns after a pause, or at once when ctx has ended or, with news, when the
// socket was touched. While there is no socket it waits for one.
func (w *socketWatch) wait(ctx context.Context, d time.Duration) (news bool, err error) {
	if w.identity() == nil {
		d = missed
	}
	select {
	case <-ctx.Done():
		return false, nil
	case <-w.touched:
		return true, nil
	case <-time.After(d):
		return false, nil
	case <-w.gone:
		return false, w.lost()
	}
}

// lost is the error when gone is closed.
func (w *socketWatch) lost() error {
	return fmt.Errorf("watching for kubelet: directory %s was removed; mount it again and restart", filepath.Dir(w.path))
}

// identity names the socket that is there now; nil when there is none.
func (w *socketWatch) identity() os.FileInfo {
	now, err := os.Lstat(w.path)
	if err != nil {
		return nil
	}
	return now
}

// sameSocket reports whether both are one kubelet's socket. Inodes are used again
// soon; the modification time of a socket is that of its making.
func sameSocket(a, b os.FileInfo) bool {
	return a != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime())
}
