// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// scene is a node on which much goes on: GPU 0 has a live pod, idle instances in
// the way of what comes, and one that somebody still uses; GPU 1 has a foreign one.
type scene struct {
	*bench
	foreignUUID, usedUUID, keptUUID string
}

func newScene(t *testing.T) *scene {
	b := newBench(t, 2)
	s := &scene{bench: b, foreignUUID: b.foreign(1, "3g.20gb@4").UUID}
	b.start()
	b.bind(pod{name: "kept", devices: b.on(0, "1g.5gb@6")})
	b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@0", "1g.5gb@1", "1g.5gb@4")})
	b.mustPrepare("kept")
	b.mustPrepare("old")
	b.remove("old")
	b.rest()
	used := b.instance(0, "1g.5gb@4")
	b.hold(0, used.GI, 0)
	s.usedUUID, s.keptUUID = used.UUID, b.instance(0, "1g.5gb@6").UUID
	b.stop()
	return s
}

// act is what happens while the agent may die.
func (s *scene) act() {
	s.bind(pod{name: "a", devices: s.on(0, "2g.10gb@0", "1g.5gb@2")})
	s.bind(pod{name: "b", devices: s.on(1, "2g.10gb@0")})
	s.bind(pod{name: "blocked", devices: s.on(0, "2g.10gb@4")})
	s.bind(pod{name: "conflict", devices: s.on(1, "3g.20gb@4")})
	s.rest()
	s.remove("b")
	s.bind(pod{name: "c", devices: s.on(1, "1g.5gb@1")})
	s.sleep(3 * time.Second)
}

// check is what must be so in the end, whenever the agent died.
func (s *scene) check() {
	s.t.Helper()
	for _, name := range []string{"kept", "a", "c"} {
		if _, err := s.prepare(name); err != nil {
			s.t.Errorf("Prepare(%s) = %v", name, err)
		}
	}
	s.expect(0, "2g.10gb@0 1g.5gb@2 1g.5gb@4 1g.5gb@6")
	s.expect(1, "1g.5gb@1 3g.20gb@4")
	for place, want := range map[string]string{"1g.5gb@4": s.usedUUID, "1g.5gb@6": s.keptUUID} {
		if got := s.instance(0, place).UUID; got != want {
			s.t.Errorf("%s is %s, want %s as before", place, got, want)
		}
	}
	if got := s.instance(1, "3g.20gb@4").UUID; got != s.foreignUUID {
		s.t.Errorf("the foreign instance is %s, want %s as before", got, s.foreignUUID)
	}
	if got, want := s.reported(0), "2g.10gb@0:Live/uid-a 1g.5gb@2:Live/uid-a 1g.5gb@4:Idle 1g.5gb@6:Live/uid-kept"; got != want && got != strings.Replace(want, "Idle", "Stuck", 1) {
		s.t.Errorf("GPU 0 is reported with %q, want %q", got, want)
	}
	if got, want := s.reported(1), "1g.5gb@1:Live/uid-c 3g.20gb@4:Foreign"; got != want {
		s.t.Errorf("GPU 1 is reported with %q, want %q", got, want)
	}
	s.expectText("phase of conflict", s.phaseOf("conflict"), "Refused: ")
}

// TestDeathAtEveryStep kills the agent before and after each step that changes the
// hardware or the journal, starts another one, and looks at the end.
func TestDeathAtEveryStep(t *testing.T) {
	for _, after := range []bool{false, true} {
		for step := 1; ; step++ {
			died := false
			moment := "before"
			if after {
				moment = "after"
			}
			t.Run(fmt.Sprintf("%s step %d", moment, step), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newScene(t)
					s.power = &power{dieAt: step, after: after}
					s.start()
					s.act()
					died = s.power.dead
					s.kill()
					if died {
						t.Logf("died at %s", s.power.names[step-1])
					}
					s.power = &power{}
					s.start()
					s.sleep(15 * time.Second)
					s.check()
					s.stop()
				})
			})
			if !died || t.Failed() {
				if step < 20 && !t.Failed() {
					t.Errorf("there are only %d steps; does the scene still do anything?", step-1)
				}
				break
			}
		}
	}
}

// TestDeathAgainAndAgain kills the agent at random moments, several times, while
// pods come and go, and looks at what must never happen, and at the end.
func TestDeathAgainAndAgain(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { liveOn(t, rand.New(rand.NewPCG(seed, 0))) })
		})
	}
}

// liveOn lives eight lives and then one that lasts.
func liveOn(t *testing.T, r *rand.Rand) {
	places := []string{"1g.5gb@0", "1g.5gb@1", "2g.10gb@0", "2g.10gb@2", "3g.20gb@0", "1g.5gb+me@5", "1g.5gb+me@1", "2g.10gb@4", "1g.5gb@6"}
	b := newBench(t, 1)
	foreign := b.foreign(0, "1g.5gb@3").UUID
	pods := map[string]string{} // name to place
	uuids := map[string]string{}
	for life := range 8 {
		b.power = &power{dieAt: 1 + r.IntN(25), after: r.IntN(2) == 0}
		b.start()
		for i := range 6 {
			name := fmt.Sprintf("p%d-%d", life, i)
			place := places[r.IntN(len(places))]
			if free(t, pods, place, "1g.5gb@3") {
				b.bind(pod{name: name, devices: b.on(0, place)})
				pods[name] = place
			} else if gone := someKey(r, pods); gone != "" {
				b.remove(gone)
				delete(pods, gone)
				delete(uuids, gone)
			}
			b.sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
			for name, uuid := range uuids {
				if got := b.instance(0, pods[name]).UUID; got != uuid {
					t.Fatalf("the instance of %s was %s and is %s", name, uuid, got)
				}
			}
			for name, place := range pods {
				if b.made(name) {
					uuids[name] = b.instance(0, place).UUID
				}
			}
		}
		b.kill()
	}
	b.power = &power{}
	b.start()
	b.sleep(15 * time.Second)
	for name := range pods {
		b.mustPrepare(name)
	}
	if got := b.instance(0, "1g.5gb@3").UUID; got != foreign {
		t.Errorf("the foreign instance is %s, want %s", got, foreign)
	}
	if got := b.reported(0); strings.Count(got, "Foreign") != 1 || strings.Contains(got, "Stuck") {
		t.Errorf("GPU 0 is reported with %q, want one foreign instance and no leak", got)
	}
	b.stop()
}

// made reports whether the agent says that a pod's devices can be used.
func (b *bench) made(name string) bool {
	p, _ := b.agent.owners.preparation(Container{PodUID: uidOf(name), Name: "main"})
	return p.err == nil
}

// free reports whether a place is not in conflict with pods or another place.
func free(t *testing.T, pods map[string]string, place, other string) bool {
	t.Helper()
	if overlap(spanAt(t, place), spanAt(t, other)) {
		return false
	}
	for _, taken := range pods {
		if overlap(spanAt(t, place), spanAt(t, taken)) || strings.Contains(place, "+me") && strings.Contains(taken, "+me") {
			return false
		}
	}
	return true
}

// someKey picks a key, or none.
func someKey(r *rand.Rand, pods map[string]string) string {
	keys := append(slices.Sorted(maps.Keys(pods)), "")
	return keys[r.IntN(len(keys))]
}
