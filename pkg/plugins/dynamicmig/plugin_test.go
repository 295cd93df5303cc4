// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package dynamicmig

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	"github.com/dynamig/dynamig/pkg/arguments"
)

// argsOf decodes a configuration with these DynamicMIGArgs as kube-scheduler does
// and returns what a plugin factory is given.
func argsOf(t *testing.T, args string) (runtime.Object, error) {
	t.Helper()
	text := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- pluginConfig:\n  - name: DynamicMIG\n"
	if args != "" {
		text += "    args:\n      " + strings.ReplaceAll(args, "\n", "\n      ") + "\n"
	}
	obj, _, err := scheme.Codecs.UniversalDecoder().Decode([]byte(text), nil, nil)
	if err != nil {
		return nil, err
	}
	for _, c := range obj.(*config.KubeSchedulerConfiguration).Profiles[0].PluginConfig {
		if c.Name == Name {
			return c.Args, nil
		}
	}
	t.Fatal("the decoded configuration has no DynamicMIG")
	return nil, nil
}

// TestArgsComeThroughTheConfiguration: kube-scheduler's own reading of the file hands
// each field on.
func TestArgsComeThroughTheConfiguration(t *testing.T) {
	for _, text := range []string{"", "{}", "oversize: Never\nstrictMemory: true\nmix: [{gpumem: 8000, weight: 2}]"} {
		obj, err := argsOf(t, text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeArgs(obj)
		if err != nil {
			t.Fatal(err)
		}
		want, err := arguments.Decode([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("args of %q (-want +got):\n%s", text, diff)
		}
	}
}

func TestArgsOfAnotherTypeAreRefused(t *testing.T) {
	_, err := decodeArgs(&config.NodeAffinityArgs{})
	if want := "decoding DynamicMIGArgs: want the type runtime.Unknown, got *config.NodeAffinityArgs"; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %q", err, want)
	}
}

func TestProfilesWithEqualArgsShareOnePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		companions := 0
		r.factory.Companion = func(context.Context, Shared) error { companions++; return nil }
		defaults, err := argsOf(t, "oversize: Allow")
		if err != nil {
			t.Fatal(err)
		}
		second := r.pluginOf(r.newFramework("another-scheduler", defaults))
		if second == r.plugin || second.core != r.plugin.core {
			t.Error("the second profile has not a plugin of its own over the first one's pool")
		}
		if companions != 0 {
			t.Errorf("the companion was started %d times after the first profile, want 0", companions)
		}
		never, err := argsOf(t, "oversize: Never")
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.tryFramework("third-scheduler", never)
		want := "profile third-scheduler: DynamicMIGArgs differ from another profile's; all profiles share one pool of GPUs, so give them equal arguments"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error of a profile with other args is %v, want one with %q", err, want)
		}
	})
}

func TestCompanionIsStartedOnceWithWhatIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []Shared
		r := newRig(t, func(r *rig) {
			r.factory.Companion = func(_ context.Context, shared Shared) error {
				got = append(got, shared)
				return nil
			}
		})
		r.newFramework("another-scheduler", nil)
		if len(got) != 1 {
			t.Fatalf("the companion was started %d times, want once", len(got))
		}
		s := got[0]
		if s.Pool != r.plugin.pool || s.Handle == nil || s.GPUNodes == nil {
			t.Errorf("the companion was given %+v", s)
		}
		if _, ok := s.Pods.GetIndexer().GetIndexers()[ByNode]; !ok {
			t.Error("the pods have no index ByNode")
		}
	})
}

func TestFactoryNeedsAClientConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.factory = &Factory{}
		want := "creating the client of GPUNodes: the scheduler has no client configuration"
		if _, err := r.tryFramework("dynamig-scheduler", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
	})
}

func TestConnectNamesABadConfiguration(t *testing.T) {
	_, err := connect(&rest.Config{Host: "::not a host::"})
	if want := "creating the client of GPUNodes: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error is %v, want one that begins with %q", err, want)
	}
}

func TestACompanionThatFailsEndsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trouble := errors.New("no lease")
		var got error
		newRig(t, func(r *rig) {
			r.factory.Companion = func(context.Context, Shared) error { return trouble }
			_, got = r.tryFramework("dynamig-scheduler", nil)
			r.informers = scheduler.NewInformerFactory(r.client, 0, nil)
			r.factory.Companion = nil
		})
		if !errors.Is(got, trouble) {
			t.Errorf("error is %v, want %v", got, trouble)
		}
	})
}

// Never and Allow differ where only a larger profile is free.
func TestOversizeNeverKeepsPodsFromLargerProfiles(t *testing.T) {
	for args, want := range map[string]fwk.Code{"oversize: Allow": fwk.Success, "oversize: Never": fwk.Unschedulable} {
		t.Run(args, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				obj, err := argsOf(t, args)
				if err != nil {
					t.Fatal(err)
				}
				r := newRig(t, func(r *rig) { r.args = obj })
				r.start()
				b := report(t, "n", 1).templates("7x1g.5gb", "2x3g.20gb")
				r.addNode(node("n").Obj(), b.GPUNode)
				r.running(b.on(pod("q", "gpu=1 gpumem=20000"), "3g.20gb@0").Obj())
				if status := r.mustBegin(pod("p", "gpu=1 gpumem=4000").Obj()).filter("n"); status.Code() != want {
					t.Errorf("Filter says %v, want %v", status, want)
				}
			})
		})
	}
}

func TestSignPod(t *testing.T) {
	inRig(t, func(r *rig) {
		r.report(report(t, "n", 1).GPUNode)
		sign := func(p *v1.Pod) string { return string(r.framework.SignPod(r.ctx, p)) }
		base := sign(pod("a", "gpu=1 gpumem=8000").Obj())
		if base == "" {
			t.Fatal("a GPU pod has no signature")
		}
		if got := sign(pod("b", "gpu=1 gpumem=8000").Annotation("a", "b").Label("c", "d").Obj()); got != base {
			t.Errorf("pods with equal requests have the signatures %s and %s, want equal ones", got, base)
		}
		others := map[string]*v1.Pod{
			"more memory":            pod("p", "gpu=1 gpumem=8001").Obj(),
			"two devices":            pod("p", "gpu=2 gpumem=8000").Obj(),
			"a percentage":           pod("p", "gpu=1 gpumem-percentage=20").Obj(),
			"cores":                  pod("p", "gpu=1 gpumem=8000 gpucores=30").Obj(),
			"a whole GPU":            pod("p", "gpu=1").Obj(),
			"a profile by name":      pod("p", "gpu=1 gpumem=8000").Annotation("nvidia.com/mig-profile", "1g.10gb").Obj(),
			"another mode":           pod("p", "gpu=1 gpumem=8000").Annotation("nvidia.com/vgpu-mode", "hami-core").Obj(),
			"a policy for nodes":     pod("p", "gpu=1 gpumem=8000").Annotation("hami.io/node-scheduler-policy", "spread").Obj(),
			"a policy for GPUs":      pod("p", "gpu=1 gpumem=8000").Annotation("hami.io/gpu-scheduler-policy", "spread").Obj(),
			"none of our resources":  pod("p", "").Obj(),
			"two containers instead": pod("p", "").Containers([]v1.Container{container("c", "gpu=1 gpumem=8000"), container("d", "gpu=1 gpumem=8000")}).Obj(),
		}
		seen := map[string]string{base: "the base"}
		for what, p := range others {
			got := sign(p)
			if got == "" {
				t.Errorf("a pod with %s has no signature", what)
			}
			// two devices in one container or in two place alike
			if was, ok := seen[got]; ok && what != "two containers instead" && was != "two containers instead" {
				t.Errorf("a pod with %s is signed as %s", what, was)
			}
			seen[got] = what
		}
		for i := range 200 { // they move the mix, and with it the scores
			p := pod("q", "gpu=1 gpumem=8000").UID(fmt.Sprint(i)).Obj()
			r.plugin.pool.See(p)
		}
		synctest.Wait()
		if got := sign(pod("a", "gpu=1 gpumem=8000").Obj()); got == base {
			t.Error("after a change of scores the pod is signed as before")
		}
		if got := sign(pod("p", "gpumem=8000").Obj()); got != "" {
			t.Errorf("a pod that does not parse is signed %s, want no signature", got)
		}
	})
}

// What others place by our names of resources is no wish that is for us to meet.
func TestOnlyPodsOfOurProfilesAreLearnedFrom(t *testing.T) {
	b := report(t, "n", 20)
	wants := func(name string) *st.PodWrapper { return pod(name, "gpu=8 gpumem=8000") }
	for _, way := range []struct {
		name   string
		pod    func(name string, at int) *st.PodWrapper
		learns bool
	}{
		{"another scheduler's pods wait", func(name string, _ int) *st.PodWrapper { return wants(name).SchedulerName("default-scheduler") }, false},
		{"another scheduler's pods are bound", func(name string, _ int) *st.PodWrapper {
			return wants(name).SchedulerName("default-scheduler").Node("n")
		}, false},
		{"our pods were bound by somebody else", func(name string, _ int) *st.PodWrapper { return wants(name).Node("n") }, false},
		{"our pods wait", func(name string, _ int) *st.PodWrapper { return wants(name) }, true},
		{"our pods are bound, as after a start", func(name string, at int) *st.PodWrapper {
			var spans []string
			for i := range 8 {
				spans = append(spans, fmt.Sprintf("1g.10gb@%d:GPU-%d", i%4*2, 2*at+i/4))
			}
			return b.on(wants(name), spans...)
		}, true},
	} {
		t.Run(way.name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.addNode(node("n").Obj(), b.GPUNode)
				before := string(r.framework.SignPod(r.ctx, wants("p").Obj()))
				for i := range 10 {
					r.create(way.pod(fmt.Sprint("p", i), i).Obj())
				}
				if learned := string(r.framework.SignPod(r.ctx, wants("p").Obj())) != before; learned != way.learns {
					t.Errorf("learned: %v, want %v", learned, way.learns)
				}
			})
		})
	}
}
