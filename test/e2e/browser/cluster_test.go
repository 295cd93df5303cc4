// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package browser

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"

	"github.com/dynamig/dynamig/pkg/nvml/sim"
	"github.com/dynamig/dynamig/test/cluster"
	"github.com/dynamig/dynamig/test/stack"
)

// portBase leaves the ports of demo and end-to-end tests alone.
const portBase = 16540

// TestPageOfTheCluster: on real components the page follows a pod from Pending to
// Running to gone, shows what GPUNode and simulated hardware hold, says when agent or
// scheduler are gone, goes on with the next ones, and asks for a token where it must.
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
	follows(t, p, st)
	agentGone(t, p, st)
	schedulerGone(t, p, st)
	if _, err := st.Cluster.Kubectl(ctx, "delete", "pod", "gpu-pod", "--grace-period=0", "--wait=false"); err != nil {
		t.Fatal(err)
	}
	p.Until("idle instances in place of the pod", `!document.querySelector('.fleet [data-pod="default/gpu-pod"]') && document.querySelectorAll('[data-state="Idle"]').length === 2`)
	same(t, p, st)
	p.Close()
	asksForAToken(t, st)
}

// used tells that the page shows both instances of the pod.
const used = `document.querySelectorAll('.fleet [data-pod="default/gpu-pod"][data-state="Used"]').length === 2`

// follows sees a pod wait, get its place on a new node, and run.
func follows(t *testing.T, p *Page, st *stack.Stack) {
	p.Until("the stream", live)
	if _, err := st.Cluster.Kubectl(t.Context(), "apply", "-f", "../../../examples/gpu-pod.yaml"); err != nil {
		t.Fatal(err)
	}
	p.Until("the waiting pod with its reason", `/no node/i.test(document.getElementById("queue").textContent) && document.getElementById("queue").textContent.includes("gpu-pod")`)
	if _, err := st.AddNode(t.Context(), "node1", "A100-SXM4-40GB", "A100-SXM4-40GB"); err != nil {
		t.Fatal(err)
	}
	if _, err := st.WaitPod(t.Context(), "default", "gpu-pod", stack.Running); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.Until("its two instances", used+` && document.getElementById("waiting").hidden`)
	t.Logf("the page showed the running pod at most %v after the API server", time.Since(began).Round(time.Millisecond))
	same(t, p, st)
	p.Screenshot("cluster")
	Eval[bool](p, `document.querySelector('.fleet [data-pod="default/gpu-pod"]').focus() || true`)
	p.Keys(kb.Enter)
	p.Until("the story with the scheduler's reason", `document.getElementById("story").textContent.includes("GPUsPlaced") && document.querySelectorAll(".steps .done").length >= 5`)
	p.Until("its instances in one row", `document.querySelectorAll("#story .bar").length === 1 && document.querySelectorAll("#story .lit").length === 2`)
	p.Screenshot("story-cluster")
	p.Keys(kb.Escape)
	p.Until("the story closed", `!document.getElementById("story").open`)
}

// agentGone kills the agent: the node says so and goes on showing what runs.
func agentGone(t *testing.T, p *Page, st *stack.Stack) {
	n, err := st.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	p.Until("a node without trouble", `![...document.querySelectorAll(".badge")].some((b) => b.textContent === "agent down")`)
	if err := n.Agent().Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Until("that the agent is gone", `[...document.querySelectorAll(".badge.bad")].some((b) => b.textContent === "agent down") && `+used)
	p.Screenshot("agent-down")
	if err := n.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Until("that it is back", `![...document.querySelectorAll(".badge")].some((b) => b.textContent === "agent down")`)
}

// schedulerGone kills the scheduler: the page says how old it is until there is
// another.
func schedulerGone(t *testing.T, p *Page, st *stack.Stack) {
	if err := st.Cluster.Process("scheduler").Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Until("that the stream has ended", `document.getElementById("live").textContent === "reconnecting" && `+stale+` && `+used)
	p.Screenshot("scheduler-down")
	if err := st.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Until("the stream of the new process", live+` && document.getElementById("stale").hidden && `+used)
	same(t, p, st)
}

// asksForAToken starts the scheduler with TLS and authentication: who has no token
// sees nothing, who may not read is told so, and whose role lets him read sees all.
func asksForAToken(t *testing.T, st *stack.Stack) {
	ctx := t.Context()
	certificate, key, err := cert.GenerateSelfSignedCertKey("localhost", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, text := range map[string][]byte{"tls.crt": certificate, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Cluster.Process("scheduler").Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := st.StartScheduler(ctx, "--monitor-tls-cert-file="+dir+"/tls.crt", "--monitor-tls-private-key-file="+dir+"/tls.key", "--monitor-authentication"); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := st.Cluster.Kubectl(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	for _, name := range []string{"reader", "stranger"} {
		kubectl("create", "serviceaccount", name)
	}
	kubectl("create", "clusterrolebinding", "reader", "--clusterrole=dynamig-monitor-reader", "--serviceaccount=default:reader")

	p := Open(t, strings.Replace(st.Monitor(), "http:", "https:", 1)+"/", 1280, 900, false)
	says := func(text string) string {
		return `document.getElementById("login").open && document.getElementById("login-why").textContent.includes("` + text + `")`
	}
	enter := func(token string) { p.Type(token); p.Keys(kb.Enter) }
	p.Until("the question for a token", says("who you are"))
	p.Screenshot("login")
	enter("nonsense")
	p.Until("that nobody knows this token", says("does not know"))
	enter(kubectl("create", "token", "stranger"))
	p.Until("that this token may not read", says("does not let it"))
	enter(kubectl("create", "token", "reader"))
	p.Until("the fleet", live+` && !document.getElementById("login").open && document.querySelectorAll('[data-state="Idle"]').length === 2`)
}

// same compares what the page and the metrics show with the hardware, and the page
// with GPUNode.
func same(t *testing.T, p *Page, st *stack.Stack) {
	t.Helper()
	n, err := st.Node("node1")
	if err != nil {
		t.Fatal(err)
	}
	err = stack.Until(t.Context(), "metrics that agree with NVML", func() (bool, error) {
		err := st.MonitorAgrees(t.Context(), n)
		return err == nil, err
	})
	if err != nil {
		t.Error(err)
	}
	report, err := st.GPUs.DynamigV1alpha1().GPUNodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var reported []string
	for _, g := range report.Status.GPUs {
		for _, i := range g.Instances {
			state := map[bool]string{true: "Used", false: string(i.State)}[i.PodUID != ""]
			reported = append(reported, fmt.Sprintf("node1/%s/%d/%d %s", g.UUID, i.ProfileID, i.Start, state))
		}
	}
	world, err := sim.Load(n.SimRoot)
	if err != nil {
		t.Fatal(err)
	}
	state, err := world.Dump()
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for _, g := range state.GPUs {
		for _, i := range g.Instances {
			held = append(held, fmt.Sprintf("node1/%s/%d/%d", g.UUID, i.Profile, i.Start))
		}
	}
	slices.Sort(reported)
	slices.Sort(held)
	var shown, places []string
	// A new process may show pods as leaving until it has heard of them.
	err = stack.Until(t.Context(), "the page to show what GPUNode has", func() (bool, error) {
		shown = Eval[[]string](p, `[...document.querySelectorAll(".fleet .span")].map((b) => b.dataset.key + " " + b.dataset.state)`)
		slices.Sort(shown)
		return slices.Equal(shown, reported), fmt.Errorf("the page shows %v, GPUNode has %v", shown, reported)
	})
	if err != nil {
		t.Error(err)
	}
	for _, s := range shown {
		place, _, _ := strings.Cut(s, " ")
		places = append(places, place)
	}
	if !slices.Equal(places, held) {
		t.Errorf("the page shows %v, NVML holds %v", places, held)
	}
}
