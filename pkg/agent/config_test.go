// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
)

// reconfigure replaces the node configuration and tells the agent.
func (b *bench) reconfigure(nodeConfig string) {
	b.t.Helper()
	b.write("config.json", nodeConfig)
	b.reload()
	b.rest()
}

func TestNodeWithoutEntryOffersNothing(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.reconfigure(`{"nodeconfig": [{"name": "other", "operatingmode": "mig"}]}`)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False NotConfigured: nodeconfig has no entry for this node")
		if s := b.status(); len(s.GPUs) != 0 || s.Summary.Health != "NotConfigured" {
			t.Errorf("report has %d GPUs and health %q, want none and NotConfigured", len(s.GPUs), s.Summary.Health)
		}
		if got := b.slots.has(); got != 0 {
			t.Errorf("capacity is %d, want 0", got)
		}
		<-b.agent.Ready()
		b.reconfigure(nodeConfig)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "True Offering")
		if got := b.slots.has(); got != 14 {
			t.Errorf("capacity is %d, want 14", got)
		}
	})
}

func TestKeysWithoutEffectAreReported(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "mig", "migstrategy": "mixed"}]}`)
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigRemarks), "migstrategy mixed has no effect: instances are made for pods")
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "True Offering")
	})
}

func TestGPUsThatWaitForAResetAreShownAndNotOffered(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "hami-core"}]}`)
		s := b.status()
		for _, gpu := range s.GPUs {
			if gpu.Mode.Wanted != v1alpha1.ModeHAMiCore || !gpu.Mode.Pending || !strings.Contains(gpu.Reason, "an Ampere GPU needs a reset to turn it off") {
				t.Errorf("GPU %d is in mode %+v: %s", gpu.Index, gpu.Mode, gpu.Reason)
			}
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False NotOffered: GPU 0: MIG mode is on")
		if got := b.slots.has(); got != 0 {
			t.Errorf("capacity is %d, want 0", got)
		}
	})
}

// touchy fails the test when a call names a GPU.
type touchy struct {
	nvml.Driver
	t   *testing.T
	gpu nvml.GPUID

	filtered bool // filterdevices names it: its UUID alone may be read
}

func (d *touchy) check(id nvml.GPUID) {
	if id == d.gpu {
		d.t.Errorf("a driver call names the excluded GPU")
	}
}

func (d *touchy) Profiles(id nvml.GPUID) ([]nvml.Profile, error) {
	d.check(id)
	return d.Driver.Profiles(id)
}

func (d *touchy) MIGMode(id nvml.GPUID) (nvml.MIGMode, error) {
	d.check(id)
	return d.Driver.MIGMode(id)
}

func (d *touchy) SetMIGMode(id nvml.GPUID, on bool) error {
	d.check(id)
	return d.Driver.SetMIGMode(id, on)
}

func (d *touchy) GPUs(skip func(nvml.GPUID, int) bool) ([]nvml.GPU, error) {
	gpus, err := d.Driver.GPUs(skip)
	for _, gpu := range gpus {
		if gpu.ID == d.gpu && gpu.Name != "" && d.filtered {
			d.t.Errorf("the excluded GPU was read: %+v", gpu)
		}
	}
	return gpus, err
}

func (d *touchy) Instances(id nvml.GPUID) ([]nvml.Instance, error) {
	d.check(id)
	return d.Driver.Instances(id)
}

func TestExcludedGPUIsNeverTouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2)
		b.wrap = func(d nvml.Driver) nvml.Driver {
			return &touchy{Driver: d, t: t, gpu: nvml.GPUID(b.gpus[1]), filtered: true}
		}
		b.write("config.json", `{"nodeconfig": [{"name": "node1", "operatingmode": "mig", "filterdevices": {"uuid": ["`+b.gpus[1]+`"]}}]}`)
		b.start()
		defer b.stop()
		b.sleep(time.Minute)
		if s := b.status(); len(s.GPUs) != 1 || s.GPUs[0].UUID != b.gpus[0] {
			t.Errorf("reported GPUs are %+v, want the first one only", s.GPUs)
		}
		b.bind(pod{name: "a", devices: b.on(1, "1g.5gb@0")})
		b.expectText("phase", b.phaseOf("a"), "filterdevices excludes the GPU")
	})
}

// A configuration of mig-parted says which GPUs are ours and what they are cut
// within; what is exported of the node afterwards is what its pods hold.
func TestGPUsAreCutWithinMIGPartedsConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 3)
		b.wrap = func(d nvml.Driver) nvml.Driver { return &touchy{Driver: d, t: t, gpu: nvml.GPUID(b.gpus[2])} }
		b.migParted = filepath.Join(b.dir, "mig-parted.yaml")
		const layout = "version: v1\nmig-configs:\n  ours:\n  - {devices: [0, 1], mig-enabled: true, mig-devices: {%s}}\n"
		b.write("mig-parted.yaml", fmt.Sprintf(layout, "2g.10gb: 3"))
		b.write("config.json", `{"nodeconfig": [{"name": "node1", "migconfig": "ours"}]}`)
		b.start()
		defer b.stop()
		s := b.status()
		if len(s.GPUs) != 2 || s.GPUs[0].UUID != b.gpus[0] || s.GPUs[1].UUID != b.gpus[1] {
			t.Fatalf("reported GPUs are %+v, want the first two", s.GPUs)
		}
		if m := s.Models[0]; m.Rule != v1alpha1.RuleTemplates || len(m.Templates) != 1 || m.Templates[0].Entries[0].Count != 3 {
			t.Errorf("the model is %+v, want one template with 3 instances", m)
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigRemarks), "GPU 2 is left alone: migconfig ours does not select the GPU")
		b.bind(pod{name: "a", devices: b.on(1, "2g.10gb@2")})
		b.bind(pod{name: "b", devices: b.on(2, "2g.10gb@0")})
		b.expectText("phase", b.phaseOf("b"), "migconfig ours does not select the GPU")
		s = b.status()
		text, err := config.EncodeMIGParted("now", &s)
		const want = "version: v1\nmig-configs:\n  now:\n    - devices: [0]\n      mig-enabled: true\n      mig-devices: {}\n" +
			"    - devices: [1]\n      mig-enabled: true\n      mig-devices:\n        2g.10gb: 1\n"
		if err != nil || string(text) != want {
			t.Errorf("exported, %v:\n%s\nwant\n%s", err, text, want)
		}
		b.write("mig-parted.yaml", fmt.Sprintf(layout, "3g.20gb: 2"))
		b.reload()
		b.rest()
		if got := b.status().Models[0].Templates[0].Entries[0].Count; got != 2 {
			t.Errorf("after a change of the file the template has %d instances, want 2", got)
		}
		b.write("mig-parted.yaml", strings.Replace(fmt.Sprintf(layout, "3g.20gb: 3"), "[0, 1]", "[0, 1, 7]", 1))
		b.reload()
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigMismatch), "mig-parted.yaml:4) has no layout that NVIDIA A100-SXM4-40GB can be cut into")
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigRemarks), "mig-parted.yaml:4): devices names GPU 7, which is not among the 3 GPUs of the node that answer.")
		if got := len(b.status().Models[0].Templates); got != 4 {
			t.Errorf("with a layout that cannot be cut there are %d templates, want the 4 of the device configuration", got)
		}
		b.write("mig-parted.yaml", fmt.Sprintf(layout, "3g.20gb: 2"))
		b.reload()
		b.rest()
		b.write("mig-parted.yaml", "version: v2\n")
		b.reload()
		b.rest()
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigInvalid), `mig-parted.yaml:1: version is "v2"; use v1`)
		if got := len(b.status().Models[0].Templates); got != 1 {
			t.Errorf("with a bad file there are %d templates, want 1", got)
		}
	})
}

func TestExcludingAGPULaterStopsItsWorker(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		before := b.dump().Calls
		b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "mig", "filterdevices": {"index": [0, 1]}}]}`)
		calls := b.dump().Calls
		b.sleep(time.Minute)
		if after := b.dump().Calls; after != calls {
			t.Errorf("%d driver calls after all GPUs were excluded (%d before), want none", after-calls, calls-before)
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False NoGPUs")
	})
}

func TestTemplatesFollowTheFileWithoutARestart(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		first := b.status()
		if first.Models[0].Rule != v1alpha1.RuleTemplates || len(first.Models[0].Templates) != 4 || first.ConfigGeneration != 1 {
			t.Errorf("rule %s, %d templates, generation %d; want Templates, 4, 1", first.Models[0].Rule, len(first.Models[0].Templates), first.ConfigGeneration)
		}
		b.write("device-config.yaml", "nvidia: {migProfileAllowlist: [{models: [A100-SXM4-40GB], profiles: [3g.20gb]}]}")
		b.reload()
		s := b.status()
		if s.Models[0].Rule != v1alpha1.RuleAllowlist || len(s.Models[0].Allowed) != 1 || s.ConfigGeneration != 2 {
			t.Errorf("rule %s, %d profiles allowed, generation %d; want Allowlist, 1, 2", s.Models[0].Rule, len(s.Models[0].Allowed), s.ConfigGeneration)
		}
		if got := b.slots.has(); got != 4 {
			t.Errorf("capacity is %d, want 4", got)
		}
		b.restart()
		if got := b.status().ConfigGeneration; got != 2 {
			t.Errorf("generation after a restart is %d, want 2", got)
		}
	})
}

// TestWhatIsLeftOutIsNoRemark: a layout that the hardware cannot do asks for an
// operator, less memory than promised does not.
func TestWhatIsLeftOutIsNoRemark(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigMismatch), "False None: ")
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigRemarks), "True Remarks: knownMigGeometries")
		b.expectText("health", b.status().Summary.Health, "OK")
		b.write("device-config.yaml", deviceConfig+"      - - {name: 3g.20gb, memory: 20480, count: 3}\n")
		b.reload()
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigMismatch), "the layout 3x 3g.20gb is left out")
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigRemarks), "True Remarks: knownMigGeometries")
		b.expectText("health", b.status().Summary.Health, "ConfigMismatch")
	})
}

func TestInvalidConfigurationKeepsTheLastGoodOne(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		before := b.status()
		b.write("device-config.yaml", "nvidia:\n  knownMigGeometries:\n  - model: [A100]\n")
		b.reload()
		b.reload()
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigInvalid), "device-config.yaml:3: ")
		b.expectText("health", b.status().Summary.Health, "ConfigInvalid")
		b.expectEvents(nodeName, reasonConfigInvalid, "device-config.yaml:3: ")
		after := b.status()
		if len(after.GPUs) != 2 || after.ConfigGeneration != before.ConfigGeneration || len(after.Models[0].Templates) != 4 {
			t.Errorf("the report has %d GPUs, generation %d and %d templates; want what was before", len(after.GPUs), after.ConfigGeneration, len(after.Models[0].Templates))
		}
		b.write("device-config.yaml", deviceConfig)
		b.reload()
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigInvalid), "False None: ")
		b.expectText("health", b.status().Summary.Health, "OK")
	})
}

func TestStartWithAnInvalidConfigurationOffersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		b.write("config.json", `{"nodeconfig": [{"name": "node1", "operatingmode": "MIG"}]}`)
		b.start()
		defer b.stop()
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False ConfigInvalid: There is no good configuration")
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigInvalid), "config.json:1: ")
		b.expectEvents(nodeName, reasonConfigInvalid, "config.json:1: ")
		if n := b.dump().Calls; n != 0 {
			t.Errorf("%d driver calls were made, want none", n)
		}
		b.reconfigure(nodeConfig)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "True Offering")
	})
}

// A restart with a bad file goes on with what an earlier run had in force.
func TestRestartWithAnInvalidConfigurationKeepsTheLastGoodOne(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		before := b.status()
		for _, bad := range []func(){
			func() { b.write("config.json", `{"nodeconfig": [{"name": "node1", "operatingmode": "MIG"}]}`) },
			func() {
				if err := os.Remove(filepath.Join(b.dir, "config.json")); err != nil {
					t.Fatal(err)
				}
			},
		} {
			b.stop()
			bad()
			b.start()
			if diff := cmp.Diff(before.GPUs, b.status().GPUs); diff != "" || b.status().ConfigGeneration != before.ConfigGeneration {
				t.Errorf("after the restart generation %d, want %d, and GPUs (-before +after):\n%s", b.status().ConfigGeneration, before.ConfigGeneration, diff)
			}
			b.expectText("condition", b.condition(v1alpha1.ConditionConfigInvalid), "config.json")
			b.expectText("condition", b.condition(v1alpha1.ConditionConfigInvalid), "The last good configuration stays in force.")
			b.expectText("condition", b.condition(v1alpha1.ConditionReady), "True Offering")
			if got := b.slots.has(); got != 14 {
				t.Errorf("capacity is %d, want 14", got)
			}
			if err := b.agent.Unready(); err != nil {
				t.Errorf("the agent is not ready: %v", err)
			}
		}
		b.reconfigure(`{"nodeconfig": []}`)
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigInvalid), "False None: ")
		b.write("config.json", "{")
		b.restart()
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False NotConfigured")
	})
}

// The resource's name is that of the configuration in force at the start.
func TestResourceIsThatOfTheLastGoodConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1)
		const renamed = "nvidia: {resourceCountName: example.com/gpu}"
		for _, text := range []string{renamed, "nvidia: {resourceCountNam: x}", "nvidia: {}"} {
			b.write("device-config.yaml", text)
			b.start()
			want := v1.ResourceName("example.com/gpu")
			if text == "nvidia: {}" {
				want = v1alpha1.ResourceGPU
			}
			if got := b.agent.Resource(); got != want {
				t.Errorf("with %s the resource is %s, want %s", text, got, want)
			}
			b.stop()
		}
	})
}

// A last good configuration that cannot be read is none.
func TestSpoiltLastGoodConfigurationIsNotUsed(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		slots := b.slots.has()
		b.stop()
		b.write("config.json", "{")
		b.write(filepath.Join("state", lastGoodFileName), `{"version":1,"nodeConf":""}`)
		b.start()
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False ConfigInvalid: There is no good configuration")
		if err := b.agent.Unready(); err == nil || err.Error() != "there is no good configuration" {
			t.Errorf("without a configuration Unready = %v", err)
		}
		if got := b.slots.has(); got != slots {
			t.Errorf("capacity is %d, want %d as before: nobody knows what is to be offered", got, slots)
		}
	})
}

// A pod that had its share before waits for a good configuration: without one it is
// not known which GPUs there are.
func TestShareWaitsForAGoodConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shareBench(t, sharing, sim.GPUSpec{Board: "H100-80GB"})
		b.start()
		b.bind(pod{name: "a", devices: []v1alpha1.Device{b.share(0, 0, 8000, 0)}})
		before := b.given("a", "main")
		b.stop()
		if err := os.Remove(filepath.Join(b.dir, "state", lastGoodFileName)); err != nil {
			t.Fatal(err)
		}
		b.write("config.json", `{"nodeconfig": [{"name": "node1", "operatingmode": "MIG"}]}`)
		b.start()
		defer b.stop()
		<-b.agent.Ready()
		if _, err := b.prepare("a"); !errors.Is(err, errWait) {
			t.Errorf("without a good configuration Prepare = %v, want %v", err, errWait)
		}
		b.reconfigure(sharing)
		if diff := cmp.Diff(before, b.given("a", "main")); diff != "" {
			t.Errorf("the share after a restart (-before +after):\n%s", diff)
		}
	})
}

// Pods outlive the entry that gave them their GPUs, and are not forgotten by the report.
func TestPodsWithoutAnEntryAreCounted(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for i, name := range []string{"a", "b", "c"} {
			b.bind(pod{name: name, devices: b.on(i%2, fmt.Sprintf("1g.5gb@%d", i))})
			b.mustPrepare(name)
		}
		const sentence = "Pods that keep devices of GPUs that the agent does not manage now, until they end: %d."
		b.reconfigure(`{"nodeconfig": [{"name": "node1", "operatingmode": "mig", "filterdevices": {"index": [1]}}]}`)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "\n"+fmt.Sprintf(sentence, 1))
		b.reconfigure(`{"nodeconfig": []}`)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "add one to the node configuration. "+fmt.Sprintf(sentence, 3))
		b.remove("a")
		b.remove("b")
		b.remove("c")
		if got := b.condition(v1alpha1.ConditionReady); strings.Contains(got, "Pods that keep") {
			t.Errorf("after the pods the condition is %q", got)
		}
	})
}

func TestLabelsChooseTheEntry(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.reconfigure(`{"nodeconfig": [{"nodeSelector": {"pool": "gpu"}, "operatingmode": "mig"}]}`)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "False NotConfigured")
		node, err := b.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		node.Labels = map[string]string{"pool": "gpu"}
		if _, err := b.client.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		b.sleep(2 * time.Minute)
		b.expectText("condition", b.condition(v1alpha1.ConditionReady), "True Offering")
		b.stop()
		b.cutOff()
		b.start()
		if got := b.slots.has(); got != 14 {
			t.Errorf("capacity without API server is %d, want 14: labels are in the journal", got)
		}
	})
}

func TestMIGModeIsTurnedOnWhereThatNeedsNoReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := benchOf(t, []sim.GPUSpec{{Board: "H100-80GB"}, {Board: "A100-40GB"}, {Board: "H100-80GB"}})
		if err := b.node.Hold(nvml.GPUID(b.gpus[2]), sim.Holder{GI: sim.WholeGPU, PID: 7}); err != nil {
			t.Fatal(err)
		}
		b.start()
		defer b.stop()
		s := b.status()
		for i, want := range []struct {
			current string
			pending bool
			reason  string
		}{
			{v1alpha1.ModeMIG, false, ""},
			{v1alpha1.ModeHAMiCore, true, "MIG mode is off, and an Ampere GPU needs a reset to turn it on"},
			{v1alpha1.ModeHAMiCore, true, "MIG mode is off and cannot be turned on while GPU 2 is in use"},
		} {
			gpu := s.GPUs[i]
			if gpu.Mode.Current != want.current || gpu.Mode.Pending != want.pending {
				t.Errorf("GPU %d is in mode %+v, want %+v", i, gpu.Mode, want)
			}
			b.expectText("reason", gpu.Reason, want.reason)
		}
		if b.dump().GPUs[1].Pending {
			t.Error("the mode of the Ampere GPU was changed")
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionModePending), "True Pending: GPU 1: ")
		b.expectText("mode", s.Summary.Mode, "mig 1, hami-core 2")
		if err := b.node.Release(nvml.GPUID(b.gpus[2]), sim.WholeGPU, 7); err != nil {
			t.Fatal(err)
		}
		b.sleep(11 * time.Second)
		if got := b.status().GPUs[2].Mode.Current; got != v1alpha1.ModeMIG {
			t.Errorf("GPU 2 is in mode %s after its user left, want mig", got)
		}
	})
}

func TestGPUThatCannotDoMIGIsNotReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := benchOf(t, []sim.GPUSpec{{Product: "Tesla T4", MemoryMiB: 15360}, {Board: "A100-40GB", MIG: true}})
		b.start()
		defer b.stop()
		if s := b.status(); len(s.GPUs) != 1 || s.GPUs[0].Index != 1 {
			t.Errorf("reported GPUs are %+v, want the second one only", s.GPUs)
		}
		b.expectText("condition", b.condition(v1alpha1.ConditionConfigMismatch), "GPU 0 (Tesla T4) is to be used in mode mig, which it cannot do")
	})
}
