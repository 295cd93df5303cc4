// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// demandsOf parses "main: 0 1 = a b; init: 0 = a".
func demandsOf(text string) []demand {
	var demands []demand
	for part := range strings.SplitSeq(text, ";") {
		name, rest, _ := strings.Cut(part, ":")
		slots, devices, _ := strings.Cut(rest, "=")
		d := demand{container: strings.TrimSpace(name), devices: strings.Fields(devices)}
		for _, number := range strings.Fields(slots) {
			d.slots = append(d.slots, "s000"+number)
		}
		demands = append(demands, d)
	}
	return demands
}

// pairs parses and prints "0=a 1=b".
func pairs(text string) map[string]string {
	m := map[string]string{}
	for _, pair := range strings.Fields(text) {
		slot, device, _ := strings.Cut(pair, "=")
		m["s000"+slot] = device
	}
	return m
}

func text(m map[string]string) string {
	var out []string
	for _, slot := range slices.Sorted(maps.Keys(m)) {
		out = append(out, strings.TrimPrefix(slot, "s000")+"="+m[slot])
	}
	return strings.Join(out, " ")
}

func TestAssign(t *testing.T) {
	for name, tc := range map[string]struct{ demands, bound, want, err string }{
		"sorted slots take devices in annotation order":     {"m: 3 5 7 = c a b", "", "3=c 5=a 7=b", ""},
		"a bound slot keeps its device":                     {"m: 3 5 7 = c a b", "5=c", "3=a 5=c 7=b", ""},
		"all are bound":                                     {"m: 3 5 = a b", "3=b 5=a", "3=b 5=a", ""},
		"bindings of other slots do not matter":             {"m: 3 = a", "4=a", "3=a", ""},
		"an init container's slots suit both app ones":      {"i: 0 1 = a b; m: 0 = b; n: 1 = a", "", "0=b 1=a", ""},
		"a longer init container leaves the right slot":     {"i: 0 1 2 = a b c; m: 1 = a", "", "0=b 1=a 2=c", ""},
		"a longer app container keeps what was bound first": {"m: 0 1 2 = a b c; i: 2 = a", "2=a", "0=b 1=c 2=a", ""},
		"fewer devices than slots":                          {"m: 0 1 = a", "", "", "container m holds 2 slots (s0000 s0001), its allocation names 1 devices (a); delete the pod"},
		"a device twice":                                    {"m: 0 1 = a a", "", "", "container m is to get device a twice; delete the pod"},
		"a bound device that is another container's":        {"m: 0 1 = a b", "1=c", "", "container m holds slot s0001, which is bound to device c, which is not one of its own; delete the pod"},
		"a bound device that was bound twice":               {"m: 0 1 = a b", "0=a 1=a", "", "container m holds slot s0001, which is bound to device a, which is not one of its own; delete the pod"},
		"sharers without a common device":                   {"m: 0 = a; i: 0 = b", "", "", "container m: " + errNoAssignment.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := assign(demandsOf(tc.demands), pairs(tc.bound))
			if tc.err != "" {
				if err == nil || err.Error() != tc.err {
					t.Errorf("assign = %v\nwant     %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, text(got)); diff != "" {
				t.Errorf("assign (-want +got):\n%s", diff)
			}
		})
	}
}

// legal tries every assignment of devices to slots.
func legal(demands []demand, slots []string, given map[string]string) bool {
	if len(slots) == 0 {
		return fits(demands, given)
	}
	if _, ok := given[slots[0]]; ok {
		return legal(demands, slots[1:], given)
	}
	for _, device := range []string{"a", "b", "c", "d"} {
		given[slots[0]] = device
		if legal(demands, slots[1:], given) {
			return true
		}
		delete(given, slots[0])
	}
	return false
}

// fits reports whether each container's slots stand for exactly its devices.
func fits(demands []demand, given map[string]string) bool {
	for _, d := range demands {
		var devices []string
		for _, slot := range d.slots {
			devices = append(devices, given[slot])
		}
		slices.Sort(devices)
		want := slices.Clone(d.devices)
		slices.Sort(want)
		if !slices.Equal(devices, want) {
			return false
		}
	}
	return true
}

// assign finds an assignment whenever there is one, and only legal ones. The order
// of the demands, except for the first's name in an error, does not matter.
func TestAssignAgainstBruteForce(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	found := 0
	for range 20_000 {
		all, devices := []string{"s0000", "s0001", "s0002", "s0003"}, []string{"a", "b", "c", "d"}
		var demands []demand
		for c := range 1 + random.IntN(3) {
			n := 1 + random.IntN(3)
			random.Shuffle(4, func(i, j int) { all[i], all[j] = all[j], all[i] })
			random.Shuffle(4, func(i, j int) { devices[i], devices[j] = devices[j], devices[i] })
			demands = append(demands, demand{fmt.Sprint(c), sortSlots(slices.Clone(all[:n])), slices.Clone(devices[:n])})
		}
		bound := map[string]string{}
		if random.IntN(2) == 0 {
			bound[demands[0].slots[0]] = demands[0].devices[random.IntN(len(demands[0].devices))]
		}
		var slots []string
		for _, d := range demands {
			slots = append(slots, d.slots...)
		}
		slots = slices.Compact(sortSlots(slots))
		want := legal(demands, slots, maps.Clone(bound))
		got, err := assign(demands, bound)
		if (err == nil) != want {
			t.Fatalf("assign(%v, %v) = %v, %v; brute force says %v", demands, bound, got, err, want)
		}
		slices.Reverse(demands)
		again, _ := assign(demands, bound)
		if text(again) != text(got) {
			t.Fatalf("assign(%v, %v) depends on the order: %v and %v", demands, bound, got, again)
		}
		if err != nil {
			continue
		}
		found++
		if !fits(demands, got) || len(got) != len(slots) {
			t.Fatalf("assign(%v, %v) = %v", demands, bound, got)
		}
	}
	if found < 1000 {
		t.Errorf("only %d of the cases have an assignment", found)
	}
}

// The search gives up in time where it would try everything: a container with
// many slots, all of which a second one holds, that has one other device.
func TestAssignGivesUp(t *testing.T) {
	var big, other demand
	big.container, other.container = "big", "other"
	for i := range 40 {
		big.slots = append(big.slots, slotName(i))
		big.devices = append(big.devices, fmt.Sprint(i))
	}
	other.slots = big.slots
	other.devices = append(slices.Clone(big.devices[:39]), "x")
	if _, err := assign([]demand{big, other}, nil); !errors.Is(err, errNoAssignment) {
		t.Errorf("assign = %v, want %v", err, errNoAssignment)
	}
}
