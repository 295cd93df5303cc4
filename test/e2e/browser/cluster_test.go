// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package browser

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/test/cluster"
	"github.com/dynamig/dynamig/test/stack"
)

// portBase leaves the ports of demo and end-to-end tests alone.
const portBase = 16540

// TestPageOfTheCluster: on real components the page follows a pod from Pending to
// Running to gone, shows what GPUNode and simulated hardware hold, and goes on after
// a restart of the scheduler.
func TestPageOfTheCluster(t *testing.T) {
	build := os.Getenv("DYNAMIG_BUILD")
	if build == "" {
		t.Skip("DYNAMIG_BUILD is not set: the programs of the test cluster are not built (make integration does)")
	}
	ctx := t.Context()
	st, err := stack.Up(ctx, stack.Config{
		Repo: "../../..", Programs: filepath.Join(build, "bin"),
		Cluster: cluster.Config{
			Name: "browser", Dir: filepath.Join(build, "browser"), Bin: filepath.Join(build, "tools/bin"), PortBase: portBase, Out: os.Stdout,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Cluster.Stop(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	p := Open(t, st.Monitor()+"/", 1280, 900, false)
	p.Until("the stream", `document.getElementById("live").textContent === "live"`)
	if _, err := st.Cluster.Kubectl(ctx, "apply", "-f", "../../../examples/gpu-pod.yaml"); err != nil {
		t.Fatal(err)
	}
	p.Until("the waiting pod with its reason", `/no node/.test(document.getElementById("queue").textContent) && document.getElementById("queue").textContent.includes("gpu-pod")`)

	if _, err := st.AddNode(ctx, "node1", "A100-SXM4-40GB", "A100-SXM4-40GB"); err != nil {
		t.Fatal(err)
	}
	if _, err := st.WaitPod(ctx, "default", "gpu-pod", stack.Running); err != nil {
		t.Fatal(err)
	}
	const used = `document.querySelectorAll('.fleet [data-pod="default/gpu-pod"][data-state="Used"]').length === 2`
	p.Until("its two instances", used+` && document.getElementById("waiting").hidden`)
	same(t, p, st)
	p.Screenshot("cluster")
	Eval[bool](p, `document.querySelector('.fleet [data-pod="default/gpu-pod"]').click() || true`)
	p.Until("the story with the scheduler's reason", `document.getElementById("story").textContent.includes("GPUsPlaced") && document.querySelectorAll(".steps .done").length >= 5`)
	p.Screenshot("story-cluster")
	Eval[bool](p, `document.getElementById("story").close() || true`)

	if err := st.Cluster.Process("scheduler").Kill(ctx); err != nil {
		t.Fatal(err)
	}
	p.Until("that the stream has ended", `document.getElementById("live").textContent === "reconnecting"`)
	if err := st.StartScheduler(ctx); err != nil {
		t.Fatal(err)
	}
	p.Until("the stream of the new process", `document.getElementById("live").textContent === "live"`)
	p.Until("the instances", used)
	same(t, p, st)

	if _, err := st.Cluster.Kubectl(ctx, "delete", "pod", "gpu-pod", "--grace-period=0", "--wait=false"); err != nil {
		t.Fatal(err)
	}
	p.Until("idle instances in place of the pod", `!document.querySelector('.fleet [data-pod="default/gpu-pod"]') && document.querySelectorAll('[data-state="Idle"]').length === 2`)
	same(t, p, st)
}

// same compares what the page draws with GPUNode; the agent's own tests hold GPUNode
// to the hardware.
func same(t *testing.T, p *Page, st *stack.Stack) {
	t.Helper()
	n, err := st.GPUs.DynamigV1alpha1().GPUNodes().Get(t.Context(), "node1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, g := range n.Status.GPUs {
		for _, i := range g.Instances {
			state := map[bool]string{true: "Used", false: string(i.State)}[i.PodUID != ""]
			want = append(want, fmt.Sprintf("node1/%s/%d/%d %s", g.UUID, i.ProfileID, i.Start, state))
		}
	}
	got := Eval[[]string](p, `[...document.querySelectorAll(".fleet .span")].map((b) => b.dataset.key + " " + b.dataset.state)`)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the page shows %v, GPUNode has %v", got, want)
	}
}
