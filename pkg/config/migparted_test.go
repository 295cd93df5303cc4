// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dynamig/dynamig/pkg/api/v1alpha1"
)

const (
	a100 = "NVIDIA A100-SXM4-40GB"
	h100 = "NVIDIA H100 80GB HBM3"
)

func migParted(t testing.TB, text string) *MIGParted {
	t.Helper()
	m, err := ParseMIGParted("mig.yaml", []byte(text))
	if err != nil {
		t.Fatalf("ParseMIGParted: %v", err)
	}
	return m
}

// onNode is an entry that uses a configuration of testdata/mig-parted.yaml.
func onNode(t testing.TB, fields string) NodeEntry {
	t.Helper()
	n := node(t, `{"nodeconfig": [{"name": "n", `+fields+`}]}`)
	if err := n.UseMIGParted(migParted(t, string(read(t, "mig-parted.yaml")))); err != nil {
		t.Fatal(err)
	}
	e, _ := n.For("n", nil)
	return e
}

// TestMIGPartedSaysModesAndLayouts: what each published form of a configuration
// means for GPUs of a node.
func TestMIGPartedSaysModesAndLayouts(t *testing.T) {
	const a100PCI, h100PCI = "0x20B010DE", "0x233010DE"
	for _, tt := range []struct {
		name, entry string
		pci         []string // of the node's GPUs, by index; with the board's after a colon; "no MIG" for one that cannot do it
		product     string
		modes       string // by index; - for one that is left alone
		offers      string
		says        []string
	}{
		{"MIG off is hami-core", `"migconfig": "all-disabled"`, []string{a100PCI, a100PCI}, a100,
			"hami-core hami-core", "Hardware", nil},
		{"MIG on without a layout narrows nothing", `"migconfig": "all-enabled"`, []string{a100PCI}, a100,
			"mig", "Hardware", nil},
		{"one layout for all", `"migconfig": "all-1g.5gb"`, []string{a100PCI}, a100,
			"mig", "Templates: 7x1g.5gb(4864)", nil},
		{"a variant, although it is not on offer without being named", `"migconfig": "all-1g.5gb.me"`, []string{a100PCI}, a100,
			"mig", "Templates: 1x1g.5gb+me(4864)", nil},
		{"parts of an instance", `"migconfig": "shared"`, []string{a100PCI}, a100,
			"mig", "Hardware", []string{
				`mig-configs.shared (mig.yaml:23): the layout 2x 1c.3g.20gb + 1x 2c.3g.20gb is left out, because NVIDIA A100-SXM4-40GB has no 1c.3g.20gb and 2c.3g.20gb`,
				`mig-configs.shared (mig.yaml:23) has no layout that NVIDIA A100-SXM4-40GB can be cut into, so the entry is not used.`,
				`No usable entry names NVIDIA A100-SXM4-40GB, so it offers every profile that its hardware has.`}},
		{"by kind of board, A100", `"migconfig": "all-balanced"`, []string{a100PCI, a100PCI}, a100,
			"mig mig", "Templates: 2x1g.5gb(4864)+1x2g.10gb(9984)+1x3g.20gb(20096)", nil},
		{"by kind of board, H100", `"migconfig": "all-balanced"`, []string{h100PCI}, h100,
			"mig", "Templates: 2x1g.10gb(9984)+1x2g.20gb(20096)+1x3g.40gb(40448)", nil},
		{"a board that no filter names is left alone", `"migconfig": "all-balanced"`, []string{"0x123410DE", ""}, a100,
			"- -", "Hardware", nil},
		{"unless the entry has a mode for it", `"migconfig": "all-balanced", "operatingmode": "hami-core"`, []string{"0x123410DE", a100PCI}, a100,
			"hami-core mig", "Templates: 2x1g.5gb(4864)+1x2g.10gb(9984)+1x3g.20gb(20096)", nil},
		{"by the board, too", `"migconfig": "by-board"`, []string{a100PCI + ":0x144e10DE", a100PCI + ":0x144F10DE", a100PCI, a100PCI + ":0x145010DE"}, a100,
			"mig hami-core - -", "Templates: 7x1g.5gb(4864)", nil},
		{"variants of a profile", `"migconfig": "variants"`, []string{"0x2BB510DE"}, "NVIDIA RTX PRO 6000 Blackwell Server Edition",
			"mig", "Templates: 1x1g.24gb+me.all(24192)+3x1g.24gb-me(24192)", nil},
		{"all means those that can do MIG", `"migconfig": "all-1g.5gb"`, []string{"no MIG", a100PCI}, a100,
			"- mig", "Templates: 7x1g.5gb(4864)", nil},
		{"and all where MIG is off", `"migconfig": "all-disabled"`, []string{"no MIG", a100PCI}, a100,
			"hami-core hami-core", "Hardware", nil},
		{"by index", `"migconfig": "by-index"`, []string{a100PCI, a100PCI, a100PCI, a100PCI, a100PCI}, a100,
			"hami-core hami-core mig mig -", "Templates: 7x1g.5gb(4864), 2x3g.20gb(20096)", []string{
				"mig-configs.by-index (mig.yaml:39,43) has 2 layouts for GPUs of model NVIDIA A100-SXM4-40GB; each of them may have any one of these."}},
		{"a GPU of the mode that no item cuts frees all", `"migconfig": "by-index", "operatingmode": "mig"`, []string{a100PCI, a100PCI, a100PCI, a100PCI, a100PCI}, a100,
			"hami-core hami-core mig mig mig", "Hardware", []string{"mig-configs.by-index (mig.yaml:39,43) has a layout for some GPUs"}},
		{"the last item about a GPU wins", `"migconfig": "all-but-one"`, []string{a100PCI, a100PCI}, a100,
			"mig hami-core", "Templates: 1x7g.40gb(40320)", nil},
		{"gpus and filterdevices go before", `"migconfig": "all-1g.5gb", "gpus": [{"index": 1, "operatingmode": "hami-core"}], "filterdevices": {"index": [0]}`,
			[]string{a100PCI, a100PCI, a100PCI}, a100, "- hami-core mig", "Templates: 7x1g.5gb(4864)", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := onNode(t, tt.entry)
			var modes []string
			var cut []GPUName
			for i, pci := range tt.pci {
				gpu := GPUName{UUID: "GPU-x", Index: int32(i), NoMIG: pci == "no MIG"}
				gpu.PCI, gpu.Board, _ = strings.Cut(pci, ":")
				mode, why := e.ModeOf(gpu)
				if why != "" {
					mode = "-"
				}
				if modes = append(modes, mode); mode == v1alpha1.ModeMIG {
					cut = append(cut, gpu)
				}
			}
			if got := strings.Join(modes, " "); got != tt.modes {
				t.Errorf("modes %s, want %s", got, tt.modes)
			}
			d, remarks := DefaultDevice().Cut(&e, tt.product, cut)
			m, sentences := resolve(t, d, tt.product)
			if got := described(m); got != tt.offers {
				t.Errorf("offers %s, want %s", got, tt.offers)
			}
			said := append(remarks, sentences...)
			if len(said) != len(tt.says) {
				t.Fatalf("says %q, want %q", said, tt.says)
			}
			for i := range said {
				if !strings.HasPrefix(said[i], tt.says[i]) {
					t.Errorf("says %q, want %q", said[i], tt.says[i])
				}
			}
		})
	}
}

// described is a model's rule with its templates, in the file's order.
func described(m v1alpha1.GPUModel) string {
	var templates []string
	for _, tmpl := range m.Templates {
		var parts []string
		for _, e := range tmpl.Entries {
			parts = append(parts, fmt.Sprintf("%dx%s(%d)", e.Count, nameOf(&m, e.ProfileID), e.MemoryMiB))
		}
		templates = append(templates, strings.Join(parts, "+"))
	}
	if len(templates) == 0 {
		return string(m.Rule)
	}
	return string(m.Rule) + ": " + strings.Join(templates, ", ")
}

func TestMIGPartedLayoutGoesBeforeTheDeviceConfiguration(t *testing.T) {
	e := onNode(t, `"migconfig": "all-1g.5gb"`)
	d := parse(t, "  knownMigGeometries:\n  - models: [ \"A100-SXM4-40GB\" ]\n    allowedGeometries: [[{name: 7g.40gb, memory: 40960, count: 1}]]\n")
	cut, _ := d.Cut(&e, a100, []GPUName{{Index: 0}})
	m, _ := resolve(t, cut, a100)
	if got, want := described(m), "Templates: 7x1g.5gb(4864)"; got != want {
		t.Errorf("offers %s, want %s", got, want)
	}
	e.Cuts = []MIGPartedItem{{Enabled: true, Line: 4, Layout: []GeometryEntry{{Name: "3g.20gb", Count: 3}}}}
	cut, _ = d.Cut(&e, a100, []GPUName{{Index: 0}})
	m, said := resolve(t, cut, a100)
	if got, want := described(m), "Templates: 1x7g.40gb(40960)"; got != want {
		t.Errorf("a layout that cannot be cut: offers %s, want %s; says %q", got, want, said)
	}
	mixed := onNode(t, `"migconfig": "all-enabled"`)
	mixed.Cuts = append(mixed.Cuts, MIGPartedItem{Devices: []int32{1}, Enabled: true, Layout: []GeometryEntry{{Name: "1g.5gb", Count: 7}}, Line: 3})
	same, remarks := d.Cut(&mixed, a100, []GPUName{{Index: 0}, {Index: 1}})
	const want = "mig-configs.all-enabled (mig.yaml:3) has a layout for some GPUs of model NVIDIA A100-SXM4-40GB and none for others, so none of them is held to it."
	if same != d || len(remarks) != 1 || remarks[0] != want {
		t.Errorf("Cut says %q, want %q", remarks, want)
	}
}

// TestStray: names that the node has no GPU for, and GPUs that nothing names.
func TestStray(t *testing.T) {
	two := []GPUName{{UUID: "GPU-a", Index: 0}, {UUID: "GPU-b", Index: 1}}
	for _, tt := range []struct {
		name, entry string
		items       []MIGPartedItem
		want        []string
	}{
		{"an index too many, and a GPU too few", `"name": "n", "migconfig": "a"`, []MIGPartedItem{{Devices: []int32{0, 7}, Enabled: true, Line: 4}}, []string{
			"mig-configs.a (mig.yaml:4): devices names GPU 7, which is not among the 2 GPUs of the node that answer.",
			"GPU 1 is left alone: migconfig a does not select the GPU, and there is no operatingmode for others."}},
		{"all is right", `"name": "n", "migconfig": "a", "operatingmode": "mig", "filterdevices": {"uuid": ["GPU-a"], "index": [1]}, "gpus": [{"index": 0, "operatingmode": "mig"}]`,
			[]MIGPartedItem{{Devices: []int32{0}, Enabled: true}}, nil},
		{"of a node by name", `"name": "n", "filterdevices": {"uuid": ["GPU-c"], "index": [2]}, "gpus": [{"index": 3, "operatingmode": "mig"}, {"uuid": "GPU-d", "operatingmode": "mig"}]`, nil, []string{
			"nodeconfig (line 2): filterdevices names GPU GPU-c, which is not among the 2 GPUs of the node that answer.",
			"nodeconfig (line 2): filterdevices names GPU 2, which is not among the 2 GPUs of the node that answer.",
			"nodeconfig (line 2): gpus names GPU 3, which is not among the 2 GPUs of the node that answer.",
			"nodeconfig (line 2): gpus names GPU GPU-d, which is not among the 2 GPUs of the node that answer."}},
		{"of many nodes, of which others have them", `"default": true, "filterdevices": {"uuid": ["GPU-c"], "index": [2]}`, nil, nil},
	} {
		e := node(t, "nodeconfig:\n- {"+tt.entry+"}").Entries[0]
		e.Cuts, e.CutsFile = tt.items, "mig.yaml"
		if diff := cmp.Diff(tt.want, e.Stray(two)); diff != "" {
			t.Errorf("%s: want (-), got (+):\n%s", tt.name, diff)
		}
	}
}

func TestParseMIGPartedSaysWhatIsWrong(t *testing.T) {
	item := func(fields string) string { return "version: v1\nmig-configs:\n  a:\n  - {" + fields + "}\n" }
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"the file is empty", "", []string{"1: is empty; write version: v1 and mig-configs, or leave out --mig-parted-config"}},
		{"the version is missing", "mig-configs: {a: [{devices: all, mig-enabled: false}]}", []string{"1: version is missing; write version: v1"}},
		{"the version is another", "version: v2\nmig-configs: {a: [{devices: all, mig-enabled: false}]}", []string{`1: version is "v2"; use v1`}},
		{"there is no configuration", "version: v1\nmig-configs: {}", []string{"2: mig-configs has 0 configurations; write 1 to 1000"}},
		{"a configuration has no item", "version: v1\nmig-configs: {a: []}", []string{"2: mig-configs.a is an empty list; write at least one item or remove it"}},
		{"a configuration is there twice", "version: v1\nmig-configs:\n  a: [{devices: all, mig-enabled: false}]\n  a: [{devices: all, mig-enabled: false}]\n", []string{
			"4: mig-configs.a is set twice; remove one"}},
		{"a key is unknown", item("devices: all, mig-enabled: false, device-filters: x"), []string{"4: mig-configs.a[0].device-filters is unknown; did you mean device-filter?"}},
		{"keys are missing", item("mig-devices: {}"), []string{
			"4: mig-configs.a[0].devices is missing; write all, or a list of indexes",
			"4: mig-configs.a[0].mig-enabled is missing; use true or false"}},
		{"the layout is missing", item("devices: all, mig-enabled: true"), []string{
			"4: mig-configs.a[0].mig-devices is missing; write a mapping of profiles to numbers, or {} for any"}},
		{"instances without MIG", item("devices: all, mig-enabled: false, mig-devices: {1g.5gb: 1}"), []string{
			"4: mig-configs.a[0].mig-devices has instances although mig-enabled is false; remove one of the two"}},
		{"devices are wrong", item("devices: some, mig-enabled: false}, {devices: [-1, a], mig-enabled: false"), []string{
			`4: mig-configs.a[0].devices is "some"; use all`,
			"4: mig-configs.a[1].devices[0] is -1; write a whole number from 0 to 65536",
			`4: mig-configs.a[1].devices[1] is "a"; write a whole number from 0 to 65536`}},
		{"the filter is no PCI id", item(`devices: all, mig-enabled: false, device-filter: [A100, "0x20B0"]`), []string{
			`4: mig-configs.a[0].device-filter[0] is "A100"; write PCI device and vendor, such as "0x20B010DE"`,
			`4: mig-configs.a[0].device-filter[1] is "0x20B0"; write PCI device and vendor, such as "0x20B010DE"`}},
		{"no profiles", item("devices: all, mig-enabled: true, mig-devices: {1g5gb: 1, 2g.10gb: 0, 3g.20gb: two}"), []string{
			"4: mig-configs.a[0].mig-devices.1g5gb is no MIG profile; write one such as 1g.10gb or 1g.10gb+me",
			"4: mig-configs.a[0].mig-devices.2g.10gb is 0; write a whole number from 1 to 64",
			`4: mig-configs.a[0].mig-devices.3g.20gb is "two"; write a whole number from 1 to 64`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := ParseMIGParted("f", []byte(strings.ReplaceAll(tt.text, "}, {", "}\n  - {")))
			if m != nil {
				t.Errorf("got %+v of a file with problems", m)
			}
			got := lines(err)
			want := tt.want
			if strings.Contains(tt.text, "}, {") { // the second item is in the next line
				want = append([]string{want[0]}, strings.Split(strings.ReplaceAll(strings.Join(want[1:], "\n"), "4: ", "5: "), "\n")...)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		})
	}
}

func TestMigconfigMustBeInTheFile(t *testing.T) {
	const text = "nodeconfig:\n- {name: a, migconfig: all-1g.5bg}\n- {name: b, migconfig: unheard-of}\n- {name: c, migconfig: all-disabled}\n"
	for _, tt := range []struct {
		name string
		file *MIGParted
		want []string
	}{
		{"the file has others", migParted(t, string(read(t, "mig-parted.yaml"))), []string{
			`2: nodeconfig[0].migconfig is "all-1g.5bg"; mig.yaml has no such configuration; did you mean all-1g.5gb?`,
			`3: nodeconfig[1].migconfig is "unheard-of"; mig.yaml has no such configuration; write the name of one of its mig-configs`}},
		{"there is no file", nil, []string{
			`2: nodeconfig[0].migconfig is "all-1g.5bg"; name mig-parted's file with the agent's flag --mig-parted-config, or remove it`,
			`3: nodeconfig[1].migconfig is "unheard-of"; name mig-parted's file with the agent's flag --mig-parted-config, or remove it`,
			`4: nodeconfig[2].migconfig is "all-disabled"; name mig-parted's file with the agent's flag --mig-parted-config, or remove it`}},
	} {
		if diff := cmp.Diff(tt.want, lines(node(t, text).UseMIGParted(tt.file))); diff != "" {
			t.Errorf("%s: want (-), got (+):\n%s", tt.name, diff)
		}
	}
}

// TestMIGPartedRoundTrip: what is exported of a node is read back as the modes and
// the instances that its GPUs have.
func TestMIGPartedRoundTrip(t *testing.T) {
	profiles, grid := hardware(t, a100)
	id := func(name string) int32 {
		for _, p := range profiles {
			if p.Name == name {
				return p.ID
			}
		}
		t.Fatalf("no profile %s", name)
		return 0
	}
	status := &v1alpha1.GPUNodeStatus{
		Models: []v1alpha1.GPUModel{{Model: a100, Grid: grid, Profiles: profiles}},
		GPUs: []v1alpha1.GPU{
			{Index: 0, Model: a100, Mode: v1alpha1.GPUMode{Current: "mig"}, Instances: []v1alpha1.Instance{
				{ProfileID: id("1g.5gb"), Start: 0, UUID: "MIG-0", State: v1alpha1.InstanceLive}, {ProfileID: id("1g.5gb"), Start: 1, UUID: "MIG-1", State: v1alpha1.InstanceIdle},
				{ProfileID: id("2g.10gb"), Start: 2, CI: 1, State: v1alpha1.InstanceForeign}, // in parts
				{ProfileID: id("3g.20gb"), Start: 4, UUID: "MIG-4", State: v1alpha1.InstanceForeign}}},
			{Index: 1, Model: a100, Mode: v1alpha1.GPUMode{Current: "mig"}},
			{Index: 2, Model: "Tesla V100", Mode: v1alpha1.GPUMode{Current: "hami-core"}},
			{Index: 5, Model: a100, Mode: v1alpha1.GPUMode{Current: "mig"}},
		},
	}
	text, err := EncodeMIGParted("current", status)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]MIGPartedItem{"current": {
		{Line: 5, Devices: []int32{0}, Enabled: true, Layout: []GeometryEntry{{Name: "1g.5gb", Count: 2}, {Name: "3g.20gb", Count: 1}}},
		{Line: 10, Devices: []int32{1, 5}, Enabled: true},
		{Line: 13, Devices: []int32{2}},
	}}
	const left = "# GPU 0: 2g.10gb at 2 is left out, since no compute instance spans it.\nversion: v1\n"
	if !strings.HasPrefix(string(text), left) {
		t.Errorf("the export does not begin with %q:\n%s", left, text)
	}
	if rule := breaks(string(text)); rule != "" {
		t.Errorf("the export breaks %s:\n%s", rule, text)
	}
	got := migParted(t, string(text)).Configs
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s\n%s", diff, text)
	}
	status.GPUs[1].Instances = []v1alpha1.Instance{{ProfileID: 999}}
	if _, err := EncodeMIGParted("current", status); err == nil || !strings.Contains(err.Error(), "GPU 1 has an instance of profile 999") {
		t.Errorf("an instance of no profile: %v", err)
	}
	if _, err := EncodeMIGParted("current", &v1alpha1.GPUNodeStatus{}); err == nil {
		t.Error("a node without GPUs was exported")
	}
}

func FuzzParseMIGParted(f *testing.F) {
	f.Add(read(f, "mig-parted.yaml"))
	for _, seed := range []string{"", "version: v1", "version: v1\nmig-configs: &a {b: [*a]}", "version: v1\nmig-configs: {? [] : []}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMIGParted("f", data)
		if (m == nil) != (err != nil) {
			t.Fatalf("ParseMIGParted = %v, %v; want one of the two", m, err)
		}
		if m != nil && !strings.Contains(string(data), "ConfigMap") {
			if rule := breaks(string(data)); rule != "" {
				t.Fatalf("a file is read that breaks %s of mig-parted's rules", rule)
			}
		}
	})
}
