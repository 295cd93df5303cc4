// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/durable"
)

func fullContent() content {
	c := newContent()
	c.Node = nodeRecord{UID: "n", Labels: map[string]string{"a": "b"}}
	c.Config = configRecord{Generation: 3, Digest: "d"}
	c.Lost, c.Adopted["g"] = "why", true
	c.Instances[v1alpha1.Span{GPU: "g", ProfileID: 14, Start: 2, Size: 2}] = record{State: live, UUID: "MIG-1", Owner: "u"}
	c.Instances[v1alpha1.Span{GPU: "g", ProfileID: 19, Start: 0, Size: 1}] = record{State: creating}
	c.Pods["u"] = podRecord{UID: "u", Namespace: "n", Name: "p", Allocation: "{}", Prepared: true, Warned: true}
	c.Pods["v"] = podRecord{UID: "v", Namespace: "n", Name: "q", Refused: "why"}
	return c
}

func TestJournalSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	want := fullContent()
	j.change(func(c *content) { *c = want })
	if err := j.commit(); err != nil {
		t.Fatal(err)
	}
	again, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, again.content); diff != "" {
		t.Errorf("content after a restart (-want +got):\n%s", diff)
	}
}

func TestJournalIsReadStrictly(t *testing.T) {
	good := fullContent()
	text, err := good.encode()
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct{ name, old, new, want string }{
		{"an unknown field", `"version":1`, `"version":1,"x":1`, `unknown field "x"`},
		{"an unknown version", `"version":1`, `"version": 9`, "version 9 is unknown"},
		{"an unknown state", `"Live"`, `"Alive"`, `instances[1]: state "Alive" is none of`},
		{"a bad placement", `"size":2`, `"size":0`, "instances[1]"},
		{"a pod twice", `"uid":"v"`, `"uid":"u"`, `pods[1]: uid "u" is empty or occurs twice`},
		{"an instance twice", `"profileID":19,"start":0,"size":1`, `"profileID":14,"start":2,"size":2`, "instances[1]"},
		{"something behind it", "}\n", "}\n{}", "text follows"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			changed := strings.Replace(string(text), c.old, c.new, 1)
			if changed == string(text) {
				t.Fatalf("the text has no %q:\n%s", c.old, text)
			}
			if _, err := decodeContent([]byte(changed)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("decodeContent = %v, want an error with %q", err, c.want)
			}
		})
	}
}

func FuzzDecodeContent(f *testing.F) {
	c := fullContent()
	text, err := c.encode()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(text), "", "{}", `{"version":1}`, `{"version":1,"instances":null,"pods":null}`, `{"version":1,"pods":[{}]}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := decodeContent([]byte(text))
		if err != nil {
			return
		}
		encoded, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeContent(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Errorf("decoded, encoded and decoded again (-first +second):\n%s", diff)
		}
	})
}

func TestCommitsAtTheSameTimeShareAWrite(t *testing.T) {
	j := &journal{metrics: newMetrics(), content: newContent()}
	writing, release := make(chan struct{}), make(chan struct{})
	writes := 0 // guarded by j.writing
	j.replace = func(string, []byte) error {
		if writes++; writes == 1 {
			close(writing)
			<-release
		}
		return nil
	}
	j.change(func(c *content) { c.Lost = "0" })
	var all sync.WaitGroup
	commit := func() {
		if err := j.commit(); err != nil {
			t.Error(err)
		}
	}
	all.Go(commit)
	<-writing
	for range 20 {
		j.change(func(c *content) { c.Config.Generation++ })
		all.Go(commit)
	}
	close(release)
	all.Wait()
	if writes != 2 {
		t.Errorf("21 commits made %d writes, want 2", writes)
	}
	if err := j.commit(); err != nil || writes != 2 {
		t.Errorf("commit without a change = %v after %d writes, want none", err, writes)
	}
}

func TestFailedCommitIsMadeUpFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	j := &journal{metrics: newMetrics(), path: path, content: newContent()}
	full := errors.New("no space left on device")
	j.replace = func(string, []byte) error { return full }
	j.change(func(c *content) { c.Lost = "x" })
	if err := j.commit(); !errors.Is(err, full) {
		t.Errorf("commit = %v, want %v", err, full)
	}
	j.replace = durable.Save
	if err := j.commit(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), `"lost":"x"`) {
		t.Errorf("the file holds %s, %v", text, err)
	}
}
