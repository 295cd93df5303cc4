// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/durable"
)

// journalFileName is the journal's in the state directory.
const journalFileName = "journal.json"

// errJournal: nothing is done that is not in the journal first.
var errJournal = errors.New("writing journal")

// journal is the agent's memory on disk: one file, replaced as a whole. A change
// is in memory at once and on disk after commit; several goroutines that commit
// at the same time share one write. Safe for parallel use.
type journal struct {
	path    string
	metrics *metrics
	replace func(path string, text []byte) error // durable and whole, or not at all

	writing sync.Mutex // held while the file is written; taken before mu
	written uint64     // revision of the file, guarded by writing

	mu       sync.Mutex // guards what follows
	content  content
	revision uint64 // grows with each change of content
}

// openJournal reads the journal. A missing or corrupt one gives an empty journal
// with Lost set, and what could not be understood is kept beside it under another
// name. An error means that the disk cannot be read.
func openJournal(path string) (*journal, error) {
	j := &journal{path: path, metrics: newMetrics(), replace: durable.Save, content: newContent()}
	corrupt, err := j.load()
	if err != nil || corrupt == nil {
		return j, err
	}
	aside := path + ".corrupt"
	j.content.Lost = fmt.Sprintf("%s cannot be understood (%v) and was kept as %s", path, corrupt, aside)
	if err := os.Rename(path, aside); err != nil {
		return nil, fmt.Errorf("keeping corrupt journal: %w; make the state directory writable", err)
	}
	return j, nil
}

// peekJournal is openJournal for who must not change anything on the disk; what
// it returns never does.
func peekJournal(path string) (*journal, error) {
	j := &journal{path: path, metrics: newMetrics(), content: newContent()}
	j.replace = func(string, []byte) error { return nil }
	corrupt, err := j.load()
	if corrupt != nil {
		j.content.Lost = fmt.Sprintf("%s cannot be understood (%v)", path, corrupt)
	}
	return j, err
}

// load reads the file. corrupt says why it cannot be understood.
func (j *journal) load() (corrupt, err error) {
	text, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		j.content.Lost = "there is no file " + j.path
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading journal: %w; make the state directory readable", err)
	}
	c, corrupt := decodeContent(text)
	if corrupt == nil {
		j.content = c
	}
	return corrupt, nil
}

// change applies a change in memory. It is on disk after the next commit of
// anybody, at the latest after the next periodic one.
func (j *journal) change(f func(*content)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(&j.content)
	j.revision++
}

// read shows the content; f must not keep or change any of it.
func (j *journal) read(f func(*content)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(&j.content)
}

// whole reports whether nothing of an earlier run is lost.
func (j *journal) whole() (whole bool) {
	j.read(func(c *content) { whole = c.Lost == "" })
	return whole
}

// commit makes every change so far durable. It writes nothing when there is none.
// After an error the changes stay in memory, and the next commit tries again.
func (j *journal) commit() error {
	j.mu.Lock()
	mine := j.revision
	j.mu.Unlock()

	j.writing.Lock()
	defer j.writing.Unlock()
	if j.written >= mine {
		return nil // somebody else's write had it
	}
	began := time.Now()
	j.mu.Lock()
	text, err := j.content.encode()
	revision := j.revision
	j.mu.Unlock()
	if err == nil {
		err = j.replace(j.path, text)
	}
	if err != nil {
		j.metrics.journalErrors.Inc()
		return fmt.Errorf("%w: %w; make room on the disk of the state directory, and make it writable", errJournal, err)
	}
	took(j.metrics.journalWrites, began)
	j.written = revision
	return nil
}

// put records an instance and waits for the disk.
func (j *journal) put(span v1alpha1.Span, r record) error {
	j.change(func(c *content) { c.Instances[span] = r })
	return j.commit()
}

// drop forgets instances that the hardware has no more. The disk may learn of that
// later: a record of nothing is void.
func (j *journal) drop(spans ...v1alpha1.Span) {
	j.change(func(c *content) {
		for _, span := range spans {
			delete(c.Instances, span)
		}
	})
}

// instances returns the records of one GPU.
func (j *journal) instances(gpu string) map[v1alpha1.Span]record {
	out := map[v1alpha1.Span]record{}
	j.read(func(c *content) {
		for span, r := range c.Instances {
			if span.GPU == gpu {
				out[span] = r
			}
		}
	})
	return out
}
