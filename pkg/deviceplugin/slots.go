// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// slotName is the slot with this number.
func slotName(number int) string { return fmt.Sprintf("s%04d", number) }

// slotNumber is the inverse of slotName; ok is false for any other text.
func slotNumber(name string) (number int, ok bool) {
	digits, ok := strings.CutPrefix(name, "s")
	if !ok {
		return 0, false
	}
	number, err := strconv.Atoi(digits)
	return number, err == nil && number >= 0 && slotName(number) == name
}

// sortSlots sorts by number: s9999 before s10000.
func sortSlots(names []string) []string {
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	return names
}

// use is what a slot is bound to. The zero value is a slot that is not bound.
type use struct {
	PodUID    types.UID `json:"podUID,omitempty"`
	Container string    `json:"container,omitempty"` // that bound it; containers that share the slot share the device
	Device    string    `json:"device,omitempty"`    // Device.Key
}

// table is what is kept on disk. Once it is the slots' table it is not changed.
type table struct {
	Next  int            // number of the next new slot
	Slots map[string]use // offered slots
}

func (t *table) clone() *table {
	return &table{Next: t.Next, Slots: maps.Clone(t.Slots)}
}

// resize adds new slots, or takes away the highest ones that are not bound and
// not kept, until there are wanted; bound and kept ones may leave more.
func (t *table) resize(wanted int, kept func(slot string) bool) {
	for len(t.Slots) < wanted {
		t.Slots[slotName(t.Next)] = use{}
		t.Next++
	}
	if len(t.Slots) == wanted {
		return
	}
	names := sortSlots(slices.Collect(maps.Keys(t.Slots)))
	for _, name := range slices.Backward(names) {
		if len(t.Slots) > wanted && t.Slots[name].PodUID == "" && !kept(name) {
			delete(t.Slots, name)
		}
	}
}

// slots is the pool that kubelet sees. Changes of the table are written to disk
// before anybody sees them (I2, I3); what Allocate does is kept in memory (I1) and
// found again in kubelet's checkpoint.
type slots struct {
	path string

	// changing is held over a whole change of the table, disk and CDI files
	// included. It guards wanted and began, and who holds it may read table.
	changing sync.Mutex
	wanted   int       // offered slots
	began    time.Time // when the present change began

	// mu is held for moments only. table is replaced under both mutexes.
	mu        sync.Mutex
	settled   bool // the capacity was set: free slots are those of this run
	table     *table
	handed    map[string]time.Time // last Allocate since the slot was bound or offered
	withdrawn map[string]time.Time // listed, but not offered, since then
	freed     map[string]time.Time // when the CDI file of an ended pod was removed
	unhealthy map[types.UID]bool
	changed   chan struct{} // closed with each change of what kubelet should see
}

// openSlots reads the table; used tells what is known where there is no file.
func openSlots(path string, used func() (*table, error)) (*slots, error) {
	t, err := loadTable(path)
	if err == nil && t == nil {
		t, err = used()
	}
	if err != nil {
		return nil, err
	}
	return &slots{
		path:      path,
		wanted:    len(t.Slots),
		table:     t,
		handed:    map[string]time.Time{},
		withdrawn: map[string]time.Time{},
		freed:     map[string]time.Time{},
		unhealthy: map[types.UID]bool{},
		changed:   make(chan struct{}),
	}, nil
}

// begin starts a change and returns a copy of the table to work on. Nobody else
// changes slots or their CDI files until end is called.
func (s *slots) begin() (t *table, end func()) {
	s.changing.Lock()
	s.began = time.Now()
	return s.table.clone(), s.changing.Unlock
}

// commit makes t the truth, on disk first. It is called between begin and end.
func (s *slots) commit(t *table) error {
	if reflect.DeepEqual(t, s.table) {
		return nil
	}
	if err := t.save(s.path); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.health()
	for name := range s.table.Slots {
		if _, stays := t.Slots[name]; !stays {
			s.withdrawn[name] = time.Now()
			if s.handed[name].Before(s.began) {
				delete(s.handed, name) // else kubelet picked it while we decided
			}
		}
	}
	for name, now := range t.Slots {
		delete(s.withdrawn, name)
		if now.PodUID != "" && now != s.table.Slots[name] {
			delete(s.handed, name)
			delete(s.freed, name)
		}
	}
	s.table = t
	if !maps.Equal(before, s.health()) {
		s.notify() // not for each binding: kubelet writes its checkpoint each time
	}
	return nil
}

// settle notes what SetCapacity has made of the table. changing is held.
func (s *slots) settle(wanted int) {
	s.wanted = wanted
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.settled {
		s.settled = true
		s.notify()
	}
}

// listed reports whether kubelet has to know any slot, and returns a channel that is
// closed when that may have changed. Before the capacity was set only slots that some
// pod may hold count, since the node may have left since the earlier run: bound ones,
// and of unbound, which comes with a no, those that kubelet's checkpoint names.
// Withdrawn slots keep a registration until their grace is over, and are no reason to
// begin one.
func (s *slots) listed(registered bool) (yes bool, unbound []string, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, u := range s.table.Slots {
		if s.settled || u.PodUID != "" {
			return true, nil, s.changed
		}
		unbound = append(unbound, name)
	}
	for name := range s.withdrawn {
		if _, handed := s.handed[name]; registered || handed {
			return true, nil, s.changed
		}
	}
	return false, unbound, s.changed
}

// notify wakes those who wait for a change. mu is held.
func (s *slots) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// resend makes kubelet receive the same list once more. It answers by writing its
// checkpoint anew, which repairs the rare case that it wrote an older state over
// a newer one: it collects the state under its lock and writes it outside
// (devicemanager/manager.go, writeCheckpoint).
func (s *slots) resend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notify()
}

// health is what kubelet should see: whether each listed slot is healthy. mu is held.
func (s *slots) health() map[string]bool {
	health := make(map[string]bool, len(s.table.Slots)+len(s.withdrawn))
	for name, u := range s.table.Slots {
		health[name] = !s.unhealthy[u.PodUID]
	}
	for name := range s.withdrawn {
		_, handed := s.handed[name]
		health[name] = handed // kubelet picked it before it knew: it is the pod's now
	}
	return health
}

// list is health as kubelet reads it, sorted, and a channel that is closed when it
// changes.
func (s *slots) list() ([]*pluginapi.Device, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	health := s.health()
	devices := make([]*pluginapi.Device, 0, len(health))
	for _, name := range sortSlots(slices.Collect(maps.Keys(health))) {
		device := &pluginapi.Device{ID: name, Health: pluginapi.Unhealthy}
		if health[name] {
			device.Health = pluginapi.Healthy
		}
		devices = append(devices, device)
	}
	return devices, s.changed
}

// hand notes that kubelet gives these slots to a container. It does not wait for
// a change that is being written.
func (s *slots) hand(names []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		_, offered := s.table.Slots[name]
		if _, withdrawn := s.withdrawn[name]; !offered && !withdrawn {
			return fmt.Errorf("slot %q: %w", name, errUnknownSlot)
		}
	}
	for _, name := range names {
		s.handed[name] = time.Now()
		if _, withdrawn := s.withdrawn[name]; withdrawn {
			s.notify()
		}
	}
	return nil
}

// known sorts slots and checks that each was made here at some time.
func (s *slots) known(names []string) ([]string, error) {
	s.mu.Lock()
	next := s.table.Next
	s.mu.Unlock()
	for _, name := range names {
		if number, ok := slotNumber(name); !ok || number >= next {
			return nil, fmt.Errorf("slot %q: %w", name, errUnknownSlot)
		}
	}
	return sortSlots(slices.Clone(names)), nil
}

// wasHanded reports when kubelet last picked the slot since it was bound or
// offered; the zero time is never.
func (s *slots) wasHanded(name string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handed[name]
}

// free notes that the CDI file of the slot's former pod has just been removed.
func (s *slots) free(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freed[name] = time.Now()
}

// lastFreed is the latest time at which one of the slots was freed.
func (s *slots) lastFreed(names []string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var last time.Time
	for _, name := range names {
		if at := s.freed[name]; at.After(last) {
			last = at
		}
	}
	return last
}

// setUnhealthy replaces the set of pods whose slots are unhealthy.
func (s *slots) setUnhealthy(pods map[types.UID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maps.Equal(s.unhealthy, pods) {
		return
	}
	s.unhealthy = pods
	s.notify()
}

// pods are the pods that slots are bound to.
func (s *slots) pods() map[types.UID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	pods := map[types.UID]bool{}
	for _, u := range s.table.Slots {
		if u.PodUID != "" {
			pods[u.PodUID] = true
		}
	}
	return pods
}

// revived lists the slots that were handed although they are withdrawn.
func (s *slots) revived() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.withdrawn {
		if _, handed := s.handed[name]; handed {
			names = append(names, name)
		}
	}
	return names
}

// drop forgets withdrawn slots whose grace is over. One that was handed after all
// stays for a while and as long as it is kept, and then has its grace. It returns
// when to come back, zero for not before a change, and a channel that is closed by
// a change.
func (s *slots) drop(t timing, kept []string) (next time.Duration, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, dropped := time.Now(), false
	for name, since := range s.withdrawn {
		handed, isHanded := s.handed[name]
		left := t.withdraw - now.Sub(since)
		if isHanded {
			left = t.handed - now.Sub(handed)
		}
		switch {
		case left > 0:
		case isHanded && slices.Contains(kept, name):
			left = t.handed
		case isHanded:
			delete(s.handed, name)
			s.withdrawn[name] = now
			left, dropped = t.withdraw, true
		default:
			delete(s.withdrawn, name)
			delete(s.freed, name)
			dropped = true
			continue
		}
		if next == 0 || left < next {
			next = left
		}
	}
	if dropped {
		s.notify()
	}
	return next, s.changed
}
