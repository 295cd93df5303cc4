// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

// Want is what one device of a request needs. All that is set must hold; zero
// fields ask for nothing, and a zero Want takes the smallest there is.
type Want struct {
	MemoryMiB int // at least so much
	Percent   int // of the GPU's memory slices, rounded up to whole ones
	Cores     int // at least so many percent of the GPU's compute
	// Full asks for the whole GPU as one instance, which has all of its slices and
	// cores, whatever they are.
	Full bool
	// Profile asks for exactly this profile, by name. Full is then not read.
	Profile string
	// Strict compares MemoryMiB with what NVML reports, not with the file.
	Strict bool
	// Oversize accepts more than the smallest that is adequate.
	Oversize bool
}

// Choice is an instance that answers a Want and can be created now.
type Choice struct {
	Placed
	Size      int   // memory slices
	MemoryMiB int   // what the request was compared with: the file's, or NVML's for a strict Want
	Exact     bool  // nothing smaller in the catalogue would be adequate
	Template  int   // the template that it is of, in file order; -1 in other rules
	Score     int64 // S of the placement, lower is better; see ScoreScale
}

// query is a Want with what follows from it for one catalogue.
type query struct {
	want    Want
	by      measure
	profile int    // index that the want pins, or -1
	slices  int    // memory slices that Percent comes to, or 0
	exact   *offer // the smallest adequate one
}

// resolve fills in the query, and returns false if nothing in the catalogue is
// adequate.
func (q *query) resolve(c *Catalogue, w Want) bool {
	q.want, q.profile = w, -1
	if w.Strict {
		q.by = reported
	}
	q.slices = (max(w.Percent, 0)*c.model.grid.MemorySlices + 99) / 100
	switch {
	case w.Profile != "":
		p, ok := c.model.ByName(w.Profile)
		if !ok {
			return false
		}
		q.profile = c.model.index(p.ID)
	case w.Full:
		if c.model.full < 0 {
			return false
		}
		q.profile = c.model.full
	}
	offers := c.offers[q.by]
	for i := range offers {
		if q.adequate(&offers[i]) {
			q.exact = &offers[i]
			return true
		}
	}
	return false
}

// adequate reports whether the offer gives what is wanted.
func (q *query) adequate(o *offer) bool {
	switch {
	case q.profile >= 0 && o.profile != q.profile, o.named && q.want.Profile == "":
		return false
	case o.memory[q.by] < q.want.MemoryMiB: // unknown memory is 0
		return false
	case q.want.Full && q.want.Profile == "":
		return true
	}
	return o.size >= q.slices && o.entry.Cores >= q.want.Cores
}

// isExact reports whether an adequate offer is not larger than needed: the exact
// one's profile, or another of its memory and compute slices.
func (q *query) isExact(o *offer) bool {
	return o.profile == q.exact.profile || o.rank[q.by] == q.exact.rank[q.by] && o.compute == q.exact.compute
}

// Can reports whether an idle GPU of this model could answer the want, and the
// smallest adequate entry of the catalogue.
func (c *Catalogue) Can(w Want) (exact Entry, ok bool) {
	var q query
	if !q.resolve(c, w) {
		return Entry{}, false
	}
	return q.exact.entry, true
}
