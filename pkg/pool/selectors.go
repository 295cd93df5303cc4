// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"slices"
	"strconv"
	"strings"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

// Selectors say which GPUs a pod accepts. Empty lists accept all.
type Selectors struct {
	UUIDs   []string // only these
	NoUUIDs []string // none of these
	Types   []string // only product names that contain one of these, in lower case
	NoTypes []string // none of these
	NUMA    bool     // a container's devices must be of one NUMA node
}

func (s *Selectors) parse(annotations map[string]string) error {
	s.UUIDs = listOf(annotations[v1alpha1.AnnotationUseUUID])
	s.NoUUIDs = listOf(annotations[v1alpha1.AnnotationNoUseUUID])
	s.Types = listOf(strings.ToLower(annotations[v1alpha1.AnnotationUseType]))
	s.NoTypes = listOf(strings.ToLower(annotations[v1alpha1.AnnotationNoUseType]))
	for _, key := range []string{v1alpha1.AnnotationUseUUID, v1alpha1.AnnotationNoUseUUID} {
		if uuids := listOf(annotations[key]); len(uuids) > 0 && !slices.ContainsFunc(uuids, isUUID) {
			return invalid("annotation %s is %q; write UUIDs of GPUs as nvidia-smi -L prints them, GPU-...", key, annotations[key])
		}
	}
	text := annotations[v1alpha1.AnnotationNUMABind]
	if text == "" {
		return nil
	}
	var err error
	if s.NUMA, err = strconv.ParseBool(text); err != nil {
		return invalid("annotation %s is %q; use true or false", v1alpha1.AnnotationNUMABind, text)
	}
	return nil
}

// mostListed bounds the entries of each list: every GPU of the cluster is compared
// with all of them.
const mostListed = 64

// checkLists refuses annotations that are lists and too long.
func checkLists(annotations map[string]string) error {
	for _, key := range []string{
		v1alpha1.AnnotationUseUUID, v1alpha1.AnnotationNoUseUUID, v1alpha1.AnnotationUseType, v1alpha1.AnnotationNoUseType,
		v1alpha1.AnnotationNodePolicy, v1alpha1.AnnotationGPUPolicy, v1alpha1.AnnotationWeights,
	} {
		if n := 1 + strings.Count(annotations[key], ","); n > mostListed {
			return invalid("annotation %s lists %d entries; use at most %d", key, n, mostListed)
		}
	}
	return nil
}

// isUUID reports whether a GPU can have a UUID. Those of MIG instances, which are made
// for pods, and indexes are no UUIDs of GPUs.
func isUUID(text string) bool { return strings.HasPrefix(text, "GPU-") }

// listOf splits at commas; empty parts are left out.
func listOf(text string) []string {
	var out []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// acceptsAll reports whether no GPU is refused on its own.
func (s *Selectors) acceptsAll() bool {
	return len(s.UUIDs)+len(s.NoUUIDs)+len(s.Types)+len(s.NoTypes) == 0
}

// accept reports whether the pod accepts a GPU.
func (s *Selectors) accept(g *GPU) bool {
	switch {
	case len(s.UUIDs) > 0 && !slices.Contains(s.UUIDs, g.ID), slices.Contains(s.NoUUIDs, g.ID):
		return false
	case len(s.Types) == 0 && len(s.NoTypes) == 0:
		return true
	}
	model := strings.ToLower(g.Model)
	has := func(part string) bool { return strings.Contains(model, part) }
	return (len(s.Types) == 0 || slices.ContainsFunc(s.Types, has)) && !slices.ContainsFunc(s.NoTypes, has)
}
