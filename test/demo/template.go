// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/test/stack"
)

// templateChanges: the shipped configuration cuts an A100 into seven 1g.5gb, or into
// three 2g.10gb and one 1g.5gb. One of seven small pods stays, and larger pods need
// the second layout: its container notices nothing.
func (st story) templateChanges(ctx context.Context) error {
	title("A template changes under a running pod")
	gpu, small, err := st.fullOfSmall(ctx)
	if err != nil {
		return err
	}
	kept, others := small[0], small[1:]
	fmt.Printf("%d small pods have a GPU for themselves, cut by the first template of the configuration, 7 x 1g.5gb.\n%s stays, the others end:\n\n",
		len(small), kept.Name)
	if err := st.end(ctx, others); err != nil {
		return err
	}
	if err := st.WaitTemplate(ctx, kept.Spec.NodeName, gpu, 0); err != nil {
		return err
	}
	before, err := st.Life(ctx, kept)
	if err != nil {
		return err
	}
	if err := st.showLife(ctx, kept, before); err != nil {
		return err
	}

	fmt.Printf("Now three pods want %s MiB each. Only the second template has that: 3 x 2g.10gb and 1 x 1g.5gb.\n\n", largerMiB)
	var larger []*v1.Pod
	for _, name := range []string{"larger-1", "larger-2", "larger-3"} {
		if err := st.create(ctx, name, largerMiB); err != nil {
			return err
		}
	}
	for _, name := range []string{"larger-1", "larger-2", "larger-3"} {
		pod, err := st.WaitPod(ctx, namespace, name, stack.Running)
		if err != nil {
			return err
		}
		larger = append(larger, pod)
	}
	if err := st.agree(ctx, append(larger, kept)...); err != nil {
		return err
	}
	fmt.Println()
	if err := st.WaitTemplate(ctx, kept.Spec.NodeName, gpu, 1); err != nil {
		return err
	}
	after, err := st.Life(ctx, kept)
	if err != nil {
		return err
	}
	if err := st.showLife(ctx, kept, after); err != nil {
		return err
	}
	if !reflect.DeepEqual(before, after) {
		return fmt.Errorf("pod %s did not live on as it was: before %+v, after %+v", kept.Name, before, after)
	}
	fmt.Printf("verified: the second template is in force, and %s has the instance, container and process that it had\n", kept.Name)
	return nil
}

// fullOfSmall finds the GPU that seven small pods share, and them, first the one in
// the last slice: the second template has its 1g.5gb there.
func (st story) fullOfSmall(ctx context.Context) (gpu string, pods []*v1.Pod, err error) {
	list, err := st.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", nil, err
	}
	on := map[string][]*v1.Pod{}
	for i := range list.Items {
		pod := &list.Items[i]
		a, err := v1alpha1.DecodeAllocation(pod.Annotations[v1alpha1.AnnotationAllocation])
		if err != nil {
			return "", nil, err
		}
		for _, d := range a.Containers[pod.Spec.Containers[0].Name] {
			if on[d.GPU] = append(on[d.GPU], pod); d.MIG.Start == 6 {
				last := len(on[d.GPU]) - 1
				on[d.GPU][0], on[d.GPU][last] = on[d.GPU][last], on[d.GPU][0]
			}
		}
	}
	for gpu, pods := range on {
		if len(pods) == 7 {
			return gpu, pods, nil
		}
	}
	return "", nil, fmt.Errorf("no GPU has seven pods: %v", on)
}

// end deletes pods and waits until they are gone.
func (st story) end(ctx context.Context, pods []*v1.Pod) error {
	args := []string{"delete", "pod", "--wait=false"}
	for _, pod := range pods {
		args = append(args, pod.Name)
	}
	if err := st.kubectl(ctx, args...); err != nil {
		return err
	}
	for _, pod := range pods {
		if err := st.WaitGone(ctx, namespace, pod.Name); err != nil {
			return err
		}
	}
	return nil
}

// showLife shows the node, and what a container has and how long it runs.
func (st story) showLife(ctx context.Context, pod *v1.Pod, life stack.Life) error {
	if err := st.mig(ctx, "status"); err != nil {
		return err
	}
	out, err := st.Cluster.Kubectl(ctx, "exec", "-n", namespace, pod.Name, "--", "cat", "/proc/uptime")
	if err != nil {
		return err
	}
	var now, since float64
	if _, err := fmt.Sscan(string(out), &now); err != nil {
		return fmt.Errorf("reading the machine's uptime: %w", err)
	}
	if _, err := fmt.Sscan(life.Since, &since); err != nil {
		return fmt.Errorf("reading when the process began: %w", err)
	}
	const hertz = 100 // of these clock ticks, on every Linux that Go runs on
	fmt.Printf("%s has %s; its process has run for %.1f s, %d restarts\n\n",
		pod.Name, strings.Join(life.Instances, " "), now-since/hertz, life.Restarts)
	return nil
}
