// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
	"github.com/dynamig/dynamig/pkg/nvml"
)

func a100(t *testing.T) *geometry.Model {
	t.Helper()
	board, ok := boards.Named("A100-40GB")
	if !ok {
		t.Fatal("there is no board A100-40GB")
	}
	m, err := board.Model()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// spanAt reads "2g.10gb@0".
func spanAt(t *testing.T, place string) v1alpha1.Span {
	t.Helper()
	name, at, _ := strings.Cut(place, "@")
	p, ok := profiles[name]
	span := v1alpha1.Span{GPU: "g", ProfileID: p.id, Size: p.size}
	if _, err := fmt.Sscan(at, &span.Start); err != nil || !ok {
		t.Fatalf("%q is no placement", place)
	}
	return span
}

// hardwareOf reads "2g.10gb@0 1g.5gb@2/half 1g.5gb@3/other": half has no compute
// instance, other has another UUID than the journal knows.
func hardwareOf(t *testing.T, text string) []nvml.Instance {
	t.Helper()
	var out []nvml.Instance
	for _, word := range strings.Fields(text) {
		place, how, _ := strings.Cut(word, "/")
		span := spanAt(t, place)
		in := nvml.Instance{GPU: "g", Profile: nvml.ProfileID(span.ProfileID), Start: int(span.Start), GI: 10 + int(span.Start), UUID: "MIG-" + place}
		switch how {
		case "half":
			in.CI, in.UUID = nvml.NoCI, ""
		case "other":
			in.UUID = "MIG-other"
		}
		out = append(out, in)
	}
	return out
}

// journalOf reads "2g.10gb@0=a 1g.5gb@2 1g.5gb@3=b/creating": owners follow =, and
// a record is live unless it says otherwise.
func journalOf(t *testing.T, text string) map[v1alpha1.Span]record {
	t.Helper()
	out := map[v1alpha1.Span]record{}
	for _, word := range strings.Fields(text) {
		word, state, _ := strings.Cut(word, "/")
		place, owner, _ := strings.Cut(word, "=")
		r := record{State: live, UUID: "MIG-" + place, Owner: types.UID(owner)}
		switch state {
		case "creating":
			r.State, r.UUID = creating, ""
		case "destroying":
			r.State = destroying
		}
		out[spanAt(t, place)] = r
	}
	return out
}

// wantsOf reads "2g.10gb@0=a 1g.5gb@2=b/prepared".
func wantsOf(t *testing.T, text string) []want {
	t.Helper()
	var out []want
	for _, word := range strings.Fields(text) {
		word, how, _ := strings.Cut(word, "/")
		place, owner, _ := strings.Cut(word, "=")
		name, _, _ := strings.Cut(place, "@")
		out = append(out, want{
			span: spanAt(t, place), owner: types.UID(owner), profile: name,
			prepared: how == "prepared", terminating: how == "terminating",
		})
	}
	return out
}

func (s step) text() string {
	name := map[act]string{rest: "rest", create: "create", take: "take", finish: "finish", confirm: "confirm", destroy: "destroy", refuse: "refuse"}[s.act]
	if s.want.owner != "" {
		name += fmt.Sprintf(" for %s", s.want.owner)
	}
	if s.act != rest && s.act != create && s.act != refuse {
		name += fmt.Sprintf(": %s@%d", nameOfProfile(int32(s.target.Profile)), s.target.Start)
	}
	return name
}

func TestNextStep(t *testing.T) {
	cases := []struct {
		name, hardware, journal, wants, want string
	}{
		{name: "nothing wanted, nothing there", want: "rest"},
		{name: "idle instances stay", hardware: "2g.10gb@0", journal: "2g.10gb@0", want: "rest"},
		{name: "foreign instances stay", hardware: "2g.10gb@0 1g.5gb@2/half", want: "rest"},
		{name: "a want is created", wants: "2g.10gb@0=a", want: "create for a"},
		{name: "beside foreign ones", hardware: "1g.5gb@2", wants: "2g.10gb@0=a", want: "create for a"},
		{name: "not for a pod that ends", wants: "2g.10gb@0=a/terminating", want: "rest"},
		{name: "what is there is enough", hardware: "2g.10gb@0", journal: "2g.10gb@0=a", wants: "2g.10gb@0=a", want: "rest"},
		{name: "idle is taken", hardware: "2g.10gb@0", journal: "2g.10gb@0", wants: "2g.10gb@0=a", want: "take for a: 2g.10gb@0"},
		{name: "of a pod that is gone is idle", hardware: "2g.10gb@0", journal: "2g.10gb@0=gone", wants: "2g.10gb@0=a", want: "take for a: 2g.10gb@0"},
		{name: "idle and half is taken first", hardware: "2g.10gb@0/half", journal: "2g.10gb@0/destroying", wants: "2g.10gb@0=a", want: "take for a: 2g.10gb@0"},
		{name: "half is finished", hardware: "2g.10gb@0/half", journal: "2g.10gb@0=a/creating", wants: "2g.10gb@0=a", want: "finish for a: 2g.10gb@0"},
		{name: "half that was whole is finished", hardware: "2g.10gb@0/half", journal: "2g.10gb@0=a", wants: "2g.10gb@0=a", want: "finish for a: 2g.10gb@0"},
		{name: "whole is confirmed", hardware: "2g.10gb@0", journal: "2g.10gb@0=a/creating", wants: "2g.10gb@0=a", want: "confirm for a: 2g.10gb@0"},
		{name: "half and unwanted is undone", hardware: "2g.10gb@0/half", journal: "2g.10gb@0=gone/creating", want: "destroy: 2g.10gb@0"},
		{name: "a destruction goes on", hardware: "2g.10gb@0", journal: "2g.10gb@0/destroying", want: "destroy: 2g.10gb@0"},
		{name: "whole and unwanted is kept", hardware: "2g.10gb@0", journal: "2g.10gb@0=gone/creating", want: "rest"},
		{name: "idle in the way goes", hardware: "1g.5gb@1", journal: "1g.5gb@1", wants: "2g.10gb@0=a", want: "destroy for a: 1g.5gb@1"},
		{name: "idle beside stays", hardware: "1g.5gb@2", journal: "1g.5gb@2", wants: "2g.10gb@0=a", want: "create for a"},
		{name: "idle with the media engines goes", hardware: "1g.5gb@1 1g.5gb+me@3", journal: "1g.5gb@1 1g.5gb+me@3", wants: "1g.5gb+me@5=a", want: "destroy for a: 1g.5gb+me@3"},
		{name: "foreign in the way refuses", hardware: "1g.5gb@1", wants: "2g.10gb@0=a", want: "refuse for a"},
		{name: "foreign in the same place refuses", hardware: "2g.10gb@0", wants: "2g.10gb@0=a", want: "refuse for a"},
		{name: "foreign with the media engines refuses", hardware: "1g.5gb+me@3", wants: "1g.5gb+me@5=a", want: "refuse for a"},
		{name: "replaced is foreign", hardware: "2g.10gb@0/other", journal: "2g.10gb@0", wants: "2g.10gb@0=a", want: "refuse for a"},
		{name: "replaced under a pod that ran keeps its claim", hardware: "2g.10gb@0/other", journal: "2g.10gb@0=a", wants: "2g.10gb@0=a/prepared", want: "rest"},
		{name: "refusals go first", hardware: "1g.5gb@6", wants: "2g.10gb@0=a 1g.5gb@6=a", want: "refuse for a"},
		{name: "the first want goes first", wants: "1g.5gb@6=b 1g.5gb@0=a", want: "create for b"},
		{name: "wants go before leftovers", hardware: "2g.10gb@4/half", journal: "2g.10gb@4/creating", wants: "1g.5gb@0=a", want: "create for a"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			model, wants := a100(t), wantsOf(t, c.wants)
			all, _ := match(hardwareOf(t, c.hardware), journalOf(t, c.journal), wants, model)
			s := situation{
				sick:  func(v1alpha1.Span) bool { return false },
				model: model, found: all, wants: wants,
				due:   func(task) bool { return true },
				stuck: func(v1alpha1.Span) bool { return false },
			}
			if got := s.next().text(); got != c.want {
				t.Errorf("next is %q, want %q", got, c.want)
			}
		})
	}
}

func TestAStepThatIsNotDueDoesNotHoldUpOthers(t *testing.T) {
	model, wants := a100(t), wantsOf(t, "2g.10gb@0=a 1g.5gb@6=b")
	all, _ := match(hardwareOf(t, "1g.5gb@1"), journalOf(t, "1g.5gb@1"), wants, model)
	s := situation{
		sick:  func(v1alpha1.Span) bool { return false },
		model: model, found: all, wants: wants,
		due:   func(k task) bool { return !k.remove },
		stuck: func(v1alpha1.Span) bool { return false },
	}
	if got := s.next().text(); got != "create for b" {
		t.Errorf("next is %q, want %q", got, "create for b")
	}
}

func TestRecordsWithoutHardwareAreVoid(t *testing.T) {
	_, void := match(hardwareOf(t, "2g.10gb@0 1g.5gb@2/other"), journalOf(t, "2g.10gb@0 1g.5gb@2 1g.5gb@3=a"), nil, a100(t))
	want := []v1alpha1.Span{spanAt(t, "1g.5gb@2"), spanAt(t, "1g.5gb@3")}
	if fmt.Sprint(void) != fmt.Sprint(want) {
		t.Errorf("void records are %v, want %v", void, want)
	}
}
