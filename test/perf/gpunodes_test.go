// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/generated/clientset/versioned"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/plugins/dynamicmig"
)

const (
	crdFile    = "../../manifests/base/crd/dynamig.io_gpunodes.yaml"
	deviceFile = "../../manifests/base/nodeagent/device-config.yaml"

	product     = "NVIDIA A100-SXM4-40GB"
	gpusPerNode = 8 // devices per node in templates/node.yaml: 7 for each

	writers  = 8 // parallel writes of GPUNodes
	interval = 100 * time.Millisecond
	patience = 5 * time.Minute // for anything, on a busy machine
)

// installCRD creates the CRD as it is shipped and returns when it is served.
func installCRD(ctx context.Context, client dynamic.Interface) error {
	text, err := os.ReadFile(crdFile)
	if err != nil {
		return fmt.Errorf("reading the CRD: %w", err)
	}
	crd := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, crd); err != nil {
		return fmt.Errorf("reading the CRD in %s: %w", crdFile, err)
	}
	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	if _, err := client.Resource(crds).Create(ctx, crd, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
		return fmt.Errorf("creating the CRD: %w", err)
	}
	gpuNodes := client.Resource(v1alpha1.SchemeGroupVersion.WithResource("gpunodes"))
	err = poll(ctx, func(ctx context.Context) bool {
		_, err := gpuNodes.List(ctx, metav1.ListOptions{})
		return err == nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the GPUNode API to be served: %w", err)
	}
	return nil
}

// reportGPUs creates a GPUNode for each node. The harness's own clients speak
// protobuf, which custom resources do not have.
func reportGPUs(ctx context.Context, harness *rest.Config, nodes []v1.Node) error {
	plain := rest.CopyConfig(harness)
	plain.ContentType = runtime.ContentTypeJSON
	client, err := versioned.NewForConfig(plain)
	if err != nil {
		return fmt.Errorf("creating the client of GPUNodes: %w", err)
	}
	model, err := shippedModel()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for i := range nodes {
		group.Go(func() error { return create(ctx, client, gpuNode(&nodes[i], model)) })
	}
	return group.Wait()
}

func create(ctx context.Context, client versioned.Interface, wanted *v1alpha1.GPUNode) error {
	gpuNodes := client.DynamigV1alpha1().GPUNodes()
	created, err := gpuNodes.Create(ctx, wanted, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("creating GPUNode %s: %w", wanted.Name, err)
	}
	created.Status = wanted.Status
	if _, err := gpuNodes.UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("writing the status of GPUNode %s: %w", wanted.Name, err)
	}
	return nil
}

// waitForGPUs waits until the scheduler knows count nodes with all GPUs.
func waitForGPUs(ctx context.Context, shared *dynamicmig.Shared, count int) error {
	ready := 0
	err := poll(ctx, func(context.Context) bool {
		ready = 0
		for _, node := range shared.Pool.Nodes() {
			if len(node.GPUs) == gpusPerNode {
				ready++
			}
		}
		return ready == count
	})
	if err != nil {
		return fmt.Errorf("waiting for the scheduler to know %d GPUNodes; it knows %d: %w", count, ready, err)
	}
	return nil
}

func poll(ctx context.Context, done func(context.Context) bool) error {
	return wait.PollUntilContextTimeout(ctx, interval, patience, true, func(ctx context.Context) (bool, error) {
		return done(ctx), nil
	})
}

// shippedModel is what an agent reports of the product under the shipped device
// configuration: templates.
func shippedModel() (v1alpha1.GPUModel, error) {
	var none v1alpha1.GPUModel
	board, ok := boards.Named(product)
	if !ok {
		return none, fmt.Errorf("looking up %s: it is not among the known boards", product)
	}
	text, err := os.ReadFile(deviceFile)
	if err != nil {
		return none, fmt.Errorf("reading the device configuration: %w", err)
	}
	device, err := config.ParseDevice(deviceFile, text)
	if err != nil {
		return none, err
	}
	hardware, err := board.Model()
	if err != nil {
		return none, err
	}
	offered := v1alpha1.ModelOf(product, hardware)
	model, _ := device.Catalogue(product, offered.Profiles, offered.Grid) // the sentences are for operators
	if model.Rule != v1alpha1.RuleTemplates {
		return none, fmt.Errorf("reading %s: it has no templates for %s any more", deviceFile, product)
	}
	return model, nil
}

// gpuNode is the report of a node's idle GPUs, all in mode mig.
func gpuNode(node *v1.Node, model v1alpha1.GPUModel) *v1alpha1.GPUNode {
	report := &v1alpha1.GPUNode{
		ObjectMeta: metav1.ObjectMeta{
			Name:            node.Name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		},
		Status: v1alpha1.GPUNodeStatus{NodeUID: node.UID, DriverVersion: "580.95.05", Models: []v1alpha1.GPUModel{model}},
	}
	for i := range gpusPerNode {
		report.Status.GPUs = append(report.Status.GPUs, v1alpha1.GPU{
			UUID: fmt.Sprintf("GPU-%s-%d", node.UID, i), Index: int32(i), Model: model.Model,
			Mode:   v1alpha1.GPUMode{Wanted: v1alpha1.ModeMIG, Current: v1alpha1.ModeMIG},
			Health: v1alpha1.Healthy,
		})
	}
	return report
}
