// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

const (
	namespace = "default"
	board     = "A100-SXM4-40GB"
	smallMiB  = "4000" // 1g.5gb
	largerMiB = "9000" // 2g.10gb
)

// story is the demo's chapters, told in order.
type story struct {
	*stack.Stack
	repo     string
	programs string
}

// podFirst: the pod is there before any GPU is.
func (st story) podFirst(ctx context.Context) error {
	title("A pod first, its node second")
	if err := st.kubectl(ctx, "apply", "-f", filepath.Join(st.repo, "examples/gpu-pod.yaml")); err != nil {
		return err
	}
	pod, err := st.WaitPod(ctx, namespace, "gpu-pod", waiting)
	if err != nil {
		return err
	}
	fmt.Printf("gpu-pod waits: %s\n\n", waitingFor(pod))
	fmt.Printf("Now node1 comes, with two simulated %s:\n", board)
	if _, err := st.AddNode(ctx, "node1", board, board); err != nil {
		return err
	}
	if err := st.WaitSlots(ctx, "node1"); err != nil {
		return err
	}
	began := time.Now()
	if _, err := st.WaitPod(ctx, namespace, "gpu-pod", stack.Running); err != nil {
		return err
	}
	fmt.Printf("gpu-pod runs %.1f s after the node's slots appeared (target: 2 s)\n", time.Since(began).Seconds())
	return nil
}

// whatItGot: events, report, and the view from inside.
func (st story) whatItGot(ctx context.Context) error {
	title("What it got")
	pod, err := st.Kube.CoreV1().Pods(namespace).Get(ctx, "gpu-pod", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if _, err := st.Event(ctx, namespace, "gpu-pod", "Prepared"); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"get", "events", "--field-selector=involvedObject.name=gpu-pod", "-o=custom-columns=TYPE:.type,REASON:.reason,MESSAGE:.message"},
		{"get", "gpunodes"},
		{"exec", "gpu-pod", "--", "sh", "-c", "ls -l /dev/nvidia[0-9]* /dev/nvidia-caps/*"},
	} {
		if err := st.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return st.agree(ctx, pod)
}

// agree waits until all four tell the same story: GPUNode is written a moment after
// the container started.
func (st story) agree(ctx context.Context, pods ...*v1.Pod) error {
	for _, pod := range pods {
		err := stack.Until(ctx, "annotation, NVML, GPUNode and container to agree on "+pod.Name, func() (bool, error) {
			err := st.Agree(ctx, pod)
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	names := make([]string, len(pods))
	for i := range pods {
		names[i] = pods[i].Name
	}
	fmt.Printf("verified: annotation, NVML, GPUNode and the devices inside agree: %s\n", strings.Join(names, " "))
	return nil
}

// fillGaps: small pods beside the large ones.
func (st story) fillGaps(ctx context.Context) error {
	title(fmt.Sprintf("%d small pods fill the gaps beside it", smallPods))
	var pods []*v1.Pod
	for i := range smallPods {
		if err := st.create(ctx, fmt.Sprintf("small-%d", i+1), smallMiB); err != nil {
			return err
		}
	}
	for i := range smallPods {
		pod, err := st.WaitPod(ctx, namespace, fmt.Sprintf("small-%d", i+1), stack.Running)
		if err != nil {
			return err
		}
		pods = append(pods, pod)
	}
	if err := st.mig(ctx, "status"); err != nil {
		return err
	}
	return st.agree(ctx, pods...)
}

// oneMore: what does not fit waits, says for what, and runs when a pod ends.
func (st story) oneMore(ctx context.Context) error {
	title("One more than fits")
	const name = "one-more"
	if err := st.create(ctx, name, smallMiB); err != nil {
		return err
	}
	pod, err := st.WaitPod(ctx, namespace, name, waiting)
	if err != nil {
		return err
	}
	fmt.Printf("%s waits: %s\n\n", name, waitingFor(pod))
	if err := st.mig(ctx, "explain", "pod", name); err != nil {
		return err
	}
	if err := st.kubectl(ctx, "delete", "pod", "small-1", "--wait=false"); err != nil {
		return err
	}
	if err := st.WaitGone(ctx, namespace, "small-1"); err != nil {
		return err
	}
	gone := time.Now()
	if pod, err = st.WaitPod(ctx, namespace, name, stack.Running); err != nil {
		return err
	}
	fmt.Printf("%s runs %.1f s after small-1 was gone (target: 2 s)\n", name, time.Since(gone).Seconds())
	if err := st.mig(ctx, "status"); err != nil {
		return err
	}
	return st.agree(ctx, pod)
}

// create makes a pod of examples/small-pod.yaml, with a name and as much memory.
func (st story) create(ctx context.Context, name, memoryMiB string) error {
	text, err := os.ReadFile(filepath.Join(st.repo, "examples/small-pod.yaml"))
	if err != nil {
		return err
	}
	pod := &v1.Pod{}
	if err := yaml.UnmarshalStrict(text, pod); err != nil {
		return err
	}
	pod.GenerateName, pod.Name = "", name
	pod.Spec.Containers[0].Resources.Limits[v1alpha1.ResourceMemory] = resource.MustParse(memoryMiB)
	_, err = st.Kube.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	return err
}

// kubectl runs a command, showing it and what it prints.
func (st story) kubectl(ctx context.Context, args ...string) error {
	shown := slices.Clone(args)
	for i, arg := range shown {
		if strings.ContainsAny(arg, " *") {
			shown[i] = "'" + arg + "'"
		}
	}
	fmt.Printf("$ kubectl %s\n", strings.Join(shown, " "))
	out, err := st.Cluster.Kubectl(ctx, args...)
	fmt.Printf("%s\n", out)
	return err
}

// mig runs the plugin as kubectl would, showing it and what it prints. A pod that
// waits is an answer, with exit code 3.
func (st story) mig(ctx context.Context, args ...string) error {
	fmt.Printf("$ kubectl mig %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, filepath.Join(st.programs, "kubectl-mig"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+st.Cluster.AdminKubeconfig())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 3 {
		err = nil
	}
	fmt.Println()
	return err
}

// waiting says that the scheduler has tried a pod and said what is missing.
func waiting(pod *v1.Pod) bool { return waitingFor(pod) != "" }

func waitingFor(pod *v1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse {
			return c.Message
		}
	}
	return ""
}
