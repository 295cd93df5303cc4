// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dynamig/dynamig/test/kubelet"
	"github.com/dynamig/dynamig/test/node"
)

// twoPods runs two pods on a node.
func twoPods(t *testing.T) (n *node.Node, pods []*node.Pod) {
	t.Helper()
	n = newNode(t, 1)
	n.StartAgent(0, false)
	n.Kubelet.AwaitCapacity(7)
	pods = []*node.Pod{n.Bind("x", "main=0:2g.10gb@0 0:1g.5gb@2"), n.Bind("y", "first=0:1g.5gb@3", "second=0:1g.5gb@4")}
	for _, p := range pods {
		p.Await(node.Running)
	}
	return n, pods
}

const twoPodsLayout = "2g.10gb@0 1g.5gb@2 1g.5gb@3 1g.5gb@4"

// TestRebootWithTheAgentAsHostService: an agent that is up before kubelet admits the
// node's pods again brings the same pods back, on new instances in the same places.
func TestRebootWithTheAgentAsHostService(t *testing.T) {
	n, pods := twoPods(t)
	before := append(pods[0].UUIDs("main"), pods[1].UUIDs("second")...)
	n.KillAgent()
	n.Reboot()
	if got := n.Layout(0); got != "" {
		t.Fatalf("after the reboot the GPU holds %q", got)
	}
	n.StartAgent(0, false)
	n.Await("the instances to be made anew, without kubelet", func() error {
		if got := n.Layout(0); got != twoPodsLayout {
			return errors.New(got)
		}
		return nil
	})
	n.Kubelet.Run()
	n.Kubelet.Await("the slots of the pods", func() bool { healthy, _ := n.Kubelet.Slots(); return len(healthy) >= 7 })
	n.Resume(pods...)
	for _, p := range pods {
		p.Await(node.Running)
		if err := p.Check(); err != nil {
			t.Errorf("pod %s: %v", p.Name, err)
		}
	}
	for _, uuid := range append(pods[0].UUIDs("main"), pods[1].UUIDs("second")...) {
		if slices.Contains(before, uuid) {
			t.Errorf("instance %s has outlived the reboot", uuid)
		}
	}
}

// TestRebootWithTheAgentAsDaemonSet: kubelet admits the pods before the agent's own
// pod runs, and fails them for good. A controller's pods come back as new ones, on
// instances made anew; a bare pod is lost, and its place is free.
func TestRebootWithTheAgentAsDaemonSet(t *testing.T) {
	n, pods := twoPods(t)
	n.KillAgent()
	n.Reboot()
	n.Kubelet.Run()
	n.Resume(pods...)
	for _, p := range pods {
		p.Await(node.Failed)
	}
	again := n.BindUnseen("x-again", "main=0:2g.10gb@0 0:1g.5gb@2") // by its controller; y has none
	n.StartAgent(0, false)
	n.Kubelet.Await("slots", func() bool { healthy, _ := n.Kubelet.Slots(); return len(healthy) >= 7 })
	again.Run()
	again.Await(node.Running)
	// Until the first list of pods the agent works for those that it knows: what it
	// made anew for y by then stays, idle.
	n.Await("the report", func() error {
		report := strings.Fields(n.Reported(0))
		owned := slices.DeleteFunc(slices.Clone(report), func(s string) bool { return strings.HasSuffix(s, ":Idle") })
		if want := []string{"2g.10gb@0:Live/x-again", "1g.5gb@2:Live/x-again"}; !slices.Equal(owned, want) {
			return fmt.Errorf("%q, want %q and idle ones", report, want)
		}
		return nil
	})
	n.Await("files of the failed pods to be gone", func() error {
		if left := n.Leftovers(again); len(left) > 0 {
			return fmt.Errorf("slots %v have one", left)
		}
		return nil
	})
	inTheOldPlace := n.Bind("z", "main=0:1g.5gb@3")
	inTheOldPlace.Await(node.Running)
}

// TestKubeletRestartsUnderRunningPods: it is registered with again, finds the pods'
// slots healthy, and a container that restarts gets the same instance.
func TestKubeletRestartsUnderRunningPods(t *testing.T) {
	n, pods := twoPods(t)
	before := n.UUID("0:2g.10gb@0")
	n.Kubelet.Stop()
	n.Kubelet.Run()
	n.Kubelet.Await("slots", func() bool { healthy, _ := n.Kubelet.Slots(); return len(healthy) >= 7 })
	for _, p := range pods {
		if err := p.Readmit(); err != nil {
			t.Errorf("pod %s: %v", p.Name, err)
		}
	}
	if err := pods[0].Restart("main"); err != nil {
		t.Error(err)
	}
	if after := n.UUID("0:2g.10gb@0"); after != before {
		t.Errorf("the instance is %s, was %s", after, before)
	}
	next := n.Bind("next", "main=0:1g.5gb@5")
	next.Await(node.Running)
}

// TestAPIServerIsAway, and the agent dies meanwhile: containers of known pods start,
// nothing is destroyed, and everything goes on when it is back.
func TestAPIServerIsAway(t *testing.T) {
	n, pods := twoPods(t)
	gone := n.Bind("gone", "main=0:1g.5gb@5")
	gone.Await(node.Running)
	n.API.Stop()
	n.KillAgent()
	gone.Delete() // nobody can tell the agent
	late := n.BindUnseen("late", "main=0:1g.5gb+me@5")
	n.StartAgent(0, false)
	n.Kubelet.Await("slots", func() bool { healthy, _ := n.Kubelet.Slots(); return len(healthy) >= 7 })
	for _, p := range pods {
		if err := p.Restart(p.Containers()[0]); err != nil {
			t.Errorf("pod %s: %v", p.Name, err)
		}
	}
	if got, want := n.Layout(0), twoPodsLayout+" 1g.5gb@5"; got != want {
		t.Errorf("without an API server the GPU holds %q, want %q", got, want)
	}
	if err := n.API.Start(); err != nil {
		t.Fatal(err)
	}
	late.Run() // it needs the place of the pod that is gone
	late.Await(node.Running)
	for _, p := range pods {
		if err := p.Check(); err != nil {
			t.Errorf("pod %s: %v", p.Name, err)
		}
	}
}

// TestKubeletTellsOfPodsWhileTheAPIServerIsAway: an agent that starts then serves a pod
// that it has never seen, which kubelet knows. Where kubelet does not tell, the pod
// waits for the API server.
func TestKubeletTellsOfPodsWhileTheAPIServerIsAway(t *testing.T) {
	t.Parallel() // it waits most of the time
	for _, c := range []struct {
		name  string
		tells bool
		with  func(*kubelet.Kubelet)
	}{
		{"it tells", true, func(*kubelet.Kubelet) {}},
		{"it has started anew", false, func(k *kubelet.Kubelet) { k.Initializing = true }},
		{"it does not serve its Pods API", false, func(k *kubelet.Kubelet) { k.NoPodsAPI = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n, pods := twoPods(t)
			n.Await("the journal to be whole", func() error { // of the first start it counts as lost
				text, err := os.ReadFile(filepath.Join(n.StateDir(), "journal.json"))
				if err == nil && strings.Contains(string(text), `"lost":`) {
					err = errors.New("it counts as lost")
				}
				return err
			})
			n.KillAgent()
			n.Kubelet.Stop()
			c.with(n.Kubelet)
			n.Kubelet.Run()
			unseen := n.BindUnseen("unseen", "main=0:1g.5gb@5")
			n.API.Stop()
			n.StartAgent(0, false)
			n.Kubelet.AwaitCapacity(7)
			unseen.Run()
			if c.tells {
				unseen.Await(node.Running)
			} else {
				n.Await("the start to be refused", func() error {
					if _, reason := unseen.State(); !strings.Contains(reason, "is not known here") {
						return errors.New(reason)
					}
					return nil
				})
			}
			if err := n.API.Start(); err != nil {
				t.Fatal(err)
			}
			for _, p := range append(pods, unseen) {
				p.Await(node.Running)
				if err := p.Check(); err != nil {
					t.Errorf("pod %s: %v", p.Name, err)
				}
			}
			n.Await("the report", func() error {
				want := "2g.10gb@0:Live/x 1g.5gb@2:Live/x 1g.5gb@3:Live/y 1g.5gb@4:Live/y 1g.5gb@5:Live/unseen"
				if got := n.Reported(0); got != want {
					return fmt.Errorf("%q, want %q", got, want)
				}
				return nil
			})
		})
	}
}

// TestLostJournal: it is missing, or cannot be understood. Pods keep their instances,
// nothing is destroyed that might be somebody's, and the report says so.
func TestLostJournal(t *testing.T) {
	for name, lose := range map[string]func(n *node.Node){
		"missing": func(n *node.Node) { n.RemoveState("journal.json") },
		"corrupt": func(n *node.Node) { n.WriteState("journal.json", `{"version":1,"instances":[{`) },
	} {
		t.Run(name, func(t *testing.T) {
			n, pods := twoPods(t)
			ended := n.Bind("ended", "main=0:1g.5gb@5")
			ended.Await(node.Running)
			ended.Delete()
			idle := n.UUID("0:1g.5gb@5")
			n.KillAgent()
			lose(n)
			n.StartAgent(0, false)
			n.Await("the report", func() error {
				want := "2g.10gb@0:Live/x 1g.5gb@2:Live/x 1g.5gb@3:Live/y 1g.5gb@4:Live/y 1g.5gb@5:Foreign"
				if got := n.Reported(0); got != want {
					return fmt.Errorf("%q, want %q", got, want)
				}
				return nil
			})
			n.Kubelet.Await("slots", func() bool { healthy, _ := n.Kubelet.Slots(); return len(healthy) > 0 })
			for _, p := range pods {
				if err := p.Restart(p.Containers()[0]); err != nil {
					t.Errorf("pod %s: %v", p.Name, err)
				}
				if err := p.Check(); err != nil {
					t.Errorf("pod %s: %v", p.Name, err)
				}
			}
			inTheWay := n.Bind("in-the-way", "main=0:1g.5gb+me@5")
			n.Await("what needs the unknown instance's place to be refused", func() error {
				if inTheWay := n.PhaseOf(inTheWay); inTheWay != "Refused" {
					return fmt.Errorf("it is %q", inTheWay)
				}
				return nil
			})
			if got := n.UUID("0:1g.5gb@5"); got != idle {
				t.Errorf("the instance of unknown origin is %q, was %s", got, idle)
			}
			if got := n.Condition("JournalLost"); !strings.HasPrefix(got, "True Rebuilt: The agent began without its journal: ") {
				t.Errorf("JournalLost is %q", got)
			}
		})
	}
}
