// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/pool"
)

// TestNothingFromTheClusterSteersTheTerminal: our own colours do, and nothing else.
func TestNothingFromTheClusterSteersTheTerminal(t *testing.T) {
	const hostile = "a\x1b[2J\x1b]0;title\x07b\rc\nd\te\u009b31mf\u202eg\x7fh"
	const harmless = "a?[2J?]0;title?b?c?d?e?31mf?g?h"
	for _, ascii := range []bool{false, true} {
		var out, notes strings.Builder
		s := newScreen(strings.NewReader(""), &out, &notes, func(string) string { return "" })
		s.unicode = !ascii
		if err := s.print(text(plain, "%s", hostile)); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); got != harmless+"\n" {
			t.Errorf("printed %q, want %q", got, harmless)
		}
		s.colour = true
		if got, want := s.render(text(red, "%s", hostile)), "\x1b[31m"+harmless+"\x1b[0m"; got != want {
			t.Errorf("rendered %q, want %q", got, want)
		}
	}
}

// TestWhatIsInForceIsNoMistake: it is told beside the first mistake, and not counted.
func TestWhatIsInForceIsNoMistake(t *testing.T) {
	const inForce = "The last good configuration stays in force."
	for message, want := range map[string]string{
		"One":                     "One",
		"One\n" + inForce:         "One. " + inForce,
		"One.\nTwo.\n" + inForce:  "One. " + inForce + " (and 1 more; kubectl describe gpunode node1 has all)",
		"One.\nTwo.\nThree.":      "One. (and 2 more; kubectl describe gpunode node1 has all)",
		"One and another\nTwo.\n": "One and another (and 1 more; kubectl describe gpunode node1 has all)",
	} {
		if got := firstLine(message, "node1"); got != want {
			t.Errorf("firstLine(%q) = %q, want %q", message, got, want)
		}
	}
}

// TestSentencesOnce: what stands beside a GPU, or in an earlier condition, is not said
// again, and where the rest is says which node's.
func TestSentencesOnce(t *testing.T) {
	n := &pool.NodePicture{Name: "node1", GPUs: []pool.GPUPicture{{Reason: "The GPU is lost; reset it."}}}
	wrong := func(kind, message string) metav1.Condition {
		status := metav1.ConditionTrue
		if kind == v1alpha1.ConditionReady {
			status = metav1.ConditionFalse
		}
		return metav1.Condition{Type: kind, Status: status, Reason: "X", Message: message}
	}
	n.Conditions = []metav1.Condition{
		wrong(v1alpha1.ConditionReady, "GPU 0: The GPU is lost; reset it."),
		wrong(v1alpha1.ConditionModePending, "One.\nTwo."), wrong(v1alpha1.ConditionConfigInvalid, "One."),
	}
	s := newScreen(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" })
	var got []string
	for _, l := range drawConditions(s, n) {
		got = append(got, s.render(l))
	}
	want := []string{"  ! ModePending: One. (and 1 more; kubectl describe gpunode node1 has all)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
}
