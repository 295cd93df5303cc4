// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

// Package rules holds the repository to what docs/design.md section 1 says about it.
package rules

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/dynamig/dynamig"
	root   = "../.."
)

// deps lists what packages import, directly or not.
func deps(t *testing.T, patterns ...string) []string {
	t.Helper()
	return list(t, "0", append([]string{"-deps"}, patterns...)...)
}

// list runs go list.
func list(t *testing.T, cgo string, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v: %s", args, err, stderr.String())
	}
	return strings.Fields(string(out))
}

// TestOnlyNativeNeedsCgo: what imports NVIDIA's Go packages, which need cgo, lies in
// pkg/nvml/native, and the agent is the only program that has it.
func TestOnlyNativeNeedsCgo(t *testing.T) {
	const nvidia = "github.com/NVIDIA/"
	native := module + "/pkg/nvml/native"
	importers := 0
	for _, line := range list(t, "1", "-f", `{{.ImportPath}}:{{join .Imports ","}}`, "./...") {
		pkg, imports, _ := strings.Cut(line, ":")
		if !strings.Contains(imports, nvidia) && !slices.Contains(strings.Split(imports, ","), "C") {
			continue
		}
		importers++
		if pkg != native && !strings.HasPrefix(pkg, native+"/") {
			t.Errorf("%s imports %s", pkg, imports)
		}
	}
	if importers == 0 {
		t.Error("nothing imports NVIDIA's packages: the test does not see them")
	}
	for _, program := range []string{"scheduler", "nodeagent", "kubectl-mig", "simgpu", "testcluster"} {
		links := slices.ContainsFunc(list(t, "1", "-deps", "./cmd/"+program), func(p string) bool { return strings.HasPrefix(p, nvidia) })
		if links != (program == "nodeagent") {
			t.Errorf("%s links NVIDIA's packages: %t", program, links)
		}
	}
}

// TestDependencyRules: who may import whom.
func TestDependencyRules(t *testing.T) {
	standard := regexp.MustCompile(`^[a-z0-9]+(/|$)`) // no dot in the first element
	isStandard := func(p string) bool {
		first, _, _ := strings.Cut(p, "/")
		return standard.MatchString(p) && !strings.Contains(first, ".")
	}
	under := func(p string, prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") })
	}
	own := func(p string) bool { return under(p, module) }
	for _, tc := range []struct {
		name     string
		packages string
		allowed  func(p string) bool
	}{
		{
			"geometry imports the standard library only", "./pkg/geometry",
			func(p string) bool { return isStandard(p) || under(p, module+"/pkg/geometry") },
		},
		{
			"api imports geometry and no other package of ours", "./pkg/api/v1alpha1",
			func(p string) bool {
				return !under(p, "k8s.io/kubernetes", "k8s.io/client-go") && (!own(p) || under(p, module+"/pkg/geometry", module+"/pkg/api"))
			},
		},
		{
			"pool knows neither framework nor clients nor NVML", "./pkg/pool",
			func(p string) bool {
				return !under(p, "k8s.io/kubernetes", "k8s.io/client-go", "k8s.io/kube-scheduler") &&
					(!own(p) || under(p, module+"/pkg/geometry", module+"/pkg/api", module+"/pkg/pool"))
			},
		},
		{
			"replay knows neither framework nor clients nor NVML", "./pkg/replay",
			func(p string) bool {
				return !under(p, "k8s.io/kubernetes", "k8s.io/client-go", "k8s.io/kube-scheduler") &&
					(!own(p) || under(p, module+"/pkg/geometry", module+"/pkg/api", module+"/pkg/pool", module+"/pkg/config", module+"/pkg/replay"))
			},
		},
		{
			"nvml is plain Go without Kubernetes", "./pkg/nvml",
			func(p string) bool { return isStandard(p) || own(p) },
		},
		{
			"the plugin does not know agent or NVML", "./pkg/plugins/...",
			func(p string) bool {
				return !under(p, module+"/pkg/agent", module+"/pkg/nvml", module+"/pkg/deviceplugin", module+"/pkg/cdi", "github.com/NVIDIA")
			},
		},
		{
			"the monitor knows neither framework nor plugin nor NVML", "./pkg/monitor/...",
			func(p string) bool {
				return !under(p, "k8s.io/kubernetes", "k8s.io/kube-scheduler", module+"/pkg/plugins", module+"/pkg/nvml", module+"/pkg/agent")
			},
		},
		{
			"the monitor itself, whose tests the race detector runs, does without the API server's libraries", "./pkg/monitor",
			func(p string) bool { return !under(p, "k8s.io/apiserver") },
		},
		{
			"the agent does not know the plugin or link k8s.io/kubernetes", "./cmd/nodeagent",
			func(p string) bool { return !under(p, "k8s.io/kubernetes", module+"/pkg/plugins") },
		},
		{
			"deviceplugin does not know MIG or NVML", "./pkg/deviceplugin",
			func(p string) bool {
				return !under(p, module+"/pkg/nvml", module+"/pkg/geometry", module+"/pkg/agent", module+"/pkg/api")
			},
		},
		{
			"agent does not know kubelet's protocol", "./pkg/agent",
			func(p string) bool { return !under(p, "k8s.io/kubelet", module+"/pkg/deviceplugin", module+"/pkg/cdi") },
		},
		{
			"kubectl-mig links neither k8s.io/kubernetes nor cgo, NVML or the plugin", "./cmd/kubectl-mig",
			func(p string) bool {
				return p != "runtime/cgo" && !under(p, "k8s.io/kubernetes", "github.com/NVIDIA", module+"/pkg/plugins", module+"/pkg/nvml", module+"/pkg/agent")
			},
		},
		{
			"the scheduler never links cgo", "./cmd/scheduler",
			func(p string) bool { return p != "runtime/cgo" && !under(p, "github.com/NVIDIA") },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, p := range deps(t, tc.packages) {
				if !tc.allowed(p) {
					t.Errorf("%s imports %s", tc.packages, p)
				}
			}
		})
	}
}

// clientCalls are patterns of what code that needs a resource has of it.
var clientCalls = map[string]string{
	"configmaps": `\.ConfigMaps\(`, "deployments": `\.Deployments\(`, "events": `\.Events\(`, "gpunodes": `\.GPUNodes\(`, "gpunodes/status": `\.UpdateStatus\(`,
	"leases": `\.Leases\(|\.LeaseLock`, "mutatingadmissionpolicybindings": `\.MutatingAdmissionPolicyBindings\(`, "namespaces": `\.Namespaces\(`,
	"nodes": `\.Nodes\(`, "pods": `\.Pods\(|PodInformer\(`,
}

// TestRBACRulesNameTheirCode: each rule is preceded by a comment that names files, each
// of which has a client of the rule's resource.
func TestRBACRulesNameTheirCode(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "manifests/base/rbac/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no RBAC manifests: %v", err)
	}
	optional, err := filepath.Glob(filepath.Join(root, "manifests/components/*/clusterrole.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, optional...)
	path := regexp.MustCompile(`(pkg|cmd)/[a-z0-9/-]+\.go`)
	rules := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		comment := ""
		var named []string
		for line := range strings.Lines(string(text)) {
			switch {
			case strings.HasPrefix(line, "#"):
				if named != nil { // the one before was the last rule's
					comment, named = "", nil
				}
				comment += line
			case strings.HasPrefix(line, "- apiGroups:"):
				rules++
				named = path.FindAllString(comment, -1)
				if len(named) == 0 {
					t.Errorf("%s: a rule has no comment that names its code: %s", filepath.Base(file), line)
				}
			case strings.HasPrefix(line, "  resources: ["):
				for resource := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(line, "  resources: ["), "]\n"), ", ") {
					for _, p := range named {
						code, err := os.ReadFile(filepath.Join(root, p))
						if call := clientCalls[resource]; err != nil || call == "" || !regexp.MustCompile(call).Match(code) {
							t.Errorf("%s names %s for %s, %v; want a file that matches %q", filepath.Base(file), p, resource, err, call)
						}
					}
				}
			case !strings.HasPrefix(line, " "):
				comment = ""
			}
		}
	}
	if rules < 5 {
		t.Errorf("only %d rules were read: the test does not see them", rules)
	}
}

// TestTheBasePatchesNoPods: the shipped configuration writes allocations with the
// Binding, and goes without the right to change any pod of the cluster.
func TestTheBasePatchesNoPods(t *testing.T) {
	read := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	mayPatch := regexp.MustCompile(`resources: \[pods\]\n *verbs: \[.*patch`).MatchString
	if !strings.Contains(read("manifests/base/scheduler/config.yaml"), "allocationWrite: Binding") {
		t.Error("the shipped configuration does not say allocationWrite: Binding; its role must then have the component's rule")
	}
	if mayPatch(read("manifests/base/rbac/scheduler-clusterrole.yaml")) {
		t.Error("the base lets the scheduler patch pods, which allocationWrite: Binding does not need")
	}
	if !mayPatch(read("manifests/components/allocation-annotation/clusterrole.yaml")) {
		t.Error("component allocation-annotation does not let the scheduler patch pods")
	}
}

// TestEverySourceFileNamesItsLicence: SPDX headers.
func TestEverySourceFileNamesItsLicence(t *testing.T) {
	for _, dir := range []string{"cmd", "pkg", "test", "hack"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			head := text[:min(len(text), 400)]
			if !bytes.Contains(head, []byte("SPDX-License-Identifier: Apache-2.0")) {
				t.Errorf("%s has no SPDX header", path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
