// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/node"
)

// scene is a node on which much goes on. GPU 0 has a running pod, idle instances
// in the way of what comes, and one that somebody still uses without a process;
// GPU 1 has a foreign one.
type scene struct {
	*node.Node
	t       *testing.T
	kept    *node.Pod
	foreign string // UUIDs
	used    string

	a, b, c, conflict, waiting *node.Pod
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, Node: newNode(t, 2)}
	s.foreign = s.Foreign("1:3g.20gb@4")
	s.StartAgent(0, false)
	s.Kubelet.AwaitCapacity(14)
	s.kept = s.Bind("kept", "main=0:1g.5gb@6")
	old := s.Bind("old", "main=0:1g.5gb@0 0:1g.5gb@1 0:1g.5gb@4")
	s.kept.Await(node.Running)
	old.Await(node.Running)
	old.Delete()
	s.used = s.UUID("0:1g.5gb@4")
	s.Hold("0:1g.5gb@4", 0)
	s.Await("old's instances to be idle", func() error {
		if got, want := s.Reported(0), "1g.5gb@0:Idle 1g.5gb@1:Idle 1g.5gb@4:Idle 1g.5gb@6:Live/kept"; got != want {
			return fmt.Errorf("GPU 0 is reported with %q, want %q", got, want)
		}
		return nil
	})
	return s
}

// begin is what happens on the node at first: pods that need what is idle, one
// whose place is used, one whose place somebody else has cut.
func (s *scene) begin() {
	s.a = s.Bind("a", "init:setup=0:1g.5gb@2", "main=0:1g.5gb@2 0:2g.10gb@0")
	s.b = s.Bind("b", "main=1:2g.10gb@0")
	s.conflict = s.Bind("conflict", "main=1:3g.20gb@4")
	s.waiting = s.Bind("waiting", "main=0:2g.10gb@4")
}

// finish goes on: a pod ends, and the next one needs its place, under its name.
// Pods that kubelet did not admit, because the agent was dead at that moment, are
// made anew by their controller.
func (s *scene) finish() {
	s.b = s.again(s.b, "b", "main=1:2g.10gb@0")
	s.b.Delete()
	s.c = s.Bind("b", "main=1:1g.5gb@1")
	s.c = s.again(s.c, "b", "main=1:1g.5gb@1")
	s.a = s.again(s.a, "a", "init:setup=0:1g.5gb@2", "main=0:1g.5gb@2 0:2g.10gb@0")
	for _, p := range []**node.Pod{&s.conflict, &s.waiting} {
		if state, _ := (*p).State(); state == node.Failed {
			(*p).Delete()
		}
	}
}

// again waits until the pod runs, replacing it as a controller would.
func (s *scene) again(p *node.Pod, name string, containers ...string) *node.Pod {
	s.t.Helper()
	s.Await("pod "+name+" to run", func() error {
		switch state, reason := p.State(); state {
		case node.Running:
			return nil
		case node.Failed:
			p.Delete()
			p = s.Bind(name, containers...)
			return fmt.Errorf("it was not admitted: %s", reason)
		default:
			return errors.New(reason)
		}
	})
	return p
}

// check is what must be so in the end, whenever the agent died.
func (s *scene) check() {
	s.t.Helper()
	want := []string{"2g.10gb@0:Live/a 1g.5gb@2:Live/a 1g.5gb@4:Idle 1g.5gb@6:Live/kept", "1g.5gb@1:Live/b 3g.20gb@4:Foreign"}
	s.Await("the report", func() error {
		for gpu := range want {
			if got := s.Reported(gpu); got != want[gpu] {
				return fmt.Errorf("GPU %d is reported with %q, want %q", gpu, got, want[gpu])
			}
		}
		return nil
	})
	if state, _ := s.conflict.State(); state == node.Waiting {
		s.Await("conflict to be refused", func() error {
			if got := s.PhaseOf(s.conflict); got != v1alpha1.PodRefused {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	}
	for gpu, want := range []string{"2g.10gb@0 1g.5gb@2 1g.5gb@4 1g.5gb@6", "1g.5gb@1 3g.20gb@4"} {
		if got := s.Layout(gpu); got != want {
			s.t.Errorf("GPU %d holds %q, want %q", gpu, got, want)
		}
	}
	for place, want := range map[string]string{
		"1:3g.20gb@4": s.foreign, "0:1g.5gb@4": s.used, "0:1g.5gb@6": s.kept.UUIDs("main")[0],
		"0:1g.5gb@2": s.a.UUIDs("main")[0], "0:2g.10gb@0": s.a.UUIDs("main")[1], "1:1g.5gb@1": s.c.UUIDs("main")[0],
	} {
		if got := s.UUID(place); got != want {
			s.t.Errorf("%s is %s, want %s as before", place, got, want)
		}
	}
	for _, p := range []*node.Pod{s.kept, s.a, s.c} {
		if err := p.Check(); err != nil {
			s.t.Errorf("pod %s: %v", p.Name, err)
		}
	}
	s.Await("CDI files of ended pods to be gone", func() error {
		if left := s.Leftovers(s.kept, s.a, s.c); len(left) > 0 {
			return fmt.Errorf("slots %v have one", left)
		}
		return nil
	})
}

// crashPoint says when the agent dies: at the nth write, or at the nth NVML call of
// that name.
type crashPoint struct {
	call  string // empty: a write
	nth   int    // from 1
	after bool
}

// write is the number of the write at which the agent dies; 0 is none.
func (c crashPoint) write() int {
	if c.call != "" {
		return 0
	}
	return c.nth
}

// changes are the NVML calls that change the hardware.
var changes = []string{
	sim.CallCreateGPUInstance, sim.CallCreateComputeInstance, sim.CallDestroyGPUInstance, sim.CallDestroyComputeInstance,
}

func (c crashPoint) String() string {
	moment := "before"
	if c.after {
		moment = "after"
	}
	return fmt.Sprintf("%s %s %d", moment, cmp.Or(c.call, "write"), c.nth)
}

// order orders the crash at an NVML call.
func (s *scene) order(c crashPoint) {
	s.t.Helper()
	if c.call == "" {
		return
	}
	moment := sim.CrashBefore
	if c.after {
		moment = sim.CrashAfter
	}
	s.must(s.Sim.AddFault(sim.Fault{Call: c.call, Nth: c.nth, Crash: moment}))
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// story is how the scene goes on until the agent may have died; it returns what is
// known of where.
type story struct {
	name string
	same bool // the agent makes the same changes of the hardware each time
	tell func(s *scene, c crashPoint)
}

var stories = []story{
	// The agent dies while pods come.
	{"running", true, func(s *scene, c crashPoint) {
		s.order(c)
		s.Agent().Arm(c.write(), c.after)
		s.begin()
	}},
	// Pods came while an agent was there that could not do a thing for them, and the
	// next one dies as it starts.
	{"starting", false, func(s *scene, c crashPoint) {
		for _, call := range changes {
			s.must(s.Sim.AddFault(sim.Fault{Call: call, Times: -1, Halt: true}))
		}
		s.begin()
		s.Await("pods to be admitted", func() error { return s.admitted() })
		s.KillAgent()
		s.must(s.Sim.ClearFaults())
		s.order(c)
		s.StartAgent(c.write(), c.after)
	}},
}

// admitted waits until each pod of begin has its slots.
func (s *scene) admitted() error {
	for _, p := range []*node.Pod{s.a, s.b, s.conflict, s.waiting} {
		if !p.Admitted() {
			return fmt.Errorf("%s is not", p.Name)
		}
	}
	return nil
}

// TestMatrix kills the agent before and after each write and each NVML call of both
// stories, starts the next one, and looks at the end.
func TestMatrix(t *testing.T) {
	for _, story := range stories {
		t.Run(story.name, func(t *testing.T) {
			steps := measure(t, story)
			for name, again := range measure(t, story) {
				steps[name] = min(steps[name], again) // on a busy machine there are steps that do not come again
			}
			t.Logf("steps: %v", steps)
			for _, name := range changes {
				if steps[name] < 3 {
					t.Fatalf("the scene has %d calls %s only", steps[name], name)
				}
			}
			if steps[""] < 10 {
				t.Fatalf("the scene has %d writes only", steps[""])
			}
			var points []crashPoint
			for _, name := range slices.Sorted(maps.Keys(steps)) {
				for i := range steps[name] {
					points = append(points, crashPoint{name, i + 1, false}, crashPoint{name, i + 1, true})
				}
			}
			matrix(t, story, points)
		})
	}
}

// measure lives the story without a death and counts its NVML calls by name, and its
// writes, without one.
func measure(t *testing.T, story story) map[string]int {
	s := newScene(t)
	before := s.Dump().CallsByName
	story.tell(s, crashPoint{})
	s.finish()
	s.check()
	steps := s.Dump().CallsByName
	for name, count := range before {
		steps[name] -= count
	}
	steps[""] = len(s.Agent().Steps())
	return steps
}

// enough failures are enough to read: each waits for long.
const enough = 3

// atOnce is how many nodes live at the same time.
const atOnce = 6

func matrix(t *testing.T, story story, points []crashPoint) {
	var failed atomic.Int32
	var mu sync.Mutex // guards missed and died
	var missed []crashPoint
	died := 0
	gate := make(chan struct{}, atOnce)
	t.Run("dies", func(t *testing.T) {
		for _, point := range points {
			t.Run(point.String(), func(t *testing.T) {
				t.Parallel()
				gate <- struct{}{}
				defer func() { <-gate }()
				if failed.Load() >= enough {
					t.Skip("enough have failed")
				}
				t.Cleanup(func() {
					if t.Failed() {
						failed.Add(1)
					}
				})
				hit := live(t, story, point)
				mu.Lock()
				defer mu.Unlock()
				if hit {
					died++
				} else {
					missed = append(missed, point)
				}
			})
		}
	})
	// How often it looks at the hardware, and how many changes share a write, depends on
	// chance and load, so the last of these points may not come.
	t.Logf("died at %d of %d points; not reached: %v", died, len(points), missed)
	for _, point := range missed {
		if story.same && slices.Contains(changes, point.call) {
			t.Errorf("the agent did not die %s", point)
		}
	}
	if died*10 < len(points)*8 {
		t.Errorf("the agent died at %d of %d points only", died, len(points))
	}
}

// live lives the story with a death, if it comes to that, and then on.
func live(t *testing.T, story story, point crashPoint) (died bool) {
	s := newScene(t)
	story.tell(s, point)
	rescued := s.rescue()
	s.finish()
	s.check()
	return rescued()
}

// rescue starts the next agent when one dies, as kubelet or systemd would. The
// function that it returns ends that, and says whether it was so.
func (s *scene) rescue() func() bool {
	stop, ended := make(chan struct{}), make(chan struct{})
	died := false
	first := s.Agent()
	go func() {
		defer close(ended)
		select {
		case <-first.Done():
			died = true
			s.StartAgent(0, false)
		case <-stop:
		}
	}()
	end := sync.OnceFunc(func() {
		close(stop)
		<-ended
	})
	s.t.Cleanup(end) // before the node is closed
	return func() bool {
		end()
		return died
	}
}
