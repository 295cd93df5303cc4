// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// Starting under difficulties.

func TestWithoutJournalPodsInstancesAreAdoptedAndOthersLeftAlone(t *testing.T) {
	const broken = `{"version":1,"instances":[{"gpu":`
	cases := []struct {
		name string
		lose func(b *bench, journal string)
		want string
	}{
		{"missing", func(b *bench, journal string) {
			if err := os.Remove(journal); err != nil {
				b.t.Fatal(err)
			}
		}, "there is no file"},
		{"corrupt", func(b *bench, journal string) {
			if err := os.WriteFile(journal, []byte(broken), 0o600); err != nil {
				b.t.Fatal(err)
			}
		}, "cannot be understood (unexpected EOF)"},
		{"of a later version", func(b *bench, journal string) {
			if err := os.WriteFile(journal, []byte(`{"version":2}`), 0o600); err != nil {
				b.t.Fatal(err)
			}
		}, "version 2 is unknown"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
				b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@4")})
				b.mustPrepare("a")
				b.mustPrepare("old")
				b.remove("old")
				mine := b.instance(0, "2g.10gb@0").UUID
				b.stop()
				journal := filepath.Join(b.dir, "state", "journal.json")
				c.lose(b, journal)
				b.start()

				b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Live/uid-a 1g.5gb@4:Foreign")
				b.expectText("condition", b.condition(v1alpha1.ConditionJournalLost), "True Rebuilt: The agent began without its journal: ")
				b.expectText("condition", b.condition(v1alpha1.ConditionJournalLost), c.want)
				b.bind(pod{name: "b", devices: b.on(0, "3g.20gb@4")})
				b.expectText("phase of b", b.phaseOf("b"), "Refused")
				b.mustPrepare("a")
				if got := b.instance(0, "2g.10gb@0").UUID; got != mine {
					t.Errorf("instance of a is %s, want %s", got, mine)
				}
				if n := b.calls(sim.CallDestroyGPUInstance); n != 0 {
					t.Errorf("%d GPU instances were destroyed, want none", n)
				}
				// What it was is still so after another start, and clears with its cause.
				b.restart()
				b.expectText("condition", b.condition(v1alpha1.ConditionJournalLost), "True")
				b.destroyed(0, "1g.5gb@4")
				b.sleep(11 * time.Second)
				b.expectText("condition", b.condition(v1alpha1.ConditionJournalLost), "False None")
				b.remove("a")
				b.bind(pod{name: "c", devices: b.on(0, "1g.5gb@0")})
				b.mustPrepare("c")
			})
		})
	}
}

func TestCorruptJournalIsKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.json")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(path); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path + ".corrupt"); err != nil || string(text) != "x" {
		t.Errorf("kept %q, %v; want the old content", text, err)
	}
}

func TestFirstStartSaysNothingOfAJournal(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.expectText("condition", b.condition(v1alpha1.ConditionJournalLost), "False None: ")
		lost := "?"
		b.agent.journal.read(func(c *content) { lost = c.Lost })
		if lost != "" {
			t.Errorf("journal counts as lost: %s", lost)
		}
	})
}

func TestWithoutJournalARunningPodGoesBeforeAnOlderOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.bind(pod{name: "older", devices: b.on(0, "2g.10gb@0"), mutate: func(p *v1.Pod) {
			p.CreationTimestamp = metav1.NewTime(time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC))
		}})
		b.bind(pod{name: "running", devices: b.on(0, "2g.10gb@0"), mutate: func(p *v1.Pod) {
			p.CreationTimestamp, p.Status.Phase = metav1Now, v1.PodRunning
		}})
		b.start()
		defer b.stop()
		b.mustPrepare("running")
		b.sleep(grace)
		b.expectText("phase", b.phaseOf("older"), "Refused: 2g.10gb on GPU 0 at 0 is held by pod default/running")
	})
}

// cutOff makes the API server fail every call, until the returned function is called.
func (b *bench) cutOff() (reconnect func()) {
	var away atomic.Bool
	away.Store(true)
	fail := func(clienttesting.Action) (bool, runtime.Object, error) {
		return away.Load(), nil, errors.New("no route to host")
	}
	b.client.PrependReactor("*", "*", fail)
	b.gpuNodes.PrependReactor("*", "*", fail)
	return func() { away.Store(false) }
}

func TestWithoutAPIServerKnownPodsArePreparedAndNothingIsDestroyed(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.bind(pod{name: "gone", devices: b.on(0, "1g.5gb@2")})
		b.mustPrepare("a")
		b.mustPrepare("gone")
		b.stop()
		b.remove("gone")
		if err := b.node.Reboot(); err != nil { // the driver has forgotten all, too
			t.Fatal(err)
		}
		reconnect := b.cutOff()
		b.start()
		b.mustPrepare("a")
		if got := b.slots.has(); got != 14 {
			t.Errorf("capacity is %d, want 14", got)
		}
		b.sleep(time.Minute)
		if n := b.calls(sim.CallDestroyGPUInstance); n != 0 {
			t.Errorf("%d GPU instances were destroyed, want none", n)
		}
		reconnect()
		b.sleep(3 * time.Minute) // client-go waits longer and longer
		b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Live/uid-a")
		if _, err := b.prepare("gone"); err == nil {
			t.Error("Prepare(gone) = nil, want an error: the pod is gone")
		}
	})
}

func TestNothingIsUndoneBeforeAllPodsHaveBeenSeen(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for call, times := range map[string]int{sim.CallCreateComputeInstance: 1, sim.CallDestroyGPUInstance: -1} {
			if err := b.node.AddFault(sim.Fault{Call: call, Code: "UNKNOWN", Times: times}); err != nil {
				t.Fatal(err)
			}
		}
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.expect(0, "2g.10gb@0(GI only)")
		b.remove("a")
		b.rest()
		b.stop()
		if err := b.node.ClearFaults(); err != nil {
			t.Fatal(err)
		}
		reconnect := b.cutOff()
		b.start()
		b.sleep(time.Minute)
		b.expect(0, "2g.10gb@0(GI only)")
		reconnect()
		b.sleep(3 * time.Minute)
		b.expect(0, "")
	})
}

func TestPodThatIsNotAdmittedYetOwnsItsPlacements(t *testing.T) {
	s := newOwners(nodeName, v1alpha1.ResourceGPU, &journal{metrics: newMetrics(), content: newContent()}, newEvents(nodeName), func(bool) {})
	allocation := `{"version":1,"node":"node1","podUID":"u","containers":{"main":[{"gpu":"g","mig":{"profileID":14,"profile":"2g.10gb","start":0,"size":2,"memoryMiB":1}}]}}`
	s.sync([]*v1.Pod{{
		ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u", Annotations: map[string]string{v1alpha1.AnnotationAllocation: allocation}},
		Spec: v1.PodSpec{NodeName: nodeName, SchedulerName: v1alpha1.SchedulerName, Containers: []v1.Container{{Name: "main", Resources: v1.ResourceRequirements{
			Limits: v1.ResourceList{v1alpha1.ResourceGPU: resource.MustParse("1")},
		}}}},
	}})
	if wants := s.wants("g"); len(wants) != 0 {
		t.Errorf("wants are %v before the hardware is known, want none", wants)
	}
	if s.unowned(v1alpha1.Span{GPU: "g", ProfileID: 14, Start: 0, Size: 2}, "") {
		t.Error("the pod's placement counts as unowned")
	}
	if !s.unowned(v1alpha1.Span{GPU: "g", ProfileID: 14, Start: 2, Size: 2}, "") {
		t.Error("a placement of nobody does not count as unowned")
	}
}

func TestStopInTheMiddleOfACallLosesNothing(t *testing.T) {
	for _, call := range []string{
		sim.CallCreateGPUInstance, sim.CallCreateComputeInstance, sim.CallDestroyComputeInstance, sim.CallDestroyGPUInstance, sim.CallInstances, sim.CallProcesses,
	} {
		t.Run(call, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@1")})
				b.mustPrepare("old")
				b.remove("old")
				if err := b.node.DelayCall(call, 1, 3*time.Second); err != nil {
					t.Fatal(err)
				}
				b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
				b.rest()
				b.restart()
				b.mustPrepare("a")
				b.expect(0, "2g.10gb@0")
				b.expectText("GPU 0", b.reported(0), "2g.10gb@0:Live/uid-a")
			})
		})
	}
}

func TestUnknownPodIsWaitedFor(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		result := make(chan error, 1)
		go func() {
			_, err := b.prepare("late")
			result <- err
		}()
		b.sleep(5 * time.Second)
		b.bind(pod{name: "late", devices: b.on(0, "1g.5gb@0")})
		if err := <-result; err != nil {
			t.Errorf("Prepare = %v", err)
		}
		_, err := b.prepare("never")
		if !errors.Is(err, errDeadline) || !strings.Contains(err.Error(), "pod default/never (uid-never) has not been seen") {
			t.Errorf("Prepare(never) = %v, want it to say what it waited for", err)
		}
	})
}

func TestRebootRebuildsTheInstancesOfEveryPod(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0", "1g.5gb@4")})
		b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@6")})
		b.mustPrepare("a")
		b.mustPrepare("old")
		b.remove("old")
		b.stop()
		if err := b.node.Reboot(); err != nil {
			t.Fatal(err)
		}
		b.start()
		b.mustPrepare("a")
		b.expect(0, "2g.10gb@0 1g.5gb@4")
		b.expectEvents("a", reasonPrepared, "2g.10gb on GPU 0 at 0")
	})
}

func TestDriverThatCannotBeOpenedIsReportedAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		if err := b.node.AddFault(sim.Fault{Call: sim.CallOpen, Code: "DRIVER_NOT_LOADED", Times: 3}); err != nil {
			t.Fatal(err)
		}
		b.start()
		defer b.stop()
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False DriverUnavailable: The GPUs cannot be listed: opening NVML session")
		select {
		case <-b.agent.Ready():
			t.Error("the agent is ready without a driver")
		default:
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionHardwareFailing), "True Failing: The GPUs cannot be listed: opening NVML session")
		if err := b.agent.Unready(); err != nil {
			t.Errorf("a rollout waits for a node without a driver, which has said so: %v", err)
		}
		b.sleep(time.Minute)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "True Offering: 1 of 1 GPUs take new work.")
		<-b.agent.Ready()
		b.expectText("condition", b.condition(v1alpha1.ConditionHardwareFailing), "False None")
		b.agent.ReportDriverFile(errors.New("no libcuda.so"))
		b.rest()
		b.expectText("condition", b.condition(v1alpha1.ConditionHardwareFailing), "so none of them starts and kubelet is not told of the slots: no libcuda.so")
		b.agent.ReportDriverFile(nil)
		b.rest()
		b.expectText("condition", b.condition(v1alpha1.ConditionHardwareFailing), "False None")
	})
}

// A node without a driver is ready once its GPUNode says so, not before; one without
// an entry is no reason to look.
func TestRolloutWaitsUntilAMissingDriverIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.write("config.json", `{"nodeconfig": []}`)
		if err := b.node.AddFault(sim.Fault{Call: sim.CallOpen, Code: "DRIVER_NOT_LOADED", Times: 1000}); err != nil {
			t.Fatal(err)
		}
		reconnect := b.cutOff()
		b.start()
		defer b.stop()
		if err := b.agent.Unready(); err == nil || err.Error() != "the GPUs have not been read yet" {
			t.Errorf("without an API server Unready = %v", err)
		}
		reconnect()
		b.sleep(2 * time.Minute)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False DriverUnavailable")
		b.expectText("condition", b.condition(v1alpha1.ConditionHardwareFailing), "False None")
		if err := b.agent.Unready(); err != nil {
			t.Errorf("a rollout waits for a node without a driver, which has said so: %v", err)
		}
	})
}

// Many who ask whether the agent lives cost one goroutine.
func TestProbesAreShared(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.agent.mu.Lock()
		first := b.agent.probe()
		if b.agent.probe() != first {
			t.Error("a second question while the first is open begins anew")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.agent.Alive(ctx); err == nil {
			t.Error("an agent that does not show its state counts as alive")
		}
		b.agent.mu.Unlock()
		<-first
		if err := b.agent.Alive(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestGPUThatHangsFromTheStartDoesNotDelayOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		release := make(chan struct{})
		b.wrap = func(d nvml.Driver) nvml.Driver {
			return &hanging{Driver: d, gpu: nvml.GPUID(b.gpus[0]), release: release}
		}
		b.start()
		b.bind(pod{name: "a", devices: b.on(1, "2g.10gb@0")})
		b.mustPrepare("a")
		b.sleep(20 * time.Second)
		<-b.agent.Ready()
		b.expectText("health", b.status().Summary.Health, "1 unhealthy")
		close(release)
		b.stop()
	})
}

// hanging lets the listing of a GPU's profiles wait.
type hanging struct {
	nvml.Driver
	gpu     nvml.GPUID
	release chan struct{}
}

func (d *hanging) Profiles(id nvml.GPUID) ([]nvml.Profile, error) {
	if id == d.gpu {
		<-d.release
	}
	return d.Driver.Profiles(id)
}

// A listing of the GPUs that does not return is said, and does not keep a known
// node from what it can do without it.
func TestListingThatHangsIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		l := &listingHangs{}
		b.wrap = func(d nvml.Driver) nvml.Driver {
			l.Driver = d
			return l
		}
		b.start()
		defer b.stop()
		<-b.agent.Ready()
		release := make(chan struct{})
		l.until.Store(&release)
		b.reconfigure(`{"nodeconfig": [{"name": "other", "operatingmode": "mig"}]}`)
		b.sleep(25 * time.Second)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False DriverUnavailable: The GPUs cannot be listed: the driver has been listing them since")
		if got := b.slots.has(); got != 0 {
			t.Errorf("capacity is %d; want 0: the configuration excludes the GPU", got)
		}
		b.reconfigure(nodeConfig)
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		l.until.Store(nil)
		close(release)
		b.sleep(25 * time.Second)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "True Offering")
	})
}

// listingHangs lets the listing of GPUs wait.
type listingHangs struct {
	nvml.Driver
	until atomic.Pointer[chan struct{}] // nil: not
}

func (d *listingHangs) GPUs(skip func(nvml.GPUID, int) bool) ([]nvml.GPU, error) {
	if until := d.until.Load(); until != nil {
		<-*until
	}
	return d.Driver.GPUs(skip)
}

// A GPU that does not answer and was never seen is named, and found when it answers.
func TestGPUThatDoesNotAnswerIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		var silent atomic.Bool
		silent.Store(true)
		b.wrap = func(d nvml.Driver) nvml.Driver { return silentGPU{d, &silent} }
		b.start()
		defer b.stop()
		<-b.agent.Ready()
		b.expectText("condition", b.condition("HardwareFailing"), "True Failing: GPU 0: it is silent; its pods cannot start")
		b.bind(pod{name: "b", devices: b.on(1, "2g.10gb@0")})
		b.mustPrepare("b")
		silent.Store(false)
		b.sleep(25 * time.Second)
		b.expectText("condition", b.condition("HardwareFailing"), "False None")
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
	})
}

// silentGPU leaves the first GPU out of listings.
type silentGPU struct {
	nvml.Driver
	silent *atomic.Bool
}

func (d silentGPU) GPUs(skip func(nvml.GPUID, int) bool) ([]nvml.GPU, error) {
	gpus, err := d.Driver.GPUs(skip)
	if err == nil && d.silent.Load() {
		return gpus[1:], errors.New("GPU 0: it is silent")
	}
	return gpus, err
}

func TestFullDiskDelaysPodsAndLosesNothing(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		var full atomic.Bool
		full.Store(true)
		replace := b.agent.journal.replace
		b.agent.journal.replace = func(path string, text []byte) error {
			if full.Load() {
				return errors.New("no space left on device")
			}
			return replace(path, text)
		}
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.sleep(10 * time.Second)
		b.expect(0, "")
		b.expectText("phase", b.phaseOf("a"), "Failing: writing journal: no space left on device")
		full.Store(false)
		b.mustPrepare("a")
	})
}

func TestConfigurationMustBeComplete(t *testing.T) {
	if _, err := New(Config{Node: "n"}); err == nil || !strings.Contains(err.Error(), "is not set") {
		t.Errorf("New = %v, want an error that names a field", err)
	}
}
