// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// TestNodeAsMIGPartedHasIt: a label of the node chooses a configuration of mig-parted's
// file, the example, which is what its GPUs are cut within; the file is followed.
func TestNodeAsMIGPartedHasIt(t *testing.T) {
	ctx := t.Context()
	file, err := os.ReadFile("../../examples/mig-parted.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n, err := st.AddNodeWithoutAgent(ctx, "parted", "A100-SXM4-40GB", "A100-SXM4-40GB")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Cluster.RemoveNode(context.WithoutCancel(ctx), n.Name); err != nil {
			t.Error(err)
		}
	})
	if err := n.StartAgent(ctx, "--mig-parted-config="+n.ConfigFile("mig-parted.yaml")); err != nil {
		t.Fatal(err)
	}
	agent := n.Agent().PID()
	write := func(file, text string) {
		t.Helper()
		if err := n.WriteConfig(file, text); err != nil {
			t.Fatal(err)
		}
	}
	write("mig-parted.yaml", string(file))
	write("config.json", `{"nodeconfig": [{"nodeSelector": {"nvidia.com/mig.config": "ours"}, "migconfig": "ours"}]}`)
	if _, err := st.Cluster.Kubectl(ctx, "label", "node", n.Name, "nvidia.com/mig.config=ours"); err != nil {
		t.Fatal(err)
	}
	slots(t, n.Name, func(n int64) bool { return n == 6 })
	condition(t, n.Name, v1alpha1.ConditionConfigInvalid, metav1.ConditionFalse)

	here := func(name, wants string) *v1.Pod {
		pod := newPod(name, wants)
		pod.Spec.NodeSelector = map[string]string{v1.LabelHostname: n.Name}
		return pod
	}
	kept := runs(t, here("listed", "gpu=1 gpumem=4000")) // 1g.5gb would do, and is not listed
	if got, want := profiles(t, kept), []string{"2g.10gb"}; !slices.Equal(got, want) {
		t.Errorf("profiles = %v, want %v", got, want)
	}
	waiting := create(t, here("unlisted", "gpu=1 gpumem=19000"))
	if got, want := unscheduled(t, waiting.Name), "cannot be cut into 19000 MiB"; !strings.Contains(got, want) {
		t.Errorf("condition = %q, want %q", got, want)
	}

	// The file changes: one GPU keeps its pod, the other one is cut as it says now.
	write("mig-parted.yaml", strings.Replace(string(file), `"2g.10gb": 3`, `"3g.20gb": 2`, 1))
	waiting = waitPod(t, waiting.Name, stack.Running)
	agree(t, waiting)
	agree(t, kept)
	if got, want := profiles(t, waiting), []string{"3g.20gb"}; !slices.Equal(got, want) {
		t.Errorf("profiles = %v, want %v", got, want)
	}

	// A mistake changes nothing.
	write("mig-parted.yaml", "version: v2\n")
	c := condition(t, n.Name, v1alpha1.ConditionConfigInvalid, metav1.ConditionTrue)
	if want := `mig-parted.yaml:1: version is "v2"; use v1`; !strings.Contains(c.Message, want) {
		t.Errorf("condition = %q, want %q", c.Message, want)
	}
	runs(t, here("second", "gpu=1 gpumem=19000"))

	// What is exported is a file of the same form, and can be used at once.
	out, notes, code := kubectlMIG(t, viewer(t), "", "export", n.Name, "--name=ours")
	if code != 0 || !strings.Contains(out, "3g.20gb: 2") {
		t.Errorf("export = %d:\n%s%s", code, out, notes)
	}
	write("mig-parted.yaml", out)
	condition(t, n.Name, v1alpha1.ConditionConfigInvalid, metav1.ConditionFalse)
	if now := n.Agent().PID(); now != agent {
		t.Errorf("the agent is process %d, and was %d: it was started again", now, agent)
	}
}
