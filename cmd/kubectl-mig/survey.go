// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/pool"
)

// survey is what was read of the cluster at one moment.
type survey struct {
	gpuNodes []*v1alpha1.GPUNode // by name
	pods     []*v1.Pod           // that ask for GPUs and have not ended, or all
	nodes    map[string]*v1.Node // nil where they may not be read
	opts     pool.Options
	notes    []string        // what could not be read, and what that means
	hidden   bool            // pods of other namespaces
	home     string          // the scheduler's namespace
	admits   map[string]bool // namespaces where admission adds to GPU pods; what-if alone reads it
	silence  string          // why nothing is scheduling; empty where something is, or that cannot be told
	pulse    string          // what tells that the scheduler runs; empty where nothing does
}

// strangerName stands for a pod that may not be seen.
const strangerName = "(hidden)"

// survey reads everything that the answers depend on. What may not be read is
// noted, and the rest is gone on with; without GPUNodes there is nothing to say.
func (a *access) survey(ctx context.Context, namespace string) (*survey, error) {
	s := &survey{home: a.schedulerNamespace}
	list, err := a.gpus.DynamigV1alpha1().GPUNodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("this cluster has no GPUNodes: dynamig is not installed (kubectl apply -k manifests/base)")
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("you may not list gpunodes.dynamig.io; ask for the ClusterRole dynamig-viewer: %w", err)
	case err != nil:
		return nil, fmt.Errorf("listing GPUNodes: %w", err)
	}
	for i := range list.Items {
		s.gpuNodes = append(s.gpuNodes, &list.Items[i])
	}
	if err := s.readOptions(ctx, a); err != nil {
		return nil, err
	}
	if err := s.readPods(ctx, a.kube, namespace); err != nil {
		return nil, err
	}
	if err := s.readNodes(ctx, a.kube); err != nil {
		return nil, err
	}
	return s, s.readPulse(ctx, a)
}

func (s *survey) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// readPods lists the pods of the cluster, or of the namespace where that is all that
// may be read: what other pods hold is then known from GPUNodes alone.
func (s *survey) readPods(ctx context.Context, kube kubernetes.Interface, namespace string) error {
	options := metav1.ListOptions{ResourceVersion: "0"}
	list, err := kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, options)
	if s.hidden = apierrors.IsForbidden(err); s.hidden {
		s.note("you may not list pods in all namespaces: others' pods are drawn without names, and one that is being placed may be missed (ClusterRole dynamig-viewer allows it)")
		if list, err = kube.CoreV1().Pods(namespace).List(ctx, options); apierrors.IsForbidden(err) {
			s.note("you may not list pods in namespace %s either", namespace)
			list, err = &v1.PodList{}, nil
		}
	}
	if err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	for i := range list.Items {
		s.pods = append(s.pods, &list.Items[i])
	}
	if s.hidden {
		s.pods = append(s.pods, s.strangers()...)
	}
	return nil
}

// strangers are stand-ins for the pods that GPUNodes name and that are not among
// those given: they hold the live instances that are theirs.
func (s *survey) strangers() []*v1.Pod {
	known := map[types.UID]bool{}
	for _, p := range s.pods {
		known[p.UID] = true
	}
	var out []*v1.Pod
	for _, n := range s.gpuNodes {
		held, order := map[types.UID][]v1alpha1.Device{}, []types.UID{}
		for _, g := range n.Status.GPUs {
			for _, inst := range g.Instances {
				if inst.State != v1alpha1.InstanceLive || inst.PodUID == "" || known[inst.PodUID] {
					continue
				}
				if held[inst.PodUID] == nil {
					order = append(order, inst.PodUID)
				}
				held[inst.PodUID] = append(held[inst.PodUID], deviceOf(n, &g, inst))
			}
		}
		for _, uid := range order {
			if p := stranger(n.Name, uid, held[uid], s.opts.Resources().Count); p != nil {
				out = append(out, p)
			}
		}
	}
	return out
}

func deviceOf(n *v1alpha1.GPUNode, g *v1alpha1.GPU, inst v1alpha1.Instance) v1alpha1.Device {
	m := &v1alpha1.MIGInstance{ProfileID: inst.ProfileID, Start: inst.Start, Size: 1}
	if model := n.Status.Model(g.Model); model != nil {
		for _, p := range model.Profiles {
			if p.ID == inst.ProfileID {
				m.Profile, m.Size, m.MemoryMiB = p.Name, p.Size, p.MemoryMiB
			}
		}
	}
	return v1alpha1.Device{GPU: g.UUID, MIG: m}
}

// stranger is a pod with these devices; nil where they make no allocation.
func stranger(node string, uid types.UID, devices []v1alpha1.Device, count v1.ResourceName) *v1.Pod {
	const container = "c"
	a := v1alpha1.Allocation{
		Version: v1alpha1.AllocationVersion, Node: node, PodUID: uid,
		Containers: map[string][]v1alpha1.Device{container: devices},
	}
	value, err := a.Encode()
	if err != nil {
		return nil
	}
	p := &v1.Pod{}
	p.Name, p.UID, p.Annotations = strangerName, uid, map[string]string{v1alpha1.AnnotationAllocation: value}
	p.Spec.NodeName = node
	p.Spec.Containers = []v1.Container{{Name: container, Resources: v1.ResourceRequirements{
		Limits: v1.ResourceList{count: *resource.NewQuantity(int64(len(devices)), resource.DecimalSI)},
	}}}
	return p
}

// readNodes lists the Nodes; nil stays where they may not be read.
func (s *survey) readNodes(ctx context.Context, kube kubernetes.Interface) error {
	list, err := kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if apierrors.IsForbidden(err) {
		s.note("you may not list nodes: taints, selectors, cordons, slots, CPU and memory are not looked at (ClusterRole dynamig-viewer allows it)")
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	nodes := make([]*v1.Node, len(list.Items))
	for i := range list.Items {
		nodes[i] = &list.Items[i]
	}
	s.nodes = byName(nodes)
	return nil
}

func byName(list []*v1.Node) map[string]*v1.Node {
	out := map[string]*v1.Node{}
	for _, n := range list {
		out[n.Name] = n
	}
	return out
}

// podsOn lists the pods of a node that hold or want GPUs there.
func (s *survey) podsOn(node string) []*v1.Pod {
	var out []*v1.Pod
	for _, p := range s.pods {
		if p.Spec.NodeName == node && s.opts.Wants(p) && !ended(p) {
			out = append(out, p)
		}
	}
	return out
}

func ended(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
}

// fleet is the survey as the decisions see it.
func (s *survey) fleet() *pool.Fleet {
	f, problems := pool.NewFleet(s.gpuNodes, s.pods, s.opts)
	for _, n := range s.gpuNodes {
		if err := problems[n.Name]; err != nil {
			s.note("node %s offers nothing: %v", n.Name, err)
		}
	}
	return f
}

// annotations are those that pods may have for dynamig.
var annotations = []string{
	v1alpha1.AnnotationMode, v1alpha1.AnnotationProfile, v1alpha1.AnnotationUseUUID, v1alpha1.AnnotationNoUseUUID,
	v1alpha1.AnnotationUseType, v1alpha1.AnnotationNoUseType, v1alpha1.AnnotationNUMABind, v1alpha1.AnnotationNodePolicy, v1alpha1.AnnotationGPUPolicy,
	v1alpha1.AnnotationWeights,
}

// remarkOn notes what a pod may not have meant.
func (s *survey) remarkOn(pod *v1.Pod) {
	if r, err := pool.Parse(pod, s.opts); err == nil && r != nil && r.Remark != "" {
		s.note("%s", r.Remark)
	}
	if !s.opts.Wants(pod) {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(pod.Annotations)) {
		if near := nearName(name, annotations); near != "" {
			s.note("annotation %s of pod %s means nothing to dynamig; did you mean %s?", name, pod.Name, near)
		}
	}
}

// nearName is the one of the known names in the same domain that was probably meant;
// empty for one that is known, and where none is near.
func nearName[T ~string](name T, known []T) T {
	domain, word, _ := strings.Cut(string(name), "/")
	var words []string
	for _, k := range known {
		if rest, ok := strings.CutPrefix(string(k), domain+"/"); ok {
			words = append(words, rest)
		}
	}
	near := config.Nearest(word, words)
	if near == "" {
		near = begun(word, words)
	}
	if near == "" || near == word {
		return ""
	}
	return T(domain + "/" + near)
}

// begun is the longest known word that another spells out, as gpumemory does gpumem;
// empty where there is none.
func begun(word string, known []string) string {
	best := ""
	for _, k := range known {
		rest, ok := strings.CutPrefix(word, k)
		if ok && len(k) > len(best) && rest != "" && unicode.IsLetter(rune(rest[0])) {
			best = k
		}
	}
	return best
}

// warn tells what could not be read.
func (s *survey) warn(screen *screen) {
	for _, n := range s.notes {
		fmt.Fprintf(screen.err, "note: %s\n", printable(n))
	}
}
