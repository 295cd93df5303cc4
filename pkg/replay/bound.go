// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"errors"
	"fmt"

	"github.com/dynamig/dynamig/pkg/geometry"
)

// ErrNoBound is when Repack does not know a fleet.
var ErrNoBound = errors.New("there is no exact bound")

// bound is the world in which every instance may be moved at any time for free: a
// job starts if and only if all that runs, and it, could be cut out of the fleet
// together. Nodes do not matter to it. Up to the first job that it rejects no policy
// keeps more; from then on it is a comparator like others, since who has rejected a
// large job has room for small ones (docs/packing.md, openb).
type bound struct {
	gpus    int
	slices  int // memory slices of the fleet
	classes []class
	kinds   []geometry.Kinds // by class: of a whole job
	can     []bool           // by class
	held    geometry.Kinds
	memory  int // slices in use
	compute int
}

// newBound refuses fleets for which the exact answer is not known.
func newBound(f *Fleet, classes []class) (*bound, error) {
	memory, _ := f.capacity()
	b := &bound{gpus: len(f.gpus), slices: memory, classes: classes}
	for i := range classes {
		kind, can, err := f.kind(&classes[i])
		if err != nil {
			return nil, err
		}
		b.kinds = append(b.kinds, kind.Times(classes[i].devices))
		b.can = append(b.can, can)
	}
	return b, nil
}

// kind is what one device of a class is on each model, if it is the same on all.
func (f *Fleet) kind(c *class) (kind geometry.Kinds, can bool, err error) {
	for i, m := range f.models {
		here, ok := geometry.Kinds{}, c.sizes[i].memory > 0
		if ok {
			var known bool
			if here, known = m.catalogue.Model().KindsOf(c.sizes[i].entry.Profile); !known {
				return kind, false, fmt.Errorf("policy %s: %w for %s; it is known for GPUs with 8 memory slices only",
					Repack, ErrNoBound, m.board.Key)
			}
		}
		if i > 0 && (ok != can || here != kind) {
			return kind, false, fmt.Errorf("policy %s: %w for a fleet whose models answer the same job with different profiles; replay each model alone",
				Repack, ErrNoBound)
		}
		kind, can = here, ok
	}
	return kind, can, nil
}

func (b *bound) arrived(int) {}

func (b *bound) choose(class int) ([]Spot, bool) {
	return nil, b.can[class] && b.held.Add(b.kinds[class]).Fit(b.gpus)
}

func (b *bound) place(class int, _ []Spot) error {
	b.change(class, 1)
	return nil
}

func (b *bound) remove(class int, _ []Spot) error {
	b.change(class, -1)
	return nil
}

func (b *bound) change(class, by int) {
	c := &b.classes[class]
	b.held = b.held.Add(b.kinds[class].Times(by))
	b.memory += by * c.devices * c.sizes[0].memory
	b.compute += by * c.devices * c.sizes[0].compute
}

func (b *bound) read() gauge {
	return gauge{memory: b.memory, compute: b.compute, gpus: b.held.GPUs(), free: b.slices - b.memory}
}
