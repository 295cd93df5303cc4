// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package deviceplugin

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/test/kubelet"
)

func TestSlotNames(t *testing.T) {
	for number, name := range map[int]string{0: "s0000", 7: "s0007", 9999: "s9999", 10000: "s10000", 1234567: "s1234567"} {
		if got := slotName(number); got != name {
			t.Errorf("slotName(%d) = %s, want %s", number, got, name)
		}
		if got, ok := slotNumber(name); got != number || !ok {
			t.Errorf("slotNumber(%s) = %d, %v", name, got, ok)
		}
	}
	for _, name := range []string{"", "s", "s7", "s00007", "s-001", "x0001", "s0001 ", "s+001", "s99999999999999999999"} {
		if number, ok := slotNumber(name); ok {
			t.Errorf("slotNumber(%q) = %d, want none", name, number)
		}
	}
	got := sortSlots([]string{"s10000", "s0002", "s9999", "s0001"})
	if diff := cmp.Diff([]string{"s0001", "s0002", "s9999", "s10000"}, got); diff != "" {
		t.Errorf("sortSlots (-want +got):\n%s", diff)
	}
}

// Random changes: no number is used twice, what is bound or kept stays, and the
// number of slots is the wanted one unless those forbid it. Each state survives
// the disk.
func TestTableInvariants(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "slots.json")
	table := &table{Slots: map[string]use{}}
	retired := map[string]bool{}
	for step := range 2000 {
		before := table.clone()
		kept := map[string]bool{}
		for name, u := range table.Slots {
			switch {
			case u.PodUID == "" && random.IntN(3) == 0:
				table.Slots[name] = use{PodUID: types.UID(fmt.Sprint(step)), Container: "c", Device: "d"}
			case u.PodUID != "" && random.IntN(3) == 0:
				delete(table.Slots, name)
				delete(before.Slots, name)
				retired[name] = true
			case random.IntN(10) == 0:
				kept[name] = true
			}
		}
		wanted := random.IntN(12)
		table.resize(wanted, func(slot string) bool { return kept[slot] })
		bare := 0 // slots that could have been taken away
		for name, u := range table.Slots {
			if retired[name] {
				t.Fatalf("step %d: slot %s came again", step, name)
			}
			if u.PodUID == "" && !kept[name] {
				bare++
			}
		}
		if len(table.Slots) < wanted || len(table.Slots) > wanted && bare > 0 {
			t.Fatalf("step %d: %d slots, wanted %d, %d could go", step, len(table.Slots), wanted, bare)
		}
		for name := range before.Slots {
			if _, stays := table.Slots[name]; stays {
				continue
			}
			if kept[name] || table.Slots[name].PodUID != "" {
				t.Fatalf("step %d: slot %s was taken away", step, name)
			}
			retired[name] = true
		}
		if step%50 == 0 {
			checkSaved(t, path, table)
		}
	}
}

func checkSaved(t *testing.T, path string, want *table) {
	t.Helper()
	if err := want.save(path); err != nil {
		t.Fatal(err)
	}
	got, err := loadTable(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("state file (-want +got):\n%s", diff)
	}
}

func TestResizeTakesTheHighestFirst(t *testing.T) {
	tab := &table{Slots: map[string]use{}}
	none := func(string) bool { return false }
	tab.resize(4, none)
	tab.Slots["s0003"] = use{PodUID: "p", Container: "c", Device: "d"}
	tab.resize(2, none)
	var names []string
	for name := range tab.Slots {
		names = append(names, name)
	}
	if diff := cmp.Diff([]string{"s0000", "s0003"}, sortSlots(names)); diff != "" {
		t.Errorf("slots (-want +got):\n%s", diff)
	}
}

func TestStateFileIsReadStrictly(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"an empty file":        {"", "EOF"},
		"a torn file":          {`{"version":1,"ne`, "unexpected EOF"},
		"a later version":      {`{"version":2,"next":0,"slots":{}}`, "version 2 is unknown, this program knows 1"},
		"an unknown field":     {`{"version":1,"next":0,"slots":{},"x":1}`, `unknown field "x"`},
		"a negative number":    {`{"version":1,"next":-1,"slots":{}}`, "next is -1"},
		"a foreign slot":       {`{"version":1,"next":9,"slots":{"GPU-0":{}}}`, `slots["GPU-0"]`},
		"a slot from later":    {`{"version":1,"next":9,"slots":{"s0009":{}}}`, `slots["s0009"] is not a slot before number 9`},
		"a pod without device": {`{"version":1,"next":9,"slots":{"s0001":{"podUID":"u","container":"c"}}}`, "is half bound"},
		"a device without pod": {`{"version":1,"next":9,"slots":{"s0001":{"device":"d"}}}`, "is half bound"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slots.json")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := loadTable(path)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("loadTable = %v, want an error with %q and the path", err, tc.want)
			}
		})
	}
}

func TestStateFileFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slots.json")
	tab := &table{Next: 2, Slots: map[string]use{
		"s0000": {PodUID: "uid", Container: "main", Device: "GPU-1/14/0"},
		"s0001": {},
	}}
	checkSaved(t, path, tab)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"version":1,"next":2,"slots":{"s0000":{"podUID":"uid","container":"main","device":"GPU-1/14/0"},"s0001":{}}}`
	if string(text) != want {
		t.Errorf("state file is %s\nwant          %s", text, want)
	}
}

func FuzzDecodeTable(f *testing.F) {
	f.Add([]byte(`{"version":1,"next":2,"slots":{"s0000":{"podUID":"u","container":"m","device":"d"},"s0001":{}}}`))
	f.Add([]byte(`{"version":1,"slots":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		tab, err := decodeTable(text)
		if err != nil {
			return
		}
		checkSaved(t, filepath.Join(t.TempDir(), "slots.json"), tab)
	})
}

func FuzzReadCheckpoint(f *testing.F) {
	f.Add([]byte(checkpointOfKubelet))
	f.Add([]byte(`{"Data":{"PodDeviceEntries":null}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "checkpoint")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readCheckpoint(path, kubelet.Resource)
		if err != nil {
			return
		}
		for _, h := range c.holdings {
			if group := c.connected(h); len(group) == 0 || group[0].Container != h.Container {
				t.Errorf("connected(%v) = %v", h, group)
			}
			if !slices.IsSortedFunc(h.Slots, func(a, b string) int { return len(a) - len(b) }) {
				t.Errorf("slots %v are not sorted", h.Slots)
			}
		}
	})
}

// checkpointOfKubelet has the form that kubelet 1.37.2 writes.
const checkpointOfKubelet = `{"Data":{"PodDeviceEntries":[` +
	`{"PodUID":"u1","ContainerName":"init","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["s0003","s0001"]},"AllocResp":"Kg=="},` +
	`{"PodUID":"u1","ContainerName":"a","ResourceName":"nvidia.com/gpu","DeviceIDs":{"0":["s0001"],"1":["s0001"]},"AllocResp":"Kg=="},` +
	`{"PodUID":"u1","ContainerName":"b","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["s0003","s0010"]},"AllocResp":null},` +
	`{"PodUID":"u1","ContainerName":"c","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["s0011"]},"AllocResp":null},` +
	`{"PodUID":"u2","ContainerName":"a","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["s0002"]},"AllocResp":null},` +
	`{"PodUID":"u2","ContainerName":"a","ResourceName":"example.com/nic","DeviceIDs":{"-1":["s0001"]},"AllocResp":null}],` +
	`"RegisteredDevices":{"example.com/nic":["s0077"],"nvidia.com/gpu":["s0001","s0042"]}},"Checksum":3735928559}`

func TestReadCheckpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	if c, err := readCheckpoint(path, kubelet.Resource); err != nil || len(c.holdings) != 0 {
		t.Errorf("a missing checkpoint = %v, %v", c, err)
	}
	if err := os.WriteFile(path, []byte(checkpointOfKubelet), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readCheckpoint(path, kubelet.Resource)
	if err != nil {
		t.Fatal(err)
	}
	want := []holding{
		{"u1", "init", []string{"s0001", "s0003"}},
		{"u1", "a", []string{"s0001"}},
		{"u1", "b", []string{"s0003", "s0010"}},
		{"u1", "c", []string{"s0011"}},
		{"u2", "a", []string{"s0002"}},
	}
	if diff := cmp.Diff(want, c.holdings); diff != "" {
		t.Errorf("holdings (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"s0001", "s0042"}, c.offered); diff != "" {
		t.Errorf("offered (-want +got):\n%s", diff)
	}
	// a and b meet through init only.
	if diff := cmp.Diff([]holding{want[1], want[0], want[2]}, c.connected(want[1])); diff != "" {
		t.Errorf("connected (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[3:4], c.connected(want[3])); diff != "" {
		t.Errorf("connected (-want +got):\n%s", diff)
	}
}
