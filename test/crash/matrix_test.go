// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"errors"
	"fmt"
	"strings"
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

// crashPoint says when the agent dies. One of write and call is set.
type crashPoint struct {
	write, call int
	after       bool
}

func (c crashPoint) String() string {
	moment := "before"
	if c.after {
		moment = "after"
	}
	if c.write > 0 {
		return fmt.Sprintf("%s write %d", moment, c.write)
	}
	return fmt.Sprintf("%s call %d", moment, c.call)
}

// order orders the crash at an NVML call.
func (s *scene) order(c crashPoint) {
	s.t.Helper()
	if c.call == 0 {
		return
	}
	moment := sim.CrashBefore
	if c.after {
		moment = sim.CrashAfter
	}
	if err := s.Sim.AddFault(sim.Fault{Nth: c.call, Crash: moment}); err != nil {
		s.t.Fatal(err)
	}
}

// story is how the scene goes on until the agent may have died; it returns what is
// known of where.
type story struct {
	name string
	tell func(s *scene, c crashPoint)
}

var stories = []story{
	// The agent dies while pods come.
	{"running", func(s *scene, c crashPoint) {
		s.order(c)
		s.Agent().Arm(c.write, c.after)
		s.begin()
	}},
	// Pods came while no agent was there, and it dies as it starts.
	{"starting", func(s *scene, c crashPoint) {
		s.begin()
		s.Await("pods to be admitted", func() error { return s.admitted() })
		s.KillAgent()
		s.order(c)
		s.StartAgent(c.write, c.after)
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
			writes, calls := measure(t, story)
			if again, fewer := measure(t, story); len(again)+fewer < len(writes)+calls {
				writes, calls = again, fewer // on a busy machine there are steps that do not come again
			}
			t.Logf("%d writes (%s), %d NVML calls", len(writes), strings.Join(writes, ", "), calls)
			if len(writes) < 10 || calls < 20 {
				t.Fatal("the scene does too little")
			}
			var points []crashPoint
			for _, after := range []bool{false, true} {
				for i := range len(writes) {
					points = append(points, crashPoint{write: i + 1, after: after})
				}
				for i := range calls {
					points = append(points, crashPoint{call: i + 1, after: after})
				}
			}
			matrix(t, story, points)
		})
	}
}

// measure lives the story without a death and counts its steps.
func measure(t *testing.T, story story) (writes []string, calls int) {
	s := newScene(t)
	before := s.Dump().Calls
	story.tell(s, crashPoint{})
	s.finish()
	s.check()
	return s.Agent().Steps(), s.Dump().Calls - before
}

// enough failures are enough to read: each waits for long.
const enough = 3

// atOnce is how many nodes live at the same time.
const atOnce = 6

func matrix(t *testing.T, story story, points []crashPoint) {
	var failed atomic.Int32
	var mu sync.Mutex // guards missed and died
	var missed []string
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
					missed = append(missed, point.String())
				}
			})
		}
	})
	// The number of looks at the hardware depends on chance and load, so the last points
	// may not come: on a busy machine 119 of 138 did.
	t.Logf("died at %d of %d points; not reached: %s", died, len(points), strings.Join(missed, ", "))
	if died*10 < len(points)*6 {
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
