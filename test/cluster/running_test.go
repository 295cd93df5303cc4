// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestRunningCluster tells its stories on one cluster of two nodes.
func TestRunningCluster(t *testing.T) {
	ctx, cfg := clusterTest(t)
	before := interfaceNames(t)
	c := mustStart(t, ctx, cfg)
	mustAddNode(t, ctx, c, NodeConfig{Name: "n1", Labels: map[string]string{"example.test/kind": "a"}})
	mustAddNode(t, ctx, c, NodeConfig{
		Name:    "n2",
		Taints:  []corev1.Taint{{Key: "example.test/taint", Effect: corev1.TaintEffectNoExecute}},
		Kubelet: map[string]any{"maxPods": 7},
		Private: []string{"/tmp/" + cfg.Name + "-private"},
	})
	t.Cleanup(func() { os.Remove("/tmp/" + cfg.Name + "-private") }) // the mount point

	for _, story := range []struct {
		name string
		tell func(*testing.T, context.Context, *Cluster)
	}{
		{"nodes are as configured", nodesAreAsConfigured},
		{"pods of both nodes run with addresses of their node", podsRun},
		{"images of the caller run", callersImagesRun},
		{"CDI devices of a device plugin reach containers", cdiDevicesReachContainers},
		{"admission policies are served", policiesAreServed},
		{"users and ServiceAccounts have the rights of RBAC and no others", rightsAreThoseOfRBAC},
		{"kubelet and containerd restart under a running pod", restartsKeepPods},
		{"processes of a reopened cluster can be killed and restarted", reopenedClusterOwnsProcesses},
		{"a second cluster runs beside the first", secondClusterRuns},
		{"a removed node leaves nothing and can come again", nodeComesAgain},
	} {
		if !t.Run(story.name, func(t *testing.T) { story.tell(t, ctx, c) }) {
			return // the next would only fail in its wake
		}
	}
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, cfg, before)
}

func nodesAreAsConfigured(t *testing.T, ctx context.Context, c *Cluster) {
	n1, err := c.Client().CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := n1.Labels["example.test/kind"]; got != "a" {
		t.Errorf("label example.test/kind of n1 = %q; want a", got)
	}
	n2, err := c.Client().CoreV1().Nodes().Get(ctx, "n2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := n2.Status.Capacity.Pods().Value(); got != 7 {
		t.Errorf("pod capacity of n2 = %d; want 7", got)
	}
	if len(n2.Spec.Taints) != 1 || n2.Spec.Taints[0].Key != "example.test/taint" {
		t.Errorf("taints of n2 = %v; want example.test/taint alone", n2.Spec.Taints)
	}
	node, err := c.Node("n2")
	if err != nil {
		t.Fatal(err)
	}
	private := "/tmp/" + c.Name() + "-private"
	if _, err := node.Exec(ctx, "touch", private+"/file"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(private + "/file"); err == nil {
		t.Errorf("a file that n2 made in its private %s is there on the host", private)
	}
	if _, err := os.Stat(mustPath(t, node, private+"/file")); err != nil {
		t.Errorf("the host does not see n2's file through Path: %v", err)
	}
}

func mustPath(t *testing.T, n *Node, path string) string {
	t.Helper()
	path, err := n.Path(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func podsRun(t *testing.T, ctx context.Context, c *Cluster) {
	nodes, err := c.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		pod := busyboxPod("on-"+n.Name, n.Name, "echo hello from $HOSTNAME; sleep 3600")
		pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		pod = runPod(t, ctx, c, pod, corev1.PodRunning)
		if ip, err := netip.ParseAddr(pod.Status.PodIP); err != nil || !n.subnet.Contains(ip) {
			t.Errorf("pod %s has the address %q; want one in %s", pod.Name, pod.Status.PodIP, n.subnet.Masked())
		}
		await(t, ctx, "the greeting", func() error { // which comes after the start
			out, err := c.Kubectl(ctx, "logs", pod.Name)
			if err == nil && string(out) != "hello from "+pod.Name+"\n" {
				err = fmt.Errorf("logs of %s = %q; want its greeting", pod.Name, out)
			}
			return err
		})
		if out, err := c.Kubectl(ctx, "exec", pod.Name, "--", "cat", "/etc/hostname"); strings.TrimSpace(string(out)) != pod.Name || err != nil {
			t.Errorf("hostname inside %s = %q, %v", pod.Name, out, err)
		}
	}
}

func callersImagesRun(t *testing.T, ctx context.Context, c *Cluster) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/deep/greeting"), []byte("from a tree\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	im := Image{
		Name: "dynamig.test/greeter:1", Root: root,
		Files:      map[string]string{"/bin/busybox": c.cfg.bin("busybox")},
		Links:      map[string]string{"/greeting": "etc/deep/greeting"},
		Entrypoint: []string{"/bin/busybox", "cat"}, Cmd: []string{"/greeting"},
	}
	if err := c.AddImage(ctx, im); err != nil {
		t.Fatal(err)
	}
	pod := busyboxPod("greeter", "n1", "")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].Image = im.Name
	pod.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
	pod.Spec.Containers[0].Command = nil
	runPod(t, ctx, c, pod, corev1.PodSucceeded)
	if out, err := c.Kubectl(ctx, "logs", "greeter"); string(out) != "from a tree\n" || err != nil {
		t.Errorf("logs = %q, %v; want the file of the image's tree", out, err)
	}
}

func policiesAreServed(t *testing.T, _ context.Context, c *Cluster) {
	got, err := c.Client().Discovery().ServerResourcesForGroupVersion("admissionregistration.k8s.io/v1")
	if err != nil {
		t.Fatal(err)
	}
	served := make(map[string]bool)
	for _, r := range got.APIResources {
		served[r.Name] = true
	}
	for _, want := range []string{"validatingadmissionpolicies", "mutatingadmissionpolicies"} {
		if !served[want] {
			t.Errorf("admissionregistration.k8s.io/v1 does not serve %s", want)
		}
	}
}

func rightsAreThoseOfRBAC(t *testing.T, ctx context.Context, c *Cluster) {
	const ns = corev1.NamespaceDefault
	_, err := c.Client().CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "agent"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Client().RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "see-nodes"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"list"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Client().RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "see-nodes"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "see-nodes"},
		Subjects: []rbacv1.Subject{
			{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: "agent"},
			{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "seers"},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account, err := c.ServiceAccountKubeconfig(ctx, ns, "agent", "n1")
	if err != nil {
		t.Fatal(err)
	}
	user, err := c.Kubeconfig("eve", "seers")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{account, user} {
		client := clientFrom(t, file)
		await(t, ctx, filepath.Base(file)+" to be allowed to list nodes", func() error { // the API server's authorizer watches, too
			_, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
			return err
		})
		if _, err := client.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("%s listing secrets: %v; want forbidden", filepath.Base(file), err)
		}
	}
	who, err := clientFrom(t, account).AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := who.Status.UserInfo.Extra["authentication.kubernetes.io/node-name"]; len(got) != 1 || got[0] != "n1" {
		t.Errorf("the token is bound to node %v; want n1", got)
	}
}

func restartsKeepPods(t *testing.T, ctx context.Context, c *Cluster) {
	n, err := c.Node("n1")
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.Kubectl(ctx, "exec", "on-n1", "--", "cat", "/proc/1/stat")
	if err != nil {
		t.Fatal(err)
	}
	kubelet, containerd := n.Process("kubelet").PID(), n.Process("containerd").PID()
	if err := n.RestartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.RestartContainerd(ctx); err != nil {
		t.Fatal(err)
	}
	if got := n.Process("kubelet").PID(); got == kubelet || got == 0 {
		t.Errorf("kubelet is process %d after the restart, it was %d before", got, kubelet)
	}
	if got := n.Process("containerd").PID(); got == containerd || got == 0 {
		t.Errorf("containerd is process %d after the restart, it was %d before", got, containerd)
	}
	runPod(t, ctx, c, busyboxPod("after-restart", "n1", "sleep 3600"), corev1.PodRunning)
	after, err := c.Kubectl(ctx, "exec", "on-n1", "--", "cat", "/proc/1/stat")
	if err != nil {
		t.Fatal(err)
	}
	if was, is := startTime(t, before), startTime(t, after); was != is {
		t.Errorf("the pod's process started at tick %s, it was %s before the restarts: it was restarted too", is, was)
	}
}

func startTime(t *testing.T, stat []byte) string {
	t.Helper()
	_, rest, ok := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		t.Fatalf("not a /proc/PID/stat: %q", stat)
	}
	return f[19]
}

func reopenedClusterOwnsProcesses(t *testing.T, ctx context.Context, c *Cluster) {
	n, err := c.Node("n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Start("agent", []string{"sh", "-c", "echo $GREETING; exec sleep 3600"}, []string{"GREETING=hi"}); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Config{Dir: c.Dir()})
	if err != nil {
		t.Fatal(err)
	}
	if n, err = again.Node("n1"); err != nil {
		t.Fatal(err)
	}
	agent := n.Process("agent")
	first := agent.PID()
	if first == 0 {
		t.Fatal("the reopened cluster does not find the agent running")
	}
	if _, err := n.Start("agent", []string{"true"}, nil); err == nil {
		t.Error("a second agent was started under the first one's name")
	}
	if out, err := n.Exec(ctx, "readlink", "/proc/1/exe"); err != nil || filepath.Base(strings.TrimSpace(string(out))) != "pause" {
		t.Errorf("process 1 inside the node is %q, %v; want pause", out, err)
	}
	await(t, ctx, "the greeting", func() error { // a process that is killed at once greets nobody
		log, err := os.ReadFile(agent.Log)
		if err == nil && !strings.Contains(string(log), "hi\n") {
			err = fmt.Errorf("the agent's log is %q; want its greeting", log)
		}
		return err
	})
	if err := agent.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if agent.Running() {
		t.Error("the agent runs after Kill")
	}
	if err := agent.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if got := agent.PID(); got == 0 || got == first {
		t.Errorf("the agent is process %d after the restart, it was %d", got, first)
	}
	if err := agent.Stop(ctx); err != nil || agent.Running() {
		t.Errorf("stopping the agent: %v, still running: %v", err, agent.Running())
	}
}

func secondClusterRuns(t *testing.T, ctx context.Context, c *Cluster) {
	cfg := Config{Name: "ct2", Dir: filepath.Join(t.TempDir(), "state"), Bin: c.cfg.Bin, PortBase: testPorts + 20, Out: os.Stderr}
	before := interfaceNames(t)
	second := mustStart(t, ctx, cfg)
	t.Cleanup(func() { second.Stop(context.Background()) })
	mustAddNode(t, ctx, second, NodeConfig{Name: "n1"})
	runPod(t, ctx, second, busyboxPod("a", "n1", "sleep 3600"), corev1.PodRunning)
	if err := second.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, cfg, before)
	if out, err := c.Kubectl(ctx, "exec", "on-n1", "--", "echo", "alive"); string(out) != "alive\n" || err != nil {
		t.Errorf("the first cluster's pod answers %q, %v", out, err)
	}
}

func nodeComesAgain(t *testing.T, ctx context.Context, c *Cluster) {
	n, err := c.Node("n2")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveNode(ctx, "n2"); err != nil {
		t.Fatal(err)
	}
	ids, err := marked(c.Name() + "/n2")
	if err != nil || len(ids) > 0 {
		t.Errorf("processes of the removed node: %v, %v", ids, err)
	}
	if isDir("/sys/class/net/" + n.bridge()) {
		t.Errorf("bridge %s of the removed node exists", n.bridge())
	}
	if dirs, err := cgroupsAt(n.cgroup()); err != nil || len(dirs) > 0 {
		t.Errorf("cgroups of the removed node: %v, %v", dirs, err)
	}
	if _, err := c.Client().CoreV1().Nodes().Get(ctx, "n2", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("getting the removed Node: %v; want not found", err)
	}
	mustAddNode(t, ctx, c, NodeConfig{Name: "n2"})
	runPod(t, ctx, c, busyboxPod("again", "n2", "sleep 3600"), corev1.PodRunning)
}
