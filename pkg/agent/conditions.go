// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/config"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Reasons of conditions.
const (
	reasonOffering          = "Offering"
	reasonNotConfigured     = "NotConfigured"
	reasonDriverUnavailable = "DriverUnavailable"
	reasonNoGPUs            = "NoGPUs"
	reasonNotOffered        = "NotOffered"
	reasonStarting          = "Starting"
	reasonNone              = "None" // of a condition that is not True
)

// maxConditionMessage is metav1.Condition's limit, in bytes.
const maxConditionMessage = 32768

// conditions lists all of them, without times.
func (f *findings) conditions() []metav1.Condition {
	out := []metav1.Condition{f.readiness()}
	for _, c := range []struct {
		kind, reason string
		sentences    []string
	}{
		{v1alpha1.ConditionConfigInvalid, reasonConfigInvalid, f.invalidConfig()},
		{v1alpha1.ConditionConfigMismatch, "Mismatch", f.mismatches().Dropped},
		{v1alpha1.ConditionConfigRemarks, "Remarks", f.mismatches().Remarks},
		{v1alpha1.ConditionForeignInstances, "Found", f.foreign()},
		{v1alpha1.ConditionHardwareFailing, "Failing", f.failing()},
		{v1alpha1.ConditionJournalLost, "Rebuilt", f.lostJournal()},
		{v1alpha1.ConditionLibraryUnusable, "Unusable", f.libraryTrouble()},
		{v1alpha1.ConditionModePending, "Pending", f.modesPending()},
	} {
		condition := metav1.Condition{Type: c.kind, Status: metav1.ConditionFalse, Reason: reasonNone}
		if len(c.sentences) > 0 {
			condition.Status, condition.Reason = metav1.ConditionTrue, c.reason
			condition.Message = strings.Join(c.sentences, "\n")
		}
		condition.Message = condition.Message[:min(len(condition.Message), maxConditionMessage)]
		out = append(out, condition)
	}
	return out
}

// invalidConfig lists the mistakes of the newest configuration, and says what is in
// force instead.
func (f *findings) invalidConfig() []string {
	out := lines(f.invalid)
	if len(out) > 0 && f.good {
		out = append(out, v1alpha1.LastGoodInForce+".")
	}
	return out
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// readiness says whether the node offers GPUs, and if not, what to do.
func (f *findings) readiness() metav1.Condition {
	offered, whys := f.offered()
	condition := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	switch inv := f.inventory; {
	case !f.good && f.invalid != "":
		condition.Reason, condition.Message = reasonConfigInvalid, "There is no good configuration, so nothing is offered; correct the files that ConfigInvalid names."
	case f.trouble != "":
		condition.Reason, condition.Message = reasonDriverUnavailable, "The GPUs cannot be listed: "+f.trouble
	case inv == nil:
		condition.Reason, condition.Message = reasonStarting, "The GPUs are being read."
	case !inv.configured:
		condition.Reason, condition.Message = reasonNotConfigured, "nodeconfig has no entry for this node, so it offers nothing; add one to the node configuration."
	case len(inv.gpus) == 0:
		condition.Reason, condition.Message = reasonNoGPUs, "The node has no GPU that can be used in the mode wanted and that filterdevices leaves to the agent."
	case offered == 0:
		condition.Reason, condition.Message = reasonNotOffered, strings.Join(whys, "\n")
	default:
		condition.Status, condition.Reason = metav1.ConditionTrue, reasonOffering
		condition.Message = strings.Join(append([]string{fmt.Sprintf("%d of %d GPUs take new work.", offered, len(inv.gpus))}, whys...), "\n")
	}
	if n := f.orphans(); n > 0 {
		between := "\n"
		if len(f.inventory.gpus) == 0 {
			between = " " // kubectl mig status shows the first line
		}
		condition.Message += fmt.Sprintf("%sPods that keep devices of GPUs that the agent does not manage now, until they end: %d.", between, n)
	}
	return condition
}

// orphans counts the pods that hold devices of GPUs that are not reported.
func (f *findings) orphans() int {
	if f.inventory == nil {
		return 0
	}
	reported := map[string]bool{}
	for i := range f.inventory.gpus {
		reported[string(f.inventory.gpus[i].ID)] = true
	}
	n := 0
	for _, o := range f.owners {
		if slices.ContainsFunc(o.spans, func(s v1alpha1.Span) bool { return !reported[s.GPU] }) ||
			slices.ContainsFunc(o.shares, func(d v1alpha1.Device) bool { return !reported[d.GPU] }) {
			n++
		}
	}
	return n
}

// offered counts the GPUs that take new instances and says why the others do not.
func (f *findings) offered() (n int, whys []string) {
	if f.inventory == nil {
		return 0, nil
	}
	for i := range f.inventory.gpus {
		gpu := &f.inventory.gpus[i]
		ok, why := f.inventory.offers(gpu, &f.states[i])
		switch {
		case ok:
			n++
		case why != "":
			whys = append(whys, fmt.Sprintf("GPU %d: %s.", gpu.Index, why))
		}
	}
	return n, whys
}

func (f *findings) mismatches() config.Mismatches {
	if f.inventory == nil {
		return config.Mismatches{}
	}
	return f.inventory.mismatches
}

// foreign names the instances that somebody else has made.
func (f *findings) foreign() []string {
	var out []string
	for i := range f.states {
		gpu, view := &f.inventory.gpus[i], &f.states[i]
		for _, in := range view.instances {
			if in.State == v1alpha1.InstanceForeign {
				out = append(out, fmt.Sprintf("GPU %d has %s at %d (GPU instance %d), which the agent did not create and does not touch; "+
					"destroy it with nvidia-smi mig -i %d -gi %d -dci and -dgi, or exclude the GPU with filterdevices.%s",
					gpu.Index, nameOf(view, in.ProfileID), in.Start, in.GI, gpu.Index, in.GI, f.disables(gpu, view)))
			}
		}
	}
	return out
}

// disables says so where what is blocked leaves free slices, but no layout of the
// configuration: instances of others are not part of one.
func (f *findings) disables(gpu *managedGPU, view *state) string {
	catalogue := f.inventory.catalogues[gpu.Name]
	if catalogue == nil || catalogue.Rule() != geometry.RuleTemplates {
		return ""
	}
	blocked := blockedBy(view, catalogue.Model())
	if _, fits := catalogue.LargestFree(blocked); fits || catalogue.Model().FreeSlices(blocked) == 0 {
		return ""
	}
	return " No layout of the configuration can be cut whole beside it, so the rest of the GPU is not used."
}

// failing says which GPUs and instances cannot be used.
func (f *findings) failing() []string {
	var out []string
	if f.inventory != nil {
		out = append(out, f.inventory.missing...)
	}
	if f.trouble != "" && f.configured {
		out = append(out, "The GPUs cannot be listed: "+f.trouble)
	}
	if f.driverFile != "" && f.configured {
		out = append(out, "Containers cannot be given what they need of the driver, so none of them starts and kubelet is not told of the slots: "+f.driverFile)
	}
	for i := range f.states {
		if why := f.states[i].unhealthy; why != "" {
			out = append(out, fmt.Sprintf("GPU %d: %s.", f.inventory.gpus[i].Index, why))
		}
		for _, why := range lines(strings.TrimSuffix(f.states[i].sickWhy, "\n")) {
			out = append(out, why+"; it is destroyed once its pod has ended.")
		}
	}
	return out
}

// lostJournal is said for as long as there are instances that might be ours.
func (f *findings) lostJournal() []string {
	if f.lost == "" || len(f.foreign()) == 0 {
		return nil
	}
	return []string{"The agent began without its journal: " + f.lost + ". Instances that a bound pod owns were adopted; the others count as foreign and are never destroyed. " +
		"Destroy them with nvidia-smi mig -dci and -dgi, or reboot the node."}
}

func (f *findings) modesPending() []string {
	if f.inventory == nil {
		return nil
	}
	var out []string
	for i := range f.inventory.gpus {
		gpu := &f.inventory.gpus[i]
		if f.states[i].unhealthy != "" {
			continue // HardwareFailing has it; its mode may be that of long ago
		}
		if _, why := f.inventory.offers(gpu, &f.states[i]); why != "" && f.pending(gpu, &f.states[i]) {
			out = append(out, fmt.Sprintf("GPU %d: %s.", gpu.Index, why))
		}
	}
	return out
}

// health is one column: OK, or what is wrong in few words.
func (f *findings) health() string {
	var words []string
	ready := f.readiness()
	switch {
	case ready.Reason == reasonNotOffered:
		words = append(words, "not offered")
	case ready.Status != metav1.ConditionTrue:
		words = append(words, ready.Reason)
	}
	count := func(what string, of func(*state) bool) {
		n := 0
		for i := range f.states {
			if of(&f.states[i]) {
				n++
			}
		}
		if n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, what))
		}
	}
	count("unhealthy", func(s *state) bool { return s.unhealthy != "" })
	count("with failing instances", func(s *state) bool { return len(s.sick) > 0 })
	count("mode pending", func(s *state) bool { return s.modeWhy != "" && s.unhealthy == "" })
	count("with stuck instances", func(s *state) bool { return has(s, v1alpha1.InstanceStuck) })
	count("with foreign instances", func(s *state) bool { return has(s, v1alpha1.InstanceForeign) })
	if f.invalid != "" && ready.Reason != reasonConfigInvalid {
		words = append(words, reasonConfigInvalid)
	}
	if len(f.mismatches().Dropped) > 0 {
		words = append(words, v1alpha1.ConditionConfigMismatch)
	}
	if len(f.libraryTrouble()) > 0 {
		words = append(words, v1alpha1.ConditionLibraryUnusable)
	}
	if len(words) == 0 {
		return "OK"
	}
	return strings.Join(words, ", ")
}

// nameOf names a profile for people.
func nameOf(s *state, id int32) string {
	if p, ok := s.model.Profile(geometry.ProfileID(id)); ok {
		return p.Name
	}
	return fmt.Sprintf("profile %d", id)
}

func has(s *state, what v1alpha1.InstanceState) bool {
	for _, in := range s.instances {
		if in.State == what {
			return true
		}
	}
	return false
}
