// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"strconv"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// ShareWant is what one device of a request needs as a software share. All that is
// set must hold.
type ShareWant struct {
	MemoryMiB int64
	Percent   int32 // of the memory that the GPU offers to shares
	Cores     int32 // percent of the GPU's SMs; 0 = no limit, 100 = the GPU for itself
}

// shareWant is a container's want as a share: without memory all of the GPU's,
// and the GPU for itself where nothing is said of cores either.
func shareWant(w geometry.Want) ShareWant {
	out := ShareWant{MemoryMiB: int64(w.MemoryMiB), Percent: int32(w.Percent), Cores: int32(w.Cores)}
	if w.Full {
		out.Cores = 100
	}
	if w.MemoryMiB == 0 && w.Percent == 0 {
		out.Percent = 100
	}
	if w.MemoryMiB == 0 && w.Percent == 100 && w.Cores == 0 {
		out.Cores = 100 // all memory means a GPU of one's own, as in HAMi
	}
	return out
}

// larger is a want that satisfies both.
func (w ShareWant) larger(other ShareWant) ShareWant {
	cores := max(w.Cores, other.Cores)
	if cores < 100 && (w.Cores == 0 || other.Cores == 0) {
		cores = 0 // one of them is not to be limited
	}
	return ShareWant{MemoryMiB: max(w.MemoryMiB, other.MemoryMiB), Percent: max(w.Percent, other.Percent), Cores: cores}
}

// on is the share that satisfies the want on a GPU: never without a limit of
// memory, and never more than the GPU offers.
func (w ShareWant) on(c *v1alpha1.ShareCapacity) (v1alpha1.Share, bool) {
	share := v1alpha1.Share{
		MemoryMiB: max(w.MemoryMiB, c.MemoryMiB*int64(w.Percent)/100, 1),
		Cores:     w.Cores,
	}
	return share, share.MemoryMiB <= c.MemoryMiB
}

// Taken is what software shares take of one GPU.
type Taken struct {
	Count     int
	MemoryMiB int64
	Cores     int  // percent
	Exclusive bool // somebody has the GPU for itself
}

// With is Taken with one more share.
func (t Taken) With(s v1alpha1.Share) Taken {
	t.Count++
	t.MemoryMiB += s.MemoryMiB
	t.Cores += int(s.Cores)
	t.Exclusive = t.Exclusive || s.Exclusive()
	return t
}

// Admits reports whether one more share fits beside what is taken. A share without
// a limit of cores needs some that are not taken, as in HAMi.
func (t Taken) Admits(s v1alpha1.Share, c *v1alpha1.ShareCapacity) bool {
	switch {
	case t.Exclusive, t.Count >= int(c.Count), t.MemoryMiB+s.MemoryMiB > c.MemoryMiB:
		return false
	case s.Exclusive():
		return t.Count == 0
	case s.Cores == 0:
		return t.Cores < int(c.Cores)
	default:
		return t.Cores+int(s.Cores) <= int(c.Cores)
	}
}

// Taken is what software shares take of the GPU at a position of Node.GPUs.
func (v *View) Taken(gpu int) Taken { return v.taken[gpu] }

// limitShares decides whether the request can be shares at all. What a container is
// told of its shares is fixed for each slot before the first container starts, so
// devices that containers have in turn must all end in one of them; and the
// library knows MaxShares devices.
func (b *requestBuilder) limitShares() error {
	r := b.request
	if !r.Share {
		return nil
	}
	problem := ""
	switch {
	case b.profile != "":
		problem = "annotation " + v1alpha1.AnnotationProfile + " names a MIG profile"
	case b.tooMany() != "":
		problem = "container " + strconv.Quote(b.tooMany()) + " asks for more than 16 devices"
	case b.splits() != "":
		problem = "the devices of init container " + strconv.Quote(b.splits()) + " go to different containers after it"
	default:
		return nil
	}
	if !r.MIG {
		return invalid("%s, which a pod in mode %s cannot have; change that or annotation %s",
			problem, v1alpha1.ModeHAMiCore, v1alpha1.AnnotationMode)
	}
	r.Share, r.unshared = false, true
	return nil
}

// tooMany names a container with more devices than one can have as shares.
func (b *requestBuilder) tooMany() string {
	for name, devices := range b.request.Containers {
		if len(devices) > v1alpha1.MaxShares {
			return name
		}
	}
	return ""
}

// splits names an init container whose devices do not end in one container.
func (b *requestBuilder) splits() string {
	for _, name := range b.inits {
		for _, device := range b.request.Containers[name] {
			if b.last[device] != b.last[b.request.Containers[name][0]] {
				return name
			}
		}
	}
	return ""
}
