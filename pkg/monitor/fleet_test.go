// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// stored is a fleet over what is put into the store by hand.
func stored(t *testing.T) (*Fleet, cache.Store) {
	t.Helper()
	nodes := cache.NewSharedInformer(&cache.ListWatch{}, &v1alpha1.GPUNode{}, 0)
	f, err := NewFleet(Sources{
		Pool: pool.New(pool.Options{}), GPUNodes: nodes, ByNode: "node",
		Pods: cache.NewSharedIndexInformer(&cache.ListWatch{}, &v1.Pod{}, 0, cache.Indexers{
			"node": func(any) ([]string, error) { return nil, nil },
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return f, nodes.GetStore()
}

func gpuNode(name string) *v1alpha1.GPUNode {
	return &v1alpha1.GPUNode{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// TestNodesThatAreNoMoreAreForgotten: what is kept of them is bounded, and a reader who
// would need more is sent everything.
func TestNodesThatAreNoMoreAreForgotten(t *testing.T) {
	f, store := stored(t)
	m := &Monitor{fleet: f, journal: NewJournal(time.Now)}
	for i := range maxGone + 10 {
		if err := store.Add(gpuNode(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		f.epochs.add(fmt.Sprint(i))
	}
	f.epochs.add("no-gpunode")
	f.epochs.add("")
	all := f.View()
	if n := len(f.epochs.all()); n != maxGone+11 {
		t.Errorf("changes of %d nodes are counted, want those of GPUNodes and the empty name: %d", n, maxGone+11)
	}
	for i := range maxGone + 9 {
		if err := store.Delete(gpuNode(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		f.View()
	}
	if n := len(f.gone); n > maxGone {
		t.Errorf("%d nodes that are no more are kept, at most %d should be", n, maxGone)
	}
	if n := len(f.epochs.all()); n != 2 {
		t.Errorf("changes of %d nodes are counted, want 2", n)
	}
	now := f.View()
	for since, want := range map[uint64]string{all.Version: "reset", now.Version + 1: "reset", now.Version - 1: "fleet"} {
		msg := m.message(now, since)
		if event := msg.event(); event != want || (want == "reset") != (len(msg.nodes) == 1) || (want == "fleet") != (len(msg.Gone) == 1) {
			t.Errorf("since %d of %d: event %s with %d nodes and %d gone, want %s", since, now.Version, event, len(msg.nodes), len(msg.Gone), want)
		}
	}
}

// TestRequestsAreCut: a pod's own text takes a bounded part of each message.
func TestRequestsAreCut(t *testing.T) {
	names := pool.New(pool.Options{}).Names()
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationProfile: strings.Repeat("x", 1<<18)}}}
	if got, want := describeRequest(pod, &names), "mig-profile "+strings.Repeat("x", 61)+"..."; got != want {
		t.Errorf("request %.100q, want %q", got, want)
	}
	limits := v1.ResourceList{names.Count: resource.MustParse("1")}
	for range 1000 {
		pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: "main", Resources: v1.ResourceRequirements{Limits: limits}})
	}
	if got := describeRequest(pod, &names); len(got) != maxRequest {
		t.Errorf("a pod with 1000 containers has a request of %d bytes, want %d", len(got), maxRequest)
	}
}

// TestRecentViewIsShared: readers who ask all the time cost one comparison for all.
func TestRecentViewIsShared(t *testing.T) {
	f, store := stored(t)
	first := f.View()
	if err := store.Add(gpuNode("n")); err != nil {
		t.Fatal(err)
	}
	if f.Recent(time.Hour) != first {
		t.Error("the sources were compared again within the hour")
	}
	if f.Recent(0) == first {
		t.Error("a view that is too old was given out")
	}
	if len(f.View().Nodes) != 1 {
		t.Error("the newest view lacks the node")
	}
}
