// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/nvml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestReportOfABusyNode(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.foreign(1, "3g.20gb@4")
		b.sleep(11 * time.Second)
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@2", "2g.10gb@0")})
		b.bind(pod{name: "old", devices: b.on(0, "1g.5gb@6")})
		b.mustPrepare("a")
		b.mustPrepare("old")
		b.remove("old")
		b.bind(pod{name: "refused", devices: b.on(1, "4g.20gb@0", "1g.5gb@4")})
		got, err := json.MarshalIndent(b.status(), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = bytes.ReplaceAll(got, []byte(b.dir), []byte("DIR"))
		golden := filepath.Join("testdata", "status.json")
		if *update {
			if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
			t.Errorf("status (-want +got), -update rewrites it:\n%s", diff)
		}
	})
}

// writes counts the reports that were written.
func (b *bench) writes() int {
	n := 0
	for _, a := range b.gpuNodes.Actions() {
		if a.GetVerb() == "update" {
			n++
		}
	}
	return n
}

func TestNothingIsWrittenWithoutAChange(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@0")})
		b.mustPrepare("a")
		b.rest()
		before := b.writes()
		b.sleep(time.Hour)
		b.restart()
		if n := b.writes() - before; n != 0 {
			t.Errorf("%d reports were written in an hour without a change and over a restart, want none", n)
		}
	})
}

func TestChangesShareAReport(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		before := b.writes()
		for i := range 7 {
			b.bind(pod{name: fmt.Sprint("p", i), devices: b.on(0, fmt.Sprintf("1g.5gb@%d", i))})
			b.mustPrepare(fmt.Sprint("p", i))
		}
		b.rest()
		if n := b.writes() - before; n != 1 {
			t.Errorf("%d reports were written for 7 pods within a moment, want 1", n)
		}
	})
}

func TestRefusalIsReportedAtOnce(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.bind(pod{name: "a", devices: b.on(0, "2g.10gb@1")}) // waits until nothing moves, but lets no time pass
		node, err := b.gpuNodes.DynamigV1alpha1().GPUNodes().Get(t.Context(), nodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(node.Status.Pods) != 1 || node.Status.Pods[0].Phase != v1alpha1.PodRefused {
			t.Errorf("reported pods are %+v, want one that is Refused", node.Status.Pods)
		}
	})
}

func TestReportBelongsToTheNodeAndComesBack(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		client := b.gpuNodes.DynamigV1alpha1().GPUNodes()
		before := b.status()
		// A new Node of the same name: the garbage collector removes the old report.
		if err := client.Delete(t.Context(), nodeName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		node, err := b.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		node.UID = "second-uid"
		if _, err := b.client.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		b.sleep(2 * time.Minute)
		after, err := client.Get(t.Context(), nodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: nodeName, UID: "second-uid"}}
		if diff := cmp.Diff(want, after.OwnerReferences); diff != "" {
			t.Errorf("ownerReferences (-want +got):\n%s", diff)
		}
		if before.NodeUID != "node-uid" || after.Status.NodeUID != "second-uid" || len(after.Status.GPUs) != 2 {
			t.Errorf("node UID was %s and is %s, with %d GPUs; want node-uid, second-uid, 2", before.NodeUID, after.Status.NodeUID, len(after.Status.GPUs))
		}
	})
}

func TestReportOfEightFullGPUsIsSmall(t *testing.T) {
	f := findings{inventory: &inventory{}}
	b := newBench(t, 8)
	s := f.status()
	for i, uuid := range b.gpus {
		gpu := v1alpha1.GPU{UUID: uuid, Index: int32(i), Model: "NVIDIA A100-SXM4-40GB", MemoryMiB: 40960, Health: v1alpha1.Healthy,
			Mode: v1alpha1.GPUMode{Wanted: v1alpha1.ModeMIG, Current: v1alpha1.ModeMIG}}
		for start := range 7 {
			gpu.Instances = append(gpu.Instances, v1alpha1.Instance{
				ProfileID: 19, Start: int32(start), GI: int32(7 + start), UUID: "MIG-3f6a1c52-7d4e-5b0f-9a77-0c2f6f6a1b2c",
				PodUID: "0b3b6c1e-2f0a-4d55-8a1c-5f1d2c3b4a59", State: v1alpha1.InstanceLive,
			})
		}
		s.GPUs = append(s.GPUs, gpu)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 20<<10 {
		t.Errorf("the report has %d bytes, want at most 20 KB", len(text))
	}
}

// The cluster that docs/kubectl-mig.md draws, and the example of docs/wire.md, say what
// the agent says.
func TestDocumentsShowTheAgentsSentences(t *testing.T) {
	board, _ := boards.Named("NVIDIA A30")
	model, err := board.Model()
	if err != nil {
		t.Fatal(err)
	}
	f := findings{
		good: true,
		inventory: &inventory{configured: true, catalogues: map[string]*geometry.Catalogue{"NVIDIA A30": {}}, gpus: []managedGPU{
			{GPU: nvml.GPU{Index: 0, Name: "NVIDIA A30"}, wanted: v1alpha1.ModeMIG}}},
		states: []state{{model: model, mode: nvml.MIGMode{Current: true, Pending: true}, instances: []v1alpha1.Instance{
			{ProfileID: 14, Start: 3, GI: 2, State: v1alpha1.InstanceForeign}}}},
	}
	foreign, ready := f.foreign()[0], f.readiness().Message
	lost := (&worker{failure: nvml.ErrGPULost}).unhealthy()
	for file, want := range map[string][]string{
		"../../cmd/kubectl-mig/testdata/cluster.yaml": {foreign, ready, lost},
		"../../docs/wire.md":                          {ready},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, sentence := range want {
			if !strings.Contains(string(text), sentence) {
				t.Errorf("%s has no %q", file, sentence)
			}
		}
	}
}
