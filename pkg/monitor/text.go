// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"bufio"
	"io"
	"math"
	"strconv"
	"strings"
)

// contentType of Prometheus' text format, which text writes.
const contentType = "text/plain; version=0.0.4; charset=utf-8"

// text writes families in Prometheus' text format. A fleet of 1000 nodes has some
// 300 000 series; collecting them as values of the client library first takes
// several times as long as writing them down.
type text struct {
	w      *bufio.Writer
	buffer []byte
	family *family
}

func newText(w io.Writer) *text { return &text{w: bufio.NewWriterSize(w, 1<<16)} }

// begin starts a family.
func (t *text) begin(f *family) {
	t.family = f
	t.w.WriteString("# HELP ")
	t.w.WriteString(f.name)
	t.w.WriteByte(' ')
	t.w.WriteString(escapeHelp.Replace(f.help))
	t.w.WriteString("\n# TYPE ")
	t.w.WriteString(f.name)
	t.w.WriteString(" gauge\n")
}

// sample writes one series of the family; values are those of its labels.
func (t *text) sample(value float64, values ...string) {
	b := append(t.buffer[:0], t.family.name...)
	sep := byte('{')
	for i, v := range values {
		b = append(b, sep)
		b = append(b, t.family.labels[i]...)
		b = append(b, '=', '"')
		b = appendEscaped(b, v)
		b = append(b, '"')
		sep = ','
	}
	if t.family.zone {
		b = append(b, sep)
		b = append(b, `zone="vGPU"`...)
		sep = ','
	}
	if sep == ',' {
		b = append(b, '}')
	}
	b = append(b, ' ')
	if value == math.Trunc(value) && math.Abs(value) < 1e15 {
		b = strconv.AppendInt(b, int64(value), 10)
	} else {
		b = strconv.AppendFloat(b, value, 'g', -1, 64)
	}
	b = append(b, '\n')
	t.w.Write(b)
	t.buffer = b
}

var escapeHelp = strings.NewReplacer(`\`, `\\`, "\n", `\n`)

// appendEscaped adds a label's value; most need no escape.
func appendEscaped(b []byte, s string) []byte {
	if !strings.ContainsAny(s, "\\\"\n") {
		return append(b, s...)
	}
	for _, c := range []byte(s) {
		switch c {
		case '\\', '"':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		default:
			b = append(b, c)
		}
	}
	return b
}
