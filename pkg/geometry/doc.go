// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package geometry says which MIG instances a GPU can hold, which of them answers
// a request, and where it is best put. It is arithmetic on plain values.
//
// Words:
//
//	memory slice   the unit of space on a GPU: 8 on an A100, 4 on an A30, 12 on an
//	               RTX PRO 6000. A compute slice is another unit: 3g.20gb has 3
//	               compute slices and spans 4 memory slices.
//	profile        a kind of instance, such as 1g.10gb: an id, a size in memory
//	               slices, and the starts where it may lie
//	placement      a span of memory slices: (start, size)
//	placed         a profile at a start; with the GPU, the identity of an instance
//	layout         what is placed on one GPU
//	occupancy      the same without order or identity: which memory slices are
//	               taken, and how many instances there are of each profile
//	model          what one type of GPU allows (Model)
//	catalogue      what configuration leaves of it, and its preferences (Catalogue)
//
// A layout of an A100 with 40 GB, and its text form (Model.Format), where each
// dot is a free memory slice:
//
//	memory slice   0     1     2     3     4     5     6     7
//	             +-----------+           +-----------------------+
//	             |  2g.10gb  |   free    |        3g.20gb        |
//	             +-----------+           +-----------------------+
//
//	               "2g.10gb@0 .. 3g.20gb@4"
//
// Invariants, which the tests cite:
//
//	I1  A model's memory slices are max(start + size) of its placements, or those
//	    that were given with it; no placement lies outside.
//	I2  Instances of a layout never overlap, and each lies where its profile may.
//	I3  The occupancy of a layout does not depend on the order of its instances,
//	    and Vacate undoes Occupy.
//	I4  A bitmap of memory slices and a count for each profile decide all: compute
//	    slices never run out before memory slices do (enumerated for every known
//	    grid), and media engines are a matter of counts.
//	I5  Equal input gives equal output: of equal scores the lowest start wins.
//	I6  A choice can be placed now, and in rule Templates the rest of its template
//	    can be placed afterwards, beside everything that is there.
//	I7  A Table answers as Catalogue.Choices does: occupancies of one State, and
//	    wants of one Table, have the same choices, now and after any instance
//	    that is added.
//
// A decision has three prices. Catalogue.Choices searches, below a microsecond.
// For many GPUs and few requests: State once for each change of a GPU, Table once
// for each request, and then Table.Cost of every GPU, a nanosecond each.
//
// An answer depends on the catalogue, one GPU's occupancy and the request only.
// Models and catalogues never change but for what they remember, and everything
// may be used in parallel.
//
// geometry does not know Kubernetes, NVML, configuration files, clocks, or that
// there is more than one GPU.
package geometry
