// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"
)

// testPorts is away from DefaultPortBase, where a demo may be running.
const testPorts = 17440

// helperVar makes the test binary start a cluster and then wait to be killed.
const helperVar = "DYNAMIG_CLUSTER_TEST_HELPER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperVar); dir != "" {
		startAndWait(dir)
		return
	}
	os.Exit(m.Run())
}

func startAndWait(dir string) {
	ctx := context.Background()
	c, err := Start(ctx, config(dir, os.Stdout))
	if err == nil {
		_, err = c.AddNode(ctx, NodeConfig{Name: "n1"})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	select {}
}

func config(dir string, out *os.File) Config {
	return Config{Name: "ct1", Dir: dir, Bin: "../../.build/tools/bin", PortBase: testPorts, Out: out}
}

// clusterTest skips, with the reason, where the real thing is not wanted.
func clusterTest(t *testing.T) (context.Context, Config) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: a real cluster takes seconds to start")
	}
	if os.Getenv("DYNAMIG_CLUSTER_TESTS") == "" {
		t.Skip("DYNAMIG_CLUSTER_TESTS is unset: this needs root and what hack/build-tools.sh builds; make integration sets it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	cfg := config(filepath.Join(t.TempDir(), "state"), os.Stderr)
	t.Cleanup(func() {
		if err := Down(context.Background(), cfg); err != nil {
			t.Errorf("removing the cluster after the test: %v", err)
		}
	})
	return ctx, cfg
}

func mustStart(t *testing.T, ctx context.Context, cfg Config) *Cluster {
	t.Helper()
	c, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustAddNode(t *testing.T, ctx context.Context, c *Cluster, cfg NodeConfig) *Node {
	t.Helper()
	n, err := c.AddNode(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// patience is how long anything may take on a busy machine.
const patience = 3 * time.Minute

// wantNothingLeft compares with the network interfaces there were before. Of those
// some may be gone: a pod that had ended there.
func wantNothingLeft(t *testing.T, cfg Config, interfaces []string) {
	t.Helper()
	found, err := Leftovers(cfg.Name, cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) > 0 {
		t.Errorf("left behind:\n  %s", strings.Join(found, "\n  "))
	}
	// Another cluster may be adding a pod: its new interface has no bridge for a moment.
	await(t, t.Context(), "the cluster's network interfaces to be gone", func() error {
		left := slices.DeleteFunc(interfaceNames(t), func(name string) bool { return slices.Contains(interfaces, name) })
		if len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"log", "lock", claimFile}, e.Name()) {
			t.Errorf("left behind in the state directory: %s", e.Name())
		}
	}
}

// await waits until ok returns nil.
func await(t *testing.T, ctx context.Context, what string, ok func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := poll(ctx, ok); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

// interfaceNames lists the machine's interfaces without those of clusters that are
// not this test's, such as a demo that is up.
func interfaceNames(t *testing.T) []string {
	t.Helper()
	others := func(bridge string) bool {
		return strings.HasPrefix(bridge, "tc-") && !strings.HasPrefix(bridge, "tc-ct")
	}
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range all {
		master, err := os.Readlink("/sys/class/net/" + i.Name + "/master")
		if err != nil {
			master = "" // of none, or gone since
		}
		if !others(i.Name) && !others(filepath.Base(master)) {
			names = append(names, i.Name)
		}
	}
	slices.Sort(names)
	return names
}

// busyboxPod is bound to its node from the start, since there is no scheduler.
func busyboxPod(name, node, script string) *corev1.Pod {
	second := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceDefault},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			TerminationGracePeriodSeconds: &second,
			Containers: []corev1.Container{{
				Name: "main", Image: BusyboxImage, ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"sh", "-c", script},
			}},
		},
	}
}

// runPod creates a pod and returns it in this phase.
func runPod(t *testing.T, ctx context.Context, c *Cluster, pod *corev1.Pod, phase corev1.PodPhase) *corev1.Pod {
	t.Helper()
	pods := c.Client().CoreV1().Pods(pod.Namespace)
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	one := cache.NewListWatchFromClient(c.Client().CoreV1().RESTClient(), "pods", pod.Namespace,
		fields.OneTermEqualSelector("metadata.name", pod.Name))
	event, err := watchtools.UntilWithSync(ctx, one, &corev1.Pod{}, nil, func(e watch.Event) (bool, error) {
		p, ok := e.Object.(*corev1.Pod)
		return ok && p.Status.Phase == phase, nil
	})
	if err != nil {
		out, _ := c.Kubectl(context.WithoutCancel(ctx), "describe", "pod", "--namespace", pod.Namespace, pod.Name)
		t.Fatalf("waiting for pod %s to be %s: %v\n%s", pod.Name, phase, err, out)
	}
	return event.Object.(*corev1.Pod)
}

func TestStopLeavesNothing(t *testing.T) {
	ctx, cfg := clusterTest(t)
	before := interfaceNames(t)
	c := mustStart(t, ctx, cfg)
	n := mustAddNode(t, ctx, c, NodeConfig{Name: "n1"})
	runPod(t, ctx, c, busyboxPod("a", "n1", "sleep 3600"), corev1.PodRunning)
	if _, err := n.Start("agent", []string{"sleep", "3600"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartProcess("scheduler", []string{"sleep", "3600"}, nil); err != nil {
		t.Fatal(err)
	}
	if found, err := Leftovers(cfg.Name, cfg.Dir); err != nil || len(found) == 0 {
		t.Fatalf("Leftovers of a running cluster = %v, %v; want its processes, bridges, cgroups and mounts", found, err)
	}

	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, cfg, before)
}

func TestStartTwiceInARow(t *testing.T) {
	ctx, cfg := clusterTest(t)
	before := interfaceNames(t)
	first := mustStart(t, ctx, cfg)
	mustAddNode(t, ctx, first, NodeConfig{Name: "n1"})
	oldServer := first.Process("kube-apiserver")
	old, err := oldServer.record()
	if err != nil || !oldServer.Running() {
		t.Fatalf("the first cluster's kube-apiserver: %v, %v; want it running", old, err)
	}

	cfg.PortBase += FreePort // other ports must not hide the former cluster
	second := mustStart(t, ctx, cfg)
	if old.alive() {
		t.Errorf("the first cluster's kube-apiserver, process %d, still runs", old.PID)
	}
	nodes, err := second.Client().CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 0 {
		t.Errorf("nodes of the second cluster = %v, %v; want none", nodes.Items, err)
	}
	mustAddNode(t, ctx, second, NodeConfig{Name: "n1"})
	if err := second.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, cfg, before)
}

// TestKilledHalfwayAndStartedAgain kills the starting process, and only that, at
// several points; each start has to cope with what the one before left.
func TestKilledHalfwayAndStartedAgain(t *testing.T) {
	ctx, cfg := clusterTest(t)
	before := interfaceNames(t)
	for _, after := range []string{"images", "etcd", "kube-apiserver", "n1 namespaces", "n1 containerd", "n1 kubelet"} {
		startAndKill(t, ctx, cfg, after)
	}
	if err := Down(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, cfg, before)

	startAndKill(t, ctx, cfg, "n1 containerd")
	c := mustStart(t, ctx, cfg)
	mustAddNode(t, ctx, c, NodeConfig{Name: "n1"})
	runPod(t, ctx, c, busyboxPod("a", "n1", "sleep 3600"), corev1.PodRunning)
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, cfg, before)
}

func startAndKill(t *testing.T, ctx context.Context, cfg Config, after string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), helperVar+"="+cfg.Dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		seen = append(seen, lines.Text())
		if strings.HasPrefix(lines.Text(), after+" ") {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatalf("killing the start after %q: %v; it said:\n%s", after, err, strings.Join(seen, "\n"))
	}
	cmd.Wait() // an error for sure: it was killed
	if len(seen) == 0 || !strings.HasPrefix(seen[len(seen)-1], after+" ") {
		t.Fatalf("the start never came to %q; it said:\n%s", after, strings.Join(seen, "\n"))
	}
}

func TestComponentThatDiesIsNamedWithItsLastWords(t *testing.T) {
	ctx, cfg := clusterTest(t)
	before := interfaceNames(t)
	cfg.APIServer = []string{"--no-such-flag"}
	_, err := Start(ctx, cfg)
	if err == nil {
		t.Fatal("Start with an unknown flag succeeded")
	}
	for _, want := range []string{"kube-apiserver", "unknown flag: --no-such-flag"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not contain %q:\n%v", want, err)
		}
	}
	wantNothingLeft(t, cfg, before)
}

func TestPortInUseIsNamedAndNothingStarted(t *testing.T) {
	ctx, cfg := clusterTest(t)
	before := interfaceNames(t)
	l, err := net.Listen("tcp", cfg.addr(portAPIServer))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Start(ctx, cfg); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Start = %v; want an error that names %s", err, l.Addr())
	}
	wantNothingLeft(t, cfg, before)
}

// clientFrom makes a client of a kubeconfig file.
func clientFrom(t *testing.T, kubeconfig string) kubernetes.Interface {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}
