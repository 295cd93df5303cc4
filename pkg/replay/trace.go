// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Job is what one pod asks for, and when.
type Job struct {
	Arrival  float64 // seconds, finite
	Duration float64 // seconds from its start, from 0; +Inf is forever
	Devices  int     // on one node, at least 1
	Want     geometry.Want
	Line     int // in the trace's file; 0 without one
	Column   int // there, of what it asks for
}

// Trace is jobs by ascending arrival.
type Trace struct {
	File  string // for messages
	Jobs  []Job
	Notes []string // what may be a mistake, sentences
}

// Format is the form of a trace.
type Format int

// Formats.
const (
	// CSV has a header that names the columns, in any order: arrival and duration
	// (seconds; no duration is forever), devices (default 1), profile, or gpumem
	// (MiB) and/or gpucores (percent). Unknown columns are ignored; a job that asks
	// for none of the last three asks for whole GPUs.
	CSV Format = iota
	// OpenbCompute is the openb trace of Alibaba, where the share of a GPU is its
	// share of compute slices. OpenbMemory takes it as a share of memory.
	OpenbCompute
	OpenbMemory
)

// maxDevices bounds a job; the largest node has 64 GPUs of 7 instances.
const maxDevices = 448

// ReadTrace reads a trace, compressed with gzip or not. The file's name is for
// messages; each error names file, line and column. Shares of memory in the trace
// are of the fleet's GPUs, and every job must be one that the fleet's boards can
// answer: it is an error to ask by memory for a profile of unknown memory.
func ReadTrace(r io.Reader, file string, format Format, fleet *Fleet) (*Trace, error) {
	plain, err := unpacked(r)
	if err != nil {
		return nil, fmt.Errorf("reading trace %s: %w", file, err)
	}
	t := &table{file: file, reader: csv.NewReader(plain), at: map[string]int{}}
	t.reader.FieldsPerRecord = -1 // counted in next, which names the column
	t.reader.ReuseRecord = true
	if err := t.header(); err != nil {
		return nil, err
	}
	read := t.csvJob
	switch format {
	case CSV:
		err = t.need("arrival")
	default:
		read, err = t.openb(format, fleet)
	}
	if err != nil {
		return nil, err
	}
	trace := &Trace{File: file}
	if format == CSV {
		trace.Notes = t.doubts()
	}
	for t.next() {
		if job, skip := read(); !skip && t.err == nil {
			job.Line, job.Column = t.reader.FieldPos(t.at[t.asked])
			trace.Jobs = append(trace.Jobs, job)
		}
	}
	if t.err != nil {
		return nil, t.err
	}
	if len(trace.Jobs) == 0 {
		return nil, fmt.Errorf("reading trace %s: it has no job", file)
	}
	slices.SortStableFunc(trace.Jobs, func(a, b Job) int { return cmp.Compare(a.Arrival, b.Arrival) })
	return trace, fleet.answers(trace)
}

// unpacked undoes gzip, which begins with two certain bytes.
func unpacked(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	if head, _ := b.Peek(2); !bytes.Equal(head, []byte{0x1f, 0x8b}) {
		return b, nil
	}
	return gzip.NewReader(b)
}

// table reads a file with a header, row by row. The first error stays.
type table struct {
	file   string
	reader *csv.Reader
	at     map[string]int // column, by name
	width  int
	row    []string
	asked  string // the column by which the row asks for a device
	err    error
}

// header reads the first line.
func (t *table) header() error {
	row, err := t.reader.Read()
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("reading trace %s: it is empty; the first line must name the columns", t.file)
	}
	if err != nil {
		return t.broken(err)
	}
	t.width = len(row)
	for i, name := range row {
		if i == 0 {
			name = strings.TrimPrefix(name, "\ufeff")
		}
		name = strings.ToLower(strings.TrimSpace(name))
		if _, twice := t.at[name]; twice && name != "" {
			return t.wrong(i, "column %q occurs twice", name)
		}
		t.at[name] = i
	}
	return nil
}

// need demands columns.
func (t *table) need(names ...string) error {
	for _, name := range names {
		if _, ok := t.at[name]; !ok {
			return fmt.Errorf("%s:1:1: there is no column %q in the header%s", t.file, name, t.mistaken())
		}
	}
	return nil
}

// mistaken says what else a file without our columns may be; empty where that is not
// known.
func (t *table) mistaken() string {
	_, openb := t.at["num_gpu"]
	switch {
	case openb:
		return "; it looks like an openb trace: use --trace-format openb"
	case t.width == 1 && slices.ContainsFunc(slices.Collect(maps.Keys(t.at)), func(name string) bool { return strings.ContainsAny(name, ";\t") }):
		return "; separate the columns by commas"
	}
	return ""
}

// othersForDevices are what else a number of devices is called.
var othersForDevices = []string{"count", "number", "gpu", "gpus", "numgpus", "gpucount"}

// doubts says which unknown columns look like known ones or are another word for one, and
// whether no column says what a job asks for.
func (t *table) doubts() []string {
	asking := []string{"profile", "gpumem", "gpucores"}
	columns := append([]string{"arrival", "duration", "devices"}, asking...)
	var out []string
	for _, name := range slices.SortedFunc(maps.Keys(t.at), func(a, b string) int { return cmp.Compare(t.at[a], t.at[b]) }) {
		plain := strings.NewReplacer("nvidia.com/", "", "_", "", "-", "", " ", "").Replace(name)
		near := config.Nearest(plain, columns)
		if _, has := t.at["devices"]; !has && slices.Contains(othersForDevices, plain) {
			near = "devices"
		}
		if near != "" && !slices.Contains(columns, name) {
			out = append(out, fmt.Sprintf("%s: the column %q is ignored; was %q meant?", t.file, name, near))
		}
	}
	if !slices.ContainsFunc(asking, func(name string) bool { _, ok := t.at[name]; return ok }) {
		out = append(out, fmt.Sprintf("%s has none of the columns %s, so that every job asks for whole GPUs", t.file, strings.Join(asking, ", ")))
	}
	return out
}

// next reads a row; false at the end and after an error.
func (t *table) next() bool {
	if t.err != nil {
		return false
	}
	row, err := t.reader.Read()
	switch {
	case errors.Is(err, io.EOF):
		return false
	case err != nil:
		t.err = t.broken(err)
		return false
	case len(row) != t.width:
		t.err = t.wrong(min(len(row), t.width)-1, "the line has %d fields, and the header %d", len(row), t.width)
		return false
	}
	t.row = row
	return true
}

// broken words an error of the csv reader, or of what is below it.
func (t *table) broken(err error) error {
	var syntax *csv.ParseError
	if errors.As(err, &syntax) {
		return fmt.Errorf("%s:%d:%d: %w", t.file, syntax.Line, syntax.Column, syntax.Err)
	}
	return fmt.Errorf("reading trace %s: %w", t.file, err)
}

// wrong is an error at a field of the row just read.
func (t *table) wrong(field int, format string, args ...any) error {
	line, column := t.reader.FieldPos(field)
	return fmt.Errorf("%s:%d:%d: %s", t.file, line, column, fmt.Sprintf(format, args...))
}

// fail keeps the first error at a column of this row.
func (t *table) fail(name, format string, args ...any) {
	if t.err == nil {
		t.err = t.wrong(t.at[name], name+" "+format, args...)
	}
}

// text is a field, empty where the column is missing.
func (t *table) text(name string) string {
	if i, ok := t.at[name]; ok {
		return strings.TrimSpace(t.row[i])
	}
	return ""
}

// seconds reads a finite number.
func (t *table) seconds(name string, least float64) float64 {
	s, err := strconv.ParseFloat(t.text(name), 64)
	if err != nil || math.IsNaN(s) || math.IsInf(s, 0) || s < least {
		t.fail(name, "is %q; want seconds%s", t.text(name), atLeast(least))
	}
	return s
}

func atLeast(least float64) string {
	if math.IsInf(least, -1) {
		return ""
	}
	return fmt.Sprintf(" from %g", least)
}

// whole reads a number within bounds, absent where the field is empty.
func (t *table) whole(name string, least, most, absent int) int {
	text := t.text(name)
	if text == "" {
		return absent
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		t.fail(name, "is %q; want a whole number from %d to %d", text, least, most)
	}
	return n
}

// csvJob reads the row as Format CSV says.
func (t *table) csvJob() (job Job, skip bool) {
	job = Job{
		Arrival:  t.seconds("arrival", math.Inf(-1)),
		Duration: math.Inf(1),
		Devices:  t.whole("devices", 1, maxDevices, 1),
	}
	if t.text("duration") != "" {
		job.Duration = t.seconds("duration", 0)
	}
	w := geometry.Want{
		Profile:   t.text("profile"),
		MemoryMiB: t.whole("gpumem", 1, math.MaxInt32, 0),
		Cores:     t.whole("gpucores", 0, 100, 0),
	}
	t.asked = "profile"
	if w.Profile == "" {
		t.asked = "gpumem"
	}
	switch {
	case w.Profile != "" && (w.MemoryMiB > 0 || w.Cores > 0):
		t.fail("profile", "is %q beside gpumem or gpucores; ask by profile or by size", w.Profile)
	case w.Profile == "" && w.MemoryMiB == 0 && (w.Cores == 0 || w.Cores == 100):
		w = geometry.Want{Full: true}
	}
	job.Want = w
	return job, false
}
