// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry"
)

// Catalogue says what GPUs of a model offer: what their hardware can, narrowed by
// the first of these that names the model.
//
//  1. The layouts of mig-parted's configuration (Cut), then those of
//     knownMigGeometries: those that the hardware can be cut into, in the order of
//     the file, as Templates.
//  2. migProfileAllowlist: the listed profiles that the hardware has, as Allowed.
//  3. Nothing: every profile of the hardware.
//
// An entry of which nothing can be used counts as none. Profiles are all of the
// hardware in any case. The model is the NVML product name, and profiles are as
// NVML reports them, in any order.
//
// Equal input gives equal output.
func (d *Device) Catalogue(model string, profiles []v1alpha1.Profile, grid v1alpha1.Grid) (v1alpha1.GPUModel, Mismatches) {
	out := v1alpha1.GPUModel{Model: model, Grid: grid, Rule: v1alpha1.RuleHardware, Profiles: sorted(profiles)}
	if len(profiles) == 0 {
		return out, Mismatches{} // a GPU that cannot be cut at all
	}
	hardware, err := out.Geometry()
	if err != nil {
		return out, Mismatches{Dropped: []string{
			fmt.Sprintf("The profiles that NVML reports of %s make no sense, so its configuration is not applied: %v.", model, cmp.Or(errors.Unwrap(err), err)),
		}}
	}
	r := resolver{device: d, hardware: hardware, out: out}
	if !r.useTemplates() && !r.useAllowlist() {
		r.useHardware()
	}
	return r.out, r.mismatches
}

// Mismatches are the parts of the file that do not fit the hardware, a sentence each.
type Mismatches struct {
	Dropped []string // left out: the hardware has no such thing
	Remarks []string // normal with published files: less memory than promised, a model that no entry names
}

// sorted returns a deep copy of profiles by ascending id.
func sorted(profiles []v1alpha1.Profile) []v1alpha1.Profile {
	out := slices.Clone(profiles)
	for i := range out {
		out[i].Starts = slices.Clone(out[i].Starts)
	}
	slices.SortFunc(out, func(a, b v1alpha1.Profile) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// resolver narrows out, which begins with everything that the hardware offers.
type resolver struct {
	device     *Device
	hardware   *geometry.Model
	out        v1alpha1.GPUModel
	mismatches Mismatches
}

// drop says what is left out, each once.
func (r *resolver) drop(format string, args ...any) {
	r.mismatches.Dropped = appendNew(r.mismatches.Dropped, fmt.Sprintf(format, args...))
}

// remark says what is worth knowing, each once.
func (r *resolver) remark(format string, args ...any) {
	r.mismatches.Remarks = appendNew(r.mismatches.Remarks, fmt.Sprintf(format, args...))
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// profile finds the profile that a name of the file means.
func (r *resolver) profile(name string) (geometry.Profile, bool) {
	n, err := geometry.ParseName(name)
	if err != nil {
		return geometry.Profile{}, false
	}
	return r.hardware.Nearest(n)
}

// useTemplates applies rule 1; false when it leaves nothing.
func (r *resolver) useTemplates() bool {
	return r.useLayouts(r.device.Parted) ||
		r.useLayouts(best(r.out.Model, r.device.KnownMigGeometries, func(g *Geometries) []string { return g.Models }))
}

// useLayouts uses what the hardware has of an entry, which may be nil; false when
// that is nothing.
func (r *resolver) useLayouts(entry *Geometries) bool {
	if entry == nil {
		return false
	}
	where := cmp.Or(entry.Where, fmt.Sprintf("knownMigGeometries (%s:%d)", r.device.File, entry.Line))
	for _, layout := range entry.AllowedGeometries {
		if t, ok := r.template(where, layout); ok {
			r.out.Templates = append(r.out.Templates, t)
		}
	}
	if len(r.out.Templates) == 0 {
		r.drop("%s has no layout that %s can be cut into, so the entry is not used.", where, r.out.Model)
		return false
	}
	r.out.Rule = v1alpha1.RuleTemplates
	return true
}

// template resolves a layout. False, with a sentence, when the hardware lacks one
// of its profiles or cannot be cut like that.
func (r *resolver) template(where string, layout []GeometryEntry) (v1alpha1.Template, bool) {
	var t v1alpha1.Template
	var check geometry.Template
	var missing []string
	for _, e := range layout {
		p, ok := r.profile(e.Name)
		if !ok {
			missing = append(missing, e.Name)
			continue
		}
		memory := cmp.Or(e.Memory, int64(p.MemoryMiB))
		t.Entries = append(t.Entries, v1alpha1.TemplateEntry{
			ProfileID: int32(p.ID), Count: e.Count, MemoryMiB: memory, Cores: e.Core,
		})
		check = append(check, geometry.Entry{
			Profile: p.ID, Count: int(e.Count), MemoryMiB: int(memory), Cores: int(e.Core),
		})
	}
	if len(missing) > 0 {
		r.drop("%s: the layout %s is left out, because %s has no %s (it has %s).",
			where, layoutText(layout), r.out.Model, words(missing, "and"), r.has())
		return t, false
	}
	if err := r.hardware.CheckTemplate(check); err != nil {
		r.drop("%s: the layout %s is left out, because %s cannot be cut like that: %v.",
			where, layoutText(layout), r.out.Model, cmp.Or(errors.Unwrap(err), err))
		return t, false
	}
	r.compareMemory(where, layout)
	return t, true
}

// compareMemory says where the file promises more than there is.
func (r *resolver) compareMemory(where string, layout []GeometryEntry) {
	for _, e := range layout {
		p, _ := r.profile(e.Name)
		if p.MemoryMiB > 0 && e.Memory > int64(p.MemoryMiB) {
			r.remark("%s promises %d MiB for %s, but %s of %s has %d MiB.",
				where, e.Memory, e.Name, p.Name, r.out.Model, p.MemoryMiB)
		}
	}
}

// useAllowlist applies rule 2; false when it leaves nothing.
func (r *resolver) useAllowlist() bool {
	entry := best(r.out.Model, r.device.MigProfileAllowlist, func(a *Allowlist) []string { return a.Models })
	if entry == nil {
		return false
	}
	where := fmt.Sprintf("migProfileAllowlist (%s:%d)", r.device.File, entry.Line)
	for _, name := range entry.Profiles {
		p, ok := r.profile(name)
		if !ok {
			r.drop("%s: the profile %s is left out, because %s does not have it (it has %s).",
				where, name, r.out.Model, r.has())
			continue
		}
		r.out.Allowed = append(r.out.Allowed, int32(p.ID))
	}
	if len(r.out.Allowed) == 0 {
		r.drop("%s has no profile of %s, so the entry is not used.", where, r.out.Model)
		return false
	}
	r.out.Rule = v1alpha1.RuleAllowlist
	slices.Sort(r.out.Allowed)
	r.out.Allowed = slices.Compact(r.out.Allowed)
	return true
}

// useHardware applies rule 3. That is news only where the operator has listed
// other models.
func (r *resolver) useHardware() {
	switch {
	case len(r.device.KnownMigGeometries)+len(r.device.MigProfileAllowlist) > 0:
		r.remark("No usable entry of knownMigGeometries or migProfileAllowlist in %s names %s, so it offers every profile that its hardware has.",
			r.device.File, r.out.Model)
	case r.device.Parted != nil:
		r.remark("No usable entry names %s, so it offers every profile that its hardware has.", r.out.Model)
	}
}

// has lists the names of the hardware's profiles.
func (r *resolver) has() string {
	var names []string
	for _, p := range r.hardware.Profiles() {
		names = append(names, p.Name)
	}
	return words(names, "and")
}

// layoutText writes a layout on one line: "3x 2g.10gb + 1x 1g.5gb".
func layoutText(layout []GeometryEntry) string {
	var parts []string
	for _, e := range layout {
		parts = append(parts, fmt.Sprintf("%dx %s", e.Count, e.Name))
	}
	return strings.Join(parts, " + ")
}
