// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/goleak"
)

// write puts a file, or a symbolic link, in its place.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// watching runs Watch and returns a function that waits until a call of changed
// has seen this text in the file ("" for no file).
func watching(t *testing.T, path string) (await func(text string)) {
	t.Helper()
	seen := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Watch(ctx, []string{path}, func() {
			data, _ := os.ReadFile(path)
			seen <- string(data)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
		goleak.VerifyNone(t)
	})
	return func(text string) {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			select {
			case got := <-seen:
				if got == text {
					return
				}
			case <-deadline:
				t.Fatalf("no call of changed saw %q", text)
			}
		}
	}
}

func TestWatchSeesTheSwapOfAConfigMap(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"1", "2"} {
		if err := os.Mkdir(filepath.Join(dir, ".."+version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, ".."+version, "config.json"), version)
	}
	link(t, "..1", filepath.Join(dir, "..data"))
	link(t, "..data/config.json", filepath.Join(dir, "config.json"))
	await := watching(t, filepath.Join(dir, "config.json"))
	await("1")
	link(t, "..2", filepath.Join(dir, "..data_tmp"))
	rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
	await("2")
}

func TestWatchSeesAFileComeChangeAndGo(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.json")
	await := watching(t, path)
	await("")
	write(t, path, "1")
	await("1")
	write(t, filepath.Join(dir, "new"), "2")
	rename(t, filepath.Join(dir, "new"), path)
	await("2")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	await("")
}

func TestWatchNeedsTheDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "config.json")
	err := Watch(t.Context(), []string{path}, func() { t.Error("changed was called") })
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Watch = %v, want that the directory does not exist", err)
	}
	goleak.VerifyNone(t)
}

// fakeWatch is a watcher in a synctest bubble: time is the bubble's, so that a
// sleep takes none, and the files are a number.
type fakeWatch struct {
	events         chan fsnotify.Event
	errs           chan error
	files          atomic.Int32 // their version
	calls, renewed atomic.Int32
}

func runFakeWatch(t *testing.T) *fakeWatch {
	f := &fakeWatch{events: make(chan fsnotify.Event), errs: make(chan error)}
	w := watcher{
		events: f.events, errs: f.errs,
		state:   func() string { return fmt.Sprint(f.files.Load()) },
		renew:   func() { f.renewed.Add(1) },
		changed: func() { f.calls.Add(1) },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	synctest.Wait()
	return f
}

func (f *fakeWatch) want(t *testing.T, calls int32, when string) {
	t.Helper()
	synctest.Wait()
	if got := f.calls.Load(); got != calls {
		t.Errorf("%s: %d calls of changed, want %d", when, got, calls)
	}
}

func TestWatchMakesOneCallOfManyEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := runFakeWatch(t)
		f.want(t, 1, "at the start")
		for range 10 {
			f.files.Add(1)
			f.events <- fsnotify.Event{}
		}
		f.want(t, 1, "before the events settle")
		time.Sleep(settle)
		f.want(t, 2, "after they settled")
	})
}

func TestWatchIsNotHeldUpByUnendingEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := runFakeWatch(t)
		for range 30 {
			f.files.Add(1)
			f.events <- fsnotify.Event{}
			time.Sleep(settle / 10)
		}
		synctest.Wait()
		if got := f.calls.Load(); got < 3 || got > 5 {
			t.Errorf("%d calls of changed in %v, want the first and one each %v", got, 3*settle, settle)
		}
	})
}

func TestWatchIgnoresEventsOfOtherFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := runFakeWatch(t)
		f.events <- fsnotify.Event{Name: "other"}
		time.Sleep(2 * settle)
		f.want(t, 1, "after an event without a change")
	})
}

func TestWatchLooksAgainAfterALossOfEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := runFakeWatch(t)
		f.files.Add(1)
		f.errs <- fsnotify.ErrEventOverflow
		time.Sleep(settle)
		f.want(t, 2, "after an overflow")
		f.files.Add(1)
		time.Sleep(recheck + settle)
		f.want(t, 3, "after a change without events")
		if f.renewed.Load() == 0 {
			t.Error("the watches were not renewed")
		}
	})
}
