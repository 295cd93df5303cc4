// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/nvml"
	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/stack"
)

// TestMoveANodeFromHAMi goes through steps 3 and 4 of docs/migrate-from-hami.md on a
// node with what HAMi leaves: instances, annotations, a label.
func TestMoveANodeFromHAMi(t *testing.T) {
	ctx := t.Context()
	n, err := st.AddNodeWithoutAgent(ctx, "moved", "A100-SXM4-40GB")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Cluster.RemoveNode(context.WithoutCancel(ctx), n.Name); err != nil {
			t.Error(err)
		}
	})
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := st.Cluster.Kubectl(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	kubectl("label", "node", n.Name, "gpu=on")
	kubectl("annotate", "node", n.Name, `hami.io/node-nvidia-register=[{"id":"GPU-x","count":10,"devmem":40960,"mode":"mig"}]`,
		"hami.io/node-handshake=Requesting_2026-01-01 10:00:00", "hami.io/mutex.lock=2026-01-01T10:00:00Z,default,old")
	leftovers(t, n, "1g.5gb", 0, 3)
	kubectl("label", "node", n.Name, "gpu-")
	kubectl("annotate", "node", n.Name, "hami.io/node-nvidia-register-", "hami.io/node-handshake-", "hami.io/node-nvidia-score-", "hami.io/mutex.lock-")
	if err := n.StartAgent(ctx); err != nil {
		t.Fatal(err)
	}

	// Moved, but no entry names it yet: nothing is offered or touched.
	configure(t, n, `{"nodeconfig": []}`)
	err = stack.Until(ctx, "the first report of "+n.Name, func() (bool, error) {
		_, err := st.GPUs.DynamigV1alpha1().GPUNodes().Get(ctx, n.Name, metav1.GetOptions{})
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	condition(t, n.Name, v1alpha1.ConditionReady, metav1.ConditionFalse)
	unregistered(t, n)

	// With its entry, what HAMi left is named and in the way of what would need it only.
	configure(t, n, `{"nodeconfig": [{"name": "moved", "operatingmode": "mig"}]}`)
	if c := condition(t, n.Name, v1alpha1.ConditionForeignInstances, metav1.ConditionTrue); strings.Count(c.Message, "1g.5gb at ") != 2 {
		t.Errorf("condition ForeignInstances: %s", c.Message)
	}
	destroyAll(t, n) // nvidia-smi mig -dci; nvidia-smi mig -dgi
	condition(t, n.Name, v1alpha1.ConditionForeignInstances, metav1.ConditionFalse)
	slots(t, n.Name, func(n int64) bool { return n > 0 })
	pod := newPod("moved", "gpu=1 gpumem=8000")
	pod.Spec.NodeSelector = map[string]string{v1.LabelHostname: n.Name}
	pod.Annotations["hami.io/vgpu-devices-to-allocate"] = "GPU-x,NVIDIA,8000,0:;"
	pod.Annotations["hami.io/vgpu-node"] = "elsewhere"
	pod = runs(t, pod)
	exported(t, n.Name, "2g.10gb: 1")

	// Back: drained, without an entry, its instances destroyed, without the agent.
	kubectl("drain", n.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
	if err := st.WaitGone(ctx, namespace, pod.Name); err != nil {
		t.Fatal(err)
	}
	configure(t, n, `{"nodeconfig": []}`)
	slots(t, n.Name, func(n int64) bool { return n == 0 })
	unregistered(t, n)
	destroyAll(t, n)
	if err := n.Agent().Stop(ctx); err != nil {
		t.Fatal(err)
	}
	leftovers(t, n, "3g.20gb", 0, 4) // as HAMi would go on
	kubectl("uncordon", n.Name)
	slots(t, n.Name, func(n int64) bool { return n == 0 })
}

// TestFilesFromHAMi: the commands of step 1 give HAMi's two files, and find nothing wrong
// with them.
func TestFilesFromHAMi(t *testing.T) {
	guide, err := os.ReadFile("../../docs/migrate-from-hami.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile("(?s)```\n(kubectl get configmap.*?)```").FindSubmatch(guide)
	if commands == nil {
		t.Fatal("the guide has no commands")
	}
	device, err := os.ReadFile("../../pkg/config/testdata/geometries-2.9.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"device-config.yaml": string(device),
		"config.json":        `{"nodeconfig": [{"name": "a", "operatingmode": "hami-core", "devicesplitcount": 10, "migstrategy": "none", "filterdevices": {"uuid": [], "index": []}}]}`,
	}
	maps := st.Kube.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	for file, name := range map[string]string{"device-config.yaml": "hami-scheduler-device", "config.json": "hami-device-plugin"} {
		m := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{file: want[file]}}
		if _, err := maps.Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = maps.Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{}) })
	}
	build, err := filepath.Abs(os.Getenv(buildVariable))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", string(commands[1]))
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "KUBECONFIG="+st.Cluster.AdminKubeconfig(), "PATH="+build+"/bin:"+build+"/tools/bin:"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for file, text := range want {
		if got, err := os.ReadFile(filepath.Join(cmd.Dir, file)); err != nil || string(got) != text {
			t.Errorf("%s is %v\n%s\nwant\n%s", file, err, got, text)
		}
	}
}

// opened is a node's simulation and its GPUs.
func opened(t *testing.T, n *stack.Node) (*sim.Driver, []nvml.GPU) {
	t.Helper()
	d, err := sim.Open(n.SimRoot, sim.Uncounted())
	if err != nil {
		t.Fatal(err)
	}
	gpus, err := d.GPUs(nil)
	if err != nil {
		t.Fatal(err)
	}
	return d, gpus
}

// leftovers makes instances that are not the agent's.
func leftovers(t *testing.T, n *stack.Node, profile string, starts ...int) {
	t.Helper()
	d, gpus := opened(t, n)
	defer d.Close()
	all, err := d.Profiles(gpus[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		for _, start := range starts {
			if p.Name != profile {
				continue
			}
			in, err := d.CreateGPUInstance(gpus[0].ID, p.ID, start)
			if err == nil {
				_, err = d.CreateComputeInstance(gpus[0].ID, in.GI)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// destroyAll destroys every instance of a node.
func destroyAll(t *testing.T, n *stack.Node) {
	t.Helper()
	d, gpus := opened(t, n)
	defer d.Close()
	for _, g := range gpus {
		instances, err := d.Instances(g.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range instances {
			if err := d.DestroyComputeInstance(g.ID, in.GI, in.CI); err != nil {
				t.Fatal(err)
			}
			if err := d.DestroyGPUInstance(g.ID, in.GI); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func configure(t *testing.T, n *stack.Node, text string) {
	t.Helper()
	if err := n.WriteConfig("config.json", text); err != nil {
		t.Fatal(err)
	}
}

// slots waits for kubelet to say how many devices can be allocated.
func slots(t *testing.T, name string, enough func(int64) bool) {
	t.Helper()
	err := stack.Until(t.Context(), "the devices of "+name, func() (bool, error) {
		node, err := st.Kube.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		q := node.Status.Allocatable[v1alpha1.ResourceGPU]
		return enough(q.Value()), fmt.Errorf("kubelet says %s", q.String())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// unregistered waits until kubelet's resource is not the agent's.
func unregistered(t *testing.T, n *stack.Node) {
	t.Helper()
	err := stack.Until(t.Context(), "the end of the agent's registration on "+n.Name, func() (bool, error) {
		sockets, err := filepath.Glob(nodePath(t, n, "/var/lib/kubelet/device-plugins/dynamig-*.sock"))
		return err == nil && len(sockets) == 0, fmt.Errorf("it has %v, %v", sockets, err)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// exported checks what kubectl mig export says of the only GPU of a node.
func exported(t *testing.T, name, layout string) {
	t.Helper()
	out, notes, code := kubectlMIG(t, viewer(t), "", "export", name)
	if code != 0 || !strings.Contains(out, layout) {
		t.Errorf("export = %d, want %s:\n%s%s", code, layout, out, notes)
	}
	if _, err := config.ParseMIGParted("exported", []byte(out)); err != nil {
		t.Error(err)
	}
}
