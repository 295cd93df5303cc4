// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// plainLook is a screen wide enough for everything.
var plainLook = look{"", 160, false, true}

// TestWhatMayNotBeReadIsSaid: each denial is named, and the rest is answered.
func TestWhatMayNotBeReadIsSaid(t *testing.T) {
	for _, tc := range []struct {
		name      string
		forbidden []string
		args      string
		code      int
		notes     string // on stderr
		out       string // on stdout
	}{
		{"without GPUNodes there is nothing to say", []string{"gpunodes"}, "status", exitError, "ask for the ClusterRole dynamig-viewer", ""},
		{"without pods of others their instances still take slices", []string{"pods"}, "status node3", exitFine,
			"you may not list pods in all namespaces", "9/12 free"},
		{"others' pods have no names", []string{"pods"}, "status node2", exitFine, "drawn without names", "(hidden)"},
		{"without nodes selectors are not looked at", []string{"nodes"}, "what-if -f testdata/pod.yaml", exitFine, "you may not list nodes", "it would run"},
		{"without the lease nobody knows if anything schedules", []string{"dynamig-system/leases"}, "status", exitFine, "you may not get the lease of dynamig-scheduler", "node1"},
		{"without the ConfigMap the defaults are assumed", []string{"dynamig-system/configmaps"}, "explain pod gpu-pod", exitFine,
			"the scheduler's arguments are taken to be the defaults", "runs on node1"},
		{"without events steps come from the pod", []string{"default/events"}, "explain pod gpu-pod", exitFine, "you may not list events", "PodReady"},
		{"history without events says so", []string{"default/events"}, "history pod gpu-pod", exitFine, "you may not list events", "PodScheduled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, kubeconfig := serve(t, "cluster.yaml", tc.forbidden...)
			got := runOn(t, plainLook, append(strings.Fields(tc.args), "--kubeconfig="+kubeconfig)...)
			if got.code != tc.code || !strings.Contains(got.err, tc.notes) || !strings.Contains(got.out, tc.out) {
				t.Errorf("kubectl mig %s = %d, want %d, with %q on stderr and %q on stdout:\n%s%s", tc.args, got.code, tc.code, tc.notes, tc.out, got.err, got.out)
			}
		})
	}
}

// TestMistakesAreUsageErrors: each names what is wrong, with code 2 or 1.
func TestMistakesAreUsageErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"status", "-o", "xml"}, exitUsage, "-o xml is not known; use table, wide, json, yaml"},
		{[]string{"status", "-l", "=="}, exitUsage, "-l"},
		{[]string{"explain", "gpu-pod"}, exitUsage, "want pod and a name, such as: kubectl mig explain pod gpu-pod"},
		{[]string{"explain", "pod"}, exitUsage, "such as: kubectl mig explain pod NAME"},
		{[]string{"history", "gpu-pod"}, exitUsage, "such as: kubectl mig history pod gpu-pod"},
		{[]string{"export"}, exitUsage, "name one node, such as: kubectl mig export node1"},
		{[]string{"what-if", "-f", "testdata/pod.yaml", "--replicas=0"}, exitUsage, "--replicas is 0; use 1 to"},
		{[]string{"status", "node1", "node2"}, exitUsage, "accepts at most 1 arg"},
		{[]string{"status", "node7"}, exitError, "node node7 has no GPUNode"},
		{[]string{"status", "--free=3g.40GB"}, exitUsage, "--free=3g.40GB: no GPU of this cluster has that profile; use one of 1g.10gb+me, "},
		{[]string{"status", "--free=nonsense", "--watch"}, exitUsage, "use one of"},
		{[]string{"explain"}, exitUsage, "name a pod"},
		{[]string{"explain", "gpu-pod"}, exitUsage, "want pod and a name"},
		{[]string{"explain", "node", "node1"}, exitUsage, `"node" is not known here; use pod`},
		{[]string{"explain", "pod", "nobody"}, exitError, "there is no pod nobody in namespace default; kubectl mig history pod nobody -n default shows"},
		{[]string{"what-if"}, exitUsage, "-f is missing"},
		{[]string{"what-if", "-f", "/does/not/exist"}, exitError, "no such file"},
		{[]string{"what-if", "-f", "testdata/pod.yaml", "--replicas=-1"}, exitUsage, "--replicas is -1"},
		{[]string{"what-if", "-f", write("service.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n")}, exitError, "has neither a pod nor a pod template"},
		{[]string{"what-if", "-f", write("broken.yaml", "kind: [")}, exitError, "reading " + filepath.Join(dir, "broken.yaml")},
		{[]string{"what-if", "-f", write("nogpu.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c}]}\n")}, exitWaiting, ""},
		{[]string{"explain", "pod", "profile-alone"}, exitError,
			"pod default/profile-alone: it asks for no GPU: annotation nvidia.com/mig-profile says which profile, and not how many; add the limit nvidia.com/gpu: 1 to a container"},
		{[]string{"history", "pod", "nobody"}, exitError, "no event about one is kept"},
		{[]string{"history", "gpu", "0"}, exitUsage, "use pod or node"},
	} {
		api, kubeconfig := serve(t, "cluster.yaml")
		api.add(t, "{apiVersion: v1, kind: Pod, metadata: {name: profile-alone, namespace: default, annotations: {nvidia.com/mig-profile: 1g.5gb}}, spec: {nodeName: node1, containers: [{name: c}]}}")
		got := runOn(t, plainLook, append(tc.args, "--kubeconfig="+kubeconfig)...)
		if got.code != tc.code || !strings.Contains(got.err, tc.says) {
			t.Errorf("kubectl mig %v = %d, %q; want %d, %q", tc.args, got.code, got.err, tc.code, tc.says)
		}
	}
}

// TestFiltersThatHideAll are named, with what they hide; one node's are its own.
func TestFiltersThatHideAll(t *testing.T) {
	_, kubeconfig := serve(t, "cluster.yaml")
	for args, want := range map[string]string{
		"status -l foo=bar":                           "No GPUs to show: without -l foo=bar there would be 9.",
		"status -l zone=a --model b200 --free=1g.5gb": "No GPUs to show: without -l zone=a and --model b200 and --free=1g.5gb there would be 9.",
		"status node1 --model b200":                   "No GPUs to show: without --model b200 there would be 2.",
	} {
		if got := runOn(t, plainLook, append(strings.Fields(args), "--kubeconfig="+kubeconfig)...); !strings.Contains(got.out, want) {
			t.Errorf("%s = %d, want %q:\n%s%s", args, got.code, want, got.out, got.err)
		}
	}
}

// TestManyWaitingPods: the map lists the oldest, and names what lists all.
func TestManyWaitingPods(t *testing.T) {
	var st fleetStatus
	for range mostWaiting + 2 {
		st.Waiting = append(st.Waiting, waitingPod{Namespace: "default", Name: "x"})
	}
	s := newScreen(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" })
	lines := st.drawWaiting(s)
	if got, want := s.render(lines[len(lines)-1]), "  ... and 2 more; kubectl mig status -o yaml lists all"; got != want {
		t.Errorf("the last line is %q, want %q", got, want)
	}
}

// synced is a buffer that a running command writes to.
type synced struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *synced) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *synced) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestWatchDrawsAgain: a pod that goes is gone from the next picture, and the end of
// the context ends the command well.
func TestWatchDrawsAgain(t *testing.T) {
	api, kubeconfig := serve(t, "cluster.yaml")
	until, end := watching(t, false, "node2", "--kubeconfig="+kubeconfig)
	until("the first picture", func(s string) bool { return strings.Contains(s, "infer-7c9d-x2x4p") })
	api.awaitWatches(t, 3)
	api.remove("Pod", "infer-7c9d-x2x4p")
	until("a picture in which its instance is leaving", func(s string) bool { return strings.Contains(s, "leaving") })
	end()
}

// watching runs status --watch, which writes pictures and notes to one place. until
// waits for what has been written; end interrupts, and returns all of it.
func watching(t *testing.T, terminal bool, args ...string) (until func(what string, holds func(string) bool), end func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	out := &synced{}
	s := newScreen(strings.NewReader(""), out, out, func(string) string { return "" })
	s.terminal = terminal
	code := make(chan int, 1)
	go func() { code <- run(ctx, s, append([]string{"status", "--watch"}, args...)) }()
	until = func(what string, holds func(string) bool) {
		t.Helper()
		for !holds(out.String()) {
			select {
			case <-ctx.Done():
				t.Fatalf("waiting for %s:\n%s", what, out)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return until, func() string {
		t.Helper()
		cancel()
		if got := <-code; got != exitFine {
			t.Errorf("status --watch = %d after an interrupt, want %d:\n%s", got, exitFine, out)
		}
		return out.String()
	}
}

// TestSilenceBesideTables: on a terminal it stands below each picture, and in a file it
// is told once.
func TestSilenceBesideTables(t *testing.T) {
	const silent = "Nothing is scheduling"
	for _, terminal := range []bool{true, false} {
		api, kubeconfig := serve(t, "full.yaml")
		api.renewed(t, 2*time.Minute)
		until, end := watching(t, terminal, "-o", "wide", "--kubeconfig="+kubeconfig)
		api.awaitWatches(t, 3)
		picture := "--- "
		if terminal {
			picture = "\x1b[H\x1b[2J"
		}
		until("the first picture and its note", func(s string) bool {
			at := strings.Index(s, picture)
			return at >= 0 && strings.Contains(s[at:], silent)
		})
		api.remove("Pod", "train-b")
		until("a picture without the pod", func(s string) bool {
			last := s[strings.LastIndex(s, picture):]
			return strings.Count(s, picture) > 1 && strings.Contains(last, "train-a") && !strings.Contains(last, "train-b") &&
				(!terminal || strings.Contains(last, silent))
		})
		if s := end(); !terminal && strings.Count(s, silent) != 1 {
			t.Errorf("%d notes beside the pictures in a file, want 1:\n%s", strings.Count(s, silent), s)
		}
	}
}

// TestTheEndOfSilence is told in a file, where the note of its beginning stays.
func TestTheEndOfSilence(t *testing.T) {
	var out bytes.Buffer
	s := newScreen(strings.NewReader(""), &out, &out, func(string) string { return "" })
	r, o := redrawing{}, &statusOptions{output: "table"}
	for _, v := range []*survey{{pulse: "beats"}, {silence: "silent for 60s"}, {silence: "silent for 75s"}, {pulse: "beats"}, {pulse: "beats"}} {
		r.remark(s, v, o)
	}
	if got, want := out.String(), "note: silent for 60s\nnote: beats\n"; got != want {
		t.Errorf("notes are %q, want %q", got, want)
	}
}

// renewed makes the scheduler's lease that old.
func (f *fakeAPI) renewed(t *testing.T, ago time.Duration) {
	t.Helper()
	at := metav1.NewMicroTime(time.Now().Add(-ago)).Format(metav1.RFC3339Micro)
	if err := unstructured.SetNestedField(f.object(t, "Lease", "dynamig-scheduler"), at, "spec", "renewTime"); err != nil {
		t.Fatal(err)
	}
}

// TestSilenceThatLasts is no change, though its text holds an age.
func TestSilenceThatLasts(t *testing.T) {
	api, kubeconfig := serve(t, "full.yaml")
	v, a := surveyed(t, kubeconfig)
	for _, step := range []struct {
		ago  time.Duration
		want bool
	}{{0, false}, {2 * time.Minute, true}, {5 * time.Minute, false}, {0, true}, {time.Second, false}} {
		api.renewed(t, step.ago)
		if got := v.fellSilent(t.Context(), a); got != step.want {
			t.Errorf("with a lease renewed %s ago a change is %v, want %v: %q", step.ago, got, step.want, v.silence)
		}
	}
}

// surveyed reads a cluster.
func surveyed(t *testing.T, kubeconfig string) (*survey, *access) {
	t.Helper()
	a := newAccess()
	a.rules.ExplicitPath, a.schedulerNamespace = kubeconfig, "dynamig-system"
	namespace, err := a.connect()
	if err != nil {
		t.Fatal(err)
	}
	v, err := a.survey(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	return v, a
}

// TestCompletion offers commands, nodes and GPU pods.
func TestCompletion(t *testing.T) {
	_, kubeconfig := serve(t, "cluster.yaml")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"__complete", "st"}, "status"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "status", ""}, "node10"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "explain", ""}, "pod"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "explain", "pod", ""}, "gpu-pod"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "history", "node", ""}, "node10"},
		{[]string{"__complete", "--kubeconfig=" + kubeconfig, "status", "--free=1g"}, "1g.5gb"},
		{[]string{"__complete", "what-if", "-o", ""}, "wide"},
		{[]string{"completion", "bash"}, "bash completion"},
		{[]string{"completion", "kubectl"}, "kubectl mig __complete"},
	} {
		if got := runOn(t, plainLook, tc.args...); got.code != exitFine || !strings.Contains(got.out, tc.want) {
			t.Errorf("kubectl mig %v = %d, want %q in %q%s", tc.args, got.code, tc.want, got.out, got.err)
		}
	}
}

// TestGate: what keeps a pod off a node whatever its GPUs hold. Only node10 has room
// for two devices of 15000 MiB.
func TestGate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(node10 *unstructured.Unstructured) error
		code   int
		says   string
	}{
		{"nothing", func(*unstructured.Unstructured) error { return nil }, exitFine, "it would run"},
		{"a cordon", func(n *unstructured.Unstructured) error {
			return unstructured.SetNestedField(n.Object, true, "spec", "unschedulable")
		}, exitWaiting, "node node10 is cordoned; its GPUs have room"},
		{"a taint", func(n *unstructured.Unstructured) error {
			return unstructured.SetNestedSlice(n.Object, []any{map[string]any{"key": "a", "effect": "NoExecute"}}, "spec", "taints")
		}, exitWaiting, "node node10 has the taint a:NoExecute, which the pod does not tolerate"},
		{"slots", func(n *unstructured.Unstructured) error {
			return unstructured.SetNestedField(n.Object, "4", "status", "allocatable", "nvidia.com/gpu")
		}, exitWaiting, "node node10 has too little nvidia.com/gpu left for the pod's request of 2"},
		{"a node that is gone", func(n *unstructured.Unstructured) error {
			n.SetName("another")
			return nil
		}, exitWaiting, "node node10 is gone, and its GPUNode is still there"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api, kubeconfig := serve(t, "cluster.yaml")
			for _, o := range api.objects {
				if o.GetKind() == "Node" && o.GetName() == "node10" {
					if err := tc.change(o); err != nil {
						t.Fatal(err)
					}
				}
			}
			got := runOn(t, plainLook, "what-if", "-f", "testdata/pod.yaml", "--kubeconfig="+kubeconfig)
			if got.code != tc.code || !strings.Contains(got.out, tc.says) {
				t.Errorf("what-if = %d, want %d and %q:\n%s%s", got.code, tc.code, tc.says, got.err, got.out)
			}
		})
	}
}

// configured puts another text in the place of one in the scheduler's configuration.
func configured(t *testing.T, api *fakeAPI, old, text string) {
	t.Helper()
	for _, o := range api.objects {
		if o.GetKind() != "ConfigMap" {
			continue
		}
		data, _, err := unstructured.NestedStringMap(o.Object, "data")
		if err != nil {
			t.Fatal(err)
		}
		data["config.yaml"] = strings.ReplaceAll(data["config.yaml"], old, text)
		if err := unstructured.SetNestedStringMap(o.Object, data, "data"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestArgumentsOfTheScheduler are taken from its ConfigMap: with oversize Never the
// pod of 9000 MiB on the A100 with templates has no place.
func TestArgumentsOfTheScheduler(t *testing.T) {
	for _, tc := range []struct{ oversize, want, note string }{
		{"Allow", "The end of", ""}, {"Never", "memory slices are free", ""},
		{"Sometimes", "The end of", `are taken to be the defaults (oversize: Allow, strictMemory: false): DynamicMIGArgs: oversize is "Sometimes"`},
		{"Allow, deviceConfig: /etc/device-config.yaml", "The end of", "no ConfigMap of deployment dynamig-system/dynamig-scheduler is mounted as /etc/device-config.yaml"},
	} {
		api, kubeconfig := serve(t, "full.yaml")
		configured(t, api, "Allow", tc.oversize)
		got := runOn(t, plainLook, "explain", "pod", "wants-10g", "--kubeconfig="+kubeconfig)
		if got.code != exitWaiting || !strings.Contains(got.out, tc.want) || strings.Contains(got.out, "larger than asked for") == (tc.oversize == "Never") ||
			!strings.Contains(got.err, tc.note) || tc.note == "" && got.err != "" {
			t.Errorf("explain with oversize %s = %d, want %q and the note %q:\n%s%s", tc.oversize, got.code, tc.want, tc.note, got.err, got.out)
		}
	}
}

// TestRenamedResources: in a cluster whose device configuration renames resources,
// everything is said of them under their names, and nothing else differs.
func TestRenamedResources(t *testing.T) {
	fixture, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rename := strings.NewReplacer("nvidia.com/gpumem", "example.com/mem", "nvidia.com/gpucores", "example.com/cores", "nvidia.com/gpu", "example.com/vgpu")
	const section = "    config.yaml: |\n"
	text := strings.Replace(rename.Replace(string(fixture)), section, `    device-config.yaml: |
      nvidia:
        resourceCountName: example.com/vgpu
        resourceMemoryName: example.com/mem
        resourceCoreName: example.com/cores
`+section, 1)
	text = strings.Replace(text, "args: {", "args: {deviceConfig: /etc/dynamig/device-config.yaml, ", 1)
	_, before := serve(t, "full.yaml")
	_, after := serveText(t, text)
	manifest, err := os.ReadFile("testdata/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	renamed := filepath.Join(t.TempDir(), "deployment.yaml")
	if err := os.WriteFile(renamed, []byte(rename.Replace(string(manifest))), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][2][]string{
		{{"status"}}, {{"explain", "pod", "wants-10g"}}, {{"history"}}, {{"__complete", "explain", "pod", ""}},
		{{"what-if", "-f", "testdata/deployment.yaml"}, {"what-if", "-f", renamed}},
	} {
		if args[1] == nil {
			args[1] = args[0]
		}
		want := runOn(t, plainLook, append(args[0], "--kubeconfig="+before)...)
		got := runOn(t, plainLook, append(args[1], "--kubeconfig="+after)...)
		if want.out == "" || strings.Contains(want.err, "usage") {
			t.Fatalf("%v: %s%s", args[0], want.out, want.err)
		}
		if diff := cmp.Diff(rename.Replace(want.out+want.err), got.out+got.err); diff != "" || got.code != want.code {
			t.Errorf("%v: code %d and %d, output (-want +got):\n%s", args[0], want.code, got.code, diff)
		}
	}
}

// TestPicturesInAFile: one like the last is left out, and a terminal gets each.
func TestPicturesInAFile(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		var out bytes.Buffer
		s := newScreen(strings.NewReader(""), &out, &out, func(string) string { return "" })
		s.terminal = terminal
		var r redrawing
		for _, picture := range []string{"one", "one", "two", "one"} {
			if err := r.show(s, func(s *screen) error { return s.print(text(plain, "%s", picture)) }); err != nil {
				t.Fatal(err)
			}
		}
		want := 3
		if terminal {
			want = 4
		}
		if got := strings.Count(out.String(), "one") + strings.Count(out.String(), "two"); got != want {
			t.Errorf("terminal %v: %d pictures, want %d:\n%s", terminal, got, want, out.String())
		}
	}
}

// TestALeaseThatMayNotBeRead is told once, however often it is tried.
func TestALeaseThatMayNotBeRead(t *testing.T) {
	_, kubeconfig := serve(t, "cluster.yaml", "dynamig-system/leases")
	v, a := surveyed(t, kubeconfig)
	told := len(v.notes)
	for range 3 {
		v.fellSilent(t.Context(), a)
	}
	if len(v.notes) != told || told == 0 {
		t.Errorf("%d notes, then %d: %q", told, len(v.notes), v.notes)
	}
}

// TestTablesHaveTheirReasonsBesides: what-if's columns hold no sentences.
func TestTablesHaveTheirReasonsBesides(t *testing.T) {
	for _, output := range []string{"table", "wide"} {
		for manifest, says := range map[string]string{
			"{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: x}, spec: {template: {spec: {containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1}}}]}}}}":    "note: DaemonSet x: a DaemonSet puts one pod on each node",
			"{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {schedulerName: dynamig-scheduler, containers: [{name: c, resources: {limits: {nvidia.com/gpu: 9}}}]}}": "note: Pod x: ",
		} {
			_, kubeconfig := serve(t, "cluster.yaml")
			got := whatIfOf(t, kubeconfig, manifest, "-o", output)
			if got.code != exitWaiting || !strings.Contains(got.err, says) || !strings.Contains(got.out, "<waiting>") || strings.Contains(got.out, "DaemonSet puts") {
				t.Errorf("what-if -o %s = %d, want the note %q:\n%s%s", output, got.code, says, got.err, got.out)
			}
		}
	}
}

// TestTheConfigurationThatIsUsed is the one that --config names.
func TestTheConfigurationThatIsUsed(t *testing.T) {
	files := map[string]string{"/a/old.yaml": "kind: KubeSchedulerConfiguration # old", "/b/config.yaml": "kind: KubeSchedulerConfiguration # new"}
	for arg, want := range map[string]string{"--config=/b/config.yaml": files["/b/config.yaml"], "--v=2": files["/a/old.yaml"]} {
		d := &appsv1.Deployment{}
		d.Spec.Template.Spec.Containers = []v1.Container{{Args: []string{arg}}}
		for range 20 { // maps have no order
			if got, err := configuration(d, files); got != want || err != nil {
				t.Fatalf("with %s the configuration is %q, %v; want %q", arg, got, err, want)
			}
		}
	}
}
