// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

// workload is a pod, or something with a pod template.
type workload struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Replicas int    `json:"replicas"`
	pod      *v1.Pod
}

// manifest is what all kinds have in common: the pod's template is in one of these
// places.
type manifest struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Replicas    *int32              `json:"replicas"`    // Deployment, StatefulSet, ReplicaSet, ...
		Parallelism *int32              `json:"parallelism"` // Job
		Completions *int32              `json:"completions"`
		Template    *v1.PodTemplateSpec `json:"template"`
		JobTemplate *struct {
			Spec struct {
				Parallelism *int32              `json:"parallelism"`
				Template    *v1.PodTemplateSpec `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
	Template *v1.PodTemplateSpec `json:"template"` // PodTemplate
	Items    []json.RawMessage   `json:"items"`    // List
}

// readWorkloads reads every pod and pod template of a file; "-" is standard input.
func readWorkloads(s *screen, file, namespace string) ([]workload, error) {
	in := s.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var out []workload
	documents := yaml.NewYAMLReader(bufio.NewReader(in))
	for n := 1; ; n++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			text, err = sigsyaml.YAMLToJSON(text)
		}
		if err == nil {
			out, err = appendWorkloads(out, text, namespace, s.noteIf)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s, document %d: %w", file, n, err)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has neither a pod nor a pod template", file)
	}
	return out, nil
}

// appendWorkloads reads one object; of a List all items. Kinds without pods are
// passed over, with a note where they seem to have some.
func appendWorkloads(out []workload, text []byte, namespace string, note func(string)) ([]workload, error) {
	if string(text) == "null" {
		return out, nil
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, err
	}
	if m.Kind == "" {
		return nil, errors.New("an object has no kind")
	}
	for _, item := range m.Items {
		var err error
		if out, err = appendWorkloads(out, item, namespace, note); err != nil {
			return nil, err
		}
	}
	w := workload{Kind: m.Kind, Name: m.Name, Replicas: 1}
	if w.Name == "" {
		w.Name = m.GenerateName
	}
	template := m.template()
	switch {
	case m.Kind == "Pod":
		w.pod = &v1.Pod{}
		if err := json.Unmarshal(text, w.pod); err != nil {
			return nil, err
		}
	case template != nil:
		w.pod = &v1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		w.pod.Name = m.Name
		w.Replicas = m.replicas()
	default:
		if bytes.Contains(text, []byte(`"containers"`)) && len(m.Items) == 0 {
			note(fmt.Sprintf("%s %s: where the pods of this kind are is not known, so it is passed over; try one of its pods, as kind: Pod with --replicas", w.Kind, w.Name))
		}
		return out, nil
	}
	if w.pod.Namespace = m.Namespace; w.pod.Namespace == "" {
		w.pod.Namespace = namespace
	}
	w.pod.UID, w.pod.Spec.NodeName = "", ""
	return append(out, w), nil
}

func (m *manifest) template() *v1.PodTemplateSpec {
	switch {
	case m.Spec.Template != nil:
		return m.Spec.Template
	case m.Spec.JobTemplate != nil:
		return m.Spec.JobTemplate.Spec.Template
	}
	return m.Template
}

// replicas that run at once.
func (m *manifest) replicas() int {
	parallelism := m.Spec.Parallelism
	if m.Spec.JobTemplate != nil {
		parallelism = m.Spec.JobTemplate.Spec.Parallelism
	}
	switch {
	case m.Spec.Replicas != nil:
		return int(*m.Spec.Replicas)
	case parallelism != nil && m.Spec.Completions != nil:
		return int(min(*parallelism, *m.Spec.Completions))
	case parallelism != nil:
		return int(*parallelism)
	}
	return 1
}
