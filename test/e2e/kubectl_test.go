// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/pool"
	"github.com/dynamig/dynamig/test/stack"
)

// kubectlMIG runs the plugin as a user.
func kubectlMIG(t *testing.T, kubeconfig, stdin string, args ...string) (out, notes string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(os.Getenv(buildVariable), "bin", "kubectl-mig"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "COLUMNS=100", "LC_ALL=C.UTF-8")
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

// viewer is a user with the roles dynamig-viewer and no other.
func viewer(t *testing.T) (kubeconfig string) {
	t.Helper()
	const user = "dana"
	subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}}
	meta := metav1.ObjectMeta{Name: "dana-views"}
	rbac := st.Kube.RbacV1()
	if _, err := rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "dynamig-viewer"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.RoleBindings(stack.Namespace).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: meta, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "dynamig-viewer"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(rbac.ClusterRoleBindings().Delete(ctx, meta.Name, metav1.DeleteOptions{}),
			rbac.RoleBindings(stack.Namespace).Delete(ctx, meta.Name, metav1.DeleteOptions{})); err != nil {
			t.Error(err)
		}
	})
	kubeconfig, err := st.Cluster.Kubeconfig(user)
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// TestKubectlMIGTellsTheTruth: what-if says how many fit, and so many run; explain
// says whose end helps the one that waits, and it runs when that pod ends. All with
// the rights of a viewer, and without any it says which are missing.
func TestKubectlMIGTellsTheTruth(t *testing.T) {
	kubeconfig := viewer(t)
	const wants = "gpu=1 gpumem=15000"
	template := newPod("whatif", wants)
	template.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	text, err := yaml.Marshal(template)
	if err != nil {
		t.Fatal(err)
	}
	out, notes, code := kubectlMIG(t, kubeconfig, string(text), "what-if", "-f", "-", "--replicas", "50", "-o", "json")
	var answer struct {
		Workloads []struct{ Trials pool.Trials }
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || code != 3 || notes != "" || len(answer.Workloads) != 1 {
		t.Fatalf("what-if of 50 = %d, %v, notes %q:\n%s", code, err, notes, out)
	}
	fit := len(answer.Workloads[0].Trials.Placed)
	if fit < 2 || fit > 8 {
		t.Fatalf("what-if says that %d of %s fit on two A100-40GB", fit, wants)
	}
	var pods []*v1.Pod
	for range fit {
		pods = append(pods, create(t, newPod("whatif", wants)))
	}
	for _, p := range pods {
		agree(t, waitPod(t, p.Name, stack.Running))
	}
	waiting := create(t, newPod("onemore", wants))
	unscheduled(t, waiting.Name)

	if out, _, code := kubectlMIG(t, kubeconfig, "", "status", "node1"); code != 0 || !strings.Contains(out, "3g.20gb") || !strings.Contains(out, "│whatif-") {
		t.Errorf("status = %d:\n%s", code, out)
	}
	if out, _, code := kubectlMIG(t, kubeconfig, "", "explain", "pod", pods[0].Name); code != 0 || !strings.Contains(out, "runs on node1") || !strings.Contains(out, "Prepared 1 MIG instance") {
		t.Errorf("explain of a running pod = %d:\n%s", code, out)
	}
	out, _, code = kubectlMIG(t, kubeconfig, "", "explain", "pod", waiting.Name, "-o", "json")
	var story struct{ Advice pool.Advice }
	if err := json.Unmarshal([]byte(out), &story); err != nil || code != 3 || story.Advice.End == nil || len(story.Advice.End.Pods) != 1 {
		t.Fatalf("explain of the pod that waits = %d, %v:\n%s", code, err, out)
	}
	remove(t, story.Advice.End.Pods[0].Name)
	waitPod(t, waiting.Name, stack.Running)
	if out, _, code := kubectlMIG(t, kubeconfig, "", "history", "pod", waiting.Name); code != 0 || !strings.Contains(out, "FailedScheduling") || !strings.Contains(out, "Prepared 1 MIG instance") {
		t.Errorf("history = %d:\n%s", code, out)
	}

	nobody, err := st.Cluster.Kubeconfig("nobody-special")
	if err != nil {
		t.Fatal(err)
	}
	if _, notes, code := kubectlMIG(t, nobody, "", "status"); code != 1 || !strings.Contains(notes, "ClusterRole dynamig-viewer") {
		t.Errorf("status without rights = %d: %s", code, notes)
	}
}

// TestKubectlMIGTellsOfADeadAgent: kubelet drops the slots when the agent's connection
// ends; status and explain say which agent to start, and once it runs, the pod does.
func TestKubectlMIGTellsOfADeadAgent(t *testing.T) {
	n, admin := node(t, "node1"), st.Cluster.AdminKubeconfig()
	if err := n.Agent().Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	started := false
	defer func() {
		if !started {
			if err := n.StartAgent(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}
	}()
	if err := stack.Until(t.Context(), "status to miss the agent", func() (bool, error) {
		out, _, _ := kubectlMIG(t, admin, "", "status", "node1", "-o", "table")
		return strings.Contains(out, " NoAgent "), fmt.Errorf("status is:\n%s", out)
	}); err != nil {
		t.Fatal(err)
	}
	waiting := create(t, newPod("agentless", "gpu=1 gpumem=4000"))
	unscheduled(t, waiting.Name)
	out, _, code := kubectlMIG(t, admin, "", "explain", "pod", waiting.Name, "-o", "json")
	var story struct{ Remedies []string }
	if err := json.Unmarshal([]byte(out), &story); err != nil || code != 3 || len(story.Remedies) != 1 || !strings.Contains(story.Remedies[0], "Starting the agent, dynamig-nodeagent, on node1") {
		t.Errorf("explain = %d, %v, want node1's agent to be started:\n%s", code, err, out)
	}
	if err := n.StartAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	started = true
	agree(t, waitPod(t, waiting.Name, stack.Running))
}
