// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package geometry

import (
	"cmp"
	"fmt"
	"slices"
)

// Rule says how a model's instances are chosen.
type Rule string

// The rules, in order of precedence.
const (
	// RuleTemplates: the configuration lists whole-GPU layouts, and the first in
	// file order that fits is used.
	RuleTemplates Rule = "Templates"
	// RuleAllowlist: any placeable combination of the listed profiles.
	RuleAllowlist Rule = "Allowlist"
	// RuleHardware: any placeable combination of what NVML offers.
	RuleHardware Rule = "Hardware"
)

// Entry is what a request is compared with: one line of a template, or in the
// other rules one profile.
type Entry struct {
	Profile ProfileID
	Count   int // instances of the profile in the template; its Max in other rules
	// MemoryMiB is what the file promises for one instance. In a template, 0
	// stands for what NVML reports; in a Choice or from Can it means unknown.
	MemoryMiB int
	Cores     int // percent of the GPU; 0 derives floor(100 x compute slices / the GPU's)
}

// Template is one whole-GPU layout of the configuration, as a multiset.
type Template []Entry

// Catalogue is what one model offers under one configuration, with everything
// precomputed that a decision needs. It is immutable.
type Catalogue struct {
	model     *Model
	rule      Rule
	templates []Template // as given, in file order; only in RuleTemplates
	sheets    []sheet    // one for each template, or one for all profiles
	offers    ranking    // of all sheets
	common    []int      // indexes of the profiles that a request gets unasked, ascending by ID
	positions *positions // shared with the catalogues that WithMix returns
	scores    scores
	states    *states // shared likewise
	tables    *tables
}

// sheet is one list of offers to choose from: a template, or all of a catalogue
// without templates.
type sheet struct {
	template int // in file order, -1 without
	offers   ranking
	stock    stock // of the template; in other rules without counts
}

// measure says which memory of an offer counts.
type measure int

const (
	contract measure = iota // what the file promises
	reported                // what NVML says, for strict requests
	measures
)

// ranking lists offers, smallest first, by each measure.
type ranking [measures][]offer

// offer is an entry with all that a request is compared with.
type offer struct {
	entry   Entry
	profile int           // index in the model
	memory  [measures]int // MiB of one instance, 0 where unknown
	rank    [measures]int // orders offers: the memory, or the size if any memory is unknown
	compute int           // compute slices
	size    int           // memory slices
	special bool          // Profile.Special
	named   bool          // given only to requests that name the profile
}

// Nothing is the catalogue of a GPU that cannot be cut: nothing fits it.
func Nothing(name string) *Catalogue {
	c := &Catalogue{model: &Model{name: name, full: -1}, rule: RuleHardware, tables: new(tables)}
	c.states = newStates(c)
	return c
}

// NewCatalogue checks a configuration against a model and prepares decisions.
// allowed is read in RuleAllowlist only, templates in RuleTemplates only; both
// must then name profiles of the model, and each template must be placeable on
// an idle GPU (CheckTemplate tells beforehand).
//
// It takes well under a millisecond for every known GPU and a handful of templates;
// 40 ms for a hundred. A GPU with more than 16
// units (spans that no placement divides; the largest known has 8) is refused.
func NewCatalogue(m *Model, rule Rule, allowed []ProfileID, templates []Template) (*Catalogue, error) {
	c := &Catalogue{model: m, rule: rule}
	if err := m.checkUnits(); err != nil {
		return nil, fmt.Errorf("building catalogue of %s: %w", m.name, err)
	}
	var err error
	switch rule {
	case RuleTemplates:
		err = c.addTemplates(templates)
	case RuleAllowlist:
		err = c.addProfiles(allowed)
	case RuleHardware:
		err = c.addProfiles(m.ids())
	default:
		err = fmt.Errorf("rule %q is none of %s, %s, %s", rule, RuleTemplates, RuleAllowlist, RuleHardware)
	}
	if err != nil {
		return nil, fmt.Errorf("building catalogue of %s: %w", m.name, err)
	}
	c.rank()
	if c.positions, err = newPositions(c); err != nil {
		return nil, fmt.Errorf("building catalogue of %s: %w", m.name, err)
	}
	c.scores = newScores(m, c.positions, c.uniform())
	c.states, c.tables = newStates(c), new(tables)
	return c, nil
}

// ids lists the ids of all profiles.
func (m *Model) ids() []ProfileID {
	var ids []ProfileID
	for _, p := range m.profiles {
		ids = append(ids, p.ID)
	}
	return ids
}

// addTemplates makes a sheet of each template.
func (c *Catalogue) addTemplates(templates []Template) error {
	if len(templates) == 0 {
		return fmt.Errorf("rule %s has no template; list one or remove the entry of this model", c.rule)
	}
	for i, t := range templates {
		s, err := newStock(c.model, t)
		if err != nil {
			return fmt.Errorf("template %d: %w", i, err)
		}
		sh := sheet{template: i, stock: s}
		for _, e := range t {
			sh.offers[contract] = append(sh.offers[contract], c.model.offer(e))
		}
		c.sheets = append(c.sheets, sh)
		c.templates = append(c.templates, slices.Clone(t))
	}
	return nil
}

// addProfiles makes one sheet of all listed profiles. Special ones are given only
// to requests that name them.
func (c *Catalogue) addProfiles(ids []ProfileID) error {
	if len(ids) == 0 {
		return fmt.Errorf("rule %s allows no profile; list one or remove the entry of this model", c.rule)
	}
	sh := sheet{template: -1}
	for i, id := range ids {
		if slices.Contains(ids[:i], id) {
			continue
		}
		p, ok := c.model.Profile(id)
		if !ok {
			return fmt.Errorf("allowed profile %d: %w; remove it from the list", id, ErrUnknownProfile)
		}
		o := c.model.offer(Entry{Profile: id, Count: p.Max})
		o.named = o.special
		sh.offers[contract] = append(sh.offers[contract], o)
	}
	c.sheets = []sheet{sh}
	return nil
}

// offer fills in what the entry leaves to the profile.
func (m *Model) offer(e Entry) offer {
	i := m.index(e.Profile)
	p := m.profiles[i]
	if e.MemoryMiB == 0 {
		e.MemoryMiB = p.MemoryMiB
	}
	if e.Cores == 0 {
		e.Cores = 100 * p.ComputeSlices / m.grid.ComputeSlices
	}
	return offer{
		entry: e, profile: i, compute: p.ComputeSlices, size: p.Size, special: p.Special(),
		memory: [measures]int{contract: e.MemoryMiB, reported: p.MemoryMiB},
	}
}

// rank orders the offers of every sheet, and of all together, and finds the
// profiles that requests get unasked: those that no offer reserves for requests
// by name, or all when none is left.
func (c *Catalogue) rank() {
	var all []offer
	for _, s := range c.sheets {
		all = append(all, s.offers[contract]...)
	}
	c.offers = ranked(all, all)
	for i := range c.sheets {
		c.sheets[i].offers = ranked(c.sheets[i].offers[contract], all)
	}
	unasked := slices.DeleteFunc(slices.Clone(all), func(o offer) bool { return o.named })
	if len(unasked) == 0 {
		unasked = all
	}
	for _, o := range unasked {
		c.common = append(c.common, o.profile)
	}
	slices.Sort(c.common)
	c.common = slices.Compact(c.common)
}

// ranked sorts offers by memory, then compute slices, plain before special, then
// ID. Where the memory of any offer of the catalogue is unknown, sizes stand in
// for memories, because memory grows with size.
func ranked(offers, all []offer) ranking {
	var r ranking
	for by := range measures {
		unknown := slices.ContainsFunc(all, func(o offer) bool { return o.memory[by] == 0 })
		for _, o := range offers {
			o.rank = [measures]int{}
			o.rank[by] = o.memory[by]
			if unknown {
				o.rank[by] = o.size
			}
			r[by] = append(r[by], o)
		}
		slices.SortStableFunc(r[by], func(a, b offer) int { return a.compare(b, by) })
	}
	return r
}

// compare orders two offers, smaller first.
func (o offer) compare(b offer, by measure) int {
	if n := cmp.Or(cmp.Compare(o.rank[by], b.rank[by]), cmp.Compare(o.compute, b.compute)); n != 0 {
		return n
	}
	if o.special != b.special {
		if b.special {
			return -1
		}
		return 1
	}
	return cmp.Compare(o.profile, b.profile)
}

// Model is the model that the catalogue is of.
func (c *Catalogue) Model() *Model { return c.model }

// Rule is the rule that the catalogue follows.
func (c *Catalogue) Rule() Rule { return c.rule }

// Templates lists the templates in file order; nil in other rules. The list is
// shared: do not change it.
func (c *Catalogue) Templates() []Template { return c.templates }

// Entries lists everything that can be had of an idle GPU, smallest first by the
// file's memory: each template's entries, or the profiles.
func (c *Catalogue) Entries() []Entry {
	var entries []Entry
	for _, o := range c.offers[contract] {
		entries = append(entries, o.entry)
	}
	return entries
}

// Common lists the profiles that requests get without naming them, by ascending
// ID: all where every profile of the catalogue is special.
func (c *Catalogue) Common() []ProfileID {
	var ids []ProfileID
	for _, i := range c.common {
		ids = append(ids, c.model.profiles[i].ID)
	}
	return ids
}
