// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
	"github.com/dynamig/dynamig/pkg/geometry/boards"
)

// hardware returns what NVML reports of a product, by descending id.
func hardware(t testing.TB, product string) ([]v1alpha1.Profile, v1alpha1.Grid) {
	t.Helper()
	b, ok := boards.Named(product)
	if !ok {
		t.Fatalf("no board has the product %s", product)
	}
	m, err := b.Model()
	if err != nil {
		t.Fatal(err)
	}
	out := v1alpha1.ModelOf(product, m)
	slices.Reverse(out.Profiles)
	return out.Profiles, out.Grid
}

// resolve is what d says of a product, and the sentences on it: what is left out first.
func resolve(t testing.TB, d *Device, product string) (v1alpha1.GPUModel, []string) {
	t.Helper()
	profiles, grid := hardware(t, product)
	before := slices.Clone(profiles)
	m, mismatches := d.Catalogue(product, profiles, grid)
	checkKinds(t, mismatches)
	if diff := cmp.Diff(before, profiles); diff != "" {
		t.Errorf("Catalogue changed its argument: was (-), is (+):\n%s", diff)
	}
	checkModel(t, m)
	if m.Model != product || m.Grid != grid {
		t.Errorf("Catalogue names %s, %v; want %s, %v", m.Model, m.Grid, product, grid)
	}
	return m, slices.Concat(mismatches.Dropped, mismatches.Remarks)
}

// checkKinds: what stays in force is a remark, and nothing else is.
func checkKinds(t testing.TB, m Mismatches) {
	t.Helper()
	for _, s := range m.Dropped {
		if !strings.Contains(s, " is left out, ") && !strings.HasSuffix(s, " the entry is not used.") {
			t.Errorf("not left out: %s", s)
		}
	}
	for _, s := range m.Remarks {
		if !strings.Contains(s, " promises ") && !strings.HasPrefix(s, "No usable entry ") {
			t.Errorf("not a remark: %s", s)
		}
	}
}

// checkModel holds a GPUModel against invariant I3 and the rules of its kind.
func checkModel(t testing.TB, m v1alpha1.GPUModel) {
	t.Helper()
	if (m.Rule == v1alpha1.RuleTemplates) != (len(m.Templates) > 0) {
		t.Errorf("rule %s with %d templates", m.Rule, len(m.Templates))
	}
	if (m.Rule == v1alpha1.RuleAllowlist) != (len(m.Allowed) > 0) {
		t.Errorf("rule %s with %d allowed profiles", m.Rule, len(m.Allowed))
	}
	if _, err := m.Catalogue(); err != nil { // as the scheduler reads it
		t.Errorf("the catalogue cannot be used: %v", err)
	}
	if !slices.IsSortedFunc(m.Profiles, func(a, b v1alpha1.Profile) int { return int(a.ID - b.ID) }) || !slices.IsSorted(m.Allowed) {
		t.Errorf("profiles %v or allowed %v are not by ascending id", m.Profiles, m.Allowed)
	}
	if once := slices.Compact(slices.Clone(m.Allowed)); len(once) < len(m.Allowed) {
		t.Errorf("allowed %v names a profile twice", m.Allowed)
	}
}

// parse reads the block of a device configuration.
func parse(t testing.TB, block string) *Device {
	t.Helper()
	return device(t, "f", []byte(block))
}

// offered names the profiles that the rule gives: those of the list, or all.
func offered(m v1alpha1.GPUModel) string {
	var out []string
	for _, p := range m.Profiles {
		if m.Rule != v1alpha1.RuleAllowlist || slices.Contains(m.Allowed, p.ID) {
			out = append(out, p.Name)
		}
	}
	return strings.Join(out, " ")
}

const all80GB = "7g.80gb 4g.40gb 3g.40gb 2g.20gb 1g.20gb 1g.10gb 1g.10gb+me"

func TestCatalogueOfTheDocumentedFile(t *testing.T) {
	m, sentences := resolve(t, device(t, "documented.yaml", read(t, "documented.yaml")), "NVIDIA A100 80GB PCIe")
	if m.Rule != v1alpha1.RuleTemplates || offered(m) != all80GB {
		t.Errorf("rule %s with profiles %s, want Templates with all of the hardware", m.Rule, offered(m))
	}
	want := []v1alpha1.Template{
		{Entries: []v1alpha1.TemplateEntry{{ProfileID: 19, Count: 7, MemoryMiB: 10240}}},
		{Entries: []v1alpha1.TemplateEntry{{ProfileID: 14, Count: 3, MemoryMiB: 20480}, {ProfileID: 19, Count: 1, MemoryMiB: 10240}}},
		{Entries: []v1alpha1.TemplateEntry{{ProfileID: 9, Count: 2, MemoryMiB: 40960}}},
		{Entries: []v1alpha1.TemplateEntry{{ProfileID: 0, Count: 1, MemoryMiB: 80896}}}, // 7g.79gb
	}
	if diff := cmp.Diff(want, m.Templates); diff != "" {
		t.Errorf("templates: want (-), got (+):\n%s", diff)
	}
	wantSentences := []string{
		"knownMigGeometries (documented.yaml:27) promises 10240 MiB for 1g.10gb, but 1g.10gb of NVIDIA A100 80GB PCIe has 9856 MiB.",
		"knownMigGeometries (documented.yaml:27) promises 20480 MiB for 2g.20gb, but 2g.20gb of NVIDIA A100 80GB PCIe has 19968 MiB.",
		"knownMigGeometries (documented.yaml:27) promises 40960 MiB for 3g.40gb, but 3g.40gb of NVIDIA A100 80GB PCIe has 40192 MiB.",
		"knownMigGeometries (documented.yaml:27) promises 80896 MiB for 7g.79gb, but 7g.80gb of NVIDIA A100 80GB PCIe has 80384 MiB.",
	}
	if diff := cmp.Diff(wantSentences, sentences); diff != "" {
		t.Errorf("sentences: want (-), got (+):\n%s", diff)
	}
}

func TestCatalogueOfThePublishedLists(t *testing.T) {
	geometries := device(t, "g", read(t, "geometries-2.9.yaml"))
	allowlist := device(t, "a", read(t, "allowlist-2.10.yaml"))
	for _, b := range boards.All() {
		for _, product := range b.Products {
			t.Run(product, func(t *testing.T) {
				m, sentences := resolve(t, geometries, product)
				unmatched := published[product] == ""
				checkSentences(t, sentences, unmatched)
				if layouts := map[string]int{"7x8": 4, "4x4": 3, "4x12": 3}[b.Grid]; !unmatched && len(m.Templates) != layouts {
					t.Errorf("%d templates, want all %d", len(m.Templates), layouts)
				}
				m, sentences = resolve(t, allowlist, product)
				checkSentences(t, sentences, unmatched)
				want, rule := 0, v1alpha1.RuleHardware
				if !unmatched {
					want, rule = map[string]int{"7x8": 4, "4x4": 3, "4x12": 3}[b.Grid], v1alpha1.RuleAllowlist
				}
				if len(m.Allowed) != want || m.Rule != rule {
					t.Errorf("rule %s with allowed %v; want %s with %d", m.Rule, m.Allowed, rule, want)
				}
			})
		}
	}
}

// checkSentences accepts memory that is promised too high, which all published
// lists do, and one sentence on a product that no entry names.
func checkSentences(t testing.TB, sentences []string, unmatched bool) {
	t.Helper()
	if unmatched {
		if len(sentences) != 1 || !strings.HasPrefix(sentences[0], "No usable entry ") {
			t.Errorf("sentences %q, want one on a product that no entry names", sentences)
		}
		return
	}
	for _, s := range sentences {
		if !strings.Contains(s, " promises ") {
			t.Errorf("unexpected sentence: %s", s)
		}
	}
}

func TestCatalogueFollowsThePrecedence(t *testing.T) {
	const (
		layouts = "knownMigGeometries:\n- models: [ A30 ]\n  allowedGeometries: [[{name: 4g.24gb, memory: 24000, count: 1}]]\n"
		list    = "migProfileAllowlist:\n- models: [ A30, B200 ]\n  profiles: [ 2g.12gb, 1g.6gb+me, 2g.12gb ]\n"
		no      = "No usable entry of knownMigGeometries or migProfileAllowlist in f names "
	)
	for _, tt := range []struct {
		name, block, product string
		rule                 v1alpha1.Rule
		profiles             string
		sentences            []string
	}{
		{"layouts go before a list", list + layouts, "NVIDIA A30", v1alpha1.RuleTemplates, "4g.24gb 2g.12gb 2g.12gb+me 1g.6gb 1g.6gb+me", nil},
		{"a list goes before nothing", list, "NVIDIA A30", v1alpha1.RuleAllowlist, "2g.12gb 1g.6gb+me", nil},
		{"without lists all is offered, and that is no news", "defaultCores: 0\n", "NVIDIA A30", v1alpha1.RuleHardware, "4g.24gb 2g.12gb 2g.12gb+me 1g.6gb 1g.6gb+me", nil},
		{"a product that no entry names", layouts + list, "NVIDIA A100-SXM4-80GB", v1alpha1.RuleHardware, all80GB, []string{
			no + "NVIDIA A100-SXM4-80GB, so it offers every profile that its hardware has."}},
		{"a list of which nothing is left", list, "NVIDIA B200", v1alpha1.RuleHardware, "7g.180gb 4g.90gb 3g.90gb 2g.45gb 1g.45gb 1g.23gb 1g.23gb+me", []string{
			"migProfileAllowlist (f:2): the profile 2g.12gb is left out, because NVIDIA B200 does not have it (it has 7g.180gb, 4g.90gb, 3g.90gb, 2g.45gb, 1g.45gb, 1g.23gb and 1g.23gb+me).",
			"migProfileAllowlist (f:2): the profile 1g.6gb+me is left out, because NVIDIA B200 does not have it (it has 7g.180gb, 4g.90gb, 3g.90gb, 2g.45gb, 1g.45gb, 1g.23gb and 1g.23gb+me).",
			"migProfileAllowlist (f:2) has no profile of NVIDIA B200, so the entry is not used.",
			no + "NVIDIA B200, so it offers every profile that its hardware has."}},
		{"layouts of which nothing is left, before a list", strings.Replace(layouts, "4g", "7g", 1) + list, "NVIDIA A30", v1alpha1.RuleAllowlist, "2g.12gb 1g.6gb+me", []string{
			"knownMigGeometries (f:2): the layout 1x 7g.24gb is left out, because NVIDIA A30 has no 7g.24gb (it has 4g.24gb, 2g.12gb, 2g.12gb+me, 1g.6gb and 1g.6gb+me).",
			"knownMigGeometries (f:2) has no layout that NVIDIA A30 can be cut into, so the entry is not used."}},
		{"a board of 141 GB does not take the entry of 96 GB", "migProfileAllowlist:\n- models: [ H20 ]\n  profiles: [ 1g.12gb ]\n", "NVIDIA H20-3e", v1alpha1.RuleHardware,
			"7g.141gb 4g.71gb 3g.71gb 2g.35gb 1g.35gb 1g.18gb 1g.18gb+me", []string{
				no + "NVIDIA H20-3e, so it offers every profile that its hardware has."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, sentences := resolve(t, parse(t, tt.block), tt.product)
			if m.Rule != tt.rule || offered(m) != tt.profiles {
				t.Errorf("rule %s with profiles %s; want %s with %s", m.Rule, offered(m), tt.rule, tt.profiles)
			}
			if diff := cmp.Diff(tt.sentences, sentences); diff != "" {
				t.Errorf("sentences: want (-), got (+):\n%s", diff)
			}
		})
	}
}

func TestCatalogueDropsSingleLayouts(t *testing.T) {
	const block = `knownMigGeometries:
- models: [ A100-SXM4-40GB ]
  allowedGeometries:
  - - {name: 3g.20gb, memory: 20000, count: 2}
    - {name: 1g.5gb, memory: 4000, count: 1}
  - - {name: 1g.5gb, memory: 4000, count: 8}
  - - {name: 2g.10gb, memory: 9000, count: 1}
    - {name: 2g.12gb, memory: 9000, count: 1}
    - {name: 9g.40gb, memory: 9000, count: 1}
  - - {name: 4g.20gb, memory: 20000, count: 1, core: 57}
    - {name: 3g.20gb, memory: 20000, count: 1, core: 43}
`
	m, sentences := resolve(t, parse(t, block), "NVIDIA A100-SXM4-40GB")
	wantTemplates := []v1alpha1.Template{{Entries: []v1alpha1.TemplateEntry{
		{ProfileID: 5, Count: 1, MemoryMiB: 20000, Cores: 57}, {ProfileID: 9, Count: 1, MemoryMiB: 20000, Cores: 43},
	}}}
	if diff := cmp.Diff(wantTemplates, m.Templates); diff != "" {
		t.Errorf("templates: want (-), got (+):\n%s", diff)
	}
	want := []string{
		"knownMigGeometries (f:2): the layout 2x 3g.20gb + 1x 1g.5gb is left out, because NVIDIA A100-SXM4-40GB cannot be cut like that: it cannot be placed on an idle GPU; lower the counts.",
		"knownMigGeometries (f:2): the layout 8x 1g.5gb is left out, because NVIDIA A100-SXM4-40GB cannot be cut like that: 1g.5gb: the count 8 is not from 1 to 7, which the GPU has room for; correct it.",
		"knownMigGeometries (f:2): the layout 1x 2g.10gb + 1x 2g.12gb + 1x 9g.40gb is left out, because NVIDIA A100-SXM4-40GB has no 2g.12gb and 9g.40gb (it has 7g.40gb, 4g.20gb, 3g.20gb, 2g.10gb, 1g.10gb, 1g.5gb and 1g.5gb+me).",
	}
	if diff := cmp.Diff(want, sentences); diff != "" {
		t.Errorf("sentences: want (-), got (+):\n%s", diff)
	}
}

func TestCatalogueFindsTheNearestProfile(t *testing.T) {
	for _, tt := range []struct{ product, name, want string }{
		{"NVIDIA A100-SXM4-80GB", "7g.79gb", "7g.80gb"},
		{"NVIDIA A100-SXM4-80GB", "7g.76gb", ""},        // 4 of 76 is more than 5 %
		{"NVIDIA A100-SXM4-80GB", "1g.10gb", "1g.10gb"}, // there is 1g.20gb, too
		{"NVIDIA A100-SXM4-80GB", "1g.19gb", "1g.20gb"},
		{"NVIDIA A100-SXM4-80GB", "1g.11gb", "1g.10gb"},
		{"NVIDIA A100-SXM4-80GB", "1g.9gb+me", "1g.10gb+me"},
		{"NVIDIA A100-SXM4-80GB", "1g.12gb", ""},
		{"NVIDIA A100-SXM4-80GB", "1g.10gb-me", ""},
		{"NVIDIA A100-SXM4-80GB", "6g.80gb", ""},
		{"NVIDIA B200", "7g.186gb", "7g.180gb"},
		{"NVIDIA RTX PRO 6000 Blackwell Server Edition", "1g.24gb+me.all", "1g.24gb+me.all"},
		{"NVIDIA RTX PRO 6000 Blackwell Server Edition", "2g.48gb-me", "2g.48gb-me"},
	} {
		d := &Device{File: "f", MigProfileAllowlist: []Allowlist{{Models: []string{tt.product}, Profiles: []string{tt.name}}}}
		m, _ := resolve(t, d, tt.product)
		got := offered(m)
		if m.Rule != v1alpha1.RuleAllowlist {
			got = ""
		}
		if got != tt.want {
			t.Errorf("%s of %s is %q, want %q", tt.name, tt.product, got, tt.want)
		}
	}
}

func TestCatalogueOfAGPUWithoutProfiles(t *testing.T) {
	m, sentences := device(t, "f", read(t, "documented.yaml")).Catalogue("Tesla V100-SXM2-32GB", nil, v1alpha1.Grid{})
	if m.Rule != v1alpha1.RuleHardware || len(m.Profiles)+len(m.Templates)+len(sentences.Dropped)+len(sentences.Remarks) > 0 {
		t.Errorf("Catalogue = %+v, %q; want rule Hardware, nothing else", m, sentences)
	}
}

func TestCatalogueSaysThatNVMLMakesNoSense(t *testing.T) {
	profiles, grid := hardware(t, "NVIDIA A30")
	profiles[0].Starts = []int32{9} // off the grid
	m, sentences := device(t, "f", read(t, "documented.yaml")).Catalogue("NVIDIA A30", profiles, grid)
	if m.Rule != v1alpha1.RuleHardware || len(sentences.Dropped) != 1 ||
		!strings.HasPrefix(sentences.Dropped[0], "The profiles that NVML reports of NVIDIA A30 make no sense, so its configuration is not applied: ") {
		t.Errorf("Catalogue = rule %s, %q; want rule Hardware and one sentence", m.Rule, sentences)
	}
}

func TestCatalogueDoesNotSayWhereMemoryIsUnknown(t *testing.T) {
	profiles, grid := hardware(t, "NVIDIA A30")
	for i := range profiles {
		profiles[i].MemoryMiB = 0
	}
	m, sentences := device(t, "f", read(t, "documented.yaml")).Catalogue("NVIDIA A30", profiles, grid)
	if len(m.Templates) != 3 || sentences.Dropped != nil || sentences.Remarks != nil {
		t.Errorf("%d templates and sentences %q, want 3 and none", len(m.Templates), sentences)
	}
}

func FuzzParseDevice(f *testing.F) {
	for _, name := range []string{"documented.yaml", "geometries-2.9.yaml", "allowlist-2.10.yaml"} {
		f.Add(read(f, name))
	}
	f.Add([]byte(everyKey))
	for _, seed := range []string{
		"", "null", "nvidia", "nvidia: &a {knownMigGeometries: [*a]}", "nvidia: {? [a] : b}", "nvidia: {<<: {}}",
		"kind: ConfigMap\ndata:\n  device-config.yaml: |2\n   nvidia: {}\n", "kind: ConfigMap\ndata: []\n",
		"nvidia: {defaultMemory: 0x7fffffff}", "nvidia: {deviceMemoryScaling: 1e-400}", "nvidia: !!binary AA==",
		"nvidia: {knownMigGeometries: [{models: [A30], allowedGeometries: [[{name: 7g.79gb, memory: 1, count: 64}]]}]}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDevice("f", data)
		if (d == nil) != (err != nil) {
			t.Fatalf("ParseDevice = %v, %v; want one of the two", d, err)
		}
		if err != nil {
			return
		}
		for _, product := range []string{"NVIDIA A30", "NVIDIA A100-SXM4-80GB", "NVIDIA RTX PRO 6000 Blackwell Server Edition"} {
			resolve(t, d, product)
		}
	})
}
