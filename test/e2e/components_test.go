// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// TestComponentsAreAccepted: each component alone over the base, all together, and the
// kustomizations of the guides are what a real API server takes.
func TestComponentsAreAccepted(t *testing.T) {
	prometheusKinds(t)
	dirs, err := filepath.Glob("../../manifests/components/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no components: %v", err)
	}
	cases := map[string]string{}
	for guide, want := range map[string]int{"migrate-from-hami.md": 2, "device-configuration.md": 1} {
		text, err := os.ReadFile("../../docs/" + guide)
		if err != nil {
			t.Fatal(err)
		}
		blocks := regexp.MustCompile("(?s)```yaml\n(# kustomization.yaml of the cluster.*?)```").FindAllSubmatch(text, -1)
		if len(blocks) != want {
			t.Fatalf("docs/%s has %d kustomizations, want %d", guide, len(blocks), want)
		}
		for i, block := range blocks {
			cases[fmt.Sprintf("%s, %d", guide, i)] = string(block[1])
		}
	}
	var all []string
	for _, d := range dirs {
		name := "manifests/components/" + filepath.Base(d)
		all = append(all, name)
		cases[name] = "resources: [ manifests/base ]\ncomponents: [ " + name + " ]\n"
	}
	cases["all"] = "resources: [ manifests/base ]\ncomponents: [ " + strings.Join(all, ", ") + " ]\n"
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range cases {
		dir := t.TempDir()
		up, err := filepath.Rel(dir, repo)
		if err != nil {
			t.Fatal(err)
		}
		text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n" + strings.ReplaceAll(text, " manifests/", " "+up+"/manifests/")
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"device-config.yaml", "config.json", "mig-parted.yaml"} { // of the guides
			if err := os.WriteFile(filepath.Join(dir, file), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := st.Cluster.Kubectl(t.Context(), "apply", "--dry-run=server", "-k", dir); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// prometheusKinds installs the Prometheus operator's kinds, without their schemas,
// until the test ends.
func prometheusKinds(t *testing.T) {
	t.Helper()
	var text strings.Builder
	for _, kind := range []string{"ServiceMonitor", "PodMonitor", "PrometheusRule"} {
		plural := strings.ToLower(kind) + "s"
		fmt.Fprintf(&text, `---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %s.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: %s, plural: %s}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`, plural, kind, plural)
	}
	file := filepath.Join(t.TempDir(), "crds.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Cluster.Kubectl(t.Context(), "apply", "-f", file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := st.Cluster.Kubectl(context.WithoutCancel(t.Context()), "delete", "-f", file); err != nil {
			t.Error(err)
		}
	})
	if _, err := st.Cluster.Kubectl(t.Context(), "wait", "--for=condition=Established", "--timeout=60s", "-f", file); err != nil {
		t.Fatal(err)
	}
}

// TestAllocationAnnotationComponent: with allocationWrite: Annotation the scheduler
// needs the component's right, and with it pods run.
func TestAllocationAnnotationComponent(t *testing.T) {
	ctx := t.Context()
	restart := func(ctx context.Context, old, text string) error {
		d, err := st.Kube.AppsV1().Deployments(stack.Namespace).Get(ctx, "dynamig-scheduler", metav1.GetOptions{})
		if err != nil {
			return err
		}
		maps := st.Kube.CoreV1().ConfigMaps(stack.Namespace)
		m, err := maps.Get(ctx, d.Spec.Template.Spec.Volumes[0].Projected.Sources[0].ConfigMap.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		changed := strings.Replace(m.Data["config.yaml"], old, text, 1)
		if changed == m.Data["config.yaml"] {
			return fmt.Errorf("the configuration has no %q", old)
		}
		m.Data["config.yaml"] = changed
		if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
			return err
		}
		if err := st.Cluster.Process("scheduler").Stop(ctx); err != nil {
			return err
		}
		return st.StartScheduler(ctx)
	}
	const binding, annotation = "\n      allocationWrite: Binding", "\n      allocationWrite: Annotation"
	if err := restart(ctx, binding, annotation); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := restart(context.WithoutCancel(ctx), annotation, binding); err != nil {
			t.Error(err)
		}
	})
	pod := create(t, newPod("patched", "gpu=1 gpumem=4000"))
	waitPod(t, pod.Name, func(p *v1.Pod) bool { return strings.Contains(reason(p), "cannot patch resource") })
	const dir = "../../manifests/components/allocation-annotation/"
	files := []string{"-f", dir + "clusterrole.yaml", "-f", dir + "clusterrolebinding.yaml"}
	if _, err := st.Cluster.Kubectl(ctx, append([]string{"apply"}, files...)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := st.Cluster.Kubectl(context.WithoutCancel(ctx), append([]string{"delete"}, files...)...); err != nil {
			t.Error(err)
		}
	})
	done := waitPod(t, pod.Name, stack.Running)
	agree(t, done)
	if _, ok := done.Annotations[v1alpha1.AnnotationAllocation]; !ok {
		t.Error("the pod has no allocation")
	}
}
