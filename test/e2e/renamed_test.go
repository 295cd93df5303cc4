// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// rename gives the resources another domain, in a device configuration and in a pod.
var rename = strings.NewReplacer("nvidia.com/", "example.com/")

// renamed is newPod by the new names.
func renamed(name, wants string) *v1.Pod {
	pod := newPod(name, wants)
	list := v1.ResourceList{}
	for was, quantity := range pod.Spec.Containers[0].Resources.Limits {
		list[v1.ResourceName(rename.Replace(string(was)))] = quantity
	}
	pod.Spec.Containers[0].Resources.Limits = list
	return pod
}

// TestRenamedResources: the device configuration has other names, agent and scheduler
// are started again, and pods ask by these.
func TestRenamedResources(t *testing.T) {
	good := deviceConfigMap(t)
	other := good.DeepCopy()
	other.Data["device-config.yaml"] = rename.Replace(other.Data["device-config.yaml"])
	t.Cleanup(func() {
		st.Count = ""
		restartWith(t, good)
		offers(t, v1alpha1.ResourceGPU)
	})
	st.Count = "example.com/gpu"
	restartWith(t, other)
	offers(t, st.Count)

	pod := runs(t, renamed("renamed", "gpu=2 gpumem=8000"))
	if got, want := profiles(t, pod), []string{"2g.10gb", "2g.10gb"}; !slices.Equal(got, want) {
		t.Errorf("profiles = %v, want %v", got, want)
	}
	wrong := create(t, renamed("wrong", "gpu=1 gpucores=101"))
	if got, want := unscheduled(t, wrong.Name), `container "main": example.com/gpucores is 101; use 0 to 100`; !strings.Contains(got, want) {
		t.Errorf("condition = %q, want %q", got, want)
	}
	old := create(t, newPod("old", "gpu=1 gpumem=8000"))
	if got, want := unscheduled(t, old.Name), "Insufficient nvidia.com/gpu"; !strings.Contains(got, want) {
		t.Errorf("condition = %q, want %q", got, want)
	}
	out, notes, _ := kubectlMIG(t, st.Cluster.AdminKubeconfig(), "", "explain", "pod", old.Name)
	if want := "it asks for nvidia.com/gpu, which no node offers; dynamig's resources are example.com/gpu, example.com/gpumem, "; !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
		t.Errorf("kubectl mig explain does not say %q:\n%s%s", want, out, notes)
	}
}

// deviceConfigMap is the ConfigMap that agents and scheduler have the device
// configuration from.
func deviceConfigMap(t *testing.T) *v1.ConfigMap {
	t.Helper()
	list, err := st.Kube.CoreV1().ConfigMaps(stack.Namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list.Items, func(m v1.ConfigMap) bool { return m.Data["device-config.yaml"] != "" })
	if i < 0 {
		t.Fatal("no ConfigMap has a device-config.yaml")
	}
	return &list.Items[i]
}

// restartWith writes a ConfigMap and starts node1's agent and the scheduler again, which
// read it.
func restartWith(t *testing.T, config *v1.ConfigMap) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	config.ResourceVersion = "" // whatever is there now
	if _, err := st.Kube.CoreV1().ConfigMaps(config.Namespace).Update(ctx, config, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	n := node(t, "node1")
	for _, step := range []func(context.Context) error{
		n.Agent().Kill, st.Cluster.Process("scheduler").Kill,
		func(ctx context.Context) error { return n.StartAgent(ctx) },
		func(ctx context.Context) error { return st.StartScheduler(ctx) },
	} {
		if err := step(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// offers waits until node1 has devices by this name, and by no other.
func offers(t *testing.T, name v1.ResourceName) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	err := stack.Until(ctx, "node1 to offer "+string(name), func() (bool, error) {
		n, err := st.Kube.CoreV1().Nodes().Get(ctx, "node1", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		var now []string
		for resource, quantity := range n.Status.Allocatable {
			if strings.HasSuffix(string(resource), "/gpu") && !quantity.IsZero() {
				now = append(now, string(resource))
			}
		}
		return slices.Equal(now, []string{string(name)}), fmt.Errorf("it offers %v", now)
	})
	if err != nil {
		t.Fatal(err)
	}
}
